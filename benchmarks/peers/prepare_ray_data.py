"""Ray Data: `read_text`, words counted by block, ids by `map_batches` in the order of the text."""

import logging
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from shared import EOS, chosen, prepare_main, write_vocabulary


def make(text: Path, out: Path, size: int) -> None:
    ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    lines = ray.data.read_text(str(text), drop_empty_lines=False)
    counts: Counter[str] = Counter()
    for table in lines.map_batches(count, batch_format="pyarrow", batch_size=None).iter_batches(batch_format="pyarrow"):
        for word, number in zip(table["word"].to_pylist(), table["count"].to_pylist(), strict=True):
            counts[word] += number
    words = chosen(counts, size)
    write_vocabulary(out, words)
    kept = ray.put({word: i for i, word in enumerate(words)})
    encoded = lines.map_batches(encode, fn_args=(kept,), batch_format="pyarrow", batch_size=None)
    encoded.write_parquet(str(out / "ids"), compression="none")
    ray.shutdown()


def count(table: pa.Table) -> pa.Table:
    lines = table["text"].to_pylist()
    counts = Counter(chain.from_iterable(line.split() for line in lines))
    counts[EOS] += len(lines)
    return pa.table({"word": list(counts), "count": list(counts.values())})


def encode(table: pa.Table, kept: ray.ObjectRef) -> pa.Table:
    ids = ray.get(kept)
    lines = ([*(ids.get(word, 1) for word in line.split()), 0] for line in table["text"].to_pylist())
    return pa.table({"ids": pa.array(lines, pa.list_(pa.int32()))})


def read_ids(out: Path) -> Iterator[np.ndarray]:
    for path in sorted((out / "ids").iterdir()):
        for chunk in pq.read_table(path)["ids"].chunks:
            yield np.ascontiguousarray(chunk.flatten().to_numpy(), dtype=np.int32)


if __name__ == "__main__":
    prepare_main(make, read_ids)
