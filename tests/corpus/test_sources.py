"""Sources: the same text whatever the cuts, and one clear line for every input that cannot be."""

import bz2
import gzip
import hashlib
import json
import lzma
import os
import pickle
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.corpora import corpus_config, key_of, text_of

from pipeline import storage
from pipeline.corpus.blocks import read_blocks
from pipeline.corpus.sources import cut_units, list_sources, range_digest
from pipeline.corpus.units import Source, position_of, readable
from pipeline.errors import ConfigError, CorpusError


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    text=st.lists(
        st.sampled_from([b"a", b"long-word" * 40, b" ", b"\n", b"\n\n", b"\r\n", b"\xff", b"\t"]), min_size=1
    ),
    unit_bytes=st.integers(1024, 3000),
    block_bytes=st.integers(1, 300),
    repeat=st.integers(1, 12),
)
def test_units_and_blocks_cut_anywhere_are_the_file(tmp_path, text, unit_bytes, block_bytes, repeat):
    text = b"".join(text) * repeat
    path = tmp_path / "a.txt"
    path.write_bytes(text)
    whole = text if text.endswith(b"\n") else text + b"\n"
    assert text_of(path, block_bytes=block_bytes, unit_bytes=unit_bytes) == {"train": whole}
    one_end = text_of(path, block_bytes=block_bytes, unit_bytes=unit_bytes, eos="document")
    assert one_end == {"train": text.replace(b"\n", b" ") + b"\n"}
    lines = text_of(path, block_bytes=block_bytes, unit_bytes=unit_bytes, eos="document", documents="lines")
    assert lines == {"train": whole}


def test_units_are_cut_at_line_ends_and_plain(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 1500 + b"\n" + b"y" * 4000 + b"\n" + b"z" * 10)
    corpus = corpus_config(train=str(path), unit_bytes=1024)
    units = cut_units(list_sources(corpus)[0], corpus)
    assert [(unit.start, unit.stop, unit.last) for unit in units] == [
        (0, 1501, False),
        (1501, 5502, False),
        (5502, 5512, True),
    ]
    assert pickle.loads(pickle.dumps(units)) == units
    assert units[1].name == "a.txt[1501:5502]"
    assert len({range_digest(unit, corpus) for unit in units}) == 3


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def zst(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_compressed_text_in_several_members(tmp_path, suffix):
    pack = PACKERS.get(suffix, zst)
    lines = b"".join(b"line %d\n" % number for number in range(5000))
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(pack(lines[:3000]) + pack(lines[3000:]))
    assert text_of(path, block_bytes=100) == {"train": lines}


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_truncated_or_foreign_compressed_file_is_named(tmp_path, suffix):
    packed = PACKERS.get(suffix, zst)(bytes(range(256)) * 500)
    for content in (packed[: len(packed) // 2], b"this is no compressed file at all, is it?"):
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(content)
        with pytest.raises(CorpusError, match=rf"a\.txt\{suffix} is damaged or cannot be read .*; restore"):
            text_of(path)


def test_an_object_store_is_not_asked_for_the_size_of_each_file(monkeypatch):
    folder = f"memory:///{uuid.uuid4().hex}"
    for name, content in (("a.txt", b"a"), ("sub/b.txt", b"b"), ("empty.txt", b""), (".hidden.txt", b"c")):
        storage.publish_bytes(f"{folder}/{name}", content)
    monkeypatch.delattr(storage, "size_bytes")
    for pattern in (folder, f"{folder}/**/*.txt"):
        found = [each.path for each in list_sources(corpus_config(train=pattern)) if "hidden" not in each.path]
        assert found == [f"{folder}/a.txt", f"{folder}/sub/b.txt"]


def test_memory_that_is_short_is_not_told_as_a_damaged_file():
    """So that Ray tries the task again."""
    with pytest.raises(pa.ArrowMemoryError), readable("a.txt"):
        raise pa.ArrowMemoryError("malloc of size 64 failed")
    with pytest.raises(CorpusError, match=r"a\.txt is damaged"), readable("a.txt"):
        raise pa.ArrowInvalid("not parquet")


def test_peak_memory_of_one_long_line_is_bounded(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"word " * (6 << 20))
    corpus = corpus_config(train=str(path))
    (unit,) = cut_units(list_sources(corpus)[0], corpus)
    sizes = [len(block) for block in read_blocks(unit, corpus, block_bytes=1 << 20)]
    assert max(sizes) <= 2 << 20 and sum(sizes) == (30 << 20) + 1


def test_word_of_more_than_16_mib_is_refused(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"ab " + b"x" * (17 << 20))
    with pytest.raises(CorpusError, match=r"a\.bin: a word of more than 16 MiB.* begins at byte 3 of the text"):
        text_of(path)


ROWS = ["one\ntwo", "", "three\n", "f\u00fcnf \u2028 sechs", "\n", 'quo"te\\']
LINES = b"one\ntwo\nthree\n" + "f\u00fcnf \u2028 sechs\n".encode() + b"\n" + b'quo"te\\\n'
DOCUMENTS = b"one two\nthree \n" + "f\u00fcnf \u2028 sechs\n".encode() + b" \n" + b'quo"te\\\n'


def write_rows(path, texts, **columns):
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"id": list(range(len(texts))), "text": texts, **columns}), path, row_group_size=2)
    else:
        rows = "\n".join(json.dumps({"id": [number], "text": text}) for number, text in enumerate(texts))
        (path.write_bytes if path.suffix == ".jsonl" else lambda b: path.write_bytes(gzip.compress(b)))(rows.encode())


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
@pytest.mark.parametrize("unit_bytes", [1024, 1 << 20])
def test_rows_are_documents(tmp_path, name, unit_bytes):
    path = tmp_path / name
    write_rows(path, ROWS * 50)
    assert text_of(path, unit_bytes=unit_bytes) == {"train": LINES * 50}
    assert text_of(path, unit_bytes=unit_bytes, eos="document", block_bytes=7) == {"train": DOCUMENTS * 50}


def test_parquet_units_are_row_groups(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [f"text {number} " * 100 for number in range(40)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=4, compression="none", use_dictionary=False)
    corpus = corpus_config(train=str(path), unit_bytes=8000)
    units = cut_units(list_sources(corpus)[0], corpus)
    assert len(units) > 3 and units[0].start == 0 and units[-1].stop == 10 and units[-1].last
    assert len({range_digest(unit, corpus) for unit in units}) == len(units)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', r"a\.jsonl, line 3, is no JSON"),
        ("[1]", r"a\.jsonl, line 3, holds a JSON list, needed an object"),
        ('{"txt": "a"}', r"a\.jsonl, line 3, has no column text; found txt; use corpus\.text_column="),
        ('{"text": null}', r"a\.jsonl, line 3,: text is null, needed text"),
        ('{"text": 7}', r"a\.jsonl, line 3,: text is 7, needed text"),
    ],
)
@pytest.mark.parametrize("unit_bytes", [1024, 1 << 20])
def test_bad_line_of_jsonl_is_named(tmp_path, line, message, unit_bytes):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "x" * 1100}) + "\n\n" + line + "\n" + '{"text": "b"}\n')
    with pytest.raises(CorpusError, match=message):
        text_of(path, unit_bytes=unit_bytes)


def test_rows_that_arrow_refuses_and_python_reads(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a", "text": "b"}\n\n{"text": "\\ud800"}\n')
    assert text_of(path) == {"train": b"b\n\xed\xa0\x80\n"}


def test_parquet_without_the_column_with_a_null_or_of_numbers(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["a"], "n": [1]}), path)
    with pytest.raises(CorpusError, match=r"has no column text; found body, n; use corpus\.text_column="):
        text_of(path)
    with pytest.raises(CorpusError, match="column n holds int64, needed text"):
        text_of(path, text_column="n")
    write_rows(path, ["a", "b", "c", None])
    with pytest.raises(CorpusError, match="row 3 has no text in column text"):
        text_of(path)
    path.write_bytes(b"PAR1 no parquet")
    with pytest.raises(CorpusError, match=r"a\.parquet is damaged"):
        text_of(path)


def test_missing_empty_and_ambiguous_inputs(tmp_path):
    def refused(message, **changes):
        with pytest.raises(CorpusError, match=message):
            list_sources(corpus_config(**changes))

    (tmp_path / "folder").mkdir()
    refused(r"corpus\.train=.*/none\.txt is missing, or a glob that matches no file", train=f"{tmp_path}/none.txt")
    refused("matches no file", train=f"{tmp_path}/*.nothing")
    refused("is a folder without files", train=f"{tmp_path}/folder")
    empty = tmp_path / "folder" / "empty.txt"
    empty.touch()
    refused(r"found 0 bytes in .*empty\.txt", train=str(empty))
    refused(r"found 0 bytes in .*empty\.txt", train=f"{tmp_path}/folder")
    full = tmp_path / "folder" / "full.txt"
    full.write_text("a b")
    assert [each.path for each in list_sources(corpus_config(train=f"{tmp_path}/folder"))] == [str(full)]
    refused(r"stands in corpus\.train and in corpus\.valid", train=str(full), valid=f"{tmp_path}/folder")
    refused(r"corpus\.train=null", valid=str(full))
    refused("give one", vocabulary={"size": None, "min_count": 1, "path": "words.txt"})
    (tmp_path / "a.parquet.gz").write_text("x")
    refused("decompress it", train=f"{tmp_path}/a.parquet.gz")


def test_a_file_of_several_names_is_read_once_and_seen_in_two_splits(tmp_path):
    for name in ("m/a.txt", "m/b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "m" / "0.txt").symlink_to("b.txt")  # sorts before what it leads to, and is not preferred
    (tmp_path / "m" / "c.txt").hardlink_to(tmp_path / "m" / "a.txt")
    (tmp_path / "l").symlink_to("m")
    for train in (f"{tmp_path}/m", str(tmp_path), f"{tmp_path}/*/*.txt"):
        assert text_of(train) == {"train": b"m/a.txt\nm/b.txt\n"}
    valid = str(tmp_path / "l" / "0.txt")
    with pytest.raises(CorpusError, match=rf"^{valid} stands in corpus\.train .*valid, as \S*/m/b\.txt; name"):
        list_sources(corpus_config(train=str(tmp_path / "m"), valid=valid))


def test_what_is_no_file_in_a_folder_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "zz").symlink_to("nowhere")
    for train in (str(tmp_path), f"{tmp_path}/*", f"{tmp_path}/zz"):
        with pytest.raises(CorpusError, match="/zz is a link that leads to nothing; mend it or remove it"):
            list_sources(corpus_config(train=train))
    (tmp_path / "zz").unlink()
    os.mkfifo(tmp_path / "zz")
    for train in (str(tmp_path), f"{tmp_path}/*", f"{tmp_path}/zz"):
        with pytest.raises(ConfigError, match="/zz is a pipe, needed a file; leave it out"):
            list_sources(corpus_config(train=train))


@pytest.mark.parametrize("name", ["Foo::Bar.3pm", "what?.txt", "a[1].txt", "line\nend.txt", "caf\udce9.txt"])
def test_odd_names_are_read(tmp_path, name):
    (tmp_path / name).write_text("a b")
    assert text_of(tmp_path) == {"train": b"a b\n"}


def test_folders_are_read_in_the_order_of_paths(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/c.txt", ".hidden"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    assert text_of(tmp_path) == {"train": b"a/c.txt\na/z.txt\nb.txt\n"}


def test_lines_are_dealt_to_splits_by_their_hash(tmp_path):
    lines = [b"line %d" % (number % 700) for number in range(2000)]
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n".join(lines))
    shares = {"valid_fraction": 0.1, "test_fraction": 0.2, "documents": "lines", "unit_bytes": 2048}
    found = text_of(path, **shares)
    expected = {"train": b"", "valid": b"", "test": b""}
    for line in lines:
        position = position_of(line)
        expected["test" if position < 0.2 else "valid" if position < 0.2 + 0.1 else "train"] += line + b"\n"
    assert found == expected
    sets = [set(text.splitlines()) for text in found.values()]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 700
    assert 90 < len(set(found["test"].splitlines())) < 190


def test_rows_and_files_are_dealt_to_splits(tmp_path):
    texts = [f"text {number}\nmore" for number in range(300)]
    write_rows(tmp_path / "a.parquet", texts)
    write_rows(tmp_path / "b.jsonl", texts)
    shares = {"valid_fraction": 0.2, "test_fraction": 0.2}
    assert text_of(tmp_path / "a.parquet", **shares) == text_of(tmp_path / "b.jsonl", **shares)
    folder = tmp_path / "files"
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
        (folder / f"{number}-again.txt").write_text(text)
    found = text_of(folder, **shares)
    pairs = {split: text.split(b"more\n")[:-1] for split, text in found.items()}
    assert sum(map(len, pairs.values())) == 600
    assert all(len(each) == 2 * len(set(each)) for each in pairs.values())
    assert len(pairs["valid"]) > 50


def test_data_set_by_packaged_builder_and_its_errors(tmp_path):
    write_rows(tmp_path / "a.jsonl", ["one two", "three"])
    for name in ("b.parquet", "c.parquet"):
        pq.write_table(pa.table({"text": ROWS[:3]}), tmp_path / name)
    changes = {"source": "datasets", "dataset": "json"}
    assert text_of(tmp_path / "a.jsonl", **changes) == {"train": b"one two\nthree\n"}
    parquet = {"source": "datasets", "dataset": "parquet"}
    assert text_of(f"{tmp_path}/*.parquet", **parquet) == {"train": b"one\ntwo\nthree\n" * 2}
    with pytest.raises(CorpusError, match=r"has no column body; found .*use corpus.text_column="):
        text_of(tmp_path / "a.jsonl", text_column="body", **changes)
    corpus = corpus_config(source="datasets", dataset=str(tmp_path / "nowhere"), train="train")
    with pytest.raises(CorpusError, match=r"data set .*nowhere, train, cannot be opened"):
        cut_units(Source("train", "dataset", "train"), corpus)


def test_data_set_in_a_folder_is_one_unit_a_shard(tmp_path):
    for number in range(3):
        pq.write_table(pa.table({"text": [f"shard {number}"] * 2}), tmp_path / f"train-{number}.parquet")
    pq.write_table(pa.table({"text": ["held out", None]}), tmp_path / "test-0.parquet")
    corpus = corpus_config(source="datasets", dataset=str(tmp_path), train="train", test="test")
    units = [unit for source in list_sources(corpus) for unit in cut_units(source, corpus)]
    assert [unit.split for unit in units] == ["train"] * 3 + ["test"]
    texts = [b"".join(read_blocks(unit, corpus)) for unit in units[:3]]
    assert texts == [b"shard %d\nshard %d\n" % (number, number) for number in range(3)]
    with pytest.raises(CorpusError, match="row 1 has no text"):
        list(read_blocks(units[3], corpus))
    with pytest.raises(CorpusError, match=r"cannot be opened .*nosuch"):
        cut_units(Source("train", "dataset", "nosuch"), corpus)


# --- a byte order mark, and bytes that are no UTF-8

MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize("pack", [None, gzip.compress])
@pytest.mark.parametrize("unit_bytes", [1024, 1 << 20])
@pytest.mark.parametrize("more", [{}, {"documents": "lines", "valid_fraction": 0.3}, {"valid_fraction": 0.3}])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_byte_order_mark_begins_no_word(tmp_path, name, pack, unit_bytes, more):
    """Only where it begins the file, and once."""
    lines = ["one \ufeff", "\ufefftwo", *(f"line {number}" for number in range(300))]
    text = "".join((json.dumps({"text": line}) if name == "a.jsonl" else line) + "\n" for line in lines).encode()
    marked = text if name == "a.txt" else text.replace(rb"\ufeff", "\ufeff".encode())
    path = tmp_path / name
    plain, found = [], []
    for data, kept in ((text, plain), (MARK + marked, found)):
        path.write_bytes(pack(data, mtime=0) if pack else data)
        kept.append(text_of(path, unit_bytes=unit_bytes, **more))
    whole_files_by_their_bytes = pack and name == "a.txt" and more == {"valid_fraction": 0.3}
    assert [*found[0].values()] == [*plain[0].values()] if whole_files_by_their_bytes else found == plain


@pytest.mark.parametrize("more", [{}, {"eos": "document"}, {"documents": "lines", "valid_fraction": 0.5}])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
def test_a_file_of_a_byte_order_mark_alone_is_empty(tmp_path, name, more):
    (tmp_path / name).write_bytes(gzip.compress(MARK) if name.endswith(".gz") else MARK)
    assert set(text_of(tmp_path / name, **more).values()) == {b""}


def test_a_byte_order_mark_that_comes_in_pieces(tmp_path):
    (tmp_path / "a.gz").write_bytes(b"".join(map(gzip.compress, (b"\xef", b"", b"\xbb", b"\xbfone\n"))))
    assert text_of(tmp_path / "a.gz") == {"train": b"one\n"}


def test_a_packed_file_is_dealt_out_by_its_bytes_as_they_lie(tmp_path):
    for number in range(30):
        data = gzip.compress(b"text %d\n" % number)
        (tmp_path / "a.gz").write_bytes(data)
        split = "valid" if int.from_bytes(hashlib.sha256(data).digest()[:6], "big") / 2**48 < 0.5 else "train"
        assert text_of(tmp_path / "a.gz", valid_fraction=0.5) == {split: b"text %d\n" % number}


def test_a_byte_order_mark_changes_the_key_only_where_it_changes_the_words(tmp_path):

    path = tmp_path / "a.txt"
    lines = b"".join(b"line %d\n" % number for number in range(400))
    keys = []
    for data in (lines, MARK + lines[3:]):
        path.write_bytes(data)
        corpus = corpus_config(train=str(path), unit_bytes=1024)
        units = cut_units(list_sources(corpus)[0], corpus)
        keys.append([(unit.name, key_of(unit, corpus)) for unit in units])
    first, *others = zip(*keys, strict=True)
    assert first[0][0] == first[1][0] and first[0][1] != first[1][1]
    assert len(others) > 2 and all(one == other for one, other in others)


INVALID = [b"caf\xe9 %d", b"\xed\xa0\x80 %d", b"%d \xf0\x9f", b"\xc3(%d\xff", "fünf %d".encode()]


def test_a_document_falls_into_one_split_however_it_is_read(tmp_path):
    """By the hash of its text as valid UTF-8: lines, files, rows read by Arrow or one by one, tables, data sets."""
    raw = [pattern % number for pattern in INVALID for number in range(40)]
    texts = [document.decode("utf-8", "replace") for document in raw]
    expected = {"train": set(), "valid": set()}
    for text in texts:
        position = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
        expected["valid" if position < 0.4 else "train"].add(text)
    (tmp_path / "lines.txt").write_bytes(b"\n".join(raw))
    (tmp_path / "files").mkdir()
    for number, document in enumerate(raw):
        (tmp_path / "files" / f"{number:03}").write_bytes(document)
    rows = [b'{"text": "%s"}\n' % document for document in raw]
    (tmp_path / "rows.jsonl").write_bytes(b"".join(rows))
    (tmp_path / "by-line.jsonl").write_bytes(b"".join(rows) + b'{"text": "", "text": ""}\n')
    binary = pa.array(raw, pa.binary())
    pq.write_table(pa.table({"text": binary}), tmp_path / "a.parquet")
    shares = {"valid_fraction": 0.4}
    found = {
        "lines": text_of(tmp_path / "lines.txt", documents="lines", **shares),
        "packed lines": None,
        "files": text_of(tmp_path / "files", **shares),
        "rows": text_of(tmp_path / "rows.jsonl", **shares),
        "rows one by one": text_of(tmp_path / "by-line.jsonl", **shares),
        "parquet": text_of(tmp_path / "a.parquet", **shares),
        "data set": text_of(tmp_path / "a.parquet", source="datasets", dataset="parquet", **shares),
    }
    (tmp_path / "lines.txt.xz").write_bytes(lzma.compress(b"\n".join(raw)))
    found["packed lines"] = text_of(tmp_path / "lines.txt.xz", documents="lines", **shares)
    for name, splits in found.items():
        got = {split: set(text.decode("utf-8", "replace").splitlines()) for split, text in splits.items()}
        assert got == expected, name


def test_a_lone_surrogate_of_json_is_hashed_as_what_it_becomes(tmp_path):
    lone, replaced = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    lone.write_text("".join(f'{{"text": "\\ud800 {number}"}}\n' for number in range(50)))
    replaced.write_text("".join(f'{{"text": "\ufffd\ufffd\ufffd {number}"}}\n' for number in range(50)))
    found = [text_of(path, valid_fraction=0.5) for path in (lone, replaced)]
    assert {split: text.decode("utf-8", "replace").encode() for split, text in found[0].items()} == found[1]


def test_what_replaced_bytes_decide_is_in_the_key(tmp_path):
    """Bytes that become the same text give one digest, others do not; where nothing is hashed, bytes count."""
    path = tmp_path / "a.txt"
    digests = []
    for data in (b"caf\xe9\n", b"caf\xe8\n", "caf\ufffd\n".encode(), b"caff\n"):
        path.write_bytes(data)
        for more in ({}, {"documents": "lines", "valid_fraction": 0.5}):
            corpus = corpus_config(train=str(path), **more)
            digests.append(range_digest(cut_units(list_sources(corpus)[0], corpus)[0], corpus))
    assert len(set(digests[::2])) == 4
    assert digests[1] == digests[3] == digests[5] == digests[4] != digests[7]
