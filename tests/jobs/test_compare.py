"""`python -m jobs compare`: what it refuses, trains, keeps, scores, prints and draws."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

import jobs.compare
from jobs.__main__ import main
from jobs.compare import short_names
from pipeline import comparison, storage
from pipeline.config import CONF, CompareConfig, EvaluateConfig, composing, load
from pipeline.corpus.manifest import read_manifest
from pipeline.evaluation import evaluate_split
from pipeline.run import stop
from pipeline.run.account import account
from pipeline.run.checkpoint import committed_steps, read_mark
from pipeline.run.ledger import read_events
from pipeline.run.scores import SCORES_NAME
from pipeline.training import sync
from pipeline.training.module import LanguageModelModule

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree")  # 2.6, every fit

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = """
# @package _global_
defaults:
  - override /optim: adam
max_epochs: null
max_steps: 12
accelerator: cpu
stream: {{num_lanes: 3, bptt: 7}}
model:
  embedding_size: 6
  recurrence: {{hidden_size: {hidden_size}}}
  softmax: {{kind: {softmax}}}
optim: {{lr: {lr}}}
checkpoint: {{validate_every_steps: 6}}
logging: {{every_steps: 1, progress: false}}
tracking: {{kind: none}}
"""


class World:
    """A corpus, and experiments in a folder conf/ of their own; `compare` trains in this process.

    Attributes:
        trained: the experiments that were trained, in order.
    """

    def __init__(self, folder, data, monkeypatch, capsys):
        self.folder, self.data, self.runs, self.trained = folder, data, f"{data}-ladder", []
        self._capsys = capsys
        conf = folder / "conf"
        shutil.copytree(CONF, conf)
        monkeypatch.setattr(composing, "CONF", conf)
        monkeypatch.setattr(jobs.compare, "_train", self._train)
        for name, values in {
            "tiny_small": {"hidden_size": 4, "softmax": "full", "lr": 0.01},
            "tiny_wide": {"hidden_size": 9, "softmax": "adaptive", "lr": 0.01},
            "tiny_wild": {"hidden_size": 4, "softmax": "full", "lr": 1e30},
        }.items():
            (conf / "experiment" / f"{name}.yaml").write_text(EXPERIMENT.format(**values).lstrip())

    def _train(self, rung):
        self.trained.append(rung.name)
        with redirect_stdout(sys.stderr):
            return main(["train", *rung.arguments])

    def compare(self, *names, typed=(), code=0):
        """What is printed on standard output and error."""
        self.trained.clear()
        assert main(["compare", f"experiments=[{','.join(names)}]", f"data={self.data}", *typed]) == code
        return self._capsys.readouterr()

    def json(self, *names, typed=(), code=0):
        out = self.compare(*names, typed=("--json", *typed), code=code).out
        assert out.count("\n") == 1
        return json.loads(out)

    def refused(self, *names, typed=()):
        told = self.compare(*names, typed=typed, code=2)
        assert (told.out, told.err.count("\n"), self.trained) == ("", 1, [])
        return told.err.removeprefix("error: ").strip()

    def run(self, name):
        return storage.join(self.runs, name)


@pytest.fixture
def world(tmp_path, make_corpus, monkeypatch, capsys):
    return World(tmp_path, make_corpus(), monkeypatch, capsys)


# --- mistakes


@pytest.mark.parametrize(
    ("names", "typed", "told"),
    [
        (["tiny_smal"], [], "experiment=tiny_smal is not one of "),
        (["tiny_smal"], [], "; did you mean tiny_small?"),
        (["tiny_small", "tiny_wide", "tiny_small"], [], "names tiny_small twice; name each once"),
        (["tiny_small"], ["overrides=[max_step=2]"], "unknown key max_step; did you mean max_steps?"),
        (["tiny_small"], ["overrides=max_steps=0"], "max_steps=0: it must be greater than or equal to 1, or null"),
        (["tiny_small"], ["overrides=[run=x]"], "overrides has run=x, which is each run's own; use runs=FOLDER"),
        (["tiny_small"], ["overrides=[stream.num_lanes=100000]"], "stream.num_lanes=100000"),
        (["tiny_small"], ["split=tset"], "split=tset is not in data="),
        (["tiny_small"], ["plot=ladder.png"], "plot=ladder.png is no name of a picture; use plot=FILE.svg"),
        (["tiny_small"], ["runs=/dev/null"], "run=/dev/null/tiny_small cannot be written: /dev/null is no folder"),
        (["tiny_small"], ["plot=/dev/null/a.svg"], "plot=/dev/null/a.svg cannot be written: /dev/null is no folder"),
        ([], [], "experiments=[]: "),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(names, typed, told, world):
    before = sorted(world.folder.rglob("*"))
    assert told in world.refused(*names, typed=typed)
    assert sorted(world.folder.rglob("*")) == before


def test_a_corpus_has_to_be_given_and_to_be_whole(world, capsys):
    assert main(["compare", "experiments=[tiny_small]"]) == 2
    assert capsys.readouterr().err == "error: data=null is not given; use data=FOLDER\n"
    shard = Path(world.data, "train", "00000.arrow")
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    assert "has 1 bad token shard(s): train/00000.arrow" in world.refused("tiny_small")


def test_all_that_is_wrong_with_any_of_them_is_told_at_once_and_of_whom(world):
    wrong = world.refused("tiny_small", "tiny_wide", "tiny_wrong", typed=["overrides=[model.softmax.cutoffs=[5,20]]"])
    assert wrong.startswith("tiny_small: model.softmax.cutoffs is no key of model.softmax.kind=full; leave it out")
    assert "; tiny_wrong: experiment=tiny_wrong is not one of " in wrong
    assert "tiny_wide:" not in wrong


def test_the_folder_of_another_run_is_found_before_the_first_is_trained(world):
    world.compare("tiny_wide")
    wrong = world.refused("tiny_small", "tiny_wide", typed=["overrides=[optim.lr=0.02]"])
    assert wrong.startswith("tiny_wide: ")
    assert "is of another run: optim.lr was 0.01 and is 0.02" in wrong
    assert not Path(world.run("tiny_small")).exists()


def test_a_comma_within_an_override_parts_nothing():
    typed = "overrides=[model.softmax.cutoffs=[5,20],max_steps=3,extensions=[a,b]]"
    found = load(CompareConfig, [typed], name="compare").overrides
    assert found == ("model.softmax.cutoffs=[5,20]", "max_steps=3", "extensions=[a,b]")
    assert load(CompareConfig, ["overrides=max_steps=3"], name="compare").overrides == ("max_steps=3",)


def test_the_ladder_is_what_is_compared_if_nothing_is_typed():
    found = load(CompareConfig, [], name="compare").experiments
    assert ",".join(found) == (
        "ladder_ngram,ladder_window,ladder_elman,ladder_gru,ladder_lstm,ladder_minlstm,ladder_transformer"
    )


# --- what is told


def test_each_number_is_that_of_ledger_manifest_mark_and_evaluation(world):
    found = world.json("tiny_wide", "tiny_small", typed=["overrides=[max_steps=15,stream.seed=2]"])
    assert world.trained == ["tiny_wide", "tiny_small"]
    manifest = read_manifest(world.data)
    num_train = manifest.splits["train"].num_tokens
    assert (found["data"], found["fingerprint"], found["runs"]) == (world.data, manifest.fingerprint, world.runs)
    assert (found["split"], found["targets"]) == ("test", manifest.splits["test"].num_tokens)
    assert found["train_words"] == num_train
    assert [row["experiment"] for row in found["experiments"]] == ["tiny_wide", "tiny_small"]
    for row in found["experiments"]:
        run = world.run(row["experiment"])
        assert (row["run"], row["failure"]) == (run, None)
        assert row["protocol"].startswith("one lane from zero state")
        last = read_mark(run, committed_steps(run)[-1])
        assert (last.step, row["words"]) == (15, last.tokens_seen)
        assert row["words"] == 15 * 3 * 7
        assert row["epochs"] == row["words"] / num_train
        assert row["checkpoint"] == read_mark(run, row["step"]).sha256
        spent = account(read_events(run), now=time.time()).seconds
        assert row["seconds"] == pytest.approx(
            {"all": sum(spent.values()) - spent["down"]} | {name: spent[name] for name in spent if name != "down"}
        )
        assert row["seconds"]["productive"] > 0
        assert row["words_per_second"] == row["words"] / spent["productive"]
        wanted = [f"run={run}", "accelerator=cpu"]
        alone = evaluate_split(load(EvaluateConfig, [*wanted, "split=test"], name="evaluate"))
        assert (row["perplexity"], row["step"]) == (alone.score.perplexity, alone.trained.step)
        assert row["parameters"] == sum(each.numel() for each in alone.trained.model.parameters())
        valid = evaluate_split(load(EvaluateConfig, [*wanted, "split=valid"], name="evaluate"))
        assert row["valid_perplexity"] == pytest.approx(valid.score.perplexity, rel=1e-9)
        assert found["unigram"]["perplexity"] == alone.unigram.perplexity
        assert "seed: 2" in Path(run, "config.yaml").read_text()


def test_words_are_those_of_the_whole_run_whichever_checkpoint_is_the_best(world, monkeypatch):
    typed = ["overrides=[checkpoint.every_steps=6,checkpoint.keep_last=3]"]
    world.json("tiny_small", typed=typed)
    run = world.run("tiny_small")
    first, *_, last = committed_steps(run)
    assert first < last == 12
    monkeypatch.setattr(comparison, "choose_step", lambda run, which: (first, "the best"))
    (row,) = world.json("tiny_small", typed=typed)["experiments"]
    assert (row["step"], row["words"]) == (first, last * 3 * 7)
    wanted = [f"run={run}", f"checkpoint={first}", "accelerator=cpu", "split=test"]
    assert row["perplexity"] == evaluate_split(load(EvaluateConfig, wanted, name="evaluate")).score.perplexity


def test_the_table_has_the_unigram_and_the_experiments_in_their_order(world):
    told = world.compare("tiny_wide", "tiny_small", typed=["split=valid"])
    lines = [line.split() for line in told.out.splitlines()]
    assert lines[0][:3] == ["rung", "valid", "valid"]
    assert [line[0] for line in lines[2:5]] == ["unigram", "wide", "small"]
    assert lines[4][1] == lines[4][2]
    assert max(map(len, told.out.splitlines()[:5])) <= 80
    assert f"the runs are in {world.runs}" in told.out
    assert told.out.count("one lane from zero state") == 1


def test_a_corpus_without_valid_has_no_valid_perplexity(tmp_path, make_corpus, monkeypatch, capsys):
    world = World(tmp_path, make_corpus(train=400, test=60), monkeypatch, capsys)
    (row,) = world.json("tiny_small", typed=[f"runs={tmp_path}/elsewhere"])["experiments"]
    assert (row["valid_perplexity"], row["run"]) == (None, f"{tmp_path}/elsewhere/tiny_small")
    assert row["perplexity"] > 1


def test_valid_is_scored_where_the_checkpoint_tells_no_validation(world, monkeypatch):
    sound = comparison.read_mark

    def without(run, step):
        return comparison.replace(sound(run, step), validations={})

    told = world.json("tiny_small")["experiments"][0]["valid_perplexity"]
    monkeypatch.setattr(comparison, "read_mark", without)
    assert world.json("tiny_small")["experiments"][0]["valid_perplexity"] == pytest.approx(told, rel=1e-9)


def test_what_makes_no_updates_has_read_each_word_once(world, monkeypatch):
    sound = comparison.read_mark
    world.json("tiny_small")

    def at_the_start(run, step):
        return comparison.replace(sound(run, step), step=0, tokens_seen=0)

    monkeypatch.setattr(comparison, "read_mark", at_the_start)
    (row,) = world.json("tiny_small")["experiments"]
    assert (row["words"], row["epochs"]) == (read_manifest(world.data).splits["train"].num_tokens, 1.0)


def test_a_model_that_is_not_trained_holds_the_numbers_that_it_scores_by():
    model = torch.nn.Module()
    model.register_buffer("keys", torch.zeros(50, dtype=torch.int64))
    model.register_buffer("log_probabilities", torch.zeros(30))
    model.register_buffer("log_backoffs", torch.zeros(20))
    assert comparison.num_parameters(model) == 50
    model.weight = torch.nn.Parameter(torch.zeros(3, 4))
    assert comparison.num_parameters(model) == 12


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["ladder_gru", "ladder_lstm"], ["gru", "lstm"]),
        (["ptb_small", "ptb_small_wide"], ["small", "small_wide"]),
        (["ladder_a_x", "ladder_a_y"], ["x", "y"]),
        (["ladder_gru"], ["ladder_gru"]),
        (["ptb_small", "wikitext2"], ["ptb_small", "wikitext2"]),
    ],
)
def test_names_lose_what_all_of_them_begin_with(names, short):
    assert short_names(names) == short


# --- what is kept


def test_what_is_trained_and_scored_is_not_trained_or_scored_again(world, monkeypatch):
    first = world.json("tiny_small")
    marks = {path: path.stat().st_mtime_ns for path in Path(world.run("tiny_small")).rglob("*") if path.is_file()}
    monkeypatch.setattr(jobs.compare, "_evaluate", pytest.fail)
    again = world.json("tiny_small")
    assert (world.trained, again) == ([], first)
    assert {path: path.stat().st_mtime_ns for path in marks} == marks


def test_a_score_holds_for_its_checkpoint_and_split_alone(world, monkeypatch):
    scored = []
    sound = jobs.compare._evaluate

    def evaluate(config):
        scored.append((config.split, config.checkpoint))
        return sound(config)

    monkeypatch.setattr(jobs.compare, "_evaluate", evaluate)
    world.json("tiny_small")
    world.json("tiny_small", typed=["split=valid"])
    assert scored == [("test", 12), ("valid", 12)]
    (longer,) = world.json("tiny_small", typed=["overrides=[max_steps=18]"])["experiments"]
    assert world.trained == ["tiny_small"]
    assert (longer["words"], scored[2:]) == (18 * 21, [("test", longer["step"])])
    assert longer["step"] == 18
    monkeypatch.setattr(comparison, "__version__", "99")
    world.json("tiny_small", typed=["overrides=[max_steps=18]"])
    assert len(scored) == 4
    Path(world.run("tiny_small"), SCORES_NAME).write_text("{")
    world.json("tiny_small", typed=["overrides=[max_steps=18]"])
    assert len(scored) == 5


@pytest.mark.parametrize(("cause", "code"), [("SIGTERM", 143), (stop.USER, 0)])
def test_a_run_that_is_stopped_ends_the_command_and_the_same_command_goes_on(cause, code, world, monkeypatch):
    whole = world.json("tiny_wide", "tiny_small", typed=[f"runs={world.folder}/whole"])["experiments"]

    def ask(module, *arguments):
        if module.global_step == 4:
            stop.request_stop(world.run("tiny_wide"), cause=cause, attempt=None)

    with monkeypatch.context() as patch:
        patch.setattr(sync, "SETTLE_SECONDS", 0.0)
        patch.setattr(stop, "LOOK_SECONDS", 0.0)
        patch.setattr(LanguageModelModule, "on_train_batch_end", ask)
        told = world.compare("tiny_wide", "tiny_small", code=code)
    assert (told.out, world.trained) == ("", ["tiny_wide"])
    assert told.err.splitlines()[-1] == (
        "stopped: 1 of 2: tiny_wide is not trained to its end; the same command goes on"
    )
    assert 4 <= committed_steps(world.run("tiny_wide"))[-1] < 12
    rows = world.json("tiny_wide", "tiny_small")["experiments"]
    assert world.trained == ["tiny_wide", "tiny_small"]
    assert [(row["perplexity"], row["words"]) for row in rows] == [(row["perplexity"], row["words"]) for row in whole]
    spent = account(read_events(world.run("tiny_wide")), now=time.time()).seconds
    assert spent["down"] > 0
    assert rows[0]["seconds"]["all"] == pytest.approx(sum(spent.values()) - spent["down"])


def test_one_that_fails_is_named_and_the_others_go_on(world):
    told = world.compare("tiny_wild", "tiny_small", code=2)
    assert world.trained == ["tiny_wild", "tiny_small"]
    rows = [line.split() for line in told.out.splitlines()]
    assert ["wild", "failed"] in rows
    assert [row[0] for row in rows[2:5]] == ["unigram", "wild", "small"]
    last = told.err.splitlines()[-1]
    assert last.startswith("error: 1 of 2 experiments failed: tiny_wild (not finite after step ")
    found = world.json("tiny_wild", "tiny_small", code=2)
    assert world.trained == ["tiny_wild"]  # again, as its settings may have been mended
    assert [row["failure"] is None for row in found["experiments"]] == [False, True]
    assert "perplexity" not in found["experiments"][0]


def test_a_run_that_another_process_trains_in_fails_alone(world):
    from pipeline.run.folder import LOCK_NAME, held

    with held(world.run("tiny_wide"), name=LOCK_NAME, patience_seconds=0, taken=""):
        found = world.json("tiny_wide", "tiny_small", code=2)
    assert [row["failure"] for row in found["experiments"]] == ["train ended with exit code 2 and says why above", None]


def test_one_that_was_killed_is_told_so(world, monkeypatch):
    monkeypatch.setattr(jobs.compare, "_train", lambda rung: -signal.SIGKILL)
    found = world.json("tiny_small", code=2)
    assert found["experiments"][0]["failure"] == "train was killed by SIGKILL"
    assert found["unigram"] is None


def test_a_checkpoint_that_is_damaged_later_fails_alone(world):
    world.json("tiny_wide", "tiny_small")
    run = Path(world.run("tiny_wide"))
    (run / SCORES_NAME).unlink()
    for path in (run / "checkpoints").glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    found = world.json("tiny_wide", "tiny_small", code=2)
    assert "is damaged: found sha256" in found["experiments"][0]["failure"]
    assert found["experiments"][1]["failure"] is None


# --- the picture


def test_the_picture_names_each_experiment_and_each_axis(world):
    told = world.compare("tiny_wide", "tiny_small", typed=[f"plot={world.folder}/ladder.svg"])
    assert told.out.splitlines()[-2:] == [f"{world.folder}/ladder.svg", f"{world.folder}/ladder.png"]
    svg = (world.folder / "ladder.svg").read_text()
    assert [svg.count(f">{name}</text>") for name in ("wide", "small")] == [3, 3]
    for title in ("perplexity", "parameters", "words seen", "seconds of training"):
        assert f">{title}</text>" in svg
    assert (world.folder / "ladder.png").read_bytes().startswith(b"\x89PNG")


def test_what_failed_is_not_drawn(world):
    world.compare("tiny_wild", "tiny_small", typed=[f"plot={world.folder}/ladder.svg"], code=2)
    svg = (world.folder / "ladder.svg").read_text()
    assert (svg.count(">small</text>"), svg.count(">wild</text>")) == (3, 0)
    world.compare("tiny_wild", typed=[f"plot={world.folder}/none.svg"], code=2)
    assert not (world.folder / "none.svg").exists()


# --- as it is typed


@pytest.mark.slow
def test_a_signal_saves_what_is_trained_and_the_same_command_goes_on(make_corpus):
    """Each run is a process of its own; no more is left of it than of any other."""
    data = make_corpus()
    tiny = "stream.num_lanes=3,stream.bptt=7,model.embedding_size=6,model.recurrence.hidden_size=5,accelerator=cpu"
    quiet = "tracking.kind=none,logging.every_steps=1,logging.progress=false,max_epochs=null"

    def command(max_steps):
        typed = ["compare", "experiments=[ptb_small]", f"data={data}", "--json"]
        overrides = f"overrides=[{tiny},{quiet},max_steps={max_steps}]"
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", *typed, overrides],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    metrics = Path(f"{data}-ladder", "ptb_small", "metrics.jsonl")
    with command(10_000_000) as first:
        deadline = time.monotonic() + 300
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.1)
        first.send_signal(signal.SIGTERM)
        out, told = first.communicate(timeout=300)
    assert (out, first.returncode) == ("", 143)
    assert told.splitlines()[-1] == "stopped: 1 of 1: ptb_small is not trained to its end; the same command goes on"
    saved = committed_steps(f"{data}-ladder/ptb_small")[-1]
    assert f"is saved at step {saved}; the same command goes on" in told
    with command(saved + 1) as second:
        out, told = second.communicate(timeout=300)
    assert second.returncode == 0, told
    assert json.loads(out)["experiments"][0]["step"] == saved + 1
    assert "is trained to step" in told
