"""Data sets of the library `datasets`, streamed: rows of `text_column`, cut at the data set's own shards.

A source is the name of a split or, with a packaged builder (json, csv, parquet, text, arrow), a file. Of a data set
there are no bytes to digest but its text.
"""

import glob
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.config import CorpusConfig
from pipeline.corpus.readers.columns import BATCH_ROWS, check_column, documents_of
from pipeline.corpus.readers.reader import Documents, LargeDocument, Reader, Span
from pipeline.corpus.units import WorkUnit
from pipeline.errors import CorpusError, reason_of

if TYPE_CHECKING:
    from datasets import IterableDataset

PACKAGED_BUILDERS = ("arrow", "csv", "json", "parquet", "text")


def reads_files(corpus: CorpusConfig) -> bool:
    """Whether its splits are paths, and not the names that a data set has for its splits."""
    return corpus.source == "files" or corpus.dataset in PACKAGED_BUILDERS


def cut_at_shards(path: str, size_bytes: int, corpus: CorpusConfig) -> list[Span]:
    """A part for each shard of the data set.

    Args:
        path: the name of a split, or the file that a packaged builder reads.
        size_bytes: not needed.
        corpus: names the data set.

    Raises:
        CorpusError: it cannot be opened, or has no such column of texts.
    """
    dataset = open_dataset(path, corpus)
    name = f"data set {corpus.dataset}"
    first = next(batches(dataset, f"{name}, {path},", num_rows=1), None)
    if first is not None:
        check_column(first.schema, name, column=corpus.text_column)
    return [Span(shard, shard + 1, 0) for shard in range(dataset.num_shards)]


def documents(unit: WorkUnit, corpus: CorpusConfig) -> Iterator[Documents | LargeDocument]:
    """The texts of a shard."""
    dataset = open_dataset(unit.path, corpus)
    if dataset.num_shards > 1:
        dataset = dataset.shard(num_shards=dataset.num_shards, index=unit.start)
    name, row = f"data set {corpus.dataset}, {unit.path}, shard {unit.start}", 0
    for batch in batches(dataset, name):
        check_column(batch.schema, name, column=corpus.text_column)
        yield from documents_of(batch, name, first_row=row, corpus=corpus)
        row += batch.num_rows


def open_dataset(path: str, corpus: CorpusConfig) -> "IterableDataset":
    """One split of the data set, or one file as a packaged builder reads it, not downloaded but read as it goes."""
    import datasets

    assert corpus.dataset is not None
    if corpus.dataset in PACKAGED_BUILDERS and "::" in path:
        raise CorpusError(f"{path} is two file systems to datasets, for its `::`; rename it, or use corpus=files")
    with _one_line_errors(
        f"data set {corpus.dataset}, {path}, cannot be opened", mend="mend corpus.dataset or the split's name"
    ):
        if corpus.dataset in PACKAGED_BUILDERS:
            files = [glob.escape(path)]  # it takes them for patterns
            return datasets.load_dataset(corpus.dataset, data_files=files, split="train", streaming=True)
        return datasets.load_dataset(corpus.dataset, split=path, streaming=True)


def batches(dataset: "IterableDataset", name: str, *, num_rows: int = BATCH_ROWS) -> Iterator[pa.Table]:
    """The rows of a data set.

    Args:
        dataset: to be read.
        name: of the data set, for an error.
        num_rows: of a batch.

    Raises:
        CorpusError: the data are damaged, in the words of the data set's builder.
    """
    with _one_line_errors(f"{name} cannot be read", mend="mend the data"):
        yield from dataset.with_format("arrow").iter(batch_size=num_rows)


@contextmanager
def _one_line_errors(what: str, *, mend: str) -> Iterator[None]:
    """Turns what a builder of data sets raises into one line."""
    logger = logging.getLogger("datasets.packaged_modules")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # builders log what they then raise
    try:
        yield
    except Exception as error:  # each builder has errors of its own
        raise CorpusError(f"{what} ({reason_of(error)}); {mend}") from error
    finally:
        logger.setLevel(level)


DATASET = Reader(is_file=False, cut=cut_at_shards, deciding_bytes=None, documents=documents)
