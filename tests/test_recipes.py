"""The recipes of conf/experiment: the sizes, rates and limits that the papers give, and that each of them trains.

Sizes are written out as numbers, so that a change of a recipe or of the model shows. The papers' loss is a sum over the
bptt time steps and ours a mean, so their rates stand multiplied and their clips divided by it.
"""

import gc
import json
import math
import shutil
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.kinds import RECURRENT
from support.vocabularies import write_vocabulary

from pipeline.config import Config, flat, groups, load
from pipeline.corpus.manifest import Manifest, Shard, Split, read_manifest, write_manifest
from pipeline.corpus.tokens import write_shard
from pipeline.corpus.vocabulary import EOS_WORD, UNK_WORD, Vocabulary
from pipeline.runner import train
from pipeline.training.optimization import learning_rate
from pipeline.training.parts import build_model, fitted_model
from pipeline.training.tiling import lane_plan

# words of the vocabulary, parameters of the model
SIZES = {
    "demo": (20_000, 5_520_002),
    "wikitext2": (33_278, 8_424_216),
    "ptb_small": (10_000, 4_653_200),
    "ptb_medium": (10_000, 19_780_400),
    "ptb_large": (10_000, 66_034_000),
    "text8_grave": (44_000, 16_103_906),
    "lm1b_lstm2048": (793_471, 290_290_274),
    "ladder_window": (33_278, 7_941_216),
    "ladder_elman": (33_278, 7_941_816),
    "ladder_gru": (33_278, 8_263_416),
    "ladder_lstm": (33_278, 8_424_216),
    "ladder_minlstm": (33_278, 8_022_216),
    "ladder_transformer": (33_278, 8_746_616),
    "awd_ptb": (10_000, 24_221_600),
    "awd_wikitext2": (33_278, 33_556_078),
}
# mean square of a hidden vector's elements before the first step, where the cell's own are not near 0
AT_FIRST = {"ladder_minlstm": 0.5, "ladder_transformer": 1.0}  # g(0) is 0.5 and grows upwards; a norm makes it 1
NGRAMS = ["kn5", "ladder_ngram"]  # which have no sizes, and whose training has no steps: tests/ngram
STEPS = 2
# on one core: ptb_large 10 s and 1.2 GB of memory, lm1b_lstm2048 56 s and 5.4 GB
LARGE = ("ptb_large", "lm1b_lstm2048", "awd_ptb", "awd_wikitext2")


@lru_cache
def recipe(name, *overrides):
    """The configuration; composing it takes a tenth of a second."""
    return load(Config, [f"experiment={name}", *overrides])


def test_every_recipe_stands_here():
    assert sorted([*SIZES, *NGRAMS]) == groups(Config)["experiment"]


# --- sizes


@pytest.mark.parametrize("name", SIZES)
def test_parameters(name):
    vocab_size, num_parameters = SIZES[name]
    with torch.device("meta"):
        model = build_model(recipe(name).model, vocab_size=vocab_size)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


def lstm(inputs, hidden):
    """Parameters of a layer: four gates that read the input and the hidden state, with torch's two biases each."""
    return 4 * hidden * (inputs + hidden + 2)


def test_the_numbers_above_are_those_of_the_formulas():
    """Embedding, recurrence, softmax; the latter by cluster, where it is adaptive."""
    assert SIZES["ptb_small"][1] == 10_000 * 200 + 2 * lstm(200, 200) + 10_000 * 201
    assert SIZES["ptb_medium"][1] == 10_000 * 650 + 2 * lstm(650, 650) + 10_000 * 651
    assert SIZES["ptb_large"][1] == 10_000 * 1500 + 2 * lstm(1500, 1500) + 10_000 * 1501
    text8 = [2002 * 513, 128 * 512 + 8_000 * 129, 32 * 512 + 34_000 * 33]
    assert SIZES["text8_grave"][1] == 44_000 * 256 + lstm(256, 512) + sum(text8)
    for name in ("awd_ptb", "awd_wikitext2"):
        cells = lstm(400, 1150) + lstm(1150, 1150) + lstm(1150, 400)
        assert SIZES[name][1] == SIZES[name][0] * 400 + cells + SIZES[name][0]  # tied: of the softmax a bias alone
    lm1b = [4003 * 2049, 512 * 2048 + 36_000 * 513, 128 * 2048 + 160_000 * 129, 32 * 2048 + 593_471 * 33]
    assert SIZES["lm1b_lstm2048"][1] == 793_471 * 256 + lstm(256, 2048) + sum(lm1b)
    for name, last_words in (("wikitext2", 23_278), ("demo", 12_000)):
        first_words = SIZES[name][0] - 2_000 - last_words
        tails = 50 * 200 + first_words * 51 + 12 * 200 + last_words * 13
        assert SIZES[name][1] == SIZES[name][0] * 200 + 2 * lstm(200, 200) + 2002 * 201 + tails


def test_the_rungs_of_the_ladder_differ_in_what_stands_between_embedding_and_softmax():
    layer, words = 200 * 200, 33_278  # the weights of a square matrix
    feed_forward = 200 * 800 + 800 + 800 * 200 + 200
    between = {
        "window": 4 * layer + 200,
        "elman": 2 * (2 * layer + 2 * 200),
        "gru": 2 * (6 * layer + 6 * 200),
        "lstm": 2 * lstm(200, 200),
        "minlstm": 2 * (3 * layer + 3 * 200),
        "transformer": 2 * (4 * layer + 4 * 200 + feed_forward + 2 * 400) + 400,
    }
    others = SIZES["wikitext2"][1] - 2 * lstm(200, 200)
    for kind, own in between.items():
        assert SIZES[f"ladder_{kind}"] == (words, others + own)


# --- what the papers give

ZAREMBA = {  # hidden, bptt, init, dropout, rate at first, epochs, clip, epochs at the full rate, divided by after them
    "ptb_small": (200, 20, 0.1, 0.0, 1.0, 13, 5, 4, 2.0),
    "ptb_medium": (650, 35, 0.05, 0.5, 1.0, 39, 5, 6, 1.2),
    "ptb_large": (1500, 35, 0.04, 0.65, 1.0, 55, 10, 14, 1.15),
}


@pytest.mark.parametrize("name", ZAREMBA)
def test_the_recipes_of_zaremba_2014(name):
    hidden, bptt, init, dropout, rate, epochs, clip, hold, divide_by = ZAREMBA[name]
    config = recipe(name)
    model, cell, optim = config.model, config.model.recurrence, config.optim
    assert (model.embedding_size, cell.hidden_size, cell.num_layers) == (hidden, hidden, 2)
    assert (cell.projection_size, model.tied, model.softmax.kind) == (None, False, "full")
    assert (model.init_scale, model.dropout) == (init, dropout)
    assert (config.stream.num_lanes, config.stream.bptt) == (20, bptt)
    assert (config.max_epochs, config.max_steps) == (epochs, None)
    assert (optim.name, optim.momentum, optim.weight_decay) == ("sgd", 0, 0)
    assert optim.lr == pytest.approx(rate * bptt, rel=1e-12)
    assert optim.clip_norm == pytest.approx(clip / bptt, rel=1e-12)
    assert (optim.schedule.kind, optim.schedule.warmup_steps) == ("step", 0)
    assert (optim.schedule.hold_epochs, optim.schedule.divide_by) == (hold, divide_by)
    assert (config.corpus.words, config.corpus.eos, config.corpus.vocabulary.size) == ("whitespace", "line", None)


GRAVE = {"text8_grave": (512, 10), "lm1b_lstm2048": (2048, 3)}  # hidden, least count of a word


@pytest.mark.parametrize("name", GRAVE)
def test_the_recipes_of_grave_2016(name):
    hidden, min_count = GRAVE[name]
    config = recipe(name)
    model, cell, optim = config.model, config.model.recurrence, config.optim
    assert (model.embedding_size, cell.hidden_size, cell.num_layers) == (256, hidden, 1)
    assert (model.dropout, cell.projection_size, model.tied) == (0, None, False)
    assert (model.softmax.kind, model.softmax.div_value) == ("adaptive", 4)
    assert (config.stream.num_lanes, config.stream.bptt) == (128, 20)
    assert (config.max_epochs, config.max_steps) == (5, None)
    assert (optim.name, optim.lr, optim.clip_norm, optim.weight_decay) == ("adagrad", 0.1, 1.0, 0)
    assert (optim.schedule.kind, optim.schedule.warmup_steps) == ("constant", 200)
    assert config.corpus.vocabulary.min_count == min_count


MERITY = {"awd_ptb": (20, 500, 0.4, 0.25), "awd_wikitext2": (80, 750, 0.65, 0.2)}  # lanes, epochs, input, layers


@pytest.mark.parametrize("name", MERITY)
def test_the_recipes_of_merity_2018(name):
    """Their loss is a mean over tokens, so that rate, clip and decay are theirs."""
    num_lanes, epochs, input_dropout, layer_dropout = MERITY[name]
    config = recipe(name)
    model, cell, drop, optim = config.model, config.model.recurrence, config.model.regularization, config.optim
    assert (cell.hidden_size, cell.num_layers, cell.last_size, model.embedding_size) == (1150, 3, 400, 400)
    assert (model.tied, model.softmax.kind, cell.weight_dropout) == (True, "full", 0.5)
    assert (drop.input_dropout, drop.layer_dropout, drop.output_dropout) == (input_dropout, layer_dropout, 0.4)
    assert (drop.locked, drop.embedding_dropout, drop.activation, drop.temporal) == (True, 0.1, 2, 1)
    assert (model.init_scale, model.recurrence_init_scale) == (0.1, pytest.approx(1150**-0.5, abs=1e-4))
    assert (config.stream.num_lanes, config.stream.bptt, config.stream.state) == (num_lanes, 70, "reset")
    assert (config.max_epochs, config.max_steps) == (epochs, None)
    assert (optim.name, optim.lr, optim.clip_norm, optim.weight_decay) == ("sgd", 30, 0.25, 1.2e-6)
    assert (optim.momentum, optim.schedule.kind) == (0, "constant")
    assert (config.corpus.words, config.corpus.eos, config.corpus.vocabulary.size) == ("whitespace", "line", None)


def test_the_vocabulary_of_one_billion_words_is_given_by_its_size():
    assert recipe("lm1b_lstm2048").corpus.vocabulary.size == 793_471
    assert recipe("text8_grave").corpus.vocabulary.size is None


@pytest.mark.parametrize("kind", RECURRENT)
def test_the_rungs_of_the_ladder_share_all_but_the_model_and_how_its_weights_move(kind):
    own = ("model.recurrence.", "model.init_scale", "optim.")
    config, shared = recipe(f"ladder_{kind}"), recipe("ladder_lstm")
    assert config.model.recurrence == recipe("wikitext2", f"model={kind}").model.recurrence
    assert (config.max_epochs, config.model.dropout, config.optim.schedule.kind) == (5, 0.2, "cosine")
    found, expected = (
        {key: value for key, value in flat(each).items() if not key.startswith(own)} for each in (config, shared)
    )
    assert found == expected


@pytest.mark.parametrize(("name", "limits"), [("wikitext2", (5, None)), ("demo", (None, 3500))])
def test_the_recipes_of_our_own(name, limits):
    config = recipe(name)
    model, cell, optim = config.model, config.model.recurrence, config.optim
    assert (model.embedding_size, cell.hidden_size, cell.num_layers, model.dropout) == (200, 200, 2, 0.2)
    assert (config.stream.num_lanes, config.stream.bptt) == (20, 35)
    assert (config.max_epochs, config.max_steps) == limits
    assert (optim.name, optim.lr, optim.clip_norm, optim.schedule.kind) == ("sgd", 20, 0.25, "cosine")


# --- rates


def rates(name, *, steps_per_epoch=10):
    """The rate at the first step of each epoch of a run."""
    config = recipe(name)
    assert config.max_epochs is not None
    total_steps = steps_per_epoch * config.max_epochs
    steps = {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
    return [rate_at(name, epoch * steps_per_epoch, **steps) for epoch in range(config.max_epochs)]


def rate_at(name, step, *, total_steps, steps_per_epoch=10):
    epoch = step // steps_per_epoch
    return learning_rate(recipe(name).optim, step=step, epoch=epoch, total_steps=total_steps, validations=[])


def test_the_small_model_halves_its_rate_from_the_fifth_epoch_on():
    halved = [10, 5, 2.5, 1.25, 0.625, 0.3125, 0.15625, 0.078125, 0.0390625]
    assert rates("ptb_small") == [20, 20, 20, 20, *halved]


@pytest.mark.parametrize(("name", "hold", "divide_by"), [("ptb_medium", 6, 1.2), ("ptb_large", 14, 1.15)])
def test_the_larger_models_hold_their_rate_and_divide_it_then(name, hold, divide_by):
    found = rates(name)
    assert found[:hold] == [35] * hold
    for before, after in pairwise(found[hold - 1 :]):
        assert before / after == pytest.approx(divide_by, rel=1e-12)


def test_the_last_rates_as_numbers():
    assert rates("ptb_medium")[6] == pytest.approx(29.1666667)
    assert rates("ptb_medium")[-1] == pytest.approx(0.0853271, rel=1e-6)
    assert rates("ptb_large")[14] == pytest.approx(30.4347826)
    assert rates("ptb_large")[-1] == pytest.approx(0.1136205, rel=1e-6)


@pytest.mark.parametrize("name", GRAVE)
def test_adagrad_warms_up_and_keeps_its_rate(name):
    assert rates(name, steps_per_epoch=1000) == [pytest.approx(0.1 / 200), 0.1, 0.1, 0.1, 0.1]
    assert rate_at(name, 99, total_steps=5000) == pytest.approx(0.05)
    assert rate_at(name, 199, total_steps=5000) == 0.1


@pytest.mark.parametrize("name", ["wikitext2", "demo"])
def test_the_cosine_falls_from_the_full_rate_to_nothing_at_the_end(name):
    found = [rate_at(name, step, total_steps=60) for step in range(61)]
    assert found[0] == 20
    assert found[15] == pytest.approx(20 * (1 + math.sqrt(0.5)) / 2)
    assert found[30] == pytest.approx(10)
    assert found[60] == 0
    assert all(before > after for before, after in pairwise(found))
    assert 0 < found[59] < 0.02


@pytest.mark.parametrize("name", NGRAMS)
def test_the_recipes_of_ngrams(name):
    model = recipe(name).model
    assert (model.kind, model.order, model.resets, model.arpa) == ("ngram", 5, "line", None)
    assert model.zeroton == (name == "kn5")


# --- each of them trains


def zipf_ids(vocab_size, num_tokens, *, seed):
    """Word ids drawn by Zipf's law; all of a vocabulary may come up."""
    shares = 1 / np.arange(1, vocab_size + 1)
    return np.random.default_rng(seed).choice(vocab_size, size=num_tokens, p=shares / shares.sum())


def make_corpus(data, *, vocab_size, splits):
    """A prepared corpus of the given ids, with made-up words."""
    words = pa.array([EOS_WORD, UNK_WORD, *(f"w{i}" for i in range(2, vocab_size))])
    counts = np.bincount(splits["train"], minlength=vocab_size).astype(np.int64)
    vocabulary = Vocabulary(words=words, counts=counts)
    write_vocabulary(vocabulary, f"{data}/vocabulary.arrow")
    made = {}
    for name, ids in splits.items():
        receipt = write_shard(
            f"{data}/{name}/00000.arrow",
            [ids],
            vocabulary_fingerprint=vocabulary.fingerprint,
            vocab_size=vocab_size,
            source="made",
        )
        shard = Shard(
            name=f"{name}/00000.arrow",
            num_tokens=receipt.num_tokens,
            size_bytes=receipt.size_bytes,
            sha256=receipt.sha256,
            source="made",
        )
        made[name] = Split(shards=(shard,), num_tokens=receipt.num_tokens, num_unk=receipt.num_unk)
    manifest = Manifest(
        splits=made,
        vocab_size=vocab_size,
        vocabulary_fingerprint=vocabulary.fingerprint,
        configuration={},
        tool_version="0",
    )
    write_manifest(manifest, data)


def even_nats(ids, *, vocab_size, cutoffs):
    """Mean nats of a model that finds all words of a cluster, and all entries of the head, equally likely."""
    edges = [*cutoffs, vocab_size]
    cluster = np.searchsorted(edges, ids, side="right")
    tails = [0.0, *(math.log(end - start) for start, end in pairwise(edges))]
    return math.log(edges[0] + len(edges) - 1) + float(np.mean(np.array(tails)[cluster]))


def first_window(ids, *, num_lanes, bptt):
    """The targets of the first step: the head of each lane's stretch."""
    starts = [lane * len(ids) // num_lanes for lane in range(num_lanes)]
    return np.concatenate([ids[start : start + bptt] for start in starts])


@pytest.fixture
def folder(tmp_path):
    """A folder that is emptied at once: a checkpoint of the large models takes gigabytes, and so does their memory."""
    yield tmp_path
    shutil.rmtree(tmp_path)
    gc.collect()


@pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree")  # Lightning 2.6, every fit
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in SIZES]
)
def test_a_recipe_trains_at_its_real_size(name, folder):
    vocab_size = SIZES[name][0]
    typed = [f"data={folder}/data", f"run={folder}/run", "accelerator=cpu", "tracking.kind=none"]
    seen = ["logging.every_steps=1", "logging.progress=false", "checkpoint.keep_last=1"]
    config = recipe(name, *typed, *seen, f"max_steps={STEPS}")
    num_lanes, bptt = config.stream.num_lanes, config.stream.bptt
    ids = zipf_ids(vocab_size, num_lanes * bptt * (STEPS + 1) + 7, seed=0)
    valid = zipf_ids(vocab_size, 50, seed=1)
    make_corpus(f"{folder}/data", vocab_size=vocab_size, splits={"train": ids, "valid": valid})

    outcome = train(config)

    assert (outcome.first_step, outcome.step) == (0, STEPS)
    records = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    plan = lane_plan(config, read_manifest(f"{folder}/data"))
    softmax = fitted_model(config.model, vocab_size=vocab_size).softmax
    cutoffs = softmax.cutoffs if softmax.kind == "adaptive" else ()
    even = even_nats(first_window(ids, num_lanes=num_lanes, bptt=bptt), vocab_size=vocab_size, cutoffs=cutoffs)
    assert abs(even - math.log(vocab_size)) < (1e-9 if not cutoffs else 2.5)  # no cluster is far from its share
    # logits of a variance cost half of it: each is a sum over the hidden vector, of weights drawn uniformly
    logits = AT_FIRST.get(name, 0.0) * config.model.recurrence.output_size * config.model.init_scale**2 / 3
    assert records[0]["train/nats_per_token"] == pytest.approx(even + logits / 2, abs=0.05)
    if name in GRAVE:  # Adagrad's first update; at the full rate it costs 18 nats
        assert records[1]["train/nats_per_token"] < even + 0.5
    for record, step in zip(records, range(STEPS), strict=True):
        rate = learning_rate(config.optim, step=step, epoch=0, total_steps=STEPS, validations=[])
        assert record["train/learning_rate"] == rate * plan.share_of_bptt(step)
        assert record["tokens_seen"] == plan.tokens_seen(step + 1)
        if not config.stream.random_bptt:
            assert (plan.share_of_bptt(step), plan.tokens_seen(step + 1)) == (1, (step + 1) * num_lanes * bptt)
        assert math.isfinite(record["train/nats_per_token"]) and math.isfinite(record["train/gradient_norm"])
    assert math.isfinite(records[-1]["valid/nats_per_token"])
    assert [path.name for path in Path(folder, "run", "checkpoints").glob("*.ckpt")] == [f"step-{STEPS}.ckpt"]


def test_the_even_model_costs_the_log_of_the_vocabulary():
    """The yardstick above: a full softmax, and clusters written out."""
    ids = np.array([0, 1, 2, 9])
    assert even_nats(ids, vocab_size=10, cutoffs=()) == pytest.approx(math.log(10))
    tails = math.log(2) + math.log(6)  # of word 2 among [2, 4), of word 9 among [4, 10)
    assert even_nats(ids, vocab_size=10, cutoffs=(2, 4)) == pytest.approx(math.log(4) + tails / 4)
