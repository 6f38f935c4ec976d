"""The web as input: what may pass is tried again, a range is sent once, what cannot be read is told in one line."""

import bz2
import gzip
import hashlib
import json
import os
import random

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.corpora import corpus_config, text_of, words
from support.web_server import serving_files

from pipeline import storage
from pipeline.corpus.blocks import read_blocks
from pipeline.corpus.recognition import recognise
from pipeline.corpus.sources import cut_units, list_sources
from pipeline.errors import ConfigError, CorpusError

BIG = random.Random(0).randbytes(20 << 20)
MIB_8 = 8 << 20
NO_RANGES = r": its server gives no byte ranges, or not its length, .*; download it \(curl -LO\) and name the file$"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(storage, "WAIT_SECONDS", 0.001)


@pytest.fixture
def server():
    with serving_files({"a.txt": b"one\ntwo\n", "big.txt": BIG}) as server:
        yield server


READING = {
    "read_bytes": (storage.read_bytes, b"one\ntwo\n"),
    "sha256": (storage.sha256, hashlib.sha256(b"one\ntwo\n").hexdigest()),
    "head": (lambda path: storage.read_head(path, 3), b"one"),
    "end": (lambda path: storage.read_end(path, 4), b"two\n"),
}
ASKING = {
    "exists": (storage.exists, True),
    "size": (storage.size_bytes, 8),
    "status": (lambda path: storage.file_status(path).size_bytes, 8),
    "list": (lambda path: len(storage.list_files(path)), 1),
}


@pytest.mark.parametrize("fault", [408, 429, 500, 502, 503, 504, "reset", "cut"])
@pytest.mark.parametrize("name", READING)
def test_reading_is_tried_again(server, name, fault):
    call, expected = READING[name]
    server.fail(fault, fault, spare=("HEAD",))
    assert call(f"{server.url}/a.txt") == expected
    assert len(server.of("GET")) == 3


@pytest.mark.parametrize("fault", [429, 503, "reset"])
@pytest.mark.parametrize("name", ASKING)
def test_asking_is_tried_again(server, name, fault):
    call, expected = ASKING[name]
    server.fail(fault, fault, fault, fault, fault)  # of HEAD and then of GET
    assert call(f"{server.url}/a.txt") == expected


def test_a_file_goes_on_where_it_was(server):
    server.fail(None, "cut", 503, None, "cut", spare=("HEAD",))
    assert storage.sha256(f"{server.url}/big.txt") == hashlib.sha256(BIG).hexdigest()
    starts = [int(each.range.removeprefix("bytes=").partition("-")[0]) for each in server.of("GET")]
    assert starts == [0, MIB_8, MIB_8, MIB_8, 2 * MIB_8, 2 * MIB_8]


def test_an_answer_that_is_shorter_than_it_should_be_is_continued(server):
    server.fail("short", "short", spare=("HEAD",))
    assert storage.read_bytes(f"{server.url}/big.txt") == BIG


def test_a_server_that_stalls_is_asked_again(server, monkeypatch):
    monkeypatch.setattr(storage, "STALLED_SECONDS", 0.3)
    server.fail("stall", spare=("HEAD",))
    assert storage.read_bytes(f"{server.url}/a.txt") == b"one\ntwo\n"
    assert len(server.of("GET")) == 2


@pytest.mark.parametrize(("fault", "reason"), [(503, "503 Service Unavailable"), ("reset", "Server disconnected")])
def test_in_the_end_the_path_and_the_tries_are_told(server, fault, reason, caplog):
    path = f"{server.url}/a.txt"
    server.fail(*[fault] * 100, spare=("HEAD",))
    with pytest.raises(ConfigError, match=rf"^{path} cannot be reached \({reason}, tried 5 times\); mend its address"):
        storage.read_bytes(path)
    assert fault != 503 or len(server.of("GET")) == 5
    assert len(caplog.records) == 4
    assert all(path in each.getMessage() and " of 5 in " in each.getMessage() for each in caplog.records)


@pytest.mark.parametrize("status", [400, 401, 403, 405])
def test_what_will_not_pass_is_not_tried_again(server, status):
    path = f"{server.url}/a.txt"
    server.fail(*[status] * 100, spare=("HEAD",))
    with pytest.raises(ConfigError, match=rf"^{path} cannot be reached \({status} .*\); mend its address or the cred"):
        storage.read_bytes(path)
    assert len(server.of("GET")) == 1
    for call, _ in ASKING.values():
        server.fail(*[status] * 100)
        with pytest.raises(ConfigError, match=rf"^{path} cannot be reached \({status} "):
            call(path)
        assert len(server.asked) == 2  # HEAD, then GET, which may be allowed


def test_what_is_missing_is_missing(server):
    path = f"{server.url}/none.txt"
    for call in (storage.read_bytes, storage.sha256, storage.size_bytes, storage.open_read, READING["head"][0]):
        server.asked.clear()
        with pytest.raises(FileNotFoundError):
            call(path)
        assert len(server.asked) <= 2
    assert not storage.exists(path)
    assert not storage.is_folder(path)
    assert storage.list_files(path) == []
    with pytest.raises(CorpusError, match=rf"^corpus\.train={path} is missing.*; mend the path$"):
        list_sources(corpus_config(train=path))


@pytest.mark.parametrize("url", ["http://host:port/a.txt", "http://127.0.0.1:1/a.txt"])
def test_an_address_where_nobody_is_is_told(url):
    with pytest.raises(
        ConfigError, match=rf"^{url} cannot be reached \([^\n]+\); mend its address or the credentials$"
    ):
        storage.read_bytes(url)


def test_secrets_are_told_nowhere(server, caplog):
    secret = server.url.replace("://", "://anna:hunter22@") + "/a.txt?sig=verysecret"
    server.fail(*[503] * 100, spare=("HEAD",))
    with pytest.raises(ConfigError) as caught:
        storage.read_bytes(secret)
    told = str(caught.value) + caplog.text
    assert "***@127.0.0.1" in told
    assert "hunter22" not in told and "verysecret" not in told


def test_the_local_disk_is_asked_once(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.time, "sleep", lambda _: pytest.fail("waited"))
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(str(tmp_path / "none"))


# --- what the web cannot


@pytest.mark.parametrize("name", ["*.txt", "folder/", "a*"])
def test_the_web_is_not_listed(server, name):
    with pytest.raises(ConfigError, match=r"names no file, and the web cannot be listed; name each file by its URL$"):
        storage.list_files(f"{server.url}/{name}")
    assert server.asked == []


@pytest.mark.parametrize(
    "write", [lambda path: storage.publish_bytes(path, b"x"), lambda path: storage.create_bytes(path, b"x")]
)
def test_the_web_is_not_written(server, write):
    with pytest.raises(ConfigError, match=r"is of the web, which is only read; use a local folder or an object store"):
        write(f"{server.url}/new")
    assert server.asked == []


@pytest.mark.parametrize("how", [{"ranges": False}, {"length": False}, {"ranges": False, "length": False}])
def test_a_server_without_ranges_or_length_is_refused_before_work_starts(how):
    with serving_files({"big.txt": BIG}, **how) as server:
        path = f"{server.url}/big.txt"
        with pytest.raises(ConfigError, match=rf"^{path}{NO_RANGES}"):
            list_sources(corpus_config(train=path))
        with pytest.raises(ConfigError, match=rf"^{path}{NO_RANGES}"):
            storage.sha256(path)
        assert all(each.num_bytes < len(BIG) for each in server.asked)


def test_a_small_file_needs_no_ranges():
    with serving_files({"a.txt": b"one\ntwo\n"}, ranges=False) as server:
        assert text_of(f"{server.url}/a.txt") == {"train": b"one\ntwo\n"}


def test_a_link_that_is_signed_for_get_alone_is_read():
    with serving_files({"a.txt": b"one\ntwo\n"}, heads=False) as server:
        assert text_of(f"{server.url}/a.txt?sig=secret") == {"train": b"one\ntwo\n"}


def test_a_file_that_is_shorter_than_was_said_is_refused(server):
    with (
        storage.open_read(f"{server.url}/a.txt", stop=100) as file,
        pytest.raises(ConfigError, match="ends 92 bytes early"),
    ):
        file.read()


# --- a range is sent once


def test_only_what_is_asked_for_is_sent(server):
    path = f"{server.url}/big.txt"
    assert recognise(path).format == "text"
    assert [each.num_bytes for each in server.of("GET")] == [4096]
    server.asked.clear()
    with storage.open_read(path, stop=9_000_000) as file:
        file.seek(1000)
        parts = iter(lambda: file.read(1 << 20), b"")
        assert b"".join(parts) == BIG[1000:9_000_000]
    assert [(each.method, each.num_bytes) for each in server.asked] == [
        ("GET", MIB_8),
        ("GET", 9_000_000 - 1000 - MIB_8),
    ]
    server.asked.clear()
    with storage.open_read(path, ahead=False) as file:
        file.seek(10_000_000)
        assert file.read(4096) == BIG[10_000_000:10_004_096]
        file.seek(-8, os.SEEK_END)
        assert file.read(4) == BIG[-8:-4]
    assert [each.num_bytes for each in server.of("GET")] == [4096, 4]


def passed(server, path, **changes):
    """The text of a file, the bytes sent while it is cut, and those sent while it is read; with the number of units."""
    corpus = corpus_config(train=path, **changes)
    server.asked.clear()
    units = [unit for source in list_sources(corpus) for unit in cut_units(source, corpus)]
    cut = sum(each.num_bytes for each in server.asked)
    server.asked.clear()
    text = b"".join(block for unit in units for block in read_blocks(unit, corpus))
    return text, cut, sum(each.num_bytes for each in server.asked), len(units)


TEXT = words(3, 150_000).encode()


@pytest.mark.parametrize(("name", "pack"), [("a.txt", bytes), ("a.txt.gz", gzip.compress), ("a.txt.bz2", bz2.compress)])
def test_each_byte_of_text_is_sent_once(server, name, pack):
    server.files[name] = content = pack(TEXT)
    text, cut, read, num_units = passed(server, f"{server.url}/{name}")
    assert text == TEXT
    assert read == len(content)
    assert num_units == (1 if pack is not bytes else -(-len(TEXT) // (1 << 20)))
    assert cut <= (num_units + 1) * 4096 + (pack is not bytes) * (1 << 18)  # a head of packed text is to be unpacked


def test_each_byte_of_rows_is_sent_once(server):
    rows = [json.dumps({"id": number, "text": line}) for number, line in enumerate(TEXT.decode().splitlines())]
    server.files["a.jsonl"] = content = "\n".join(rows).encode()
    text, cut, read, num_units = passed(server, f"{server.url}/a.jsonl")
    assert text == b"".join(line + b"\n" for line in TEXT.splitlines() if line)
    assert read == len(content)
    assert cut <= (num_units + 1) * 4096


def test_of_parquet_the_column_and_the_footer_are_sent_once(server, tmp_path):
    lines = [line for line in TEXT.decode().splitlines() if line]
    noise = pa.array([random.Random(0).randbytes(20) for _ in lines])
    table = pa.table({"noise": noise, "text": lines, "more": noise})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=40_000, use_dictionary=False)
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    column = sum(
        metadata.row_group(number).column(1).total_compressed_size for number in range(metadata.num_row_groups)
    )
    server.files["a.parquet"] = (tmp_path / "a.parquet").read_bytes()
    text, cut, read, num_units = passed(server, f"{server.url}/a.parquet")
    assert text == "".join(line + "\n" for line in lines).encode()
    footer = 1 << 16  # as much as Arrow reads of a file's end at once
    assert num_units > 1
    assert read <= column + num_units * footer
    assert cut <= 4096 + footer


# --- corpora


def test_a_list_of_urls_gives_what_the_files_give(server, tmp_path):
    rows = b"".join(json.dumps({"text": f"row {number}"}).encode() + b"\n" for number in range(100))
    server.files |= {"b.txt": TEXT, "c.jsonl": rows, "d.txt.gz": gzip.compress(b"packed\n")}
    names = ["a.txt", "b.txt", "c.jsonl", "d.txt.gz"]
    for name in names:
        (tmp_path / name).write_bytes(server.files[name])
    server.faults[:] = [503, None, "reset", None, None, "cut", None, None, 429] * 3
    found, expected = [
        b"".join(
            block
            for source in list_sources(corpus)
            for unit in cut_units(source, corpus)
            for block in read_blocks(unit, corpus)
        )
        for corpus in (
            corpus_config(train=[f"{server.url}/{name}" for name in names]),
            corpus_config(train=[str(tmp_path / name) for name in names]),
        )
    ]
    assert server.faults == []
    assert found == expected


@pytest.mark.parametrize("query", ["?download=true", "?X-Amz-Signature=secret/x.txt", "#part"])
def test_a_query_is_no_part_of_a_files_name(server, query):
    server.files["a.jsonl"] = b'{"text": "a"}\n'
    assert text_of(f"{server.url}/a.jsonl{query}") == {"train": b"a\n"}
    server.files["a.txt.gz"] = b"not packed"
    with pytest.raises(CorpusError, match="does not begin as gzip does"):
        text_of(f"{server.url}/a.txt.gz{query}")


# --- packages


@pytest.mark.parametrize(
    ("path", "package"),
    [("s3://b/a", "s3fs"), ("gs://b/a", "gcsfs"), ("hf://datasets/a/b", "huggingface_hub"), ("https://h/a", "aiohttp")],
)
def test_a_package_that_is_missing_is_named(monkeypatch, path, package):
    def fail(*_, **__):
        raise ImportError("not installed")

    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    with pytest.raises(ConfigError, match=rf"^{path} cannot be reached: not installed; pip install {package}, or use"):
        storage.exists(path)
