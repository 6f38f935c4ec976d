"""Options of `evaluate` as they are typed: what they print, that they are named, and what is refused."""

import json
from types import SimpleNamespace

import pytest
from support.typed import made_lines, prepare_typed, train_typed, write_texts

from jobs.__main__ import main
from pipeline import evaluate, evaluation
from pipeline.config import Config, load
from pipeline.config.trees import EvaluateConfig
from pipeline.corpus.manifest import read_manifest
from pipeline.errors import ConfigError
from pipeline.ngram_run import train_ngrams
from pipeline.scoring.perplexity import NGRAM_PROTOCOLS, PROTOCOL

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree")  # 2.6, every fit

CACHE = ["neural_cache.size=50", "neural_cache.weight=0.2"]
CACHE_NAMED = "neural cache of 50, weight 0.2, sharpness 1"
DYNAMIC = ["dynamic.lr=0.001", "dynamic.num_lanes=3", "dynamic.num_windows=7"]
DYNAMIC_NAMED = (
    "dynamic evaluation in segments of 5, lr 0.001, decay 0.002, epsilon 0.001, gradients over 7 windows of 3 lanes at"
    " most"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A corpus and two runs on it, made once; nobody changes them."""
    folder = tmp_path_factory.mktemp("made")
    places = SimpleNamespace(
        texts=write_texts(folder / "texts"), data=folder / "data", runs=[folder / "a", folder / "b"]
    )
    assert main(prepare_typed(places.texts, places.data)) == 0
    for number, run in enumerate(places.runs):
        assert main(train_typed(places.data, run, f"stream.seed={number}", "checkpoint.every_steps=20")) == 0
    return places


def printed(capsys, run, *more):
    capsys.readouterr()
    assert main(["evaluate", f"run={run}", "accelerator=cpu", "--json", *more]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def refused(capsys, *typed_in):
    capsys.readouterr()
    assert main(["evaluate", "accelerator=cpu", *typed_in]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err.removeprefix("error: ").rstrip("\n")


# --- one run


@pytest.mark.parametrize(
    ("typed_in", "named"),
    [
        (CACHE, CACHE_NAMED),
        (DYNAMIC, DYNAMIC_NAMED),
        ([*CACHE, *DYNAMIC], f"{DYNAMIC_NAMED}, {CACHE_NAMED}"),
    ],
)
def test_an_option_scores_every_token_and_is_named(made, capsys, typed_in, named):
    plain, found = printed(capsys, made.runs[0]), printed(capsys, made.runs[0], *typed_in)
    assert list(found) == list(plain)
    assert found["protocol"] == f"{PROTOCOL}, {named}" and plain["protocol"] == PROTOCOL
    assert found["targets"] == plain["targets"] == 228
    assert found["perplexity"] != pytest.approx(plain["perplexity"], rel=1e-3)
    assert found == printed(capsys, made.runs[0], *typed_in)


@pytest.mark.parametrize(
    "off",
    [
        [
            "neural_cache.weight=0.5",
            "neural_cache.sharpness=2",
            "dynamic.decay=1",
            "dynamic.segment=2",
        ],  # no size, no lr
        ["neural_cache.size=50", "neural_cache.weight=0"],
        ["mix_weights=[1,0]", "mix=RUN2"],
        ["dynamic.lr=0", "dynamic.num_lanes=3"],
    ],
)
def test_an_option_that_does_nothing_is_the_plain_score(made, capsys, off):
    plain = printed(capsys, made.runs[0])
    found = printed(capsys, made.runs[0], *(each.replace("RUN2", str(made.runs[1])) for each in off))
    assert found["nats_per_token"] == pytest.approx(plain["nats_per_token"], rel=1e-6)


def test_the_table_names_it_too(made, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["evaluate", f"run={made.runs[0]}", f"mix={made.runs[1]}", *CACHE]) == 0
    table = capsys.readouterr().out
    assert f"{PROTOCOL}, {CACHE_NAMED}, mixture of 2 models, weights " in table and " by EM on valid " in table
    assert table.count("│ weight ") == 2 and f"{made.runs[1]}/checkpoints/step-" in table


def test_the_interface_takes_them_as_typed(made, capsys):
    found = evaluate(str(made.runs[0]), *CACHE, split="valid", accelerator="cpu")
    typed_in = printed(capsys, made.runs[0], *CACHE, "split=valid")
    assert (found.score.perplexity, found.protocol) == (typed_in["perplexity"], typed_in["protocol"])
    with pytest.raises(ConfigError, match="split is given twice, as test and as valid; give it once"):
        evaluate(str(made.runs[0]), "split=valid")


# --- several


def test_a_mixture_beats_each_of_its_models_where_it_was_fitted(made, capsys):
    """Its weights are the best there are on valid, so on it they are better than either model and any round weights."""
    first, second = made.runs
    found = printed(capsys, first, f"mix=[{second}]")
    weights = [each["weight"] for each in found["mixture"]]
    assert [each["checkpoint"].startswith(str(run)) for each, run in zip(found["mixture"], made.runs, strict=True)]
    assert sum(weights) == pytest.approx(1) and min(weights) > 0
    shown = " ".join(f"{weight:.4f}" for weight in weights)
    assert found["protocol"] == f"{PROTOCOL}, mixture of 2 models, weights {shown} by EM on valid"
    given = f"mix_weights=[{weights[0]!r},{weights[1]!r}]"
    on_valid = printed(capsys, first, f"mix={second}", given, "split=valid")
    assert on_valid["protocol"].endswith(f"weights {shown} as given")
    for other in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
        worse = printed(capsys, first, f"mix={second}", f"mix_weights=[{other},{1 - other}]", "split=valid")
        assert on_valid["nats_per_token"] <= worse["nats_per_token"] + 1e-7
    again = printed(capsys, first, f"mix={second}", given)
    assert again["nats_per_token"] == pytest.approx(found["nats_per_token"], rel=1e-12)


def test_a_mixture_of_one_run_with_itself_is_that_run(made, capsys):
    plain, found = printed(capsys, made.runs[0]), printed(capsys, made.runs[0], f"mix=[{made.runs[0]}]")
    assert found["nats_per_token"] == pytest.approx(plain["nats_per_token"], rel=1e-12)
    assert [each["weight"] for each in found["mixture"]] == [0.5, 0.5]


def test_options_are_for_each_model_of_a_mixture(made, capsys):
    first, second = made.runs
    both = printed(capsys, first, f"mix={second}", "mix_weights=[0.5,0.5]", *CACHE, *DYNAMIC)
    other = printed(capsys, second, f"mix={first}", "mix_weights=[0.5,0.5]", *CACHE, *DYNAMIC)
    assert both["nats_per_token"] == pytest.approx(other["nats_per_token"], rel=1e-12)
    alone = printed(capsys, second, "split=test", *CACHE, *DYNAMIC)
    whole = printed(capsys, first, f"mix={second}", "mix_weights=[0,1]", *CACHE, *DYNAMIC)
    assert whole["nats_per_token"] == pytest.approx(alone["nats_per_token"], rel=1e-12)


def test_a_step_is_one_of_the_run_and_the_others_give_their_best(made, capsys):
    found = printed(capsys, made.runs[0], f"mix={made.runs[1]}", "checkpoint=20")
    assert [each["checkpoint"].rpartition("/")[2] for each in found["mixture"]] == ["step-20.ckpt", "step-30.ckpt"]


def test_progress_tells_what_is_done_and_of_how_much(made):
    typed_in = [f"run={made.runs[0]}", f"mix={made.runs[1]}", "accelerator=cpu", *DYNAMIC]
    told = {}
    evaluation.evaluate_split(
        load(EvaluateConfig, typed_in, name="evaluate"),
        progress=lambda what, num_tokens, total: told.setdefault((what, total), []).append(num_tokens),
    )
    sums = {key: sum(each) for key, each in told.items()}
    num_read = 7 * 3 * 5  # of each of the two models
    assert sums == {
        ("gradients of model 1 on train", num_read): num_read,
        ("gradients of model 2 on train", num_read): num_read,
        ("weights on valid", 182): 182,
        ("scoring test", 228): 228,
    }


# --- what is refused


@pytest.mark.parametrize(
    ("typed_in", "message"),
    [
        (["neural_cache.size=0"], "neural_cache.size=0: it must be greater than or equal to 1, or null"),
        (["neural_cache.weight=1"], "neural_cache.weight=1: it must be less than 1"),
        (["neural_cache.sharpness=-1"], "neural_cache.sharpness=-1: it must be greater than or equal to 0"),
        (["dynamic.lr=-1"], "dynamic.lr=-1: it must be greater than or equal to 0, or null"),
        (["dynamic.epsilon=0"], "dynamic.epsilon=0: it must be greater than 0"),
        (["neural_cache.sise=5"], "unknown key neural_cache.sise; did you mean neural_cache.size?"),
        (["mix=[]"], "mix=[]: Value should have at least 1 item after validation, not 0, or null"),
        (
            ["mix_weights=[0.5,0.5]"],
            "mix_weights=[0.5,0.5] are shares of several runs; use mix=[RUN,...] or mix_weights=null",
        ),
        (
            ["mix=RUN2", "mix_weights=[0.5,0.3,0.2]"],
            "mix_weights=[0.5,0.3,0.2] has 3 shares for 2 runs; give one for run= and one for each of mix=",
        ),
        (["mix=RUN2", "mix_weights=[0.5,0.4]"], "mix_weights=[0.5,0.4] sum to 0.9; they must sum to 1"),
        (["mix=RUN2", "mix_weights=[1.5,-0.5]"], "it must be less than or equal to 1"),
        (
            ["mix=RUN2", "split=valid"],
            "split=valid would be scored with shares that were fitted on it, mix_split=valid; use another mix_split, or"
            " give mix_weights",
        ),
        (["mix=RUN2", "mix_split=dev"], "mix_split=dev is not in data=DATA; use one of test, train, valid"),
        (["dynamic.lr=1e-4", "dynamic.num_lanes=2000"], "dynamic.num_lanes=2000 is more than train has tokens, 1080;"),
        (["mix=DATA"], "run=DATA holds no config.yaml; give the folder that `python -m jobs train` wrote"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(made, capsys, typed_in, message):
    def placed(text):
        return text.replace("RUN2", str(made.runs[1])).replace("DATA", str(made.data))

    assert placed(message) in refused(capsys, f"run={made.runs[0]}", *map(placed, typed_in))


def test_a_run_of_another_vocabulary_is_refused_by_name(made, tmp_path, capsys):
    data, run = tmp_path / "data", tmp_path / "run"
    assert main(prepare_typed(made.texts, data, "corpus.vocabulary.size=40")) == 0
    assert main(train_typed(data, run, "max_steps=2")) == 0
    ours, theirs = (read_manifest(str(each)).vocabulary_fingerprint[:12] for each in (made.data, data))
    assert refused(capsys, f"run={made.runs[0]}", f"mix=[{made.runs[1]},{run}]") == (
        f"data={made.data} has vocabulary {ours}, mix={run} was trained with {theirs}; mix runs that share a vocabulary"
    )


def test_a_corpus_without_train_is_refused_before_anything_is_read(made, tmp_path, capsys):
    texts, other = tmp_path / "texts", tmp_path / "other"
    texts.mkdir()
    (texts / "test.txt").write_text(made_lines(7, seed=9))
    given = f"corpus.vocabulary.path={made.data / 'vocabulary.arrow'}"
    assert main(["prepare", f"data={other}", f"corpus.test={texts / 'test.txt'}", given, "cluster=none"]) == 0
    told = refused(capsys, f"run={made.runs[0]}", f"data={other}", *DYNAMIC)
    assert told == f"dynamic.lr=0.001 reads train: split=train is not in data={other}; use one of test"
    assert printed(capsys, made.runs[0], f"data={other}", *CACHE)["targets"] == 63


@pytest.fixture(scope="module")
def counted(made, tmp_path_factory):
    """A run of n-grams on the same corpus."""
    run = tmp_path_factory.mktemp("counted") / "run"
    train_ngrams(load(Config, [f"data={made.data}", f"run={run}", "model=ngram", "model.order=3"]))
    return run


def test_a_model_that_is_not_recurrent_has_no_options(counted, capsys):
    assert refused(capsys, f"run={counted}", *CACHE) == (
        f"neural_cache.size=50 needs a recurrent model, and run={counted} is none; use neural_cache.size=null"
    )
    assert refused(capsys, f"run={counted}", f"mix=[{counted},{counted}]", *DYNAMIC) == (
        f"dynamic.lr=0.001 needs a recurrent model, and run={counted}, mix=[{counted},{counted}] are none;"
        " use dynamic.lr=null"
    )
    assert printed(capsys, counted)["protocol"] == NGRAM_PROTOCOLS["line"]


def test_in_a_mixture_it_is_scored_as_it_is(made, counted, capsys):
    other = f"mix={made.runs[1]}"
    found = printed(capsys, counted, other, "mix_weights=[0,1]", *CACHE)
    alone = printed(capsys, made.runs[1], *CACHE)
    assert found["nats_per_token"] == pytest.approx(alone["nats_per_token"], rel=1e-12)
    assert found["protocol"].startswith(f"{NGRAM_PROTOCOLS['line']}, {PROTOCOL}, {CACHE_NAMED}")
    assert f"{CACHE_NAMED} (recurrent models alone), mixture of 2" in found["protocol"]
    whole = printed(capsys, counted, other, "mix_weights=[1,0]", *CACHE)
    assert whole["nats_per_token"] == pytest.approx(printed(capsys, counted)["nats_per_token"], rel=1e-12)
    fitted = printed(capsys, counted, other)  # a recurrent model after some steps has nothing to add
    assert fitted["nats_per_token"] == pytest.approx(whole["nats_per_token"], rel=1e-6)
    assert fitted["mixture"][0]["weight"] > 0.99
