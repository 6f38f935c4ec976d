"""JSON lines: an object a line, whose text stands in `text_column`.

Arrow reads whole chunks of lines. What it refuses Python reads line by line, so that the first bad line is named.

Both make several copies of what they read. So of a line of more than 16 MiB Python reads only what is left when its
long strings are taken out, and the text, if it is one of these, is taken from the line piece by piece.
"""

import json
import re
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.json

from pipeline.config import CorpusConfig
from pipeline.corpus.readers.columns import PASS_OVER, as_bytes, short, texts_of
from pipeline.corpus.readers.reader import (
    Documents,
    LargeDocument,
    Reader,
    cut_at_lines,
    slices,
    text_bytes,
    whole_lines,
)
from pipeline.corpus.units import WorkUnit, chunks, text_chunks, valid_chunks
from pipeline.errors import CorpusError

LONG_BYTES = 1 << 16  # of a string, but for the name of a column, that is taken out of a large line
# an escape that more text may complete, or a surrogate that may have its other half behind it
INCOMPLETE = re.compile(r"\\(u([0-9a-fA-F]{0,3}|[dD][89abAB][0-9a-fA-F]{2}(\\(u[0-9a-fA-F]{0,3})?)?))?\Z")
INCOMPLETE_CHARS = 11
KEY_END = re.compile(rb'"\s*:')


def check_head(path: str, head: bytes) -> None:
    """Refuses a JSON array, by its first bytes."""
    if head.lstrip()[:1] == b"[":
        raise CorpusError(f"{path} holds a JSON array, needed one object a line; use jq -c '.[]' to write it so")


def documents(unit: WorkUnit, corpus: CorpusConfig) -> Iterator[Documents | LargeDocument]:
    """The text of each line.

    Raises:
        CorpusError: names the first line that is no object or has no text.
    """
    line = 0  # of the unit: the number in the file is needed for errors only
    for lines in whole_lines(text_chunks(unit)):
        if isinstance(lines, bytearray):
            yield _large_row(lines, corpus, place=partial(_place, unit, line))
            line += 1
            continue
        texts = _texts_by_arrow(lines, column=corpus.text_column)
        if texts is None or texts.null_count:
            yield _texts_by_line(lines, unit=unit, first_line=line, corpus=corpus)
        else:
            yield as_bytes(texts)
        line += lines.count(b"\n")


def _texts_by_arrow(lines: bytes, *, column: str) -> pa.ChunkedArray | None:
    """The text of each line that is not blank, null where it has none; None if Arrow cannot read it.

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


def _large_row(line: bytearray, corpus: CorpusConfig, *, place: Callable[[], str]) -> Documents | LargeDocument:
    """The text of one large line."""
    if line.isspace():
        return []
    spans: list[tuple[int, int]] = []
    mark = uuid.uuid4().hex  # stands, with a number, for a long string: nothing of the line is equal to it
    row = b"".join(_without_long_strings(line, spans, mark=mark))
    text = _text_of_line(row, corpus, place=place, has_columns=False)
    named = re.fullmatch(rf"{mark}-(\d+)".encode(), text or b"")
    for number, span in enumerate(spans):
        if named is None or number != int(named[1]):
            for _ in _unescaped(line, *span, place=place):  # as wrong there as anywhere
                pass
    return [text] if named is None else LargeDocument(partial(_unescaped, line, *spans[int(named[1])], place=place))


def _without_long_strings(line: bytearray, spans: list[tuple[int, int]], *, mark: str) -> Iterator[bytes]:
    """What is left of a line with marks in place of its long strings, in pieces; adds where each of these lies."""
    kept = at = 0
    while (opened := line.find(b'"', at)) >= 0:
        closed = _closing_quote(line, opened + 1)
        if closed - opened > LONG_BYTES and not KEY_END.match(line, closed):
            yield bytes(line[kept : opened + 1]) + f"{mark}-{len(spans)}".encode()
            spans.append((opened + 1, closed))
            kept = closed
        at = closed + 1
    yield bytes(line[kept:])


def _closing_quote(line: bytearray, start: int) -> int:
    """Where the string ends that begins there: at a quote with an even number of backslashes before it, or the end."""
    at = line.find(b'"', start)
    while at >= 0:
        first = at
        while first > start and line[first - 1] == ord("\\"):
            first -= 1
        if (at - first) % 2 == 0:
            return at
        at = line.find(b'"', at + 1)
    return len(line)


def _unescaped(line: bytearray, start: int, stop: int, *, place: Callable[[], str]) -> Iterator[bytes]:
    """The text that the string of JSON between two quotes stands for, in pieces."""
    held = ""
    for piece in valid_chunks(slices(line, start, stop)):
        held += piece.decode()
        cut = _end_of_escapes(held)
        yield _parsed(held[:cut], place=place)
        held = held[cut:]
    yield _parsed(held, place=place)


def _end_of_escapes(text: str) -> int:
    """Up to where a string of JSON can be read without what follows."""
    for at in range(max(len(text) - INCOMPLETE_CHARS, 0), len(text)):
        if INCOMPLETE.match(text, at) and (at - len(text[:at].rstrip("\\"))) % 2 == 0:
            return at
    return len(text)


def _parsed(text: str, *, place: Callable[[], str]) -> bytes:
    try:
        return str(json.loads(f'"{text}"')).encode("utf-8", "surrogatepass")
    except json.JSONDecodeError as error:
        raise _no_json(place, error.msg) from error


def _no_json(place: Callable[[], str], reason: str) -> CorpusError:
    return CorpusError(f"{place()} is no JSON ({reason}); needed one object a line: mend it, or write it so by jq -c .")


def _text_of_line(
    line: bytes, corpus: CorpusConfig, *, place: Callable[[], str], has_columns: bool = True
) -> bytes | None:
    column = corpus.text_column
    try:
        row = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        texts = _texts_by_arrow(line, column=column)  # whose numbers and depth have no limit
        if texts is None:
            raise _no_json(place, _reason(error, has_columns=has_columns)) from error
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


def _reason(error: ValueError | RecursionError, *, has_columns: bool) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}" if has_columns else error.msg
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
