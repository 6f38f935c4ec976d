"""Rows are those of a dict, whatever the hashes."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus import word_index as module
from pipeline.corpus.word_index import WordIndex, hash_words

WORD = st.one_of(
    st.text(alphabet=st.characters(codec="utf-8"), max_size=20),
    st.text(alphabet="ab", max_size=4),
    st.integers(0, 30).map(lambda number: "x" * number),
    st.sampled_from(["", "\0", "\0\0", "a\0", "a", "😀", "y" * 300, "y" * 300 + "z", "y" * 301]),
)


def array(words):
    return pa.array(words, pa.string())


@given(words=st.lists(WORD, min_size=1, max_size=40, unique=True), asked=st.lists(WORD, max_size=40))
@pytest.mark.parametrize(("hashed_bytes", "max_alike"), [(256, 4), (8, 4), (0, 1), (0, 4), (0, 99)])
def test_rows_are_those_of_a_dict(hashed_bytes, max_alike, words, asked):
    asked += words
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "HASHED_BYTES", hashed_bytes)
        patch.setattr(module, "MAX_ALIKE", max_alike)
        patch.setattr(module, "SLICE_ROWS", 7)
        made = WordIndex(array(words))
        kept = WordIndex(array(words), module.sorted_hashes(array(words)))
        by_table = made.find(array(asked))
        by_hash = [find_by_hash(index, array(asked)).tolist() for index in (made, kept)]
        few = [row for word in asked for row in made.find(array([word])).tolist()]
    rows = {word: row for row, word in enumerate(words)}
    assert by_table.dtype == np.int32
    expected = [rows.get(word, module.ABSENT) for word in asked]
    assert by_table.tolist() == few == expected
    assert by_hash == [expected, expected]


def find_by_hash(index, words):
    """Rows of words, however many are asked for."""
    hashes = hash_words(words)
    order = np.argsort(hashes)
    rows = np.empty(len(words), np.int32)
    rows[order] = index.find_hashed(words.take(pa.array(order)), hashes[order])
    return rows


@pytest.mark.parametrize("num_asked", [2, 3])
def test_few_words_are_found_by_hash_and_many_by_a_table(monkeypatch, num_asked):
    calls = []
    monkeypatch.setattr(module, "hash_words", lambda words: calls.append(len(words)) or hash_words(words))
    words = array(["a", "b", "c"])
    assert WordIndex(words).find(words[:num_asked]).tolist() == [0, 1, 2][:num_asked]
    assert calls == {2: [2, 3], 3: []}[num_asked]


def test_a_kept_index_is_used_and_every_hit_is_compared():
    words = array(["a", "b", "c"])
    of_others = WordIndex(words, module.sorted_hashes(array(["b", "x", "a"])))
    assert of_others.find(words[:2]).tolist() == [-1, -1]  # what the file says is "b" or "a" is not
    kept = module.sorted_hashes(words)
    assert kept.schema == module.INDEX_SCHEMA
    assert kept.column(0).to_pylist() == sorted(hash_words(words).tolist())


def test_words_are_surely_distinct_if_their_hashes_are():
    assert module.surely_distinct(array(["a", "b", ""]))
    assert not module.surely_distinct(array(["a", "b", "a"]))
    assert not module.surely_distinct(array(["z" * 256 + "a", "z" * 256 + "b"]))


def test_slices_are_arrays():
    words = array(["left out", "a", "b" * 9, "", "c", "left out"])
    assert WordIndex(words[1:5]).find(words[2:6]).tolist() == [1, 2, 3, -1]
    assert WordIndex(words[1:5]).find(words[3:6]).tolist() == [2, 3, -1]
    assert WordIndex(words[1:5]).find(words[:0]).tolist() == []


def test_a_hash_is_of_all_bytes_and_of_the_length():
    alike = ["", "\0", "\0\0", "a", "a\0", "\0a", "12345678", "123456789", "12345678\0", "87654321" * 2]
    alike += [("x" * 255)[:at] + "y" + ("x" * 255)[at:] for at in range(256)]
    hashes = hash_words(array(alike))
    assert hashes.dtype == np.uint64
    assert len(set(hashes.tolist())) == len(alike)


def test_words_with_one_hash_are_told_apart():
    long = ["z" * 256 + last for last in "abc"]
    assert len(set(hash_words(array(long)).tolist())) == 1
    assert find_by_hash(WordIndex(array(long[:1])), array(long)).tolist() == [0, -1, -1]
    assert find_by_hash(WordIndex(array(long[:2])), array(long)).tolist() == [0, 1, -1]
