"""Runs of n-gram models as they are typed: one checkpoint, kills, identity, ARPA files, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jobs.__main__ import main
from pipeline import ngram_run
from pipeline.config import Config, NgramConfig, RecurrentConfig, load
from pipeline.corpus.manifest import VOCABULARY_NAME, read_manifest
from pipeline.corpus.vocabulary import read_vocabulary
from pipeline.errors import ConfigError
from pipeline.interface import evaluate, train
from pipeline.ngram import arpa
from pipeline.ngram.model import NgramModel, tensors_of
from pipeline.run.checkpoint import checkpoint_path, read_mark
from pipeline.run.folder import write_config
from pipeline.run.ledger import read_events
from pipeline.scoring.perplexity import predictor_of
from pipeline.training.parts import open_split
from pipeline.training.restore import load_trained
from pipeline.upgrades import upgraded_configuration


def ngrams(*typed):
    return load(Config, ["model=ngram", "model.order=3", "tracking.kind=none", *typed])


@pytest.fixture
def data(make_corpus):
    return make_corpus()


@pytest.fixture
def run(data, tmp_path):
    train(ngrams(f"data={data}", f"run={tmp_path}/run"))
    return f"{tmp_path}/run"


def nats(run, split="test"):
    trained = load_trained(run, "best")
    tokens = open_split(trained.config.data, read_manifest(trained.config.data), split)
    return np.concatenate([each.numpy() for each in predictor_of(trained.model)(tokens)])


def test_a_run_counts_once_and_is_evaluated_as_any_other(data, run, capsys):
    assert sorted(path.name for path in Path(run).rglob("*") if path.is_file()) == [
        ".lock",
        "attempt",
        "config.yaml",
        "events.jsonl",
        "step-0.ckpt",
        "step-0.json",
    ]
    assert [each["event"] for each in read_events(run)] == ["start", "training", "progress", "checkpoint", "end"]
    before = Path(checkpoint_path(run, 0)).stat()
    again = train(ngrams(f"data={data}", f"run={run}"))
    assert "is finished at step 0" in again.line
    assert Path(checkpoint_path(run, 0)).stat() == before
    score = evaluate(run, split="test").score
    assert score.num_targets == read_manifest(data).splits["test"].num_tokens
    assert score.total_nats == pytest.approx(nats(run).sum())
    assert main(["status", f"run={run}"]) == 0
    assert "finished, step 0, 1 attempt; step 0 is saved: the same command has nothing to do" in capsys.readouterr().out
    assert main(["evaluate", f"run={run}", "--json"]) == 0
    assert "histories begin with their line" in json.loads(capsys.readouterr().out)["protocol"]


def test_a_call_that_was_killed_leaves_no_trace(data, run, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*arguments, **more):
        raise Killed

    other = f"{tmp_path}/other"
    for name in ("smooth", "save_checkpoint"):
        with monkeypatch.context() as patched:
            patched.setattr(ngram_run, name, die)
            patched.setattr(ngram_run, "rmtree", lambda *arguments, **more: None)  # nothing is cleared
            with pytest.raises(Killed):
                train(ngrams(f"data={data}", f"run={other}"))
        assert Path(other, ngram_run.WORK).exists()
    train(ngrams(f"data={data}", f"run={other}"))
    assert not Path(other, ngram_run.WORK).exists()
    assert Path(checkpoint_path(other, 0)).read_bytes() == Path(checkpoint_path(run, 0)).read_bytes()
    assert [each["event"] for each in read_events(other)].count("start") == 3


@pytest.mark.slow
def test_tasks_of_ray_leave_no_trace(data, run, tmp_path):
    train(ngrams(f"data={data}", f"run={tmp_path}/ray", "cluster=local", "cluster.num_cpus=2"))
    assert read_mark(f"{tmp_path}/ray", 0).sha256 == read_mark(run, 0).sha256


def test_a_damaged_checkpoint_is_refused(data, run, capsys):
    path = Path(checkpoint_path(run, 0))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert main(["evaluate", f"run={run}"]) == 2
    assert "step-0.ckpt is damaged: found sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["model.order=2"], "model.order was 3 and is 2"),
        (["model.resets=none"], 'model.resets was "line" and is "none"'),
        (["model.zeroton=true"], "model.zeroton was false and is true"),
    ],
)
def test_another_model_in_the_same_folder_is_refused(change, told, data, run):
    changed = {each.partition("=")[0]: each for each in ["model.order=3", *change]}
    with pytest.raises(ConfigError, match=told):
        train(load(Config, ["model=ngram", f"data={data}", f"run={run}", *changed.values()]))


def test_a_recurrent_run_in_the_same_folder_is_refused_and_the_other_way_round(data, run, tmp_path, small_config):
    with pytest.raises(ConfigError, match=r'model\.kind was "ngram" and is "recurrent"'):
        train(small_config(f"data={data}", f"run={run}", "max_steps=1"))


def test_what_is_of_steps_is_refused_in_a_line(data, run, tmp_path, capsys):
    assert main(["plan", f"data={data}", "model=ngram"]) == 2
    assert "model.kind=ngram is counted in one pass" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"init_from=.* gives weights to begin with"):
        train(ngrams(f"data={data}", f"run={tmp_path}/other", f"init_from={run}"))
    with pytest.raises(ConfigError, match="is in an object store"):
        train(ngrams(f"data={data}", "run=memory://run", "cluster=ray"))


def test_a_run_in_an_object_store_has_the_same_bytes(data, run, s3_bucket):
    train(ngrams(f"data={data}", f"run={s3_bucket}/ngrams"))
    assert read_mark(f"{s3_bucket}/ngrams", 0).sha256 == read_mark(run, 0).sha256
    assert (nats(f"{s3_bucket}/ngrams") == nats(run)).all()


def test_a_text_that_is_too_small_for_its_discounts_is_counted_and_told(make_corpus, tmp_path, caplog):
    data = make_corpus("small", train=30, test=10)
    train(ngrams(f"data={data}", f"run={tmp_path}/tiny"))
    assert "too small to estimate the discounts of order" in caplog.text
    assert np.isfinite(nats(f"{tmp_path}/tiny")).all()


# --- the configuration


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (
            ["experiment=ptb_medium", "model=ngram"],
            "experiment=ptb_medium sets model.embedding_size, model.dropout, model.init_scale,"
            " model.recurrence.hidden_size, model.softmax.kind, which model.kind=ngram lacks;"
            " leave out experiment=ptb_medium or model=ngram",
        ),
        (
            ["experiment=kn5", "model=lstm"],
            "experiment=kn5 sets model.order, model.zeroton, which model.kind=recurrent lacks;"
            " leave out experiment=kn5 or model=lstm",
        ),
        (
            ["model=ngram", "model.dropout=0.5", "model.recurrence.hidden_size=7"],
            "model.dropout, model.recurrence are no keys of model.kind=ngram; leave them out or use"
            " model.kind=recurrent",
        ),
        (
            ["model.kind=ngram", "model.recurrence.hidden_size=7"],
            "model.recurrence is no key of model.kind=ngram; leave it out or use model.kind=recurrent",
        ),
        (["model.order=3"], "model.order is no key of model.kind=recurrent; leave it out or use model.kind=ngram"),
        (["model.kind=ngrm"], "model.kind=\"ngrm\": it must be 'recurrent' or 'ngram'; did you mean ngram?"),
        (["model=ngram", "model.order=0"], "model.order=0: it must be greater than or equal to 1"),
    ],
)
def test_a_key_belongs_to_its_kind_of_model(typed, told):
    with pytest.raises(ConfigError) as refused:
        load(Config, typed)
    assert str(refused.value) == told


def test_a_kind_that_is_typed_brings_its_own_values():
    assert load(Config, ["model.kind=ngram", "model.order=4"]) == load(Config, ["model=ngram", "model.order=4"])
    assert isinstance(load(Config, []).model, RecurrentConfig)


def test_keys_that_recurrent_models_got_later_are_no_keys_of_ngrams(monkeypatch):
    monkeypatch.setattr("pipeline.upgrades.CONFIGURATION", {"model.kind": "recurrent", "model.part.new": 1})
    monkeypatch.setattr("pipeline.upgrades.SECTIONS", ("model.part",))
    assert upgraded_configuration({"model": {"kind": "ngram", "order": 3}})["model"] == {"kind": "ngram", "order": 3}
    assert upgraded_configuration({"model": {"old": 3}})["model"] == {
        "kind": "recurrent",
        "old": 3,
        "part": {"new": 1},
    }


# --- ARPA


@pytest.mark.parametrize(("resets", "order"), [("line", 3), ("none", 3), ("line", 1)])
def test_what_is_written_is_read_back(resets, order, make_corpus, tmp_path, capsys):
    """To the 7 digits of the file; the folder's own words give the ids."""
    data, typed = make_corpus(), ["model=ngram", f"model.order={order}", f"model.resets={resets}", "tracking.kind=none"]
    train(load(Config, [f"data={data}", f"run={tmp_path}/run", *typed]))
    assert main(["arpa", f"run={tmp_path}/run", f"to={tmp_path}/a.arpa"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/a.arpa holds ")
    train(load(Config, [f"data={data}", f"run={tmp_path}/back", *typed, f"model.arpa={tmp_path}/a.arpa"]))
    np.testing.assert_allclose(nats(f"{tmp_path}/back"), nats(f"{tmp_path}/run"), rtol=1e-6, atol=1e-6)
    found, expected = (load_trained(f"{tmp_path}/{name}", "last").model.state_dict() for name in ("back", "run"))
    assert [*found] and {name: len(each) for name, each in found.items()} == {
        name: len(each) for name, each in expected.items()
    }
    again = train(load(Config, [f"data={data}", f"run={tmp_path}/back", *typed, f"model.arpa={tmp_path}/a.arpa"]))
    assert "is finished" in again.line
    shutil.copy(f"{tmp_path}/a.arpa", f"{tmp_path}/b.arpa")
    train(load(Config, [f"data={data}", f"run={tmp_path}/back", *typed, f"model.arpa={tmp_path}/b.arpa"]))
    with Path(f"{tmp_path}/b.arpa").open("a") as file:
        file.write("\n")
    with pytest.raises(ConfigError, match=r"model\.arpa was sha256"):
        train(load(Config, [f"data={data}", f"run={tmp_path}/back", *typed, f"model.arpa={tmp_path}/b.arpa"]))


def test_no_ngram_of_a_file_crosses_a_line(run, tmp_path, capsys):
    main(["arpa", f"run={run}", f"to={tmp_path}/a.arpa"])
    lines = Path(f"{tmp_path}/a.arpa").read_text().splitlines()
    fields = [line.split("\t") for line in lines if "\t" in line]
    grams = [each[1].split(" ") for each in fields]
    assert all("<s>" not in gram[1:] and "</s>" not in gram[:-1] for gram in grams)
    assert ["<s>"] in grams and ["</s>"] in grams and any(gram[0] == "<s>" and len(gram) == 3 for gram in grams)
    assert "<eos>" not in " ".join(lines)
    counts = [int(line.partition("=")[2]) for line in lines if line.startswith("ngram ")]
    assert counts == [sum(len(gram) == size for gram in grams) for size in (1, 2, 3)]


def test_kenlm_gives_each_word_the_same_probability(data, run, tmp_path):
    kenlm = pytest.importorskip("kenlm", reason="KenLM's module is not installed")
    main(["arpa", f"run={run}", f"to={tmp_path}/a.arpa"])
    words = read_vocabulary(f"{data}/{VOCABULARY_NAME}").words.to_pylist()
    ids = open_split(data, read_manifest(data), "test").read(0, read_manifest(data).splits["test"].num_tokens)
    lines = " ".join(words[each] for each in ids).split("<eos>")[:-1]
    theirs = kenlm.Model(f"{tmp_path}/a.arpa")
    found = [score for line in lines for score, *_ in theirs.full_scores(line.strip())]
    np.testing.assert_allclose(-nats(run) / np.log(10), found, atol=1e-5, rtol=0)


def test_arpa_is_of_ngrams(data, tmp_path, small_config, capsys):
    Path(tmp_path, "lstm").mkdir()
    config = small_config(f"data={data}", f"run={tmp_path}/lstm")

    write_config(config)
    assert main(["arpa", f"run={tmp_path}/lstm", f"to={tmp_path}/a.arpa"]) == 2
    assert "has model.kind=recurrent, and ARPA holds n-grams" in capsys.readouterr().err
    assert main(["arpa", f"run={tmp_path}/lstm"]) == 2
    assert "to=null is not given" in capsys.readouterr().err


SMALL = r"""
\data\
ngram 1=5
ngram 2=2

\1-grams:
-99	<s>	-0.5
-1	</s>
-2	<unk>
-0.5	a	-0.25
-0.75	b	-0.1

\2-grams:
-0.125	<s> a
-0.375	a b

\end\
"""


def read_small(tmp_path, text, words=("<eos>", "<unk>", "a", "b"), order=2, resets="line"):
    class Words:
        def to_pylist(self):
            return [*words]

    path = Path(tmp_path, "small.arpa")
    path.write_text(text)
    vocabulary = type("Vocabulary", (), {"words": Words()})
    return arpa.read_arpa(str(path), vocabulary, order=order, resets=resets)


def test_a_file_of_another_tool_is_scored_by_its_numbers(tmp_path):

    weights = read_small(tmp_path, SMALL)
    section = NgramConfig(kind="ngram", order=2, zeroton=False, resets="line", arpa=None)
    model = NgramModel(section, tensors_of(weights))
    # a b </s> <unk>: of two words, of two words, b's backoff and of one, the begin's backoff and of one
    found = -model.nats(np.array([-1, 0, 2, 3, 0, 1])) / np.log(10)
    np.testing.assert_allclose(found, [-0.125, -0.375, -0.1 - 1, -0.5 - 2], rtol=1e-6)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("ngram 2=2", "ngram 2=3", r"line 17: found \\end\\, needed 3 or 4 fields"),
        ("ngram 2=2", "ngram 2=1", r"found -0.375\ta b, needed \\end\\"),
        ("\\end\\", "", "found its end, needed a whole ARPA file"),
        ("-0.375\ta b", "x\ta b", "needed numbers before and after the words"),
        ("-0.375\ta b", "-0.375\ta <s>", "found <s> not where a line begins or ends"),
        ("-0.375\ta b", "-0.375\t</s> b", "found </s> not where a line begins or ends"),
        ("-0.375\ta b", "-0.375\t<s> a", "has <eos> a twice"),
        ("-0.75\tb\t-0.1", "-0.75\tc\t-0.1", "lacks 1 of the vocabulary's 4 words, as b; prepare the corpus with"),
        ("-1\t</s>", "-1\tc", "lacks 1 of the vocabulary's 4 words, as </s>"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(before, after, told, tmp_path):
    with pytest.raises(ConfigError, match=told):
        read_small(tmp_path, SMALL.replace(before, after))


def test_the_files_order_must_be_the_models(tmp_path):
    with pytest.raises(ConfigError, match=r"n-grams of up to 2 words and model.order=3; use model.order=2"):
        read_small(tmp_path, SMALL, order=3)


def test_words_that_the_vocabulary_lacks_are_left_out_and_told(tmp_path, caplog):
    more = SMALL.replace("ngram 1=5", "ngram 1=6").replace("-0.75\tb", "-3\tc\n-0.75\tb").replace("a b\n", "a c\n")
    weights = read_small(tmp_path, more)
    assert "2 of its n-grams hold words that the vocabulary lacks" in caplog.text
    assert len(weights["keys_2"]) == 1


def test_a_file_without_unk_gives_it_no_probability_and_that_is_told(tmp_path, caplog):
    weights = read_small(tmp_path, SMALL.replace("ngram 1=5", "ngram 1=4").replace("-2\t<unk>\n", ""))
    assert "has no <unk>" in caplog.text
    assert weights["log_probabilities_1"][1] == pytest.approx(-99 * np.log(10))


def test_an_ngram_without_its_ending_is_refused(tmp_path):
    three = SMALL.replace("ngram 2=2", "ngram 2=2\nngram 3=1").replace("\\end\\", "\\3-grams:\n-0.1\tb a a\n\\end\\")
    with pytest.raises(ConfigError, match="has b a a and not what it ends with, a a"):
        read_small(tmp_path, three, order=3)


def test_a_missing_file_is_refused(data, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.arpa=.*none\.arpa cannot be read"):
        train(ngrams(f"data={data}", f"run={tmp_path}/run", f"model.arpa={tmp_path}/none.arpa"))
