"""The whole path as a user types it: prepare → verify → train → evaluate; what each verb prints and leaves behind."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from support.typed import ROOT, STEPS, made_lines, prepare_typed, train_typed, typed, write_texts

from jobs.__main__ import VERBS, main
from pipeline.config import Config, SubmitConfig, groups, leaves, load, shown
from pipeline.corpus.manifest import read_manifest
from pipeline.run.checkpoint import checkpoint_path, load_checkpoint, save_checkpoint
from pipeline.scoring.perplexity import PROTOCOL
from pipeline.training.restore import read_config

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree")  # 2.6, every fit

TRAIN_KEYS = {
    "train/nats_per_token",
    "train/perplexity",
    "train/gradient_norm",
    "train/learning_rate",
    "speed/tokens_per_second",
    *(f"train/cluster_{what}/{name}" for what in ("nats", "share") for name in ("head", "tail-1", "tail-2")),
}
RUN_KEYS = {"run/goodput", "run/attempt", "run/checkpoint_age_seconds"}
VALID_KEYS = {"valid/nats_per_token", "valid/perplexity"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with texts, the corpus prepared from them and a run trained on it, made once; nobody changes it."""
    folder = tmp_path_factory.mktemp("made")
    places = SimpleNamespace(texts=write_texts(folder / "texts"), data=folder / "data", run=folder / "run")
    assert main(prepare_typed(places.texts, places.data)) == 0
    assert main(train_typed(places.data, places.run)) == 0
    return places


def records(run):
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


# --- the path


def test_the_whole_path_as_it_is_typed(tmp_path):
    texts, data, run = write_texts(tmp_path / "a b=c"), tmp_path / "data", tmp_path / "run 1"

    prepared = typed(*prepare_typed(texts, data))
    assert (prepared.returncode, prepared.stderr) == (0, "")
    assert "vocabulary: 52 words" in prepared.stdout and f"data: {data}" in prepared.stdout
    tokens = {"train": 120 * 9, "valid": 20 * 9 + 2, "test": 25 * 9 + 3}
    assert {name: split.num_tokens for name, split in read_manifest(str(data)).splits.items()} == tokens

    verified = typed("verify", f"data={data}")
    assert (verified.returncode, verified.stderr) == (0, "")
    assert verified.stdout == (
        "ok: 3 token shards, test 228 tokens, train 1,080 tokens, valid 182 tokens, vocabulary 52 words\n"
    )

    trained = typed(*train_typed(data, run))
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout == f"{run} is trained to step {STEPS} (from step 0)\n"
    assert trained.stderr.splitlines() == [  # one line, of the validation at the end
        line for line in trained.stderr.splitlines() if line.startswith(f"step {STEPS}/{STEPS}, epoch 1/1, ")
    ]

    evaluated = typed("evaluate", f"run={run}", "accelerator=cpu", "--json")
    assert (evaluated.returncode, evaluated.stderr) == (0, "")
    result = json.loads(evaluated.stdout)
    assert evaluated.stdout.count("\n") == 1
    assert (result["split"], result["targets"], result["oov_rate"]) == ("test", 228, 2 / 228)


def test_the_same_train_command_again_says_finished(made, capsys):
    before = {path: path.stat().st_mtime_ns for path in made.run.rglob("*")}
    assert main(train_typed(made.data, made.run)) == 0
    assert (
        capsys.readouterr().out == f"{made.run} is finished at step {STEPS}; raise max_epochs or max_steps to go on\n"
    )
    assert {path: path.stat().st_mtime_ns for path in made.run.rglob("*")} == before


def test_a_raised_limit_goes_on(made, tmp_path, capsys):
    run = shutil.copytree(made.run, tmp_path / "run")
    assert main(train_typed(made.data, run, f"max_steps={STEPS + 4}")) == 0
    assert capsys.readouterr().out == f"{run} is trained to step {STEPS + 4} (from step {STEPS})\n"
    assert [record["step"] for record in records(run)] == list(range(1, STEPS + 5))


# --- evaluate


@pytest.mark.parametrize(("split", "num_targets"), [("train", 1080), ("valid", 182), ("test", 228)])
@pytest.mark.parametrize("checkpoint", ["best", "last", STEPS])
def test_evaluate_prints_one_json_object(made, capsys, split, num_targets, checkpoint):
    arguments = ["evaluate", f"run={made.run}", f"split={split}", f"checkpoint={checkpoint}", "--json"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result) == ["split", "perplexity", "nats_per_token", "targets", "oov_rate", "protocol"]
    manifest = read_manifest(str(made.data)).splits[split]
    assert (result["split"], result["protocol"]) == (split, PROTOCOL)
    assert result["targets"] == manifest.num_tokens == num_targets
    assert result["oov_rate"] == manifest.num_unk / num_targets
    assert result["perplexity"] == pytest.approx(math.exp(result["nats_per_token"]), rel=1e-12)


def test_evaluate_finds_what_training_logged_of_the_validation_split(made, capsys):
    assert main(["evaluate", f"run={made.run}", "split=valid", "accelerator=cpu", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["nats_per_token"] == pytest.approx(records(made.run)[-1]["valid/nats_per_token"], rel=1e-12)


def test_evaluate_takes_the_checkpoint_of_a_step_or_says_which_there_are(made, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(train_typed(made.data, run, "checkpoint.every_steps=10")) == 0
    found = {}
    for which in (20, STEPS, "last"):
        capsys.readouterr()
        assert main(["evaluate", f"run={run}", f"checkpoint={which}", "--json"]) == 0
        found[which] = json.loads(capsys.readouterr().out)
    assert found[20]["perplexity"] > found[STEPS]["perplexity"]
    assert found[STEPS] == found["last"]
    assert main(["evaluate", f"run={run}", "checkpoint=20"]) == 0
    assert "step 20, as asked for" in capsys.readouterr().out
    assert main(["evaluate", f"run={run}", "checkpoint=11"]) == 2
    assert capsys.readouterr().err == f"error: run={run} holds no checkpoint of step 11; use one of 20, 30\n"


@pytest.mark.parametrize(
    ("typed_in", "near"),
    [("bets", "; did you mean best?"), ("0", ""), ("-3", ""), ("2.5", ""), ("true", ""), ("null", ""), ("[1]", "")],
)
def test_evaluate_refuses_what_names_no_checkpoint(made, capsys, typed_in, near):
    assert main(["evaluate", f"run={made.run}", f"checkpoint={typed_in}"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: checkpoint=") and told.endswith(f": it must be best, last or a step{near}\n")


def test_evaluate_prints_json_of_what_is_no_number(made, tmp_path, capsys):
    """Weights that are finite, with which nothing finite can be computed; a run of before could save them."""
    run = shutil.copytree(made.run, tmp_path / "run")
    path = checkpoint_path(str(run), STEPS)
    checkpoint = load_checkpoint(path)
    for tensor in checkpoint["state_dict"].values():
        tensor.mul_(1e37)
    save_checkpoint(checkpoint, path)
    capsys.readouterr()
    assert main(["evaluate", f"run={run}", "--json"]) == 0
    result = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert result["perplexity"] is result["nats_per_token"] is None
    assert main(["evaluate", f"run={run}"]) == 0
    table = capsys.readouterr().out
    assert table.count("not finite") == 2 and "nan" not in table and "inf" not in table


def test_evaluate_prints_a_table(made, capsys):
    assert main(["evaluate", f"run={made.run}"]) == 0
    table = capsys.readouterr().out
    for text in ("perplexity", "nats per token", "228", "0.88%", "unigram perplexity", f"step {STEPS}", "zero state"):
        assert text in table


def test_evaluate_takes_another_corpus_of_the_same_vocabulary(made, tmp_path, capsys):
    texts, other = tmp_path / "texts", tmp_path / "other"
    texts.mkdir()
    (texts / "test.txt").write_text(made_lines(7, seed=9) + "stranger\n")
    given = f"corpus.vocabulary.path={made.data / 'vocabulary.arrow'}"
    arguments = ["prepare", f"data={other}", f"corpus.test={texts / 'test.txt'}", given, "cluster=none"]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(["evaluate", f"run={made.run}", f"data={other}", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["targets"], result["oov_rate"]) == (7 * 9 + 2, 1 / 65)


def test_evaluate_refuses_a_corpus_of_another_vocabulary(made, tmp_path, capsys):
    texts, other = write_texts(tmp_path / "texts"), tmp_path / "other"
    assert main(prepare_typed(texts, other, "corpus.vocabulary.size=20")) == 0
    capsys.readouterr()
    assert main(["evaluate", f"run={made.run}", f"data={other}"]) == 2
    captured = capsys.readouterr()
    ours, theirs = (read_manifest(str(data)).vocabulary_fingerprint[:12] for data in (made.data, other))
    assert captured.out == ""
    assert captured.err == (
        f"error: data={other} has vocabulary {theirs}, the run was trained with {ours};"
        " prepare it with corpus.vocabulary.path=VOCABULARY of the run's corpus\n"
    )


# --- what a run leaves behind


def test_metrics_hold_one_object_a_line(made):
    lines = Path(made.run, "metrics.jsonl").read_text()
    assert lines.endswith("}\n") and lines.count("\n") == STEPS
    found = records(made.run)
    assert [record["step"] for record in found] == list(range(1, STEPS + 1))
    assert [record["tokens_seen"] for record in found] == [21 * step for step in range(1, STEPS + 1)]
    assert {record["epoch"] for record in found} == {0}
    for record in found[:-1]:
        assert record.keys() == {"step", "tokens_seen", "epoch"} | TRAIN_KEYS | RUN_KEYS
    assert found[-1].keys() == {"step", "tokens_seen", "epoch"} | TRAIN_KEYS | VALID_KEYS | RUN_KEYS
    for record in found:
        assert record["train/perplexity"] == pytest.approx(math.exp(record["train/nats_per_token"]))
        assert record["train/learning_rate"] == 0.01
        assert record["train/gradient_norm"] > 0 and record["speed/tokens_per_second"] > 0
    assert found[-1]["train/nats_per_token"] < found[0]["train/nats_per_token"]


def test_metrics_count_epochs_and_their_last_partial_windows(made, tmp_path):
    run = tmp_path / "run"
    assert main(train_typed(made.data, run, "max_steps=null", "max_epochs=2")) == 0
    found = records(run)  # 1080 targets on 3 lanes of bptt 7: 52 windows, the last of 3 · 3 targets
    assert [record["epoch"] for record in found] == [0] * 52 + [1] * 52
    assert [found[i]["tokens_seen"] for i in (50, 51, 52, 103)] == [1071, 1080, 1101, 2160]
    assert [record["step"] for record in found if "valid/perplexity" in record] == [52, 104]


def test_the_configuration_of_a_run_is_read_back_as_it_was(made):
    config = read_config(str(made.run))
    assert (config.data, config.run) == (str(made.data), str(made.run))
    assert (config.max_steps, config.optim.name, config.model.softmax.cutoffs) == (STEPS, "adam", (10, 30))
    assert config == load(Config, train_typed(made.data, made.run)[1:])


def test_relative_folders_are_kept_absolute(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made.data, "data")
    assert main(train_typed("data", "run", "max_steps=1")) == 0
    config = read_config("run")
    assert (config.data, config.run) == (str(tmp_path / "data"), str(tmp_path / "run"))
    monkeypatch.chdir(ROOT)
    assert main(["evaluate", f"run={tmp_path / 'run'}", "--json"]) == 0


# --- tracking


class UnreachableError(RuntimeError):
    """What a dashboard raises."""


def test_a_tracker_that_cannot_start_does_not_stop_training(made, tmp_path, monkeypatch, caplog):
    import wandb

    def refuse(**_):
        raise UnreachableError("no way to the dashboard")

    monkeypatch.setattr(wandb, "init", refuse)
    run = tmp_path / "run"
    tracked = ["tracking.kind=wandb", "tracking.mode=offline"]
    assert main(train_typed(made.data, run, *tracked)) == 0
    assert [each.getMessage() for each in caplog.records if "tracking" in each.getMessage()] == [
        "tracking stops, training goes on: UnreachableError: no way to the dashboard"
    ]
    assert without_speed(records(run)) == without_speed(records(made.run))


def test_a_tracker_that_breaks_midway_does_not_stop_training(made, tmp_path, monkeypatch, caplog):
    import wandb

    class Breaking:
        logged = 0
        summary: ClassVar[dict[str, float]] = {}

        def define_metric(self, *_, **__):
            pass

        def log_artifact(self, *_, **__):
            raise UnreachableError("no artifacts either, which alone ends nothing")

        def log(self, record):
            self.logged += 1
            if self.logged == 3:
                raise UnreachableError("the line is cut")

        def finish(self):
            raise AssertionError("a broken tracker is left alone")

    breaking = Breaking()
    monkeypatch.setattr(wandb, "init", lambda **_: breaking)
    run = tmp_path / "run"
    tracked = ["tracking.kind=wandb", "tracking.mode=offline"]
    assert main(train_typed(made.data, run, *tracked)) == 0
    assert breaking.logged == 3
    assert len([each for each in caplog.records if "training goes on" in each.getMessage()]) == 1
    assert without_speed(records(run)) == without_speed(records(made.run))


def without_speed(found):
    return [{key: value for key, value in record.items() if not key.startswith(("speed/", "run/"))} for record in found]


@pytest.mark.slow
def test_an_offline_wandb_run_holds_the_numbers_of_the_metrics_file(made, tmp_path):
    run = tmp_path / "run"
    arguments = train_typed(made.data, run, "tracking.kind=wandb", "tracking.mode=offline")
    trained = typed(*arguments)
    assert trained.returncode == 0, trained.stderr
    inspect = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(run / "wandb")]
    found = subprocess.run(inspect, capture_output=True, text=True, check=True)
    entries = [json.loads(line) for line in found.stdout.splitlines()]
    kept = [entry["history"]["item"] for entry in entries if entry["type"] == "history"]
    seen = {item["tokens_seen"]: {key: item[key] for key in item if not key.startswith("_")} for item in kept}
    assert len(kept) == STEPS
    told = {record["tokens_seen"]: record for record in records(run)}
    assert seen == {at: {key: value for key, value in told[at].items() if value is not None} for at in told}
    (axis,) = (entry["metric"] for entry in entries if entry["type"] == "metric" and "glob_name" in entry["metric"])
    assert (axis["glob_name"], axis["step_metric"]) == ("*", "tokens_seen")
    (about,) = (entry["run"] for entry in entries if entry["type"] == "run")
    assert about["run_id"] == (run / "tracking-id").read_text()
    assert about["config"]["update"]["stream"]["num_lanes"] == 3


# --- help


def test_the_verbs_are_listed_as_it_is_typed():
    listed = typed()
    assert (listed.returncode, listed.stderr) == (0, "")
    for verb, (does, *_) in VERBS.items():
        assert f"  {verb:<12}{does}\n" in listed.stdout


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_the_verbs_are_listed(arguments, capsys):
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("usage: python -m jobs VERB [key=value ...]\n")


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_the_keys_with_their_values(verb, flag, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    assert main([verb, flag]) == 0
    lines = capsys.readouterr().out.splitlines()
    schema = VERBS[verb][1]
    assert lines[0].startswith(f"python -m jobs {verb} [key=value ...]")
    explained = [line.split(maxsplit=1) for line in lines[lines.index("keys:") + 1 :] if line.startswith("  ")]
    values = shown(load(schema, [], name=VERBS[verb][2]))
    assert sorted(setting for setting, *_ in explained) == sorted(f"{key}={value}" for key, value in values.items())
    assert not [setting for setting, *text in explained if not text]
    filled = {key.partition(".")[0] for key in leaves(schema)}
    filled |= {"experiment"} if "optim" in filled else set()
    every = {f"  {group}={'|'.join(choices)}": group for group, choices in groups(SubmitConfig).items()}
    assert [line for line in lines if line in every] == [line for line, group in every.items() if group in filled]


@pytest.mark.parametrize(
    ("verb", "flags"), [("evaluate", "[--json]"), ("logs", "[-f]"), ("submit", "[--dry-run] [--json]"), ("train", "")]
)
def test_help_names_the_flags_of_a_verb(verb, flags, capsys):
    assert main([verb, "--help"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"python -m jobs {verb} [key=value ...] {flags}".rstrip()


def test_help_wins_over_what_else_was_typed(capsys):
    assert main(["train", "optm.lr=1", "--help"]) == 0
    assert "\n  optim.lr=20.0  " in capsys.readouterr().out


def test_help_names_the_words_that_a_key_takes(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    assert main(["evaluate", "--help"]) == 0
    lines = {line.split("=")[0].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert lines["accelerator"].endswith(" (auto|cpu|cuda)")
    assert lines["checkpoint"].endswith("kept.")  # a step is no word
    assert lines["split"].endswith("test.")


def test_help_fits_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["evaluate", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    (place,) = [number for number, line in enumerate(lines) if line.startswith("  data=null")]
    assert lines[place + 1].startswith(" " * lines[place].index("Another") + "the same vocabulary")
