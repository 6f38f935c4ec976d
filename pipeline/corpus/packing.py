"""What is in a packed file: gzip, bzip2, xz (also its older kind, lzma) and zstd.

In: a file that is packed. Out: its content, 1 MiB at a time, whatever it grows to. Refuses, by an OSError, EOFError,
`zlib.error` or `lzma.LZMAError`: what is cut short or damaged, and anything after a stream that is neither the end,
another stream nor the padding that the format allows.

A packed file is streams one after the other, as `cat a.gz b.gz` makes them. Python's own readers take what follows a
stream and does not begin as another for garbage and end there without a word, also where a bit of a header flipped.
"""

import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO, Literal

import pyarrow as pa

Packing = Literal["gzip", "bzip2", "xz", "zstd"]

SUFFIXES: dict[str, Packing] = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
CHUNK_BYTES = 1 << 20
PACKED_BYTES = 1 << 16  # of packed bytes held at a time

BEGINNINGS: dict[Packing, re.Pattern[bytes]] = {
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    "bzip2": re.compile(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)"),
    "xz": re.compile(rb"\xfd7zXZ\x00|\x5d\x00\x00..(\xff{8}|.{5}\x00{3})", re.DOTALL),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),  # or a frame that is to be passed over
}


def packing_of(head: bytes) -> Packing | None:
    """How a file is packed that begins with these bytes, 16 or more if it has them; None if it is not."""
    return next((packing for packing, beginning in BEGINNINGS.items() if beginning.match(head)), None)


def unpacked(file: BinaryIO, packing: Packing) -> Iterator[bytes]:
    """The content of a packed file, in pieces of up to 1 MiB, none of them empty."""
    if packing == "zstd":
        # Arrow's reader keeps to the same rule, and says when the file was truncated.
        content = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
        yield from iter(partial(content.read, CHUNK_BYTES), b"")
    else:
        yield from _streams(file, packing)


class _GzipStream:
    """zlib's unpacking of one gzip stream, in the shape of bz2's and lzma's."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


NEW_STREAM: dict[Packing, type[_GzipStream | bz2.BZ2Decompressor | lzma.LZMADecompressor]] = {
    "gzip": _GzipStream,
    "bzip2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
}
PADDING_MULTIPLES: dict[Packing, int] = {"gzip": 1, "xz": 4}  # zero bytes that may follow a stream; bzip2 has none


def _streams(file: BinaryIO, packing: Packing) -> Iterator[bytes]:
    read = partial(file.read, PACKED_BYTES)
    data = read()
    while data:
        stream = NEW_STREAM[packing]()
        while not stream.eof:
            content = stream.decompress(data, CHUNK_BYTES)
            if content:
                yield content
            data = b""
            if stream.needs_input and not stream.eof:
                data = read()
                if not data:
                    raise EOFError("it ends within a stream")
        data = stream.unused_data or read()
        if packing in PADDING_MULTIPLES:
            data = _after_padding(data, read, multiple=PADDING_MULTIPLES[packing])


def _after_padding(data: bytes, read: Callable[[], bytes], *, multiple: int) -> bytes:
    """The data from the first byte on that is not zero; more is read while there are only zeros."""
    num_zeros = 0
    while data:
        rest = data.lstrip(b"\0")
        num_zeros += len(data) - len(rest)
        if rest:
            break
        data = read()
    else:
        rest = b""
    if num_zeros % multiple:
        raise OSError(f"{num_zeros} zero bytes follow a stream, needed a multiple of {multiple}")
    return rest
