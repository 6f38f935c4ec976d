"""Distinct words in the order of their UTF-8 bytes.

In: a `pa.string()` array of distinct words without nulls. Out: its rows in order. Refuses nothing.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.arrays import as_arrow, as_numpy

PREFIX_BYTES = 8


def sort_words(words: pa.Array) -> npt.NDArray[np.int64]:
    """The rows of distinct words in the order of their bytes: int64 [len(words)].

    Sorts numbers made of the first eight bytes, and by whole words only the rows whose numbers are equal.
    """
    prefixes = _prefixes(words)
    order = np.argsort(prefixes)
    ordered = prefixes[order]
    is_same = ordered[1:] == ordered[:-1]
    is_shared = np.zeros(len(words), dtype=bool)
    is_shared[1:] |= is_same
    is_shared[:-1] |= is_same
    # Words that share a prefix stand together, and their groups follow one another as the whole words do.
    places = np.flatnonzero(is_shared)
    rows = order[places]
    order[places] = rows[as_numpy(pc.sort_indices(words.take(as_arrow(rows))), np.int64)]
    return order


def _prefixes(words: pa.Array) -> npt.NDArray[np.uint64]:
    """The first eight bytes of each word as a number that is as large as the word comes late; zeros where it ends."""
    _, offsets_buffer, data_buffer = words.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[words.offset : words.offset + len(words) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    data = np.zeros(last - first + PREFIX_BYTES, np.uint8)  # so that eight bytes can be read from anywhere
    if last > first:
        data[:-PREFIX_BYTES] = np.frombuffer(data_buffer, np.uint8)[first:last]
    eight_bytes = np.ndarray((last - first + 1,), ">u8", data, strides=(1,))
    num_beyond = np.maximum(PREFIX_BYTES - np.diff(offsets), 0).astype(np.uint64)
    found = eight_bytes[offsets[:-1] - first].astype(np.uint64)
    # two shifts: one by all 64 bits, for the empty word, is not defined
    half = num_beyond * np.uint64(4)
    kept: npt.NDArray[np.uint64] = (found >> half >> half) << half << half
    return kept
