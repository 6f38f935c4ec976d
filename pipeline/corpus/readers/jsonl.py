"""JSON lines: an object a line, whose text stands in `text_column`.

Arrow reads whole chunks of lines. What it refuses Python reads line by line, so that the first bad line is named.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.json

from pipeline.config import CorpusConfig
from pipeline.corpus.readers.columns import PASS_OVER, as_bytes, short, texts_of
from pipeline.corpus.readers.reader import Documents, Reader, cut_at_lines, text_bytes, whole_lines
from pipeline.corpus.units import WorkUnit, chunks, text_chunks
from pipeline.errors import CorpusError


def check_head(path: str, head: bytes) -> None:
    """Refuses a JSON array, by its first bytes."""
    if head.lstrip()[:1] == b"[":
        raise CorpusError(f"{path} holds a JSON array, needed one object a line; use jq -c '.[]' to write it so")


def documents(unit: WorkUnit, corpus: CorpusConfig) -> Iterator[Documents]:
    """The text of each line.

    Raises:
        CorpusError: names the first line that is no object or has no text.
    """
    line = 0  # of the unit: the number in the file is needed for errors only
    for lines in whole_lines(text_chunks(unit)):
        texts = _texts_by_arrow(lines, column=corpus.text_column)
        if texts is None or texts.null_count:
            yield _texts_by_line(lines, unit=unit, first_line=line, corpus=corpus)
        else:
            yield as_bytes(texts)
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
    return texts_of(table, ".".join(path)) if len(table) == len(rows) else None


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
        found = short(", ".join(row)) or "none"
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


JSON_LINES = Reader(
    suffixes=(".jsonl", ".ndjson", ".json"),
    check_head=check_head,
    cut=cut_at_lines,
    deciding_bytes=text_bytes,
    documents=documents,
)
