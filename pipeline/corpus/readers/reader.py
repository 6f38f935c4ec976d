"""What a reader of a text format is, and what readers have in common.

In: a file, or a part of it that a task reads. Out: its parts; the text of a part, in which LF means `<eos>` and nothing
else; the bytes that decide this text. Refuses: a packed file that changed its size.

A document is a row; in plain text it is a file or, with `documents: lines`, a line. With `eos: line` each line of a
document ends with LF, with `eos: document` only the document itself does. An empty document yields nothing.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, Literal, NamedTuple

from pipeline import storage
from pipeline.config import CorpusConfig
from pipeline.corpus.packing import CHUNK_BYTES
from pipeline.corpus.units import WorkUnit, chunks, position_of, position_of_pieces, text_chunks, valid_chunks
from pipeline.errors import CorpusError

TAIL_BYTES = 4096
LARGE_BYTES = 16 << 20  # a line or a row of more than this is taken in pieces

Documents = list[bytes | None]


@dataclass(frozen=True)
class LargeDocument:
    """A document so large that no second copy of it is made: its text in pieces cut anywhere, anew at each call."""

    pieces: Callable[[], Iterator[bytes]]


class Span(NamedTuple):
    """A part of a file or of a data set."""

    start: int  # in what the format's reader counts: bytes, row groups, shards
    stop: int  # exclusive
    size_bytes: int  # of what is read, 0 if not known


@dataclass
class Tally:
    """What was met in the text of a unit while it was read."""

    num_replacement_chars: int = 0  # U+FFFD, whether it stood there or was put in for bytes that are no UTF-8
    num_nul_bytes: int = 0
    num_null_rows: int = 0  # passed over; where a file is shared out by documents, counted in train's share


# --- parts of a file


def cut_whole(path: str, size_bytes: int, corpus: CorpusConfig) -> list[Span]:
    """The whole file as one part, for formats that are read from their beginning only.

    Args:
        path: the file, which is not looked at.
        size_bytes: its size.
        corpus: not needed.
    """
    return [Span(0, size_bytes, size_bytes)]


def cut_at_lines(path: str, size_bytes: int, corpus: CorpusConfig) -> list[Span]:
    """Parts that end after the first line end at or beyond each multiple of `unit_bytes`.

    Args:
        path: the file, of which a line never belongs to two documents.
        size_bytes: its size.
        corpus: has `unit_bytes`.
    """
    if size_bytes <= corpus.unit_bytes:
        return cut_whole(path, size_bytes, corpus)
    spans = []
    start = 0
    with storage.open_read(path, ahead=False) as file:
        while start < size_bytes:
            nominal = (start // corpus.unit_bytes + 1) * corpus.unit_bytes
            stop = _after_line_end(file, nominal, size_bytes=size_bytes)
            spans.append(Span(start, stop, stop - start))
            start = stop
    return spans


def _after_line_end(file: BinaryIO, position: int, *, size_bytes: int) -> int:
    """The first place at or beyond `position` that a line begins at, or the end of the file."""
    if position >= size_bytes:
        return size_bytes
    at = position - 1  # a line end just before is one
    file.seek(at)
    while chunk := file.read(TAIL_BYTES if at < position else CHUNK_BYTES):
        found = chunk.find(b"\n")
        if found >= 0:
            return at + found + 1
        at += len(chunk)
    return size_bytes


# --- bytes that decide the text


def stored_bytes(unit: WorkUnit, corpus: CorpusConfig) -> Iterator[bytes]:
    """The bytes of the unit as they are stored."""
    if unit.packing is not None and storage.size_bytes(unit.path) != unit.stop:  # it is unpacked to its end
        raise CorpusError(f"{unit.path} changed while it was prepared; leave it as it is and prepare again")
    return chunks(unit.path, unit.start, unit.stop)


def text_bytes(unit: WorkUnit, corpus: CorpusConfig) -> Iterator[bytes]:
    """The same, for files whose bytes are text: as valid UTF-8 where documents are shared out by their hash.

    That is what they are hashed as.
    """
    stored = stored_bytes(unit, corpus)
    return valid_chunks(stored) if unit.is_share and unit.packing is None else stored


# --- the reader


def _accept(_path: str, _head: bytes) -> None:
    """Accepts any file."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How one format stores text. Each attribute has the value that suits most formats.

    Attributes:
        suffixes: a file is known by these ends of its name, before that of a packing.
        magic: or by these first bytes, whatever its name; None: by its name only.
        check_head: (path, first bytes, unpacked and without a byte order mark) → nothing; raises a `CorpusError` for
            what has the name and is something else.
        is_packable: whether a file may be packed (gzip, bzip2, xz, zstd); if so it is read from its beginning only.
        is_file: whether a source is a file, and not a data set by name.
        cut: (path, size in bytes, configuration) → the parts that a task each reads, in order.
        deciding_bytes: (unit, configuration) → bytes that decide the unit's text; if they change, it is prepared anew.
        version: to be raised when the same bytes give other text than before.
        documents: (unit, configuration) → the rows of a unit as UTF-8, in order, a batch at a time; with
            `null_rows: skip`, None for a row without text. A row may be a `LargeDocument` in place of a batch. If there
            is no such function, the format is plain text.
        text: for plain text: unit → its text, in pieces cut anywhere.
    """

    suffixes: tuple[str, ...] = ()
    magic: bytes | None = None
    check_head: Callable[[str, bytes], None] = _accept
    is_packable: bool = True
    is_file: bool = True
    cut: Callable[[str, int, CorpusConfig], list[Span]] = cut_whole
    deciding_bytes: Callable[[WorkUnit, CorpusConfig], Iterator[bytes]] = stored_bytes
    version: int = 1
    documents: Callable[[WorkUnit, CorpusConfig], Iterator[Documents | LargeDocument]] | None = None
    text: Callable[[WorkUnit], Iterator[bytes]] = text_chunks

    def pieces(self, unit: WorkUnit, corpus: CorpusConfig, tally: Tally | None = None) -> Iterator[bytes]:
        """The text of the unit's documents, with line ends as `eos` wants them, cut anywhere.

        Args:
            unit: what to read; of its documents those that its range of hashes wants.
            corpus: says what a document and a line end are.
            tally: rows without text are added to it.
        """
        if self.documents is not None:
            return _pieces_of_rows(self.documents(unit, corpus), unit, corpus, tally=tally)
        if unit.is_share:
            return _pieces_of_lines(self.text(unit), unit)
        return _pieces_of_text(self.text(unit), unit, corpus)


def _pieces_of_rows(
    batches: Iterable[Documents | LargeDocument], unit: WorkUnit, corpus: CorpusConfig, *, tally: Tally | None
) -> Iterator[bytes]:
    for batch in batches:
        if isinstance(batch, LargeDocument):
            yield from _pieces_of_large(batch, unit, eos=corpus.eos)
            continue
        if tally is not None and unit.high == 1:
            tally.num_null_rows += batch.count(None)
        kept = [each for each in batch if each and _is_wanted(each, unit)]
        yield b"".join(_with_line_ends(each, eos=corpus.eos) for each in kept)


def _with_line_ends(document: bytes, *, eos: Literal["line", "document"]) -> bytes:
    if eos == "document":
        return document.replace(b"\n", b" ") + b"\n"
    return document if document.endswith(b"\n") else document + b"\n"


def _pieces_of_large(document: LargeDocument, unit: WorkUnit, *, eos: Literal["line", "document"]) -> Iterator[bytes]:
    """The same of one document that is wanted, with its line ends; nothing of another."""
    if unit.is_share and not unit.low <= position_of_pieces(document.pieces()) < unit.high:
        return
    last = b""
    for piece in document.pieces():
        last = piece[-1:] or last
        yield piece.replace(b"\n", b" ") if eos == "document" else piece
    if last and (eos == "document" or last != b"\n"):
        yield b"\n"


def _pieces_of_lines(text: Iterable[bytes], unit: WorkUnit) -> Iterator[bytes]:
    for lines in whole_lines(text):
        if isinstance(lines, bytearray):
            line = LargeDocument(partial(slices, lines, 0, len(lines) - lines.endswith(b"\n")))
            yield from _pieces_of_large(line, unit, eos="document")
            continue
        kept = [line for line in lines.removesuffix(b"\n").split(b"\n") if _is_wanted(line, unit)]
        yield b"".join(line + b"\n" for line in kept)


def _pieces_of_text(text: Iterable[bytes], unit: WorkUnit, corpus: CorpusConfig) -> Iterator[bytes]:
    one_end = corpus.eos == "document" and corpus.documents == "files"
    last = b""
    for chunk in text:
        last = chunk[-1:]
        yield chunk.replace(b"\n", b" ") if one_end else chunk
    if unit.last and last and (one_end or last != b"\n"):
        yield b"\n"


def _is_wanted(document: bytes, unit: WorkUnit) -> bool:
    return not unit.is_share or unit.low <= position_of(document) < unit.high


def whole_lines(text: Iterable[bytes]) -> Iterator[bytes | bytearray]:
    """The same bytes, cut after line ends; the last may lack its own. A line of more than 16 MiB is a bytearray."""
    held = bytearray()
    for chunk in text:
        start = 0
        if len(held) > LARGE_BYTES and b"\n" in chunk:
            start = chunk.find(b"\n") + 1
            held += chunk[:start]
            yield held
            held = bytearray()
        cut = chunk.rfind(b"\n", start) + 1
        if cut:
            yield b"".join([held, chunk[start:cut]])
            held = bytearray()
        held += chunk[max(cut, start) :]
    if held:
        yield held if len(held) > LARGE_BYTES else bytes(held)


def slices(data: bytes | bytearray | memoryview, start: int, stop: int) -> Iterator[bytes]:
    """A range of what is held, 1 MiB at a time."""
    view = memoryview(data)
    for first in range(start, stop, CHUNK_BYTES):
        yield bytes(view[first : min(first + CHUNK_BYTES, stop)])
