"""Arrow arrays from numpy's and back, without copies where there can be none.

In: arrays without nulls. Out: the other kind. Refuses nothing. Arrow's own conversions (`pa.array`, `pa.scalar`,
`to_numpy`, a Python value as an argument of a function) load pandas, which takes 0.2 s in each process.
"""

from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Kind = TypeVar("Kind", bound=np.integer)

TYPES = {np.dtype(np.int32): pa.int32(), np.dtype(np.int64): pa.int64(), np.dtype(np.uint64): pa.uint64()}


def as_arrow(values: npt.NDArray[np.generic]) -> pa.Array:
    """Integers for Arrow: int32, int64 or uint64, which stay where they are if they lie next to each other."""
    data = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(TYPES[values.dtype], len(values), [None, data])


def as_numpy(values: pa.Array | pa.ChunkedArray, kind: type[Kind]) -> npt.NDArray[Kind]:
    """Integers for numpy; if they are of that kind and in one chunk, they stay where they are and are read-only."""
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return np.from_dlpack(array).astype(kind, copy=False)


def as_flags(values: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Truth values for numpy."""
    return as_numpy(values.cast(pa.uint8()), np.uint8).view(np.bool_)


def strings(*words: str) -> pa.Array:
    """A few words for Arrow: `pa.string()` array."""
    data = [word.encode() for word in words]
    ends = np.cumsum([0, *map(len, data)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(words), pa.py_buffer(ends), pa.py_buffer(b"".join(data)))
