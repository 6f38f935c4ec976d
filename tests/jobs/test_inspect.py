"""`inspect` as it is typed: what it prints for people and as JSON, its picture, and what it refuses."""

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from rich.cells import cell_len
from support.typed import prepare_typed, typed, write_texts

from jobs.__main__ import main
from jobs.inspect import escaped
from pipeline import storage
from pipeline.corpus.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[2]
ODD = "\x1b[31m \u202eabc\u202c [red]x[/red] " + "long" * 60 + " caf\ufffd 戦場のヴァルキュリア3\n"


@pytest.fixture
def texts(tmp_path):
    texts = write_texts(tmp_path / "texts")
    lines = (texts / "train.txt").read_text().splitlines(keepends=True)
    (texts / "train.txt").write_text(ODD + "".join(lines))
    (texts / "test.txt").write_text("".join(lines[:7]) + ODD + "unheard w1 w2 w3\nw1 w2\n")
    return texts


@pytest.fixture
def data(texts, tmp_path, capsys):
    assert main(prepare_typed(texts, tmp_path / "data")) == 0
    capsys.readouterr()
    return str(tmp_path / "data")


def inspected(capsys, *arguments):
    assert main(["inspect", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def refused(capsys, *arguments):
    assert main(["inspect", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return captured.err, captured.out


# --- what is printed


def test_the_tables_fit_a_terminal_and_obey_no_word(data, capsys):
    out = inspected(capsys, f"data={data}")
    assert all(cell_len(line) <= 80 for line in out.splitlines())
    assert "\x1b" not in out and "\u202e" not in out
    assert "\\x1b[31m" in out and "\\u202eabc\\u202c" in out and "[red]x[/red]" in out
    rows = [re.split(r"\s*[│┃]\s*", line)[1:-1] for line in out.splitlines() if line[:1] in "│┃"]
    assert ["train", "1", "1,087", "121", "0", "0.00%"] in rows
    assert ["test", "1", "78", "10", "1", "1.28%"] in rows
    assert ["test", "8", "8", "100.00%", "8", "62", "91.18%"] in rows
    assert "train: 1 U+FFFD, put in for bytes that are no UTF-8 or there before" in out
    assert "lane 0, stream.bptt=35" in out
    assert "<eos> \\x1b[31m" in " ".join(out.split())
    assert 80 <= out.count("long") * 4 < 1000


def test_json_is_one_object_with_what_the_tables_show(data, capsys):
    out = inspected(capsys, f"data={data}", "--json", "words=3", "windows=1", "bptt=4", "min_words=2")
    assert out.count("\n") == 1
    found = json.loads(out)
    manifest = read_manifest(data)
    assert {*found} == {
        "data", "fingerprint", "tool_version", "splits", "vocabulary", "coverage", "duplicates", "windows"
    }  # fmt: skip
    assert (found["data"], found["fingerprint"]) == (data, manifest.fingerprint)
    assert [*found["splits"]] == ["train", "valid", "test"]
    assert found["splits"]["test"] == {
        "shards": 1,
        "tokens": 78,
        "lines": 10,
        "unk": 1,
        "oov_rate": 1 / 78,
        "replacement_chars": 1,
        "nul_bytes": 0,
        "null_rows": 0,
    }
    assert {*found["vocabulary"]} == {
        "words", "fingerprint", "tokens", "once", "never", "most_frequent", "least_frequent"
    }  # fmt: skip
    assert found["vocabulary"]["tokens"] == manifest.splits["train"].num_tokens
    assert found["vocabulary"]["most_frequent"][0] == {"id": 0, "word": "<eos>", "count": 121}
    assert len(found["vocabulary"]["most_frequent"]) == len(found["vocabulary"]["least_frequent"]) == 3
    assert found["coverage"] == [{"words": manifest.vocab_size, "tokens": 1087, "share": 1.0}]
    of_test = found["duplicates"]["test"]
    examples = of_test.pop("examples")
    assert [*map(len, examples)] == [8, 8, 8]
    assert of_test == {
        "lines": 10,
        "words": 68,
        "compared_lines": 10,
        "duplicate_lines": 8,
        "duplicate_lines_without_unk": 8,
        "line_share": 0.8,
        "duplicate_words": 62,
        "word_share": 62 / 68,
    }
    assert found["windows"] == [
        {"inputs": ["<eos>", "\x1b[31m", "\u202eabc\u202c", "[red]x[/red]"],
         "targets": ["\x1b[31m", "\u202eabc\u202c", "[red]x[/red]", "long" * 60]}
    ]  # fmt: skip


def test_documents_are_called_so_where_they_end_with_eos(texts, tmp_path, capsys):
    assert main(prepare_typed(texts, tmp_path / "data", "corpus.eos=document", "corpus.documents=lines")) == 0
    capsys.readouterr()
    assert "documents" in inspected(capsys, f"data={tmp_path}/data")


def test_what_an_earlier_version_did_not_count_is_said(capsys):
    out = inspected(capsys, f"data={ROOT}/tests/kept/corpus")
    assert "train: what was replaced or passed over was not counted" in out
    found = json.loads(inspected(capsys, f"data={ROOT}/tests/kept/corpus", "--json"))
    assert found["splits"]["train"]["nul_bytes"] is None


def test_escaped_is_what_is_not_printed_as_it_is():
    assert escaped("a\u00e9戦 \u05d0") == "a\u00e9戦 \u05d0"
    assert escaped("\x00\x07\x9b\u200f\u2066\ue000\u00a0") == r"\x00\x07\x9b\u200f\u2066\ue000\xa0"


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_reader_that_has_seen_enough_is_told_nothing(data, flags):
    """As `| head` is."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "jobs", "inspect", f"data={data}", *flags]
    done = subprocess.run(command, cwd=ROOT, stdout=write_end, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, b"")


def test_the_corpus_is_left_as_it_is(data, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    inspected(capsys, f"data={data}")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


# --- the picture


def test_the_picture_is_drawn_as_svg_and_png(data, tmp_path, capsys):
    paths = [f"{tmp_path}/new/ranks.{ending}" for ending in ("svg", "png")]
    out = inspected(capsys, f"data={data}", f"plot={paths[0]}")
    assert out.splitlines()[-2:] == paths
    svg, png = (Path(path).read_bytes() for path in paths)
    assert png.startswith(b"\x89PNG") and len(png) < 400_000
    text = svg.decode()
    assert text.startswith("<svg") and len(text) < 100_000
    for told in ("data: 58 words, 1,087 tokens of train", "count in train", "share of train", "100.0%", ">58<"):
        assert told in text, told
    assert json.loads(inspected(capsys, f"data={data}", f"plot={paths[0]}", "--json"))["data"] == data


def test_marks_whose_labels_would_overlap_are_left_out(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.corpus.inspection.CUTOFFS", (10, 26, 40))
    inspected(capsys, f"data={data}", f"plot={tmp_path}/a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert [f">{rank}<" in text for rank in (26, 40, 58)] == [True, False, True]


def test_without_the_extra_a_plot_is_refused_before_the_corpus_is_read(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "altair", None)
    assert "inspect needs altair" in refused(capsys, "data=nowhere", f"plot={tmp_path}/a.svg")[0]
    error, out = refused(capsys, f"data={data}", f"plot={tmp_path}/a.svg", "--json")
    assert "inspect needs altair, which is not installed; install it by `pip install 'wordlanes[report]'`" in error
    assert out == ""
    assert not [*tmp_path.glob("a.*")]
    inspected(capsys, f"data={data}")


def test_a_corpus_that_counts_nothing_is_not_drawn(texts, tmp_path, capsys):
    (tmp_path / "words.txt").write_text("w1\nw2\n")
    typed_ = prepare_typed(
        texts, tmp_path / "data", "corpus.train=null", f"corpus.vocabulary.path={tmp_path}/words.txt"
    )
    assert main(typed_) == 0
    capsys.readouterr()
    error, out = refused(capsys, f"data={tmp_path}/data", f"plot={tmp_path}/a.svg")
    assert "counts no word, so there is nothing to draw; leave plot out" in error
    assert "valid" in out
    found = json.loads(inspected(capsys, f"data={tmp_path}/data", "--json"))
    assert (found["coverage"], found["duplicates"], found["windows"]) == ([], {}, [])
    assert found["splits"]["valid"]["lines"] is None


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "data=null is not given; use data=FOLDER"),
        (["data=nowhere"], "data=nowhere holds no manifest.json"),
        (["data=nowhere", "plot=a.pdf"], "plot=a.pdf is no name of a picture; use plot=FILE.svg"),
        (["data=nowhere", "words=0"], "words=0"),
        (["data=nowhere", "bptt=0"], "bptt=0"),
        (["data=nosuch://x"], "nosuch://x"),
    ],
)
def test_a_mistake_costs_one_line(arguments, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    error, out = refused(capsys, *arguments)
    assert told in error and out == ""
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda data: (data / "valid/00000.arrow").write_bytes(b"x"), "valid/00000.arrow: found 1 bytes, needed"),
        (lambda data: (data / "train/00000.arrow").unlink(), "train/00000.arrow: found no file, needed"),
        (lambda data: (data / "vocabulary.arrow").write_bytes(b"x"), "vocabulary.arrow is no readable vocabulary"),
        (lambda data: (data / "manifest.json").write_text("{}"), "manifest.json is no manifest"),
    ],
)
def test_what_is_damaged_is_named(harm, told, data, capsys):
    harm(Path(data))
    error, out = refused(capsys, f"data={data}")
    assert told in error and out == ""


def test_a_plot_that_cannot_be_written_costs_one_line(data, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    error, out = refused(capsys, f"data={data}", f"plot={tmp_path}/file/a.svg")
    assert "cannot be written" in error and "vocabulary: 58 words" in out


# --- elsewhere


def test_a_corpus_in_an_object_store_is_inspected_as_a_local_one(s3_bucket, data, capsys):
    place = f"{s3_bucket}/{uuid.uuid4().hex}"
    for path in [*Path(data).rglob("*.arrow"), *Path(data).glob("*.json")]:
        if ".work" not in path.parts:
            storage.publish_bytes(storage.join(place, str(path.relative_to(data))), path.read_bytes())
    found = json.loads(inspected(capsys, f"data={place}", f"plot={place}/a.svg", "--json"))
    assert found == json.loads(inspected(capsys, f"data={data}", "--json")) | {"data": place}
    assert storage.read_bytes(f"{place}/a.png").startswith(b"\x89PNG")


def test_the_command_itself(data):
    done = typed("inspect", f"data={data}", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["data"] == data
    shutil.rmtree(data)
    done = typed("inspect", f"data={data}")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
