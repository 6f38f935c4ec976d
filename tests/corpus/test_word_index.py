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
@pytest.mark.parametrize("hashed_bytes", [256, 8, 0])
def test_rows_are_those_of_a_dict(hashed_bytes, words, asked):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "HASHED_BYTES", hashed_bytes)
        patch.setattr(module, "SLICE_ROWS", 7)
        found = WordIndex(array(words)).find(array(asked + words))
    rows = {word: row for row, word in enumerate(words)}
    assert found.dtype == np.int32
    assert found.tolist() == [rows.get(word, module.ABSENT) for word in asked + words]


def test_slices_are_arrays():
    words = array(["left out", "a", "b" * 9, "", "c", "left out"])
    assert WordIndex(words[1:5]).find(words[2:6]).tolist() == [1, 2, 3, -1]
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
    assert WordIndex(array(long[:1])).find(array(long)).tolist() == [0, -1, -1]
    assert WordIndex(array(long[:2])).find(array(long)).tolist() == [0, 1, -1]
