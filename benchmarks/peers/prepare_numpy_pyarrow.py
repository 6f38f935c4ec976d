"""numpy and pyarrow by hand: blocks of the text in one pass, words as slices of a block, ids kept in memory.

A block's words become an Arrow array without a copy, which Arrow encodes by a dictionary; the dictionaries and their
counts are added up, and each block's ids are looked up again by its dictionary alone.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from shared import EOS, UNK, prepare_main, write_vocabulary

BLOCK_BYTES = 1 << 22


def make(text: Path, out: Path, size: int) -> None:
    pa.set_cpu_count(1)
    blocks = [split(block).dictionary_encode() for block in read_blocks(text)]
    counts = pa.chunked_array([counted(block) for block in blocks]).combine_chunks()
    table = pa.table({"word": counts.field("values"), "count": counts.field("counts")})
    table = table.group_by("word", use_threads=False).aggregate([("count", "sum")])
    table = table.filter(pc.invert(pc.is_in(table["word"], pa.array([EOS, UNK], pa.binary()))))
    order = pc.sort_indices(table, [("count_sum", "descending"), ("word", "ascending")])[: size - 2]
    words = pa.concat_arrays([pa.array([EOS, UNK], pa.binary()), *table["word"].take(order).chunks])
    write_vocabulary(out, words.to_pylist())
    with (out / "ids.int32").open("wb") as file:
        for block in blocks:
            ids = pc.index_in(block.dictionary, words).fill_null(1).to_numpy()
            file.write(ids.astype(np.int32)[block.indices.to_numpy()])


def read_blocks(text: Path) -> Iterator[bytes]:
    """Blocks that end with a line."""
    with text.open("rb") as file:
        while block := file.read(BLOCK_BYTES) + file.readline():
            yield block.replace(b"\n", b" <eos>\n")


def split(block: bytes) -> pa.Array:
    """The words of a block."""
    is_word = np.frombuffer(block, dtype=np.uint8) > ord(" ")
    edges = np.flatnonzero(is_word[1:] != is_word[:-1]).astype(np.int32) + 1
    if is_word[0]:
        edges = np.append(np.int32(0), edges)
    starts, stops = edges[::2], edges[1::2]
    # Arrow's words lie side by side, so between two of them lies one of white space, which is dropped
    offsets = np.append(np.column_stack([starts, stops]).ravel(), stops[-1:])
    pieces = pa.Array.from_buffers(pa.binary(), 2 * len(starts), [None, pa.py_buffer(offsets), pa.py_buffer(block)])
    return pieces.take(pa.array(np.arange(0, 2 * len(starts), 2, dtype=np.int32)))


def counted(block: pa.DictionaryArray) -> pa.StructArray:
    """The words of a block with their counts."""
    counts = np.bincount(block.indices.to_numpy(), minlength=len(block.dictionary))
    return pa.StructArray.from_arrays([block.dictionary, pa.array(counts)], ["values", "counts"])


def read_ids(out: Path) -> Iterator[np.ndarray]:
    yield np.fromfile(out / "ids.int32", dtype=np.int32)


if __name__ == "__main__":
    prepare_main(make, read_ids)
