"""Packing: streams one after the other are read whole, and nothing that is none is passed over without a word."""

import gzip
import io
import itertools
import lzma
import zlib

import pytest
from support.corpora import PACK, lzma_alone, zstd

from pipeline.corpus import packing as packing_module
from pipeline.corpus.packing import CHUNK_BYTES, PACKED_BYTES, packing_of, unpacked

SKIPPED = b"\x55\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"  # a frame of zstd's for others
ALL = [*PACK.items(), ("xz", lzma_alone)]
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)


def content(data, packing):
    return b"".join(unpacked(io.BytesIO(data), packing))


class Counting(io.BytesIO):
    """Knows the most that was asked of it at once."""

    most = 0

    def read(self, size=-1):
        assert size >= 0
        self.most = max(self.most, size)
        return super().read(size)


@pytest.mark.parametrize(("packing", "pack"), ALL)
def test_streams_are_joined_empty_ones_too(packing, pack):
    parts = [b"one two\n", b"", b"three\n", bytes(range(256)) * 1000, b""]
    for chosen in itertools.chain.from_iterable(itertools.permutations(parts, count) for count in (1, 2, 3)):
        assert content(b"".join(map(pack, chosen)), packing) == b"".join(chosen)
        assert packing_of(pack(chosen[0])[:16]) == packing


class InParts(io.BytesIO):
    """Gives what was asked for in parts of its own, as a stream ends or byte by byte."""

    def __init__(self, parts):
        super().__init__(b"".join(parts))
        self.parts = list(parts)

    def read(self, size=-1):
        return self.parts.pop(0) if self.parts else b""


@pytest.mark.parametrize(("packing", "pack"), [each for each in ALL if each[0] != "zstd"])
def test_it_does_not_matter_how_a_file_comes(packing, pack):
    streams = [pack(b"one two\n" * 50), pack(b""), pack(b"three\n")]
    text = b"one two\n" * 50 + b"three\n"
    assert b"".join(unpacked(InParts(streams), packing)) == text
    assert b"".join(unpacked(InParts([bytes([byte]) for byte in b"".join(streams)]), packing)) == text
    with pytest.raises(DAMAGE):
        list(unpacked(InParts([*streams, b"x"]), packing))
    if packing == "xz":
        assert b"".join(unpacked(InParts([streams[0], b"\0", b"\0\0", b"\0", streams[2]]), packing))
        with pytest.raises(DAMAGE):
            list(unpacked(InParts([streams[0], b"\0", b"\0\0", streams[2]]), packing))


def test_no_more_is_read_than_is_needed(monkeypatch):
    """A packed MiB may hold a thousand."""
    monkeypatch.setattr(packing_module, "PACKED_BYTES", 4096)
    file = io.BytesIO(gzip.compress(bytes(16 << 20)))
    pieces = unpacked(file, "gzip")
    for _ in range(3):
        next(pieces)
    assert file.tell() == 4096


@pytest.mark.parametrize(("packing", "pack"), ALL)
def test_whatever_is_cut_or_follows_is_refused(packing, pack):
    a, b = pack(b"one two\n" * 50), pack(b"three\n")
    for cut in range(len(a) + 1, len(a + b)):
        with pytest.raises(DAMAGE):
            content((a + b)[:cut], packing)
    for cut in range(1, len(a)):
        with pytest.raises(DAMAGE):
            content(a[:cut], packing)
    for garbage in (b"x", b"garbage", b"\xff" * 40, b[1:], b[:1] + b"x" + b[2:], pack(b"")[:5]):
        with pytest.raises(DAMAGE):
            content(a + garbage + b, packing)
        with pytest.raises(DAMAGE):
            content(a + garbage, packing)


@pytest.mark.parametrize("at", range(4))
def test_a_flipped_byte_in_the_beginning_of_a_second_stream_is_seen(at):
    """In the first four bytes; Python's own readers end there without a word."""
    for packing, pack in PACK.items():
        first, second = pack(b"one two\n"), bytearray(pack(b"three\n"))
        second[at] ^= 0x40
        with pytest.raises(DAMAGE):
            content(first + bytes(second) + first, packing)


@pytest.mark.parametrize(
    ("packing", "allowed"),
    [("gzip", {1, 2, 3, 4, 8, 70_000}), ("bzip2", set()), ("xz", {4, 8, 70_000}), ("zstd", set())],
)
def test_padding_where_the_format_allows_it(packing, allowed):
    a, b = PACK[packing](b"one\n"), PACK[packing](b"two\n")
    for num_zeros in (1, 2, 3, 4, 8, 70_000, 70_001 if packing == "xz" else 2):
        zeros = bytes(num_zeros)
        if num_zeros in allowed:
            assert content(a + zeros, packing) == b"one\n"
            assert content(a + zeros + b + zeros, packing) == b"one\ntwo\n"
        else:
            for data in (a + zeros, a + zeros + b):
                with pytest.raises(DAMAGE):
                    content(data, packing)
        for data in (zeros + a, a + zeros + b"x"):
            with pytest.raises(DAMAGE):
                content(data, packing)


def test_frames_of_zstd_that_are_for_others_are_passed_over():
    a = zstd(b"one\n")
    for data in (a + SKIPPED, SKIPPED + a, SKIPPED + a + SKIPPED):
        assert content(data, "zstd") == b"one\n"
        assert packing_of(data[:16]) == "zstd"
    assert content(SKIPPED, "zstd") == b""


@pytest.mark.parametrize(("packing", "pack"), ALL)
def test_pieces_are_bounded_however_much_they_grow(packing, pack):
    file = Counting(pack(bytes(40 << 20)))
    sizes = [len(piece) for piece in unpacked(file, packing)]
    assert sum(sizes) == 40 << 20 and max(sizes) <= CHUNK_BYTES and min(sizes) > 0
    assert packing == "zstd" or file.most <= PACKED_BYTES


def test_plain_bytes_are_not_packed():
    for text in (b"", b"one", b"BZh9 is how it begins", b"]]", b"PAR1", b"(\xb5/", b"\x1f\x8b", b"]\0\0\0\0\0\0\0"):
        assert packing_of(text) is None
