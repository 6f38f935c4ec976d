"""The column that holds the text of rows: where `text_column` leads, and its texts.

In: an Arrow table or its schema. Out: texts as bytes, None for a row without text where the configuration passes such
rows over. Refuses, by name: a table without the column, with several of its name, or with something else than text.

`text_column` is the name of a column, or else a dotted path into nested ones: `translation.en`. A row whose text is
null or missing is without text.
"""

from collections.abc import Iterator
from functools import partial
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import CorpusConfig
from pipeline.corpus.readers.reader import LARGE_BYTES, Documents, LargeDocument, slices
from pipeline.errors import CorpusError

BATCH_ROWS = 256
NAMED_BYTES = 200  # of what was found, in an error
TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.null())
PASS_OVER = "corpus.null_rows=skip"


def check_column(schema: pa.Schema, name: str, *, column: str) -> None:
    """Refuses a table that has not one column of texts where `column` leads.

    Args:
        schema: the table's.
        name: the table's, for the error.
        column: a name, or a dotted path.
    """
    path, names = _path(schema, column), _names(schema)
    if not path and column not in names:
        found = short(", ".join(names) or "none")
        raise CorpusError(f"{name} has no column {column}; found {found}; use corpus.text_column=NAME")
    if not path or schema.names.count(path[0]) > 1:
        raise CorpusError(f"{name} has several columns of the name {column}; rename all but one")
    kind = schema.field(path[0]).type
    for part in path[1:]:
        kind = kind.field(part).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if kind not in TEXT_TYPES:
        other = f"{column}.NAME" if pa.types.is_struct(kind) else "ANOTHER"
        raise CorpusError(
            f"{name}: column {column} holds {short(str(kind))}, needed text; use corpus.text_column={other}"
        )


def documents_of(
    table: pa.Table | pa.RecordBatch, name: str, *, first_row: int, corpus: CorpusConfig
) -> Iterator[Documents | LargeDocument]:
    """The texts of a table's rows, as bytes, the large ones each by itself.

    Args:
        table: some rows.
        name: of the file or data set that they are of, for the error.
        first_row: the number of the first of them there, counted from 0.
        corpus: names the column, and says whether a row without text is refused.
    """
    texts = texts_of(table, corpus.text_column)
    if texts.null_count and corpus.null_rows == "refuse":
        row = first_row + pc.index(texts.is_null(), True).as_py()
        raise CorpusError(
            f"{name}: row {row} has no text in column {corpus.text_column} (null); mend or remove the row,"
            f" or use {PASS_OVER}"
        )
    for chunk in texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]:
        yield from _parted(chunk.cast(pa.large_binary()))


def _parted(texts: pa.LargeBinaryArray) -> Iterator[Documents | LargeDocument]:
    """The texts of an array, the large ones each by itself and not copied: a scalar of Arrow would be a copy."""
    start = 0
    for row in pc.indices_nonzero(pc.greater(pc.binary_length(texts), LARGE_BYTES)).to_pylist():
        yield as_bytes(texts[start:row])
        _, offsets, data = texts.buffers()
        first, stop = memoryview(offsets).cast("q")[texts.offset + row : texts.offset + row + 2]
        yield LargeDocument(partial(slices, memoryview(data), first, stop))
        start = row + 1
    yield as_bytes(texts[start:])


def as_bytes(texts: pa.Array | pa.ChunkedArray) -> Documents:
    """A column of texts as bytes, None for null."""
    return cast(Documents, texts.cast(pa.large_binary()).to_pylist())


def _path(fields: pa.Schema | pa.StructType, column: str) -> list[str]:
    """The names that lead to a column, from the top; empty if none do. A column of the very name comes first."""
    if column in fields.names:
        return [column]
    first, _, rest = column.partition(".")
    if rest and fields.names.count(first) == 1 and pa.types.is_struct(fields.field(first).type):
        below = _path(fields.field(first).type, rest)
        return [first, *below] if below else []
    return []


def _names(schema: pa.Schema) -> list[str]:
    """The columns by the names that `text_column` takes, nested ones by their paths."""
    names: list[str] = []
    for field in schema:
        within = _names(pa.schema(list(field.type))) if pa.types.is_struct(field.type) else []
        names += [f"{field.name}.{name}" for name in within] or [field.name]
    return names


def texts_of(table: pa.Table | pa.RecordBatch, column: str) -> pa.Array | pa.ChunkedArray:
    """The column that a name or a dotted path leads to."""
    first, *rest = _path(table.schema, column)
    return pc.struct_field(table[first], rest) if rest else table[first]


def short(text: str) -> str:
    """The beginning of what was found, for an error."""
    return text if len(text) <= NAMED_BYTES else text[:NAMED_BYTES] + "..."
