"""Probabilities of n-gram models equal those of the plain formulas, whatever the parts in which they were counted."""

import math

import numpy as np
import pytest
from support.kneser_ney import KneserNey

from pipeline.cluster.tasks import run_here
from pipeline.config import NgramConfig
from pipeline.corpus.phases import NoProgress, Phases
from pipeline.ngram import counting
from pipeline.ngram.counting import Text, count_text
from pipeline.ngram.discounts import discounts_of
from pipeline.ngram.model import NgramModel, tensors_of
from pipeline.ngram.smoothing import smooth
from pipeline.ngram.windows import Packing, read_with_history, summed, windows_of
from pipeline.scoring.perplexity import predictor_of


class Listed:
    """A token sequence from a list."""

    def __init__(self, ids):
        self.ids = np.asarray(ids, dtype=np.int64)

    def __len__(self):
        return len(self.ids)

    def read(self, start, stop):
        return self.ids[start:stop]


def made_tokens(num_tokens, *, vocab_size, seed):
    """Words that say something of the next one; lines of all lengths, blank ones too."""
    draw = np.random.default_rng(seed)
    words = [0]
    for _ in range(num_tokens):
        words.append(int((words[-1] * 3 + draw.geometric(0.35)) % (vocab_size - 2)))
    return [*words[1:-1], 0]


def counted(tokens, folder, monkeypatch, *, order, resets, vocab_size, zeroton=False, run_tasks=run_here):
    """The model of a text, counted by the tasks."""
    monkeypatch.setattr(Text, "open", lambda self: Listed(tokens))
    shard = type("Shard", (), {"num_tokens": len(tokens)})
    text = Text(
        data="",
        shards=(shard,),
        vocabulary_fingerprint="",
        vocab_size=vocab_size,
        order=order,
        resets=resets,
        work=str(folder),
    )
    phases = Phases(run_tasks, NoProgress(), ())
    found, adjusted_V = count_text(text, phases)
    weights, _ = smooth(found, adjusted_V, phases, zeroton=zeroton)
    section = NgramConfig(kind="ngram", order=order, zeroton=zeroton, resets=resets, arpa=None)
    return NgramModel(section, tensors_of({name: np.array(each) for name, each in weights.items()}))


def in_small_parts(monkeypatch, *, tokens=100, windows=60):
    monkeypatch.setattr(counting, "RANGE_TOKENS", tokens)
    monkeypatch.setattr(counting, "PART_WINDOWS", windows)
    monkeypatch.setattr(counting, "SAMPLED", 4)


CASES = [(order, resets, zeroton) for order in (1, 2, 4) for resets in ("line", "none") for zeroton in (False, True)]


@pytest.mark.parametrize(("order", "resets", "zeroton"), CASES)
def test_every_probability_is_that_of_the_formulas_and_they_sum_to_one(order, resets, zeroton, tmp_path, monkeypatch):
    in_small_parts(monkeypatch, tokens=130, windows=100)
    vocab_size, tokens = 23, made_tokens(400, vocab_size=23, seed=order)
    model = counted(tokens, tmp_path, monkeypatch, order=order, resets=resets, vocab_size=vocab_size, zeroton=zeroton)
    oracle = KneserNey(tokens, order=order, resets=resets, vocab_size=vocab_size, zeroton=zeroton)
    unseen = [[], [0], [21, 22], [0, 0], [22, 0, 5], [3, 22, 5, 6, 7]]
    for before in [*unseen, *(tokens[:end] for end in range(1, 120, 13))]:
        history = oracle.history(before)
        expected = [oracle.probability(history, word) for word in range(vocab_size)]
        ids = [Listed([*before, word]) for word in range(vocab_size)]
        ends = [read_with_history(each, len(before), len(before) + 1, num_before=order) for each in ids]
        found = [math.exp(-float(model.nats(each))) for each in ends]
        np.testing.assert_allclose(found, expected, rtol=2e-6)
        left = oracle.probability(history, "never") if zeroton else 0.0
        assert sum(found) == pytest.approx(1 - left, abs=1e-6)


@pytest.mark.parametrize(("order", "resets"), [(1, "line"), (4, "line"), (4, "none")])
def test_a_text_is_scored_as_its_words_one_by_one(order, resets, tmp_path, monkeypatch):
    """Windows of the predictor leave no joint: 1,000 targets at a time, and the text's own beginning."""
    vocab_size = 30
    tokens, held_out = (made_tokens(size, vocab_size=30, seed=size) for size in (1500, 2300))
    model = counted(tokens, tmp_path, monkeypatch, order=order, resets=resets, vocab_size=vocab_size)
    oracle = KneserNey(tokens, order=order, resets=resets, vocab_size=vocab_size, zeroton=False)
    parts = list(predictor_of(model)(Listed(held_out)))
    assert [len(each) for each in parts] == [1000, 1000, 300]
    found = np.concatenate([each.numpy() for each in parts])
    before = [held_out[max(place - 40, 0) : place] for place in range(len(held_out))]
    if resets == "none":
        histories = [((0, *held_out[:place]) if place < 40 else held_out[:place])[-3:] for place in range(2300)]
    else:
        histories = [oracle.history(each) for each in before]
    expected = [
        -math.log(oracle.probability(tuple(history), word)) for history, word in zip(histories, held_out, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("resets", ["line", "none"])
def test_parts_and_the_order_of_tasks_leave_no_trace(resets, tmp_path, monkeypatch):
    def backwards(function, items):
        yield from [(index, function(items[index])) for index in reversed(range(len(items)))]

    def weights(name, **more):
        found = counted(tokens, tmp_path / name, monkeypatch, order=4, resets=resets, vocab_size=40, **more)
        return {key: each.numpy().tobytes() for key, each in found.state_dict().items()}

    tokens = made_tokens(500, vocab_size=40, seed=1)
    whole = weights("whole")
    for tokens_at_once, windows in [(60, 40), (17, 12), (500, 30)]:
        in_small_parts(monkeypatch, tokens=tokens_at_once, windows=windows)
        assert weights(f"{tokens_at_once}", run_tasks=backwards) == whole


def test_a_text_whose_lines_are_shorter_than_the_order(tmp_path, monkeypatch):
    tokens = [2, 0, 3, 0, 0, 2, 3, 0]
    model = counted(tokens, tmp_path, monkeypatch, order=6, resets="line", vocab_size=5)
    assert len(model.get_buffer("keys_6")) == 0
    oracle = KneserNey(tokens, order=6, resets="line", vocab_size=5, zeroton=False)
    found = model.nats(read_with_history(Listed([2, 3, 4]), 0, 3, num_before=6)).tolist()
    expected = [-math.log(oracle.probability(oracle.history([2, 3][:place]), 2 + place)) for place in range(3)]
    assert found == pytest.approx(expected, rel=1e-6)


def test_windows_end_at_their_lines_begin_or_at_the_texts():
    ids_T = read_with_history(Listed([5, 0, 7, 8, 9]), 0, 5, num_before=3)
    assert ids_T.tolist() == [-1, -1, 0, 5, 0, 7, 8, 9]
    line, none = ([*windows_of(ids_T, order=4, resets=resets).T.tolist()] for resets in ("line", "none"))
    assert line == [[6, 1, 0, 0], [1, 6, 1, 0], [8, 1, 0, 0], [9, 8, 1, 0], [10, 9, 8, 1]]
    assert none == [[6, 1, 0, 0], [1, 6, 1, 0], [8, 1, 6, 1], [9, 8, 1, 6], [10, 9, 8, 1]]


@pytest.mark.parametrize(("order", "vocab_size"), [(1, 3), (5, 33_278), (5, 793_471), (3, (1 << 31) - 2), (20, 100)])
def test_packed_windows_keep_their_digits_and_their_order(order, vocab_size):
    packing = Packing(order=order, vocab_size=vocab_size)
    digits_NT = np.random.default_rng(0).integers(0, vocab_size + 1, (order, 500))
    digits_NT[:, :4] = np.array([0, vocab_size, 0, vocab_size])
    columns_CT = packing.pack(digits_NT)
    assert (packing.unpack(columns_CT) == digits_NT).all()
    found, counts = summed(columns_CT, np.ones(500, dtype=np.int64))
    windows = sorted(map(tuple, digits_NT.T.tolist()))
    assert [tuple(each) for each in packing.unpack(found).T.tolist()] == sorted(set(windows))
    assert counts.tolist() == [windows.count(each) for each in sorted(set(windows))]
    pairs = [each[:2] for each in packing.unpack(found).T.tolist()]
    shifted = (found[0] >> packing.pair_shift).tolist()
    assert all((a == b) == (x == y) for a, b, x, y in zip(pairs, pairs[1:], shifted, shifted[1:], strict=False))


def test_discounts_are_those_of_the_formula():
    n = [0, 4, 9, 5, 3]
    y = 4 / 22
    found = discounts_of(n)
    assert found.taken == pytest.approx((0, 1 - 2 * y * 9 / 4, 2 - 3 * y * 5 / 9, 3 - 4 * y * 3 / 5))
    assert not found.is_fallback


@pytest.mark.parametrize("n", [[9, 0, 5, 3, 1], [9, 5, 0, 3, 1], [9, 5, 3, 0, 1], [0, 9, 1, 9, 1], [0, 5, 4, 1, 99]])
def test_discounts_that_cannot_be_are_replaced(n):
    found = discounts_of(n)
    assert (found.taken, found.is_fallback) == ((0, 0.5, 1, 1.5), True)
