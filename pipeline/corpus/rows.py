"""The documents of rows: JSON lines, parquet, data sets.

In: work units of these formats. Out: the texts of `text_column`, batch by batch, as bytes; None for a row without text
where the configuration passes such rows over. Refuses, by file and line or row: what is no row, no text, or missing.

`text_column` is the name of a column, or else a dotted path into nested ones: `translation.en`. A row whose text is
null or missing is without text.
"""

import glob
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.config import CorpusConfig
from pipeline.corpus.packing import CHUNK_BYTES
from pipeline.corpus.units import WorkUnit, chunks, text_chunks
from pipeline.errors import CorpusError

if TYPE_CHECKING:
    from datasets import IterableDataset

Documents = list[bytes | None]

BATCH_ROWS = 256
PACKAGED_BUILDERS = ("arrow", "csv", "json", "parquet", "text")
NAMED_BYTES = 200  # of what was found, in an error
TEXT_TYPES = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.null())
PASS_OVER = "corpus.null_rows=skip"


def documents(unit: WorkUnit, corpus: CorpusConfig) -> Iterator[Documents]:
    """The documents of a unit's rows, in order, a batch at a time.

    Raises:
        CorpusError: names the first line or row that is none or has no text.
    """
    return {"jsonl": _of_jsonl, "parquet": _of_parquet, "dataset": _of_dataset}[unit.format](unit, corpus)


def whole_lines(text: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, cut after line ends; the last may lack its own."""
    held: list[bytes] = []
    for chunk in text:
        cut = chunk.rfind(b"\n") + 1
        if cut:
            yield b"".join([*held, chunk[:cut]])
            held = []
        held.append(chunk[cut:])
    if rest := b"".join(held):
        yield rest


# --- columns ---


def check_column(schema: pa.Schema, name: str, *, column: str) -> None:
    """Refuses a table that has not one column of texts where `column` leads.

    Args:
        schema: the table's.
        name: the table's, for the error.
        column: a name, or a dotted path.
    """
    path, names = _path(schema, column), _names(schema)
    if not path and column not in names:
        found = _short(", ".join(names) or "none")
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
            f"{name}: column {column} holds {_short(str(kind))}, needed text; use corpus.text_column={other}"
        )


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


def _texts(table: pa.Table | pa.RecordBatch, column: str) -> pa.Array | pa.ChunkedArray:
    first, *rest = _path(table.schema, column)
    return pc.struct_field(table[first], rest) if rest else table[first]


def _short(text: str) -> str:
    return text if len(text) <= NAMED_BYTES else text[:NAMED_BYTES] + "..."


# --- parquet and data sets ---


def _of_parquet(unit: WorkUnit, corpus: CorpusConfig) -> Iterator[Documents]:
    with (
        storage.open_read(unit.path) as file,
        pq.ParquetFile(file, pre_buffer=False, buffer_size=CHUNK_BYTES) as parquet,
    ):
        row = sum(parquet.metadata.row_group(group).num_rows for group in range(unit.start))
        groups = list(range(unit.start, unit.stop))
        for batch in parquet.iter_batches(
            BATCH_ROWS, row_groups=groups, columns=[corpus.text_column], use_threads=False
        ):
            yield _documents(_texts(batch, corpus.text_column), unit.path, first_row=row, corpus=corpus)
            row += batch.num_rows


def _of_dataset(unit: WorkUnit, corpus: CorpusConfig) -> Iterator[Documents]:
    dataset = open_dataset(unit.path, corpus)
    if dataset.num_shards > 1:
        dataset = dataset.shard(num_shards=dataset.num_shards, index=unit.start)
    name, row = f"data set {corpus.dataset}, {unit.path}, shard {unit.start}", 0
    for batch in batches(dataset, name):
        check_column(batch.schema, name, column=corpus.text_column)
        yield _documents(_texts(batch, corpus.text_column), name, first_row=row, corpus=corpus)
        row += batch.num_rows


def open_dataset(path: str, corpus: CorpusConfig) -> "IterableDataset":
    """One split of the data set, or one file as a packaged builder reads it, not downloaded but read as it goes."""
    import datasets

    assert corpus.dataset is not None
    if corpus.dataset in PACKAGED_BUILDERS and "::" in path:
        raise CorpusError(f"{path} is two file systems to datasets, for its `::`; rename it, or use corpus=files")
    with _told(f"data set {corpus.dataset}, {path}, cannot be opened", mend="mend corpus.dataset or the split's name"):
        if corpus.dataset in PACKAGED_BUILDERS:
            files = [glob.escape(path)]  # it takes them for patterns
            return datasets.load_dataset(corpus.dataset, data_files=files, split="train", streaming=True)
        return datasets.load_dataset(corpus.dataset, split=path, streaming=True)


def batches(dataset: "IterableDataset", name: str, *, num_rows: int = BATCH_ROWS) -> Iterator[pa.Table]:
    """The rows of a data set; what its builder says of damaged data is the user's to know."""
    with _told(f"{name} cannot be read", mend="mend the data"):
        yield from dataset.with_format("arrow").iter(batch_size=num_rows)


@contextmanager
def _told(what: str, *, mend: str) -> Iterator[None]:
    """Tells what a builder of data sets says in one line."""
    logger = logging.getLogger("datasets.packaged_modules")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # builders log what they then raise
    try:
        yield
    except Exception as error:  # each builder has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CorpusError(f"{what} ({reason}); {mend}") from error
    finally:
        logger.setLevel(level)


def _documents(texts: pa.Array | pa.ChunkedArray, name: str, *, first_row: int, corpus: CorpusConfig) -> Documents:
    """The texts of a column as bytes; a row without text is refused by its number, counted from 0."""
    if texts.null_count and corpus.null_rows == "refuse":
        row = first_row + pc.index(texts.is_null(), True).as_py()
        raise CorpusError(
            f"{name}: row {row} has no text in column {corpus.text_column} (null); mend or remove the row,"
            f" or use {PASS_OVER}"
        )
    return cast(Documents, texts.cast(pa.large_binary()).to_pylist())


# --- JSON lines ---


def _of_jsonl(unit: WorkUnit, corpus: CorpusConfig) -> Iterator[Documents]:
    line = 0  # of the unit: the number in the file is needed for errors only
    for lines in whole_lines(text_chunks(unit)):
        texts = _texts_by_arrow(lines, column=corpus.text_column)
        if texts is None or texts.null_count:
            yield _texts_by_line(lines, unit=unit, first_line=line, corpus=corpus)
        else:
            yield cast(Documents, texts.cast(pa.large_binary()).to_pylist())
        line += lines.count(b"\n")


def _texts_by_arrow(lines: bytes, *, column: str) -> pa.ChunkedArray | None:
    """The text of each line that is not blank, null where it has none; None if Arrow cannot tell.

    Arrow does not care where lines end. But where each begins and ends with a brace, none ends within an object, since
    no brace opens after one that closed; and with as many objects as lines there is one in each.
    """
    rows = [row for line in lines.split(b"\n") if (row := line.strip())]
    if not rows:
        return pa.chunked_array([], pa.string())
    if not all(row.startswith(b"{") and row.endswith(b"}") for row in rows):
        return None
    path = _path_in_lines(lines, column)
    field = pa.field(path[-1], pa.string())
    for name in reversed(path[:-1]):
        field = pa.field(name, pa.struct([field]))
    parse = pa.json.ParseOptions(explicit_schema=pa.schema([field]), unexpected_field_behavior="ignore")
    read = pa.json.ReadOptions(use_threads=False, block_size=len(lines) + 1)
    try:
        table = pa.json.read_json(pa.BufferReader(lines), read_options=read, parse_options=parse)
    except pa.ArrowInvalid:
        return None
    return _texts(table, ".".join(path)) if len(table) == len(rows) else None


def _path_in_lines(lines: bytes, column: str) -> list[str]:
    """The names that lead to a column, unless a name with a dot is seen that may be meant: then the column's own."""
    path = column.split(".")
    dotted = (".".join(path[start:]) for start in range(len(path) - 1))
    return [column] if any(f'"{name}"'.encode() in lines for name in dotted) else path


def _texts_by_line(lines: bytes, *, unit: WorkUnit, first_line: int, corpus: CorpusConfig) -> Documents:
    """What Arrow refused, line by line: the first line that is no object with a text is named."""
    return [
        _text_of_line(line, corpus, place=partial(_place, unit, number))
        for number, line in enumerate(lines.split(b"\n"), first_line)
        if line.strip()
    ]


def _text_of_line(line: bytes, corpus: CorpusConfig, *, place: Callable[[], str]) -> bytes | None:
    column = corpus.text_column
    try:
        row = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        texts = _texts_by_arrow(line, column=column)  # whose numbers and depth have no limit
        if texts is None:
            raise CorpusError(
                f"{place()} is no JSON ({_reason(error)}); needed one object a line: mend it, or write it so by jq -c ."
            ) from error
        row = {column: texts[0].as_py()}
    if not isinstance(row, dict):
        raise CorpusError(f"{place()} holds a JSON {type(row).__name__}, needed an object; mend it")
    is_there, text = _value(row, column)
    if isinstance(text, str):
        return text.encode("utf-8", "surrogatepass")
    if text is None and corpus.null_rows == "skip":
        return None
    if not is_there:
        found = _short(", ".join(row)) or "none"
        raise CorpusError(f"{place()} has no column {column}; found {found}; use corpus.text_column=NAME")
    found = type(text).__name__ if isinstance(text, dict | list) else json.dumps(text)[:40]
    mend = f"mend or remove the line, or use {PASS_OVER}" if text is None else "mend or remove the line"
    raise CorpusError(f"{place()}: {column} is {found}, needed text; {mend}")


def _value(row: dict[str, Any], column: str) -> tuple[bool, object]:
    """Whether a column is there, and what it holds."""
    if column in row:
        return True, row[column]
    first, _, rest = column.partition(".")
    below = row.get(first)
    if rest and isinstance(below, dict):
        return _value(below, rest)
    return bool(rest) and first in row and below is None, None


def _reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return "nested too deep" if isinstance(error, RecursionError) else "a number of too many digits"


def _place(unit: WorkUnit, line: int) -> str:
    """File and number of a line, counted from 1; only now are the lines before the unit counted."""
    before = sum(chunk.count(b"\n") for chunk in chunks(unit.path, 0, unit.start))
    return f"{unit.path}, line {before + line + 1},"
