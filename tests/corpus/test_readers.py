"""A text format from outside the package: one module, one row of the table."""

import codecs
import gzip
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
from support.corpora import corpus_config, key_of, text_of

from pipeline.cluster.tasks import run_here
from pipeline.config import Config, load
from pipeline.corpus.prepare import prepare
from pipeline.corpus.readers import READERS, Reader
from pipeline.corpus.sources import cut_units, list_sources

ROT13 = """
from codecs import encode

from pipeline.corpus.readers import READERS
from pipeline.corpus.readers.reader import Reader, cut_at_lines
from pipeline.corpus.units import text_chunks


def text(unit):
    for chunk in text_chunks(unit):
        yield encode(chunk.decode("latin-1"), "rot13").encode("latin-1")


READERS["rot13"] = Reader(suffixes=(".rot13",), cut=cut_at_lines, text=text)
"""

RECORDS = """
from pipeline.corpus.readers import READERS
from pipeline.corpus.readers.reader import Reader
from pipeline.corpus.units import text_chunks


def documents(unit, corpus):
    content = b"".join(text_chunks(unit)).removeprefix(b"PK\\x03\\x04")
    yield content.split(b"\\x1e")


READERS["records"] = Reader(magic=b"PK\\x03\\x04RECORDS", documents=documents)
"""

LINES = "".join(f"line {number} of a text\n" for number in range(400))


@pytest.fixture(autouse=True)
def extensions(tmp_path, monkeypatch):
    """Two modules outside the package; what they add to the table is taken away again."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "toy_rot13.py").write_text(ROT13)
    (folder / "toy_records.py").write_text(RECORDS)
    monkeypatch.syspath_prepend(folder)
    before = dict(READERS)
    yield
    READERS.clear()
    READERS.update(before)
    for name in ("toy_rot13", "toy_records"):
        sys.modules.pop(name, None)


def in_other_processes(function, items):
    """Runs tasks in processes that have imported nothing."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from enumerate(pool.map(function, items))


def test_a_format_from_outside_makes_the_corpus_of_the_plain_text_in_any_process(tmp_path):
    (tmp_path / "a.txt").write_text(LINES)
    (tmp_path / "a.rot13").write_text(codecs.encode(LINES, "rot13"))
    plain = corpus_config(train=str(tmp_path / "a.txt"), unit_bytes=1024)
    expected = prepare(plain, str(tmp_path / "plain"), run_tasks=run_here)
    config = load(Config, ["extensions=toy_rot13", f"corpus.train={tmp_path}/a.rot13", "corpus.unit_bytes=1024"])
    found = prepare(config.corpus, str(tmp_path / "data"), run_tasks=in_other_processes, extensions=config.extensions)
    assert [shard.num_tokens for shard in found.splits["train"].shards] == [
        shard.num_tokens for shard in expected.splits["train"].shards
    ]
    assert len(found.splits["train"].shards) > 5
    assert found.vocabulary_fingerprint == expected.vocabulary_fingerprint


@pytest.mark.parametrize("documents", ["files", "lines"])
@pytest.mark.parametrize("eos", ["line", "document"])
@pytest.mark.parametrize("valid_fraction", [0.0, 0.3])
def test_a_plain_format_from_outside_is_shared_out_and_packed_like_text(tmp_path, documents, eos, valid_fraction):
    load(Config, ["extensions=toy_rot13"])
    how = {"documents": documents, "eos": eos, "valid_fraction": valid_fraction}
    coded = codecs.encode(LINES, "rot13").encode()
    (tmp_path / "a.txt").write_text(LINES)
    (tmp_path / "a.rot13").write_bytes(coded)
    (tmp_path / "b.rot13.gz").write_bytes(gzip.compress(coded))
    expected = text_of(tmp_path / "a.txt", **how)
    assert text_of(tmp_path / "a.rot13", unit_bytes=1024, **how) == expected
    packed = text_of(tmp_path / "b.rot13.gz", **how)
    if documents == "lines" or not valid_fraction:  # a packed file is one document by its bytes as they are stored
        assert packed == expected


def test_a_format_of_rows_from_outside_is_known_by_its_first_bytes(tmp_path):
    load(Config, ["extensions=toy_records"])
    path = tmp_path / "a.bin"
    path.write_bytes(b"PK\x03\x04RECORDS of\ntwo lines\x1e\x1elast")
    assert text_of(path)["train"] == b"RECORDS of\ntwo lines\nlast\n"
    assert text_of(path, eos="document")["train"] == b"RECORDS of two lines\nlast\n"


def test_a_format_from_outside_can_take_over_a_suffix(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text('["one", "two"]\n')
    monkeypatch.setitem(READERS, "arrays", Reader(suffixes=(".jsonl",)))
    assert text_of(path)["train"] == path.read_bytes()


def test_a_reader_of_another_version_prepares_anew(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text(LINES)
    corpus = corpus_config(train=str(tmp_path / "a.txt"))
    (source,) = list_sources(corpus)
    (unit,) = cut_units(source, corpus)
    keys = []
    for version in (1, 2, 3):
        monkeypatch.setitem(READERS, "text", Reader(version=version))
        keys.append(key_of(unit, corpus))
    assert len(set(keys)) == 3
    monkeypatch.undo()
    assert key_of(unit, corpus) == keys[0]
