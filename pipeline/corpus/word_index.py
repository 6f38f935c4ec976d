"""Which row of a large array holds a word, in time that hardly grows with the array.

In: an array of distinct words, then arrays of words to look up. Out: rows. Arrow's own look-up makes its hash table
anew at each call; this one sorts 64-bit hashes once. Each hit is compared with the word itself, so that the answer is
exact whatever the hashes are.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

ABSENT = -1
SLICE_ROWS = 1 << 18  # hashed at a time, so that temporaries stay small
HASHED_BYTES = 256  # of a longer word, the first so many and the length make the hash
FIRST_FACTOR = np.uint64(0x9E3779B97F4A7C15)
SECOND_FACTOR = np.uint64(0xBF58476D1CE4E5B9)

Hashes = npt.NDArray[np.uint64]


class WordIndex:
    """Rows of an array's words. Takes 12 bytes a word."""

    def __init__(self, words: pa.Array) -> None:
        """Hashes and sorts.

        Args:
            words: `pa.string()` array of distinct words.
        """
        hashes = hash_words(words)
        self._words = words
        self._rows = np.argsort(hashes).astype(np.int32)
        self._hashes = hashes[self._rows]
        self._is_exact = not bool((self._hashes[1:] == self._hashes[:-1]).any())

    def find(self, words: pa.Array) -> npt.NDArray[np.int32]:
        """The row of each word, `ABSENT` if there is none: int32 [len(words)]."""
        if not self._is_exact:  # two of its words have one hash, which real words never had
            found = pc.index_in(words, value_set=self._words).fill_null(ABSENT)
            return np.array(found, dtype=np.int32)
        hashes = hash_words(words)
        order = np.argsort(hashes)  # in order, the search goes through memory once
        places = np.searchsorted(self._hashes, hashes[order])
        places[places == len(self._hashes)] = 0
        hits = np.flatnonzero(self._hashes[places] == hashes[order])
        asked, rows = order[hits], self._rows[places[hits]]
        same = pc.equal(words.take(pa.array(asked)), self._words.take(pa.array(rows)))
        is_same = same.to_numpy(zero_copy_only=False)
        found_rows = np.full(len(words), ABSENT, dtype=np.int32)
        found_rows[asked[is_same]] = rows[is_same]
        return found_rows


def hash_words(words: pa.Array) -> Hashes:
    """A 64-bit hash of each word of a `pa.string()` array without nulls: uint64 [len(words)]."""
    parts = [_hash_slice(words.slice(start, SLICE_ROWS)) for start in range(0, len(words), SLICE_ROWS)]
    return np.concatenate([np.empty(0, np.uint64), *parts])


def _hash_slice(words: pa.Array) -> Hashes:
    _, offsets_buffer, data_buffer = words.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[words.offset : words.offset + len(words) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    data = np.zeros(last - first + 8, np.uint8)  # so that 8 bytes can be read from anywhere
    if last > first:
        data[:-8] = np.frombuffer(data_buffer, np.uint8)[first:last]
    eight_bytes = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))
    starts, lengths = offsets[:-1] - first, np.diff(offsets)
    hashes = lengths.astype(np.uint64) * FIRST_FACTOR
    rows = np.arange(len(words))
    for at in range(0, HASHED_BYTES, 8):
        rows = rows[lengths[rows] > at]
        if not len(rows):
            break
        piece = eight_bytes[starts[rows] + at]
        num_beyond = np.maximum(8 - (lengths[rows] - at), 0).astype(np.uint64)
        piece &= np.uint64(0xFFFFFFFFFFFFFFFF) >> (num_beyond * np.uint64(8))
        hashes[rows] = _mixed(hashes[rows] ^ piece)
    return hashes


def _mixed(values: Hashes) -> Hashes:
    """A value for each value, never the same for two, that depends on all of its bits."""
    values = (values ^ (values >> np.uint64(31))) * FIRST_FACTOR
    values = (values ^ (values >> np.uint64(29))) * SECOND_FACTOR
    return values ^ (values >> np.uint64(32))
