"""What a reader of a text format is, and what readers have in common.

In: a file, or a part of it that a task reads. Out: its parts; the text of a part, in which LF means `<eos>` and nothing
else; the bytes that decide this text. Refuses: a packed file that changed its size.

A document is a row; in plain text it is a file or, with `documents: lines`, a line. With `eos: line` each line of a
document ends with LF, with `eos: document` only the document itself does. An empty document yields nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import BinaryIO, Literal, NamedTuple

from pipeline import storage
from pipeline.config import CorpusConfig
from pipeline.corpus.packing import CHUNK_BYTES
from pipeline.corpus.units import (
    WorkUnit,
    position_of,
    position_of_pieces,
    stored_chunks,
    text_chunks,
    valid_chunks,
)
from pipeline.errors import CorpusError

TAIL_BYTES = 4096
NULL_ROW = b"\xff\0"  # what an observer sees of a row without text: no text has it in it
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
    return stored_chunks(unit)


def text_bytes(unit: WorkUnit, corpus: CorpusConfig) -> Iterator[bytes]:
    """The same, for files whose bytes are text: as valid UTF-8 where documents are shared out by their hash.

    That is what they are hashed as.
    """
    stored = stored_bytes(unit, corpus)
    return valid_chunks(stored) if unit.is_share and unit.packing is None else stored


def changed(unit: WorkUnit) -> CorpusError:
    """What is told of a file that is not what it was."""
    return CorpusError(f"{unit.path} changed while it was prepared; leave it as it is and prepare again")


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
            None: the text itself of all documents of the range, with their line ends.
        content: (unit, configuration) → the bytes of its range that decide its text, where a unit that has them as its
            `content` is read from there; so a small range is read once. None: there are none but stored bytes.
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
    deciding_bytes: Callable[[WorkUnit, CorpusConfig], Iterator[bytes]] | None = stored_bytes
    content: Callable[[WorkUnit, CorpusConfig], Iterator[bytes]] | None = None
    version: int = 1
    documents: Callable[[WorkUnit, CorpusConfig], Iterator[Documents | LargeDocument]] | None = None
    text: Callable[[WorkUnit], Iterator[bytes]] = text_chunks

    @property
    def stores_what_decides(self) -> bool:
        """Whether the bytes of a unit's range, in their order, decide its text, so that one reading gives both."""
        return self.deciding_bytes in (stored_bytes, text_bytes)

    @property
    def content_of(self) -> Callable[[WorkUnit, CorpusConfig], Iterator[bytes]] | None:
        """What a small range's `content` is made of; None where the reader takes none."""
        return stored_bytes if self.content is None and self.stores_what_decides else self.content

    def pieces(
        self, units: Sequence[WorkUnit], corpus: CorpusConfig, tallies: Sequence[Tally]
    ) -> Iterator[tuple[int, bytes]]:
        """The text of the units' documents, with line ends as `eos` wants them, cut anywhere.

        Args:
            units: what to read: one, or several of one range that share out its documents by their hashes.
            corpus: says what a document and a line end are.
            tallies: one for each unit; rows without text are added to it.

        Yields:
            (which of the units, a piece of its text).
        """
        if self.documents is not None:
            return _pieces_of_rows(self.documents(units[0], corpus), units, corpus, tallies=tallies, whole=self._whole)
        if units[0].is_share:
            return _pieces_of_lines(self.text(units[0]), units)
        return ((0, piece) for piece in _pieces_of_text(self.text(units[0]), units[0], corpus))

    def text_of_range(self, unit: WorkUnit, corpus: CorpusConfig) -> Iterator[bytes]:
        """What an observer sees of a unit's range: the text of all its documents, whichever of them the unit wants."""
        seen: list[bytes] = []
        whole = replace(unit, low=0.0, high=1.0, observe=seen.append)
        for _ in self.pieces([whole], corpus, [Tally()]):
            yield from seen
            seen.clear()
        yield from seen

    @property
    def _whole(self) -> bool:
        return self.deciding_bytes is None


def _pieces_of_rows(
    batches: Iterable[Documents | LargeDocument],
    units: Sequence[WorkUnit],
    corpus: CorpusConfig,
    *,
    tallies: Sequence[Tally],
    whole: bool,
) -> Iterator[tuple[int, bytes]]:
    """The rows' texts, each for the unit that wants it.

    Args:
        batches: rows.
        units, corpus, tallies: as in `Reader.pieces`.
        whole: whether the unit's observer sees the text of every row, whoever wants it.
    """
    observe = units[0].observe if whole else None
    for batch in batches:
        if isinstance(batch, LargeDocument):
            yield from _pieces_of_large(batch, units, eos=corpus.eos, observe=observe)
            continue
        for unit, tally in zip(units, tallies, strict=True):
            if unit.high == 1:
                tally.num_null_rows += batch.count(None)
        texts: Iterator[tuple[bytes, bytes]] = ((each, _with_line_ends(each, eos=corpus.eos)) for each in batch if each)
        if observe is not None:
            texts = _observed(texts, observe)
        if units[0].is_share:
            yield from _dealt(texts, units)
        else:
            yield 0, b"".join(text for _, text in texts)
        if observe is not None:
            observe(NULL_ROW * batch.count(None))  # which leave no text, and are counted all the same


def _observed(texts: Iterable[tuple[bytes, bytes]], observe: Callable[[bytes], None]) -> Iterator[tuple[bytes, bytes]]:
    for document, text in texts:
        observe(text)
        yield document, text


def _dealt(texts: Iterable[tuple[bytes, bytes]], units: Sequence[WorkUnit]) -> Iterator[tuple[int, bytes]]:
    """The texts of (document, text) for the units that want the documents."""
    shares: list[list[bytes]] = [[] for _ in units]
    for document, text in texts:
        for index in _wanting(units, position_of(document)):
            shares[index].append(text)
    yield from ((index, b"".join(share)) for index, share in enumerate(shares) if share)


def _wanting(units: Sequence[WorkUnit], position: float) -> list[int]:
    """Which of the units wants a document: one, or none."""
    return [index for index, unit in enumerate(units) if unit.low <= position < unit.high]


def _with_line_ends(document: bytes, *, eos: Literal["line", "document"]) -> bytes:
    if eos == "document":
        return document.replace(b"\n", b" ") + b"\n"
    return document if document.endswith(b"\n") else document + b"\n"


def _pieces_of_large(
    document: LargeDocument,
    units: Sequence[WorkUnit],
    *,
    eos: Literal["line", "document"],
    observe: Callable[[bytes], None] | None = None,
) -> Iterator[tuple[int, bytes]]:
    """The same of one document, with its line ends."""
    if observe is not None:
        for piece in _text_of_large(document, eos=eos):
            observe(piece)
    wanting = _wanting(units, position_of_pieces(document.pieces())) if units[0].is_share else [0]
    yield from ((index, piece) for index in wanting for piece in _text_of_large(document, eos=eos))


def _text_of_large(document: LargeDocument, *, eos: Literal["line", "document"]) -> Iterator[bytes]:
    last = b""
    for piece in document.pieces():
        last = piece[-1:] or last
        yield piece.replace(b"\n", b" ") if eos == "document" else piece
    if last and (eos == "document" or last != b"\n"):
        yield b"\n"


def _pieces_of_lines(text: Iterable[bytes], units: Sequence[WorkUnit]) -> Iterator[tuple[int, bytes]]:
    for lines in whole_lines(text):
        if isinstance(lines, bytearray):
            line = LargeDocument(partial(slices, lines, 0, len(lines) - lines.endswith(b"\n")))
            yield from _pieces_of_large(line, units, eos="document")
            continue
        documents = lines.removesuffix(b"\n").split(b"\n")
        yield from _dealt(((line, line + b"\n") for line in documents), units)


def _pieces_of_text(text: Iterable[bytes], unit: WorkUnit, corpus: CorpusConfig) -> Iterator[bytes]:
    one_end = corpus.eos == "document" and corpus.documents == "files"
    last = b""
    for chunk in text:
        last = chunk[-1:]
        yield chunk.replace(b"\n", b" ") if one_end else chunk
    if unit.last and last and (one_end or last != b"\n"):
        yield b"\n"


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
