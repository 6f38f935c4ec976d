"""Rows: one rule for a column, a null and a bad row, whichever format and reader they come by."""

import gzip
import json
import warnings

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.corpora import corpus_config, text_of

from pipeline.corpus.blocks import read_blocks
from pipeline.corpus.readers.reader import Tally
from pipeline.corpus.sources import cut_units, list_sources
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
