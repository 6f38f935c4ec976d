"""`python -m jobs horizon`, of runs that were trained."""

import json
import sys
from pathlib import Path

import pytest
from support.sequences import Ids

from jobs.__main__ import main
from jobs.horizon import as_json
from pipeline.config import Config, EvaluateConfig, HorizonConfig, load
from pipeline.corpus.manifest import read_manifest
from pipeline.evaluation import evaluate_split
from pipeline.horizon import Horizon, find_horizons
from pipeline.ngram_run import train_ngrams
from pipeline.reporting import charts
from pipeline.runner import train
from pipeline.scoring.perplexity import Score, score_tokens
from pipeline.training.parts import open_split

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree")  # 2.6, every fit

SMALL = ["distances=5", "contexts=[1,2,5]", "targets=20", "accelerator=cpu"]


@pytest.fixture
def runs(tmp_path, make_corpus, small_config):
    data = make_corpus()
    folders = [str(tmp_path / name) for name in ("one", "two")]
    for seed, folder in enumerate(folders):
        train(small_config(f"data={data}", f"run={folder}", "max_steps=6", f"stream.seed={seed}"))
    return folders


def told(capsys, *arguments):
    assert main(["horizon", *SMALL, *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments):
    assert main(["horizon", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    return error


def test_a_run_by_distance_and_by_context(runs, capsys):
    found = json.loads(told(capsys, f"run={runs[0]}", "--json"))
    assert found == json.loads(told(capsys, f"run={runs[0]}", "--json"))  # to the bit
    (run,) = found["runs"]
    assert (run["run"], run["step"], found["split"], found["targets"]) == ("one", 6, "valid", 20)
    assert [row["steps"] for row in run["gradient"]] == [0, 1, 2, 3, 4, 5]
    assert run["gradient"][0]["share"] == 1
    for row in run["gradient"]:
        assert row["share"] == pytest.approx(row["norm"] / run["gradient"][0]["norm"])
    heard = [row["steps"] for row in run["gradient"] if row["share"] >= found["heard_share"] == 0.01]
    assert run["steps_heard"] == heard[-1]
    assert [row["words"] for row in run["contexts"]] == [1, 2, 5, None]
    assert "read from zero state 16 words before the target" in found["protocol"]


def test_all_of_a_split_before_each_word_gives_what_evaluate_gives(runs, tmp_path):
    """But for the first four words, which are before the gradient's first target."""
    typed = [f"run={runs[0]}", "distances=1", "contexts=[1]", "split=test", "accelerator=cpu", "targets=182"]
    (found,) = find_horizons(load(HorizonConfig, typed, name="horizon"))
    score = evaluate_split(load(EvaluateConfig, [f"run={runs[0]}", "accelerator=cpu"], name="evaluate")).score
    data = str(tmp_path / "data")
    first = Ids(open_split(data, read_manifest(data), "test").read(0, 4))
    nats = score_tokens(found.trained.model, first).total_nats
    assert found.whole.num_targets == score.num_targets - 4 == 182
    assert found.whole.total_nats == pytest.approx(score.total_nats - nats, rel=1e-6)


def test_runs_side_by_side_in_words_and_as_a_picture(runs, tmp_path, capsys):
    paths = [f"{tmp_path}/new/horizon.{ending}" for ending in ("svg", "png")]
    out = told(capsys, f"run=[{','.join(runs)}]", f"plot={paths[0]}")
    assert out.splitlines()[-2:] == paths
    for word in ("steps back", "words given", "one", "two", "100.00%", "all", "protocol: 20 targets"):
        assert word in out, word
    assert " ".join(out.split()).count(" hears ") == 2
    svg, png = (Path(path).read_bytes() for path in paths)
    assert png.startswith(b"\x89PNG") and len(png) < 600_000
    for word in (">one<", ">two<", ">7 steps<", "counts as heard", ">all<", "20 targets of valid", "perplexity"):
        assert word in svg.decode(), word


def made(*norms):
    score = Score(total_nats=10.0, num_targets=5)
    return Horizon(name="made", trained=None, norms=norms, by_context={1: score}, whole=score)


def test_how_far_is_heard():
    assert made(2.0, 1.0, 0.02, 0.019).heard == 2
    assert made(2.0, 0.0, 1.0, 0.0).heard == 2  # the furthest, whatever is between
    assert made(2.0).heard == 0
    assert (made(0.0, 0.0).heard, made(0.0, 0.0).shares) == (None, [0.0, 0.0])
    assert made().heard is None


def test_shares_that_are_zero_are_drawn_too(runs, tmp_path, capsys, monkeypatch):
    """As those of a model that reads a few words alone; and a perplexity that is no number is left out."""
    found = find_horizons(load(HorizonConfig, [*SMALL, f"run={runs[0]}"], name="horizon"))
    silent = Horizon(
        name="silent",
        trained=found[0].trained,
        norms=(0.0,) * 6,
        by_context={1: Score(total_nats=9e9, num_targets=1), 2: found[0].whole, 5: found[0].whole},
        whole=found[0].whole,
    )
    monkeypatch.setattr("jobs.horizon.find_horizons", lambda config, progress: [silent])
    out = told(capsys, f"run={runs[0]}", f"plot={tmp_path}/a.svg")
    assert "silent: hears no word before the target" in out and "not finite" in out
    svg = (tmp_path / "a.svg").read_text()
    assert f'd="M0,{charts.RANKS_HEIGHT}L' in svg and "NaN" not in svg  # on the axis, where a logarithm of 0 is not
    config = load(HorizonConfig, [*SMALL, f"run={runs[0]}"], name="horizon")
    assert as_json(config, [silent])["runs"][0]["contexts"][0]["perplexity"] is None


def test_without_the_extra_a_plot_is_refused_before_a_run_is_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "altair", None)
    assert "horizon needs altair" in refused(capsys, "run=nowhere", f"plot={tmp_path}/a.svg")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "run=null is not given; use run=FOLDER, or run=[FOLDER,FOLDER]"),
        (["run=nowhere"], "nowhere"),
        (["run=[nowhere,nowhere]"], "run=[nowhere,nowhere] names nowhere twice; name each run once"),
        (["run=nowhere", "plot=a.pdf"], "plot=a.pdf is no name of a picture; use plot=FILE.svg"),
        (["run=nowhere", "contexts=[2,1]"], "contexts=[2, 1] must rise strictly"),
        (["run=nowhere", "contexts=[]"], "contexts=[]"),
        (["run=nowhere", "distances=0"], "distances=0"),
        (["run=nowhere", "targets=0"], "targets=0"),
        (["runs=nowhere"], "did you mean run?"),
    ],
)
def test_a_mistake_costs_one_line(arguments, error, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert error in refused(capsys, *arguments)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["distances=60"], "split=valid has 164 tokens, and distances=60 takes the first 181; ask for less of it"),
        (["contexts=[1,150]"], "and a context of 150 takes the first 150; use targets=14"),
        (
            ["targets=149"],
            "targets=149 do not fit: split=valid has 164 tokens, and distances=5 takes the first 16; use targets=148",
        ),
        (["split=vald"], "split=vald"),
        (["checkpoint=3"], "step 3"),
        (["data=nowhere"], "data=nowhere holds no manifest.json"),
    ],
)
def test_what_the_split_does_not_hold_is_refused_before_anything_is_computed(
    arguments, error, runs, capsys, monkeypatch
):
    monkeypatch.setattr("pipeline.horizon.gradient_norms", None)
    given = {each.partition("=")[0] for each in arguments}
    small = [each for each in SMALL if each.partition("=")[0] not in given]
    assert error in refused(capsys, f"run=[{','.join(runs)}]", *small, *arguments)


def test_a_corpus_of_other_words_is_refused(runs, make_corpus, capsys):
    other = make_corpus("other", num_types=40)
    assert "the run was trained with" in refused(capsys, *SMALL, f"run={runs[0]}", f"data={other}")


def test_a_damaged_split_is_refused(runs, tmp_path, capsys):
    path = tmp_path / "data" / "valid" / "00000.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "valid/00000.arrow" in refused(capsys, *SMALL, f"run={runs[0]}")


def test_n_grams_have_no_gradient(tmp_path, make_corpus, capsys):
    run = str(tmp_path / "counted")
    train_ngrams(load(Config, [f"data={make_corpus()}", f"run={run}", "model=ngram", "model.order=2"]))
    assert refused(capsys, f"run={run}", *SMALL) == (
        f"error: run={run} has model.kind=ngram, which has no input vectors and so no gradient;"
        " give runs of model.kind=recurrent\n"
    )
