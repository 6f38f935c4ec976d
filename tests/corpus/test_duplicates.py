"""Held-out lines that stand in train: as plain Python finds them, however tokens are cut and hashes collide."""

import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus import duplicates as module
from pipeline.corpus.duplicates import Duplicates, find_duplicates, whole_lines

VOCAB_SIZE = 5
LINES = [(), (1,), (2,), (3, 2), (2, 3), (2, 1, 3), (2, 3, 1), (3, 3, 3, 4), (4,) * 6, (4,) * 5 + (3,)]
CUTS = st.lists(st.integers(0, 40), max_size=6)


@st.composite
def sequences(draw):
    """Lines of which many are equal, and the last may have no end."""
    tokens = [token for line in draw(st.lists(st.sampled_from(LINES), max_size=14)) for token in (*line, 0)]
    return tokens[:-1] if draw(st.booleans()) else tokens


def cut(tokens, cuts):
    """The same tokens in blocks, empty ones too."""
    return np.split(np.array(tokens, dtype=np.int64), sorted(min(each, len(tokens)) for each in cuts))


def lines_of(tokens):
    """Lists between two `<eos>`; a last one without is one too."""
    lines, line = [], []
    for token in tokens:
        if token == 0:
            lines.append(line)
            line = []
        else:
            line.append(token)
    return lines + [line] * bool(line)


def counted(held, train, *, min_words, longest=100):
    """What must be found, without the examples; and the lines that these may be."""
    lines = lines_of(held)
    compared = [each for each in lines if len(each) <= longest and sum(token != 1 for token in each) >= min_words]
    there = lines_of(train)
    both = [each for each in compared if each in there]
    return (
        Duplicates(
            num_lines=len(lines),
            num_words=sum(map(len, lines)),
            num_compared=len(compared),
            num_duplicates=len(both),
            num_without_unk=sum(1 not in each for each in both),
            num_duplicate_words=sum(map(len, both)),
        ),
        both,
    )


def without_examples(found):
    return {**vars(found), "examples": []}


@given(
    valid=sequences(),
    test=sequences(),
    train=sequences(),
    cuts=st.tuples(CUTS, CUTS, CUTS),
    min_words=st.integers(1, 3),
    hash_bits=st.sampled_from([0, 1, 2, 64]),
    held_tokens=st.sampled_from([1, 7, 1 << 24]),
    compared_tokens=st.sampled_from([1, 3, 1 << 20]),
    longest=st.sampled_from([2, 5, 100]),
)
def test_what_plain_python_finds(valid, test, train, cuts, min_words, hash_bits, held_tokens, compared_tokens, longest):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "HELD_TOKENS", held_tokens)
        patch.setattr(module, "COMPARED_TOKENS", compared_tokens)
        patch.setattr(module, "LONGEST_LINE", longest)
        found = find_duplicates(
            {"valid": cut(valid, cuts[0]), "test": cut(test, cuts[1])},
            lambda: cut(train, cuts[2]),
            vocab_size=VOCAB_SIZE,
            min_words=min_words,
            num_examples=100,
            hash_bits=hash_bits,
        )
    assert list(found) == ["valid", "test"]
    for tokens, each in zip((valid, test), found.values(), strict=True):
        expected, both = counted(tokens, train, min_words=min_words, longest=longest)
        assert without_examples(each) == vars(expected)
        if hash_bits == 64:
            assert sorted(each.examples) == sorted(map(list, {tuple(line) for line in both}))
        assert all(example in both for example in each.examples)
        assert each.examples == sorted(each.examples, key=lambda line: (1 in line, -len(line)))


@given(tokens=sequences(), cuts=CUTS, longest=st.integers(1, 6))
def test_lines_are_whole_wherever_blocks_are_cut(tokens, cuts, longest):
    found = []
    for lines in whole_lines(cut(tokens, cuts), longest=longest):
        assert len(lines.tokens) == (lines.lengths + 1).sum()
        found += [lines.tokens[a : a + n].tolist() for a, n in zip(lines.starts, lines.lengths, strict=True)]
    assert found == [each for each in lines_of(tokens) if len(each) <= longest]


def test_a_line_that_is_too_long_is_not_kept_while_it_is_read():
    """What waits for its end is bounded, whatever train holds."""
    read = []

    def blocks():
        for _ in range(1000):
            block = np.full(8, 2)
            read.append(weakref.ref(block))
            yield block
            assert sum(each() is not None for each in read) <= 8
        yield np.array([0, 3, 3, 0])

    assert [lines.tokens.tolist() for lines in whole_lines(blocks(), longest=50)] == [[3, 3, 0]]


def test_many_lines_at_once_with_equal_ones_in_both():
    generator = np.random.default_rng(3)
    choices = [generator.integers(69_950, 70_000, size=generator.integers(1, 9)).tolist() for _ in range(300)]
    train = [choices[i] for i in generator.integers(0, 200, size=20_000)]
    held = [choices[i] for i in generator.integers(100, 300, size=5_000)]

    def flat(lines):
        return [token for line in lines for token in (*line, 0)]

    found = find_duplicates(
        {"test": cut(flat(held), [1000, 9000])},
        lambda: cut(flat(train), range(0, 100_000, 1777)),
        vocab_size=70_000,
        min_words=2,
        num_examples=3,
    )["test"]
    there = {tuple(line) for line in train}
    both = [tuple(line) for line in held if tuple(line) in there and len(line) >= 2]
    assert (found.num_duplicates, found.num_duplicate_words) == (len(both), sum(map(len, both)))
    assert [*map(len, found.examples)] == sorted(map(len, {*both}), reverse=True)[:3]


def test_train_is_read_once_for_each_group_and_no_further_than_needed(monkeypatch):
    read = []

    def train():
        for number in range(3):
            read.append(number)
            yield np.array([2 + number, 0])

    asked = {"valid": [np.array([2, 0])], "test": [np.array([9, 0])]}
    find_duplicates(asked, train, vocab_size=10, min_words=1, num_examples=1)
    assert read == [0, 1, 2]
    read.clear()
    monkeypatch.setattr(module, "HELD_TOKENS", 1)
    find_duplicates(asked, train, vocab_size=10, min_words=1, num_examples=1)
    assert read == [0, 0, 1, 2]
    read.clear()
    find_duplicates({"valid": [np.array([0, 2, 0])]}, train, vocab_size=10, min_words=2, num_examples=1)
    assert read == []
