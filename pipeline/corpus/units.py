"""What is read: sources and work units, the bytes of a unit, and the hash that decides a document's split.

In: paths that exist. Out: bytes, 1 MiB at a time. Refuses: a file that changes while it is read; what is damaged,
by name (`readable`).
"""

import codecs
import hashlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import BinaryIO, cast

import pyarrow as pa

from pipeline import storage
from pipeline.corpus.packing import CHUNK_BYTES, Packing, unpacked
from pipeline.errors import CorpusError, reason_of
from pipeline.masking import masked

SPLITS = ("train", "valid", "test")
BYTE_ORDER_MARK = codecs.BOM_UTF8


@dataclass(frozen=True)
class Source:
    """A file, or a split of a data set, and the split of the prepared corpus that was asked of it.

    The format is that of the file's name; its first bytes may show another when it is cut into units.
    """

    split: str
    format: str
    path: str


@dataclass(frozen=True)
class WorkUnit:
    """What one task reads.

    Attributes:
        split: the split of the prepared corpus that the text goes to.
        format: how the text is stored: a key of `READERS`.
        path: the file; of a data set, the name of its split, or the file that a packaged builder reads.
        start: in what the format's reader counts: the first byte; of parquet, the first row group; of a data set, the
            shard.
        stop: end of the range, exclusive.
        size_bytes: bytes that are read, 0 if not known.
        last: whether the file ends with this unit.
        low: of the documents, those whose hash, as a number in [0, 1), is in [low, high).
        high: see low.
        packing: of the file; None for plain bytes, and for parquet and data sets, which unpack for themselves.
        has_mark: whether the unit's text begins with a byte order mark, which is no part of it.
        content: the bytes of the range, as they are stored, where they have been read already; within a task only.
        observe: is called with each piece of them when it is read; within a task only.
    """

    split: str
    format: str
    path: str
    start: int
    stop: int
    size_bytes: int
    last: bool
    low: float
    high: float
    packing: Packing | None
    has_mark: bool
    content: bytes | None = field(default=None, compare=False, repr=False)
    observe: Callable[[bytes], None] | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The range for people, without the folder, so that it says nothing of where the input was."""
        share = f" share [{self.low:g}:{self.high:g}]" if self.is_share else ""
        return f"{printable(PurePosixPath(masked(self.path)).name)}[{self.start}:{self.stop}]{share}"

    @property
    def is_share(self) -> bool:
        """Whether only some of the documents are wanted, by their hash."""
        return (self.low, self.high) != (0, 1)


def printable(path: str) -> str:
    """A path as text that can be written: a name may be any bytes, not only UTF-8."""
    return path.encode("utf-8", "backslashreplace").decode()


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Turns an error of reading a missing or damaged file into one line with its name."""
    try:
        yield
    except MemoryError:  # Arrow's own is an ArrowException too
        raise
    except FileNotFoundError as error:
        raise CorpusError(f"{path} is missing; mend the path") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        raise CorpusError(
            f"{path} is damaged or cannot be read ({reason_of(error)}); restore the file or leave it out"
        ) from error


def chunks(path: str, start: int, stop: int) -> Iterator[bytes]:
    """Bytes of a file as they are stored, 1 MiB at a time.

    Args:
        path: the file.
        start: the first byte.
        stop: the end of the range, exclusive.

    Raises:
        CorpusError: the file is shorter.
    """
    with storage.open_read(path, stop=stop) as file:
        file.seek(start)
        while start < stop and (chunk := file.read(min(CHUNK_BYTES, stop - start))):
            start += len(chunk)
            yield chunk
    if start < stop:
        raise CorpusError(f"{path} ends {stop - start} bytes early: it changed while it was read; prepare again")


def stored_chunks(unit: WorkUnit) -> Iterator[bytes]:
    """The bytes of a unit's range as they are stored, 1 MiB at a time: those that were read already, or the file's."""
    if unit.content is None:
        stored = chunks(unit.path, unit.start, unit.stop)
    else:
        stored = iter(partial(io.BytesIO(unit.content).read, CHUNK_BYTES), b"")
    for chunk in stored:
        if unit.observe is not None:
            unit.observe(chunk)
        yield chunk


def text_chunks(unit: WorkUnit) -> Iterator[bytes]:
    """The bytes of a unit, unpacked, without the byte order mark, cut anywhere."""
    content = stored_chunks(unit)
    if unit.packing is not None:
        content = unpacked(cast(BinaryIO, _Pieces(content)), unit.packing)
    if unit.has_mark:
        yield first_bytes(content, len(BYTE_ORDER_MARK)).removeprefix(BYTE_ORDER_MARK)
    yield from content


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a file that is read from its beginning."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._piece, self._at = pieces, b"", 0

    def readable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, of one piece; nothing at the end."""
        if self._at == len(self._piece):
            self._piece, self._at = next(self._pieces, b""), 0
        stop = len(self._piece) if size < 0 else min(self._at + size, len(self._piece))
        taken, self._at = self._piece[self._at : stop], stop
        return taken


def first_bytes(text: Iterator[bytes], num_bytes: int) -> bytes:
    """Takes the first pieces of a text, of so many bytes or more if it has them."""
    head = b""
    while len(head) < num_bytes and (chunk := next(text, None)) is not None:
        head += chunk
    return head


def valid_chunks(text: Iterable[bytes]) -> Iterator[bytes]:
    """The same text as valid UTF-8: with U+FFFD where it is not, however it is cut."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for chunk in text:
        yield decoder.decode(chunk).encode()
    yield decoder.decode(b"", final=True).encode()


def position_of(document: bytes) -> float:
    """The hash of a document as a number in [0, 1), evenly spread: which split it falls into.

    It is the hash of the text as valid UTF-8: how a reader came by the document leaves no trace.
    """
    return position_of_digest(hashlib.sha256(document.decode("utf-8", "replace").encode()).digest())


def position_of_pieces(document: Iterable[bytes]) -> float:
    """`position_of` for a document that comes in pieces."""
    digest = hashlib.sha256()
    for piece in valid_chunks(document):
        digest.update(piece)
    return position_of_digest(digest.digest())


def position_of_digest(digest: bytes) -> float:
    """A sha256 as a number in [0, 1), so that duplicates of a document meet in one split."""
    return int.from_bytes(digest[:6], "big") / 2**48
