"""What a file is, by its first bytes and its name.

In: a path. Out: its format, how it is packed, and whether a byte order mark begins its text. Refuses, by name and with
the mend: what only looks like text to a reader that takes any bytes for text (archives, UTF-16, Arrow, databases,
images and the like), a suffix that promises a packing that is not there, a JSON array.

Packed files and formats whose reader has a `magic`, such as parquet, are known by their first bytes whatever they are
called; the others by their name: text may well begin with a brace. What no reader knows is plain text.
"""

import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from pipeline import storage
from pipeline.corpus.packing import SUFFIXES, Packing, packing_of, unpacked
from pipeline.corpus.readers import READERS, Reader
from pipeline.corpus.units import BYTE_ORDER_MARK, first_bytes
from pipeline.errors import CorpusError

HEAD_BYTES = 4096
TAR_HEADER_BYTES = 512

UNPACK = "unpack it and name what was in it"
CONVERT = "write its text to a plain file, .jsonl or .parquet"
TO_UTF8 = "convert it: iconv -f {0} -t UTF-8"
MEDIA = "leave it out"

# what the first bytes match → what it is, and the mend
REFUSED = [
    (re.compile(beginning, re.DOTALL), what, mend)
    for beginning, what, mend in (
        (rb"\xff\xfe\0\0|\0\0\xfe\xff", "UTF-32", TO_UTF8.format("UTF-32")),
        (rb"\xff\xfe|\xfe\xff", "UTF-16", TO_UTF8.format("UTF-16")),
        (rb"PK(\x03\x04|\x05\x06|\x07\x08)", "a zip archive", UNPACK),
        (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
        (rb"Rar!\x1a\x07", "a rar archive", UNPACK),
        (rb"\x1f[\x9d\xa0]|\x04\x22\x4d\x18|\xff\x06\0\0sNaPpY|LZIP\x01", "packed in a way not known here", UNPACK),
        (rb"ARROW1\0\0|\xff\xff\xff\xff.{3}\0|FEA1\0", "an Arrow file", "use corpus=datasets corpus.dataset=arrow"),
        (rb"Obj\x01", "an Avro file", CONVERT),
        (rb"\x89HDF\r\n\x1a\n", "an HDF5 file", CONVERT),
        (rb"\x93NUMPY", "a NumPy file", CONVERT),
        (rb"\x80[\x02-\x05]", "a Python pickle", CONVERT),
        (rb"SQLite format 3\0", "an SQLite database", CONVERT),
        (rb"%PDF-", "a PDF document", CONVERT),
        (rb"{\\rtf", "an RTF document", CONVERT),
        (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a document of an office program", CONVERT),
        (rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a.{0,6}\0|II\*\0|MM\0\*|RIFF.{4}WEBP", "an image", MEDIA),
        (rb"RIFF.{4}(WAVE|AVI )|OggS\0|fLaC\0|ID3[\x02-\x04]\0|\0\0\0.ftyp|\x1a\x45\xdf\xa3", "sound or film", MEDIA),
        (rb"\x7fELF|\0asm|\xca\xfe\xba\xbe|GGUF.\0\0\0", "a program or a model", MEDIA),
    )
]


@dataclass(frozen=True)
class Recognised:
    """What a file is."""

    format: str
    packing: Packing | None
    has_mark: bool  # its text begins with a byte order mark


def recognise(path: str) -> Recognised:
    """What a file is; reads its first bytes, of a packed file as much as its first bytes of content need.

    Raises:
        CorpusError: it is nothing that can be read.
    """
    head = storage.read_head(path, HEAD_BYTES)
    packing = packing_of(head)
    promised = SUFFIXES.get(PurePosixPath(_name(path)).suffix)
    if promised not in (None, packing):
        raise CorpusError(
            f"{path} is damaged or cannot be read (it does not begin as {promised} does); restore the file or leave it"
            " out, or name it as what it is"
        )
    if packing is not None:
        with storage.open_read(path, ahead=False) as file:
            head = first_bytes(unpacked(file, packing), HEAD_BYTES)[:HEAD_BYTES]
    format_ = _last_row(lambda reader: reader.magic is not None and head.startswith(reader.magic))
    if format_ is None:
        _refuse(path, head, packed=packing is not None)
        format_ = format_by_name(path)
    if packing is not None:
        _check_packable(path, format_)
    READERS[format_].check_head(path, head.removeprefix(BYTE_ORDER_MARK))
    return Recognised(format_, packing, head.startswith(BYTE_ORDER_MARK))


def format_by_name(path: str) -> str:
    """The format of a file by its name, packed or not; plain text if no format has its suffix.

    Raises:
        CorpusError: by its name, the file is packed and its format is not one to be packed.
    """
    name = PurePosixPath(_name(path))
    packed = name.suffix in SUFFIXES
    suffix = PurePosixPath(name.stem).suffix if packed else name.suffix
    format_ = _last_row(lambda reader: suffix in reader.suffixes) or "text"
    if packed:
        _check_packable(path, format_)
    return format_


def _name(path: str) -> str:
    """A path in lower case; of a URL of the web without its query."""
    return (urlsplit(path).path if storage.is_web(path) else path).lower()


def _last_row(is_meant: Callable[[Reader], bool]) -> str | None:
    """The format that is meant; of several the one that was added last, so that one from outside can take over."""
    return next((name for name in reversed(READERS) if is_meant(READERS[name])), None)


def _check_packable(path: str, format_: str) -> None:
    if not READERS[format_].is_packable:
        raise CorpusError(f"{path} is compressed {format_}; decompress it: {format_} is compressed within")


def _refuse(path: str, head: bytes, *, packed: bool) -> None:
    """Raises a CorpusError for content that is no text, nor in a format that can be read."""
    found = next(((what, mend) for beginning, what, mend in REFUSED if beginning.match(head)), None)
    if found is None and packed and packing_of(head):
        found = "what is packed once more", "unpack it once"
    if found is None and _is_tar(head):
        found = "a tar archive", UNPACK
    if found is None and _is_utf16(head):
        found = "UTF-16 without a byte order mark", TO_UTF8.format("UTF-16LE" if head[0] else "UTF-16BE")
    if found is not None:
        what, mend = found
        raise CorpusError(f"{path} holds {what}, needed text, JSON lines or parquet; {mend}")


def _is_tar(head: bytes) -> bool:
    """Whether the checksum of a tar header is right; the oldest kind has no other mark."""
    try:
        tarfile.TarInfo.frombuf(head[:TAR_HEADER_BYTES], "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    return True


def _is_utf16(head: bytes) -> bool:
    """Whether every other byte is NUL and none of the rest is: Latin text in two bytes a character."""
    even, odd = head[::2], head[1::2]
    return len(odd) >= 4 and any(not any(one) and all(other) for one, other in ((even, odd), (odd, even)))
