"""Which row of a large array holds a word, in time that hardly grows with the array.

In: an array of distinct words, then arrays of words to look up. Out: rows. Arrow's own look-up makes its hash table
anew at each call; this one sorts 64-bit hashes once, and what it sorted can be kept in a file. Each hit is compared
with the word itself, so that the answer is exact whatever the hashes are.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.arrays import as_arrow, as_flags, as_numpy

ABSENT = -1
SLICE_ROWS = 1 << 18  # hashed at a time, so that temporaries stay small
HASHED_BYTES = 256  # of a longer word, the first so many and the length make the hash
MAX_ALIKE = 4  # words of one hash that are compared one by one; real words never were two
FIRST_FACTOR = np.uint64(0x9E3779B97F4A7C15)
SECOND_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
INDEX_SCHEMA = pa.schema(
    [pa.field("hash", pa.uint64(), nullable=False), pa.field("row", pa.int32(), nullable=False)],
)

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class WordIndex:
    """Rows of an array's words.

    Attributes:
        words: `pa.string()` array of distinct words.
        kept: what `sorted_hashes` gave for them; None: it is made when it is needed, and takes 12 bytes a word.
    """

    words: pa.Array
    kept: pa.RecordBatch | None = None

    @cached_property
    def _hashes(self) -> tuple[Hashes, npt.NDArray[np.int32]]:
        batch = self.kept or sorted_hashes(self.words)
        return as_numpy(batch.column("hash"), np.uint64), as_numpy(batch.column("row"), np.int32)

    def find(self, words: pa.Array) -> npt.NDArray[np.int32]:
        """The row of each word, `ABSENT` if there is none: int32 [len(words)].

        Where as many words are asked for as there are, Arrow's hash table, made for this call, is quicker than a search
        for each, and leaves nothing behind.
        """
        if len(words) >= len(self.words):
            return self._find_by_table(words)
        hashes = hash_words(words)
        order = np.argsort(hashes)
        rows = np.empty(len(words), dtype=np.int32)
        rows[order] = self.find_hashed(words.take(as_arrow(order)), hashes[order])
        return rows

    def find_hashed(self, words: pa.Array, hashes: Hashes) -> npt.NDArray[np.int32]:
        """`find` for words in the order of their hashes, in which the search goes through memory once.

        Args:
            words: what to look for.
            hashes: what `hash_words` gives for them, ascending.
        """
        index, index_rows = self._hashes
        rows = np.full(len(words), ABSENT, dtype=np.int32)
        places = np.searchsorted(index, hashes)
        asked = np.arange(len(words))
        for _ in range(MAX_ALIKE):
            here = places < len(index)
            asked, places = asked[here], places[here]
            here = index[places] == hashes[asked]
            asked, places = asked[here], places[here]
            if not len(asked):
                return rows
            found = index_rows[places]
            same = as_flags(pc.equal(words.take(as_arrow(asked)), self.words.take(as_arrow(found))))
            rows[asked[same]] = found[same]
            asked, places = asked[~same], places[~same] + 1
        if len(asked):
            rows[asked] = self._find_by_table(words.take(as_arrow(asked)))
        return rows

    def _find_by_table(self, words: pa.Array) -> npt.NDArray[np.int32]:
        found = pc.index_in(words, value_set=self.words).fill_null(as_arrow(np.array([ABSENT], np.int32))[0])
        return as_numpy(found, np.int32).copy()


def sorted_hashes(words: pa.Array) -> pa.RecordBatch:
    """What an index keeps of distinct words: their hashes, ascending, and the row of each."""
    hashes = hash_words(words)
    rows = np.argsort(hashes, kind="stable")
    return pa.RecordBatch.from_arrays([as_arrow(hashes[rows]), as_arrow(rows.astype(np.int32))], schema=INDEX_SCHEMA)


def surely_distinct(words: pa.Array) -> bool:
    """Whether no two words have one hash, so that no word stands there twice; False may be a chance."""
    hashes = np.sort(hash_words(words))
    return not bool((hashes[1:] == hashes[:-1]).any())


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
