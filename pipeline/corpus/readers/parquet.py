"""Parquet: rows of `text_column`, cut between row groups.

Of a file only the bytes of this column decide its text; a file is known by its first bytes, whatever its name.
"""

import itertools
from collections.abc import Iterator

import pyarrow.parquet as pq

from pipeline import storage
from pipeline.config import CorpusConfig
from pipeline.corpus.packing import CHUNK_BYTES
from pipeline.corpus.readers.columns import BATCH_ROWS, check_column, documents_of
from pipeline.corpus.readers.reader import Documents, Reader, Span
from pipeline.corpus.units import WorkUnit, chunks


def cut_at_row_groups(path: str, _size_bytes: int, corpus: CorpusConfig) -> list[Span]:
    """Parts of whole row groups, each of `unit_bytes` or more of the column.

    Args:
        path: the file.
        corpus: has `text_column` and `unit_bytes`.

    Raises:
        CorpusError: the file has no such column of texts.
    """
    with storage.open_read(path) as file, pq.ParquetFile(file) as parquet:
        check_column(parquet.schema_arrow, path, column=corpus.text_column)
        groups = column_spans(parquet.metadata, column=corpus.text_column)
    spans = []
    start = size_bytes = 0
    for stop, group in enumerate(groups, 1):
        size_bytes += sum(num_bytes for _, num_bytes in group)
        if size_bytes >= corpus.unit_bytes or stop == len(groups):
            spans.append(Span(start, stop, size_bytes))
            start, size_bytes = stop, 0
    return spans


def documents(unit: WorkUnit, corpus: CorpusConfig) -> Iterator[Documents]:
    """The texts of the unit's row groups."""
    with (
        storage.open_read(unit.path) as file,
        pq.ParquetFile(file, pre_buffer=False, buffer_size=CHUNK_BYTES) as parquet,
    ):
        row = sum(parquet.metadata.row_group(group).num_rows for group in range(unit.start))
        groups = list(range(unit.start, unit.stop))
        for batch in parquet.iter_batches(
            BATCH_ROWS, row_groups=groups, columns=[corpus.text_column], use_threads=False
        ):
            yield documents_of(batch, unit.path, first_row=row, corpus=corpus)
            row += batch.num_rows


def column_bytes(unit: WorkUnit, corpus: CorpusConfig) -> Iterator[bytes]:
    """The bytes of the column in the unit's row groups, as they are stored."""
    with storage.open_read(unit.path) as file, pq.ParquetFile(file) as parquet:
        groups = column_spans(parquet.metadata, column=corpus.text_column)[unit.start : unit.stop]
    for first, num_bytes in itertools.chain.from_iterable(groups):
        yield from chunks(unit.path, first, first + num_bytes)


def column_spans(metadata: pq.FileMetaData, *, column: str) -> list[list[tuple[int, int]]]:
    """Where a column lies in a parquet file, for each row group: first bytes and numbers of bytes."""
    spans = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        found = [group.column(index) for index in range(group.num_columns)]
        spans.append([_span(each) for each in found if each.path_in_schema == column])
    return spans


def _span(chunk: pq.ColumnChunkMetaData) -> tuple[int, int]:
    first = chunk.data_page_offset
    if chunk.has_dictionary_page:
        first = min(first, chunk.dictionary_page_offset)
    return first, chunk.total_compressed_size


PARQUET = Reader(
    suffixes=(".parquet",),
    magic=b"PAR1",
    is_packable=False,
    cut=cut_at_row_groups,
    deciding_bytes=column_bytes,
    documents=documents,
)
