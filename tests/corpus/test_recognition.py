"""Recognition: a file is read as what it is, or refused by name with the mend, whatever it is called."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from support.corpora import PACK, corpus_config, lzma_alone, text_of

from pipeline import storage
from pipeline.corpus.packing import SUFFIXES
from pipeline.corpus.recognition import Recognised, recognise
from pipeline.corpus.sources import cut_units, list_sources
from pipeline.errors import CorpusError

TABLE = pa.table({"text": ["one two", "three"]})
ROWS = b'{"text": "one two"}\n{"text": "three"}\n'
TEXT = b"one two\nthree\n"


def archive(**names):
    """A tar archive; `format` may be given."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", **names) as tar:
        info = tarfile.TarInfo("a.txt")
        info.size = len(TEXT)
        tar.addfile(info, io.BytesIO(TEXT))
    return sink.getvalue()


def old_tar():
    """The oldest kind, without a magic word: what follows the checksum in the header is zero."""
    data = bytearray(archive(format=tarfile.USTAR_FORMAT))
    data[257:512] = bytes(255)
    data[148:156] = b"        "
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def zipped():
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as file:
        file.writestr("a.txt", TEXT)
    return sink.getvalue()


def ipc(new):
    sink = io.BytesIO()
    with new(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)
    return sink.getvalue()


def parquet():
    sink = io.BytesIO()
    pq.write_table(TABLE, sink)
    return sink.getvalue()


def feather(version):
    sink = io.BytesIO()
    pyarrow.feather.write_feather(TABLE, sink, version=version, compression="uncompressed")
    return sink.getvalue()


def array():
    sink = io.BytesIO()
    np.save(sink, np.zeros(3))
    return sink.getvalue()


def database(folder):
    path = folder / "made.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("create table a (b)")
    connection.close()
    return path.read_bytes()


REFUSED = {
    "zip": (zipped, "a zip archive, .*; unpack it"),
    "tar": (lambda: archive(format=tarfile.GNU_FORMAT), "a tar archive, .*; unpack it"),
    "tar of ustar": (lambda: archive(format=tarfile.USTAR_FORMAT), "a tar archive, .*; unpack it"),
    "old tar": (old_tar, "a tar archive, .*; unpack it"),
    "tar.gz": (lambda: gzip.compress(archive()), "a tar archive, .*; unpack it"),
    "tar.xz": (lambda: lzma.compress(archive()), "a tar archive, .*; unpack it"),
    "gzip in gzip": (lambda: gzip.compress(gzip.compress(TEXT)), "packed once more, .*; unpack it once"),
    "bzip2 in xz": (lambda: lzma.compress(bz2.compress(TEXT)), "packed once more, .*; unpack it once"),
    "compress": (lambda: b"\x1f\x9d\x90" + bytes(20), "packed in a way not known here"),
    "lz4": (lambda: b"\x04\x22\x4d\x18" + bytes(20), "packed in a way"),
    "Arrow file": (lambda: ipc(pa.ipc.new_file), r"an Arrow file, .*; use corpus=datasets corpus\.dataset=arrow"),
    "Arrow stream": (lambda: ipc(pa.ipc.new_stream), "an Arrow file"),
    "feather": (lambda: feather(2), "an Arrow file"),
    "parquet in gzip": (lambda: gzip.compress(parquet()), "compressed parquet; decompress it"),
    "UTF-16": (lambda: TEXT.decode().encode("utf-16"), "UTF-16, .*; convert it: iconv -f UTF-16 -t UTF-8"),
    "UTF-16BE with a mark": (lambda: "\ufeffone".encode("utf-16-be"), "iconv -f UTF-16 -t UTF-8"),
    "UTF-16LE": (lambda: TEXT.decode().encode("utf-16-le"), "UTF-16 without .*iconv -f UTF-16LE -t UTF-8"),
    "UTF-16BE": (lambda: TEXT.decode().encode("utf-16-be"), "UTF-16 without .*iconv -f UTF-16BE -t UTF-8"),
    "UTF-32": (lambda: TEXT.decode().encode("utf-32"), "UTF-32, .*; convert it: iconv -f UTF-32 -t UTF-8"),
    "UTF-16 in gzip": (lambda: gzip.compress(TEXT.decode().encode("utf-16")), "UTF-16, .*iconv"),
    "pickle": (lambda: pickle.dumps(["one two"]), "a Python pickle, .*; write its text to a plain file"),
    "pickle of before": (lambda: pickle.dumps(["one two"], protocol=2), "a Python pickle"),
    "NumPy": (array, "a NumPy file"),
    "PDF": (lambda: b"%PDF-1.7\n", "a PDF document"),
    "PNG": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(9), "an image, .*; leave it out"),
    "JPEG": (lambda: b"\xff\xd8\xff\xe0" + bytes(9), "an image"),
    "GIF": (lambda: b"GIF89a\x01\x00\x01\x00", "an image"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(9), "an HDF5 file"),
    "program": (lambda: b"\x7fELF\x02\x01\x01" + bytes(9), "a program"),
}


@pytest.mark.parametrize("name", ["a.txt", "a", "a.jsonl"])
@pytest.mark.parametrize(("made", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_text_is_refused_by_its_first_bytes(tmp_path, made, message, name):
    path = tmp_path / name
    path.write_bytes(made())
    with pytest.raises(CorpusError, match=rf"^{path} \S+ .*{message}"):
        text_of(path)


def test_a_database_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(database(tmp_path))
    with pytest.raises(CorpusError, match="an SQLite database"):
        text_of(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["a.txt", "a", "a.TXT", "b.md", "c.txt.old"])
@pytest.mark.parametrize("pack", [*PACK.values(), lzma_alone])
def test_packed_text_is_read_whatever_its_name(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(TEXT))
    assert text_of(tmp_path / name) == {"train": TEXT}


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".JSON"])
@pytest.mark.parametrize("packed", ["", ".gz", ".bz2", ".xz", ".zst", ".GZ"])
def test_json_lines_are_known_by_their_name(tmp_path, suffix, packed):
    path = tmp_path / f"a{suffix}{packed}"
    path.write_bytes(PACK[SUFFIXES[packed.lower()]](ROWS) if packed else ROWS)
    assert text_of(path) == {"train": TEXT}


@pytest.mark.parametrize("name", ["a", "a.txt", "a.bin", "a.jsonl", "a.parquet"])
def test_parquet_is_known_by_its_first_bytes(tmp_path, name):
    (tmp_path / name).write_bytes(parquet())
    assert text_of(tmp_path / name) == {"train": TEXT}
    (tmp_path / name).write_bytes(parquet()[:-9])
    with pytest.raises(CorpusError, match="is damaged"):
        text_of(tmp_path / name)


@pytest.mark.parametrize(
    "text",
    [
        b'{"text": "one"}\n',
        b"[1] a footnote\n",
        b"{ brace\n",
        b"BM is no bitmap, GIF89a no image, PK no archive, RIFF none\n",
        b"GIF89a, a format\n",
        b"RIFF and WAVE\n",
        b"ustar",
        b"a\0b\n",
        b"\0" * 600,
        "\u00ff\u00fe\n".encode(),
        b"\x85\x85 latin\n",
        b"ORC, elf and troll\n",
    ],
)
def test_text_stays_text_whatever_it_begins_with(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text)
    assert text_of(tmp_path / "a.txt") == {"train": text if text.endswith(b"\n") else text + b"\n"}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("packing", [None, *PACK])
def test_a_suffix_that_lies_is_named(tmp_path, suffix, packing):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PACK[packing](TEXT) if packing else TEXT)
    if packing == SUFFIXES[suffix]:
        assert text_of(path) == {"train": TEXT}
    else:
        with pytest.raises(
            CorpusError, match=rf"^{path} is damaged .*\(it does not begin as {SUFFIXES[suffix]} does\)"
        ):
            text_of(path)


@pytest.mark.parametrize("num_rows", [1, 3, 60_000])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_json_that_is_not_one_object_a_line_is_refused_small_or_large(tmp_path, num_rows, name, mark):
    rows = [{"text": f"row {number}"} for number in range(num_rows)]
    path = tmp_path / name
    pretty = "\n".join(json.dumps(row, indent=1) for row in rows)
    for text, message in (
        (json.dumps(rows), r"holds a JSON array, needed one object a line; use jq -c '\.\[\]'"),
        (json.dumps(rows, indent=2), "holds a JSON array"),
        ("\n " + json.dumps(rows), "holds a JSON array"),
        (pretty, r"line 1, is no JSON .*; needed one object a line: .* jq -c \."),
    ):
        data = mark + text.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        with pytest.raises(CorpusError, match=message):
            text_of(path)


def test_one_small_read_tells_what_a_file_is(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\n" * 10_000)
    asked = []
    whole = storage.read_head
    monkeypatch.setattr(storage, "read_head", lambda *args: asked.append(args) or whole(*args))
    monkeypatch.delattr(storage, "open_read")
    assert recognise(str(path)) == Recognised("text", None, has_mark=True)
    assert asked == [(str(path), 4096)]


def test_an_object_store_is_recognised_and_read_alike(s3_bucket):
    folder = f"{s3_bucket}/recognition"
    for name, data in {
        "a::b.txt": TEXT,
        "b": gzip.compress(TEXT),
        "c.json.xz": lzma.compress(ROWS),
        "d": parquet(),
        "e.txt": b"\xef\xbb\xbf" + TEXT,
    }.items():
        storage.publish_bytes(f"{folder}/{name}", data)
    assert text_of(folder) == {"train": TEXT * 5}
    storage.publish_bytes(f"{folder}/f.txt", zipped())
    corpus = corpus_config(train=folder)
    with pytest.raises(CorpusError, match=r"^s3://bucket/recognition/f\.txt holds a zip archive"):
        [cut_units(source, corpus) for source in list_sources(corpus)]
