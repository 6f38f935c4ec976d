"""Parquet: rows of `text_column`, cut between row groups.

Of a file only the bytes of this column decide its text; a file is known by its first bytes, whatever its name.
"""

import io
import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from typing import BinaryIO, cast

import pyarrow.parquet as pq

from pipeline import storage
from pipeline.config import CorpusConfig
from pipeline.corpus.packing import CHUNK_BYTES
from pipeline.corpus.readers.columns import BATCH_ROWS, check_column, documents_of
from pipeline.corpus.readers.reader import LARGE_BYTES, Documents, LargeDocument, Reader, Span, changed
from pipeline.corpus.units import WorkUnit, chunks


def cut_at_row_groups(path: str, size_bytes: int, corpus: CorpusConfig) -> list[Span]:
    """Parts of whole row groups, each of `unit_bytes` or more of the column.

    Args:
        path: the file.
        size_bytes: its size, which is not needed.
        corpus: has `text_column` and `unit_bytes`.

    Raises:
        CorpusError: the file has no such column of texts.
    """
    with storage.open_read(path, ahead=False) as file, pq.ParquetFile(file) as parquet:
        check_column(parquet.schema_arrow, path, column=corpus.text_column)
        groups = column_spans(parquet.metadata, column=corpus.text_column)
    spans = []
    start = column_bytes = 0
    for stop, group in enumerate(groups, 1):
        column_bytes += sum(num_bytes for _, num_bytes in group)
        if column_bytes >= corpus.unit_bytes or stop == len(groups):
            spans.append(Span(start, stop, column_bytes))
            start, column_bytes = stop, 0
    return spans


def documents(unit: WorkUnit, corpus: CorpusConfig) -> Iterator[Documents | LargeDocument]:
    """The texts of the unit's row groups."""
    with (
        _opened(unit, corpus) as file,
        pq.ParquetFile(file, pre_buffer=False, buffer_size=_buffer_bytes(unit.path)) as parquet,
    ):
        row = sum(parquet.metadata.row_group(group).num_rows for group in range(unit.start))
        groups = list(range(unit.start, unit.stop))
        num_rows = _batch_rows(parquet.metadata, groups, column=corpus.text_column)
        for batch in parquet.iter_batches(num_rows, row_groups=groups, columns=[corpus.text_column], use_threads=False):
            yield from documents_of(batch, unit.path, first_row=row, corpus=corpus)
            row += batch.num_rows


def _opened(unit: WorkUnit, corpus: CorpusConfig) -> BinaryIO:
    """The file; the column's bytes come from the unit's content, where it has them."""
    file = storage.open_read(unit.path, ahead=False)
    if unit.content is None:
        return file
    with ExitStack() as on_error:
        on_error.callback(file.close)
        with pq.ParquetFile(file) as parquet:
            groups = column_spans(parquet.metadata, column=corpus.text_column)[unit.start : unit.stop]
        spans = list(itertools.chain.from_iterable(groups))
        if sum(num_bytes for _, num_bytes in spans) != len(unit.content):
            raise changed(unit)
        on_error.pop_all()
    return cast(BinaryIO, _Held(file, spans, unit.content))


class _Held(io.RawIOBase):
    """A file some ranges of which are at hand.

    Args:
        file: the file.
        spans: first byte and number of bytes of each range.
        content: their bytes, one after the other.
    """

    def __init__(self, file: BinaryIO, spans: list[tuple[int, int]], content: bytes) -> None:
        self._file, self._position = file, 0
        ends = itertools.accumulate((num_bytes for _, num_bytes in spans), initial=0)
        self._held = [
            (first, content[at : at + num_bytes]) for (first, num_bytes), at in zip(spans, ends, strict=False)
        ]

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves there; returns where that is."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence)
        self._position = self._file.seek(0, whence) + offset if origin is None else origin + offset
        return self._position

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes."""
        first, found = next(
            ((first, held) for first, held in self._held if first <= self._position < first + len(held)), (0, b"")
        )
        if found and 0 <= size <= first + len(found) - self._position:
            data = found[self._position - first : self._position - first + size]
        else:
            self._file.seek(self._position)
            data = self._file.read(size)
        self._position += len(data)
        return data

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


def _buffer_bytes(path: str) -> int:
    """How much is read at a time; of a remote file in one request."""
    return CHUNK_BYTES if storage.is_local(path) else storage.REQUEST_BYTES


def _batch_rows(metadata: pq.FileMetaData, groups: list[int], *, column: str) -> int:
    """How many rows are held at a time: fewer where they are large on average."""
    rows = BATCH_ROWS
    for group in (metadata.row_group(number) for number in groups):
        found = [group.column(index) for index in range(group.num_columns)]
        num_bytes = sum(each.total_uncompressed_size for each in found if each.path_in_schema == column)
        rows = min(rows, LARGE_BYTES * group.num_rows // max(num_bytes, 1))
    return max(rows, 1)


def stored_column(unit: WorkUnit, corpus: CorpusConfig) -> Iterator[bytes]:
    """The bytes of the column in the unit's row groups, as they are stored."""
    if unit.content is not None:
        yield unit.content
        return
    with storage.open_read(unit.path, ahead=False) as file, pq.ParquetFile(file) as parquet:
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
    deciding_bytes=stored_column,
    content=stored_column,
    documents=documents,
)
