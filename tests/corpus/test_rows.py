"""Rows: one rule for a column, a null and a bad row, whichever format and reader they come by."""

import contextlib
import gzip
import json
import re
import subprocess
import sys
import warnings

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.corpora import corpus_config, text_of

from pipeline.corpus import units
from pipeline.corpus.blocks import read_blocks
from pipeline.corpus.readers import columns, jsonl, reader
from pipeline.corpus.readers.reader import Tally
from pipeline.corpus.sources import cut_units, list_sources
from pipeline.corpus.text import valid_utf8
from pipeline.errors import CorpusError

EN = {"text_column": "translation.en"}


def write(path, rows, *, schema=None):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=2)
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def packaged(path):
    """The same file read by `datasets`."""
    builder = "parquet" if path.suffix == ".parquet" else "json"
    return {"source": "datasets", "dataset": builder}


def tallied(path, **changes):
    """The text of each split and how many rows were passed over for it."""
    corpus = corpus_config(train=str(path), **changes)
    found = {}
    for source in list_sources(corpus):
        for unit in cut_units(source, corpus):
            tally = Tally()
            text, num_rows = found.get(unit.split, (b"", 0))
            text += b"".join(read_blocks(unit, corpus, tally))
            found[unit.split] = (text, num_rows + tally.num_null_rows)
    return found


@pytest.fixture(params=["a.jsonl", "a.jsonl.gz", "a.parquet"])
def path(request, tmp_path):
    return tmp_path / request.param


@pytest.fixture(params=[False, True], ids=["", "datasets"])
def changes(request, path):
    return packaged(path) if request.param else {}


def test_a_path_leads_to_a_nested_column(path, changes):
    write(
        path,
        [{"id": 1, "translation": {"de": "eins", "en": "one"}}, {"id": 2, "translation": {"de": "zwei", "en": "two"}}],
    )
    assert text_of(path, **EN, **changes) == {"train": b"one\ntwo\n"}
    with pytest.raises(CorpusError, match=r"has no column translation\.fr; found .*use corpus\.text_column=NAME"):
        text_of(path, text_column="translation.fr", **changes)
    with pytest.raises(CorpusError, match="needed text"):
        text_of(path, text_column="translation", **changes)


def test_a_column_of_the_very_name_comes_first(path, changes):
    write(
        path,
        [
            {"translation.en": "this", "translation": {"en": "not that"}},
            {"translation.en": "and this", "translation": {"en": "no"}},
        ],
    )
    assert text_of(path, **EN, **changes) == {"train": b"this\nand this\n"}
    write(path, [{"translation.en": "this", "id": 1}])
    assert text_of(path, **EN, **changes) == {"train": b"this\n"}
    write(path, [{"a": {"b.c": "this", "b": {"c": "not that"}}}])
    assert text_of(path, text_column="a.b.c", **changes) == {"train": b"this\n"}
    write(path, [{"a": {"b": {"c": "deep"}}}])
    assert text_of(path, text_column="a.b.c", **changes) == {"train": b"deep\n"}


NULLS = [{"text": "one"}, {"text": None}, {"id": 3}, {"text": ""}, {"text": "two"}, {"text": None}]
NESTED_NULLS = [
    {"translation": {"en": "one"}},
    {"translation": {"en": None}},
    {"translation": None},
    {"translation": {"en": "two"}},
]


@pytest.mark.parametrize("unit_bytes", [1024, 1 << 20])
def test_rows_without_text_are_passed_over_and_counted(path, changes, unit_bytes):
    write(path, NULLS, schema=pa.schema([("text", pa.string()), ("id", pa.int64())]))
    changes = {**changes, "unit_bytes": unit_bytes}
    assert tallied(path, null_rows="skip", **changes) == {"train": (b"one\ntwo\n", 3)}
    with pytest.raises(CorpusError, match=r"(line 2,: text is null|row 1 has no text).*or use corpus\.null_rows=skip"):
        text_of(path, **changes)
    write(path, NESTED_NULLS)
    assert tallied(path, null_rows="skip", **EN, **changes) == {"train": (b"one\ntwo\n", 2)}
    with pytest.raises(CorpusError, match=r"(line 2,: translation\.en is null|row 1 has no text).*skip"):
        text_of(path, **EN, **changes)


def test_rows_without_text_of_a_file_that_is_shared_out_count_once(path):
    write(path, [{"text": f"text {number}" if number % 3 else None} for number in range(90)])
    found = tallied(path, null_rows="skip", valid_fraction=0.3, test_fraction=0.3)
    assert {split: num_rows for split, (_, num_rows) in found.items()} == {"train": 30, "valid": 0, "test": 0}
    assert sum(text.count(b"\n") for text, _ in found.values()) == 60


def test_two_columns_of_one_name(tmp_path):
    path = tmp_path / "a.parquet"
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["c"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["id", "text", "text"]), path)
    with pytest.raises(CorpusError, match=rf"^{path} has several columns of the name text; rename all but one"):
        text_of(path)
    pq.write_table(pa.Table.from_arrays(columns, names=["id", "id", "text"]), path)
    assert text_of(path) == {"train": b"c\n"}
    pq.write_table(pa.Table.from_arrays([pa.array([{"b": "x"}])] * 2, names=["a", "a"]), path)
    with pytest.raises(CorpusError, match=r"has several columns of the name a\.b"):
        text_of(path, text_column="a.b")


def test_a_column_that_is_the_beginning_of_others(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text.x": [1], "text": ["a"], "text.y": ["b"]}), path)
    assert text_of(path) == {"train": b"a\n"}
    assert text_of(path, text_column="text.y") == {"train": b"b\n"}
    pq.write_table(pa.table({"a.b": ["x"], "a": [{"b": "y"}]}), path)
    assert text_of(path, text_column="a.b") == {"train": b"x\n"}


def test_row_groups_without_rows(tmp_path):
    path = tmp_path / "a.parquet"
    empty, one = pa.table({"text": pa.array([], pa.string())}), pa.table({"text": ["a"]})
    with pq.ParquetWriter(path, empty.schema) as writer:
        for table in (empty, one, empty, one, empty):
            writer.write_table(table)
    assert text_of(path) == text_of(path, unit_bytes=1024) == {"train": b"a\na\n"}
    pq.write_table(empty, path)
    assert text_of(path).get("train", b"") == b""


# --- one rule for a line of JSON, whatever stands in its neighbourhood


DEEP = '{"text": "deep", "x": ' + "[" * 5000 + "]" * 5000 + "}"
LONG = '{"text": "long", "x": ' + "1" * 5000 + "}"
ODD_NEIGHBOUR = '{"text": "a", "text": "b"}'  # which Arrow refuses, so that the lines are read one by one


@pytest.mark.parametrize("line", [DEEP, LONG])
def test_what_arrow_reads_and_python_does_not_is_read(tmp_path, line):
    path = tmp_path / "a.jsonl"
    for lines in ([line], [line, ODD_NEIGHBOUR]):
        path.write_text("\n".join(lines))
        assert text_of(path)["train"].startswith(json.loads(f'"{line[10:14]}"').encode())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 5000 + "]" * 5000, "line 2, is no JSON .nested too deep"),
        ('{"text": ' + "1" * 5000 + "}", "line 2, is no JSON .a number of too many digits"),
        ('{"text": ' + "[" * 5000 + "]" * 5000 + "}", "line 2, is no JSON .nested too deep"),
        ('{"text": ["a"]}', "line 2,: text is list, needed text"),
        ('{"text":', "line 2, is no JSON"),
        ('{"text": "a"} {"text": "b"}', "line 2, is no JSON"),
        ('{"text": "a"}, {"text": "b"}', "line 2, is no JSON"),
        ('\ufeff{"text": "a"}', "line 2, is no JSON"),
        ('{"text": "a"}\0', "line 2, is no JSON"),
        ('{"text": "a\0b"}', "line 2, is no JSON"),
        ('{\n"text": "a"}', "line 2, is no JSON"),
        ('{"x": {}\n, "text": "a"}', "line 2, is no JSON"),
        ('{"text": "a"} {"x":\n{}, "text": "b"}', "line 2, is no JSON"),
        ('{"text": "a"} {"x":[{}\n,{}], "text": "b"}', "line 2, is no JSON"),
    ],
)
@pytest.mark.parametrize("neighbour", ["{}", ODD_NEIGHBOUR])
def test_a_bad_line_is_named_whoever_reads_it(tmp_path, line, message, neighbour):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(['{"text": "one"}', line, '{"text": "two"}' if neighbour == "{}" else neighbour]) + "\n")
    with pytest.raises(CorpusError, match=rf"^{path}, {message}"):
        text_of(path)


def test_lines_of_16_mib_are_held_whole(tmp_path):
    path = tmp_path / "a.jsonl"
    text = "word " * (17 << 20 >> 2)
    path.write_text(f'{json.dumps({"text": text})}\n{{"text": "b"}}\n')
    assert text_of(path) == {"train": text.encode() + b"\nb\n"}


def test_carriage_returns_and_blank_lines_between_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\r\n{"text": "a"}\r\n \t\r\n{"text": "b"}\r\n\r\n')
    assert text_of(path) == {"train": b"a\nb\n"}


# --- data sets


def test_what_a_builder_says_is_one_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ncaf\xe9\n")
    with pytest.raises(CorpusError, match=rf"^data set text, {path}, cannot be read \('utf-8' .*\); mend the data"):
        text_of(path, source="datasets", dataset="text")
    path.write_bytes(b"one\n" * 100_000 + b"caf\xe9\n")
    with pytest.raises(CorpusError, match=r"^data set text, .* cannot be read \('utf-8' codec"):
        text_of(path, source="datasets", dataset="text")


def test_what_a_builder_logs_is_not_told_twice(tmp_path, caplog, capfd):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(CorpusError, match=rf"^data set json, {path}, .*cannot be read"):
        text_of(path, source="datasets", dataset="json")
    assert caplog.records == [] and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("error", [RuntimeError("scripts\nare no longer"), KeyError("a"), TypeError()])
def test_whatever_a_builder_raises_is_one_line(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    corpus = corpus_config(source="datasets", dataset="some/data", train="train")
    with pytest.raises(CorpusError, match=r"^data set some/data, train, cannot be opened \([^\n]+\); mend"):
        [cut_units(source, corpus) for source in list_sources(corpus)]


@pytest.mark.parametrize("name", ["a[1].jsonl", "what?.jsonl", "star*.jsonl", "sp ace.jsonl"])
def test_a_packaged_builder_takes_a_name_literally(tmp_path, name):
    write(tmp_path / "a1.jsonl", [{"text": "another"}])
    write(tmp_path / name, [{"text": "one"}])
    assert text_of(tmp_path / name, source="datasets", dataset="json") == {"train": b"one\n"}


def test_a_name_that_a_builder_takes_for_a_chain_is_refused(tmp_path):
    write(tmp_path / "bz2::a.jsonl", [{"text": "one"}])
    with pytest.raises(CorpusError, match=r"/bz2::a\.jsonl is two file systems to datasets.*; rename it"):
        text_of(tmp_path / "bz2::a.jsonl", source="datasets", dataset="json")
    assert text_of(tmp_path / "bz2::a.jsonl") == {"train": b"one\n"}


def test_an_arrow_file_is_read_by_its_builder(tmp_path):
    table = pa.table({"text": ["one", "two"]})
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        assert text_of(tmp_path / "a.arrow", source="datasets", dataset="arrow") == {"train": b"one\ntwo\n"}


# --- large rows, which are taken in pieces


@contextlib.contextmanager
def small_pieces(num_bytes=7):
    """A line of three bytes is large, a string of two is long, and pieces are small."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (reader, columns):
            patch.setattr(module, "LARGE_BYTES", 2)
        for module in (reader, units):
            patch.setattr(module, "CHUNK_BYTES", num_bytes)
        patch.setattr(jsonl, "LONG_BYTES", 2)
        yield


def judged(path, **changes):
    """The text of each split as it is split into words, or how the file is refused, without the column of the fault."""
    try:
        return {split: valid_utf8(text) for split, text in text_of(path, **changes).items()}
    except CorpusError as error:
        return re.sub(r", column \d+\)", ")", str(error))


STRINGS = st.text(max_size=20) | st.text('\\"/\n\t u0dD8😀é\ud83d\ude00', max_size=40)
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | STRINGS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=5,
)
OBJECTS = st.dictionaries(STRINGS, VALUES, max_size=2)
ROWS = st.lists(st.tuples(OBJECTS, STRINGS | VALUES, OBJECTS), min_size=1, max_size=4)


@given(rows=ROWS, ascii_only=st.booleans(), share=st.booleans(), one_end=st.booleans(), num_bytes=st.integers(1, 30))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_large_rows_are_what_small_ones_are(tmp_path, rows, ascii_only, share, one_end, num_bytes):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({**before, "text": text, **after}, ensure_ascii=ascii_only) for before, text, after in rows]
    path.write_bytes(b"\n".join(line.encode("utf-8", "surrogatepass") for line in lines))
    how = {"valid_fraction": 0.5 if share else 0.0, "eos": "document" if one_end else "line", "null_rows": "skip"}
    expected = judged(path, **how)
    with small_pieces(num_bytes):
        assert judged(path, **how) == expected


@pytest.mark.parametrize("num_bytes", [1, 2, 5, 6, 7, 11])
@pytest.mark.parametrize(
    "line",
    [
        rb'{"a": "long \" string", "text": "\\\"\u0416\ud83d\ude00\\u0416\n\ud83d", "b": "\\"}',
        b'{"text": "caf\xe9 \xf0\x9f\x98 \x80\x80\x80 \xc3\xa9\xf0\x9f\x98\x80 \xed\xa0\x80"}',
        rb'{"text": "first", "text": "second \u00e9"}',
        rb'{"text": "first", "text": null}',
        rb'{"a": {"text": "not this"}, "text": "this one"}',
        rb'{"text": "short", "bulk": "much more than that"}',
        rb'  {"text": ""}  ',
        rb'{"text": "abc\x"}',
        rb'{"text": "fine", "a": "abc\x"}',
        rb'{"text": "abc\u12g4 more"}',
        rb'{"text": "abc\ud83d\u12g4 more"}',
        b'{"text": "a\x01 control character"}',
        b'{"a": "a\x01 control character", "text": "fine"}',
        rb'{"text": "never closed}',
        rb'{"text": "never closed\"}',
        rb'{"text": "abc"',
        rb'{"text": "abc"} "more"',
        rb'["an array"]',
        rb'"a string of some length"',
        rb'{"other": "of some length"}',
        rb'{"text": ["of some length"]}',
        rb'{"text": {"text": "of some length"}}',
        b"   \t      \r     ",
        DEEP.encode(),
        LONG.encode(),
    ],
)
def test_a_large_line_is_read_or_refused_as_a_small_one_is(tmp_path, line, num_bytes):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + line + b'\n{"text": "three"}')
    for null_rows in ("refuse", "skip"):
        expected = judged(path, null_rows=null_rows)
        with small_pieces(num_bytes):
            assert judged(path, null_rows=null_rows) == expected


@pytest.mark.parametrize("column", ["a.b", "a.b.c", "a"])
def test_a_nested_column_of_a_large_line(tmp_path, column):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": {"b": "one of some length"}}\n{"a.b": "very name", "a": {"b": "not this"}}\n')
    expected = judged(path, text_column=column)
    with small_pieces():
        assert judged(path, text_column=column) == expected


@pytest.mark.parametrize("of", [pa.string(), pa.large_string(), pa.string_view(), pa.binary()])
@pytest.mark.parametrize("how", [{}, {"eos": "document"}, {"valid_fraction": 0.5}])
@pytest.mark.parametrize("as_data_set", [False, True])
def test_large_values_of_a_table_are_what_small_ones_are(tmp_path, of, how, as_data_set):
    path = tmp_path / "a.parquet"
    texts = [["one\ntwo", "", "x", "three\n"], ["x", "y"], ["four and more é", "five 😀 and more"]]
    data = pa.table({"text": pa.array([text for group in texts for text in group], pa.string()).cast(of)})
    pq.write_table(data, path, row_group_size=4)
    how = how | (packaged(path) if as_data_set else {})
    expected = judged(path, **how)
    with small_pieces():
        assert judged(path, **how) == expected


@pytest.mark.parametrize("num_bytes", [1, 3, 7, 30])
@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("eos", ["line", "document"])
def test_large_lines_of_plain_text_are_shared_out_as_small_ones_are(tmp_path, num_bytes, end, eos):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(["one", "", "a longer line é", "x", "\r", "😀 and the last"] * 5) + end)
    how = {"documents": "lines", "valid_fraction": 0.3, "test_fraction": 0.3, "eos": eos}
    expected = judged(path, **how)
    assert len(expected) == 3
    with small_pieces(num_bytes):
        assert judged(path, **how) == expected


PEAK = r"""
import json, re, sys
from pathlib import Path
from pipeline.config import CorpusConfig
from pipeline.corpus.blocks import read_blocks
from pipeline.corpus.sources import cut_units, list_sources
from pipeline.corpus.text import split_words
corpus = CorpusConfig.model_validate_json(sys.argv[1])
num_words = sum(
    len(split_words(block, words=corpus.words, lowercase=corpus.lowercase))
    for source in list_sources(corpus)
    for unit in cut_units(source, corpus)
    for block in read_blocks(unit, corpus)
)
status = Path("/proc/self/status").read_text()  # getrusage knows the parent's memory too
print(json.dumps([num_words, int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) >> 10]))
"""
SAMPLE = 'Он сказал: "слово", 😀 word\tanother\nnext line \\ of the text. '  # 13 words


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first.jsonl", "last.jsonl", "escaped.jsonl", "a.parquet", "a.txt"])
@pytest.mark.parametrize("valid_fraction", [0.0, 0.3])
def test_a_row_of_100_mb_takes_400_mib(tmp_path, name, valid_fraction):
    """And a task's other memory with it; a dictionary in parquet is not counted, of which Arrow holds a copy more."""
    path = tmp_path / name
    num = 100_000_000 // (len(json.dumps(SAMPLE)) if name == "escaped.jsonl" else len(SAMPLE.encode()))
    text = SAMPLE * num
    if name == "a.txt":
        path.write_text(text.replace("\n", " "))
    elif name == "a.parquet":
        pq.write_table(pa.table({"text": [text]}), path, use_dictionary=False)
    else:
        row = {"text": text, "id": 1} if name == "first.jsonl" else {"id": 1, "more": "x" * 100_000, "text": text}
        path.write_text(json.dumps(row, ensure_ascii=name == "escaped.jsonl") + "\n")
    corpus = corpus_config(train=str(path), documents="lines", valid_fraction=valid_fraction)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, corpus.model_dump_json()], capture_output=True, text=True, check=True
    )
    num_words, peak_mib = json.loads(done.stdout)
    assert num_words == len(SAMPLE.split()) * num + (1 if name == "a.txt" else num + 1)  # and ends of lines
    assert peak_mib <= 400
