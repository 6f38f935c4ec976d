"""The text of the demo: prose out of sources, each paragraph once, no module in two splits."""

import json
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import python_docs
from jobs.demo import TEXT
from jobs.python_docs import Package, list_packages, write_splits
from pipeline.config import Config, load
from pipeline.corpus.units import SPLITS

MODULE = '''"""The first line of the module says what
it is about, and it goes on here.

Parameters
----------
axis : int
    The axis along which the values
    are summed.

>>> 1 + 1
2

- A bullet that holds a `Link <https://example.org>`_ in it.
- Another bullet that speaks of :class:`~a.b.Name` and **more**.

x = f(y) + g(z) * h[0] - 1

A shared paragraph that stands in every module here.
"""
import nothing_that_exists

def f():
    """Short one."""
    def g():
        """Returns: what the inner function gives back."""
'''

PARAGRAPHS = [
    "The first line of the module says what it is about, and it goes on here.",
    "The axis along which the values are summed.",
    "A bullet that holds a Link in it.",
    "Another bullet that speaks of a.b.Name and more.",
    "A shared paragraph that stands in every module here.",
]


@pytest.fixture
def package(tmp_path):
    root = tmp_path / "made"
    (root / "tests").mkdir(parents=True)
    (root / "__init__.py").write_text(MODULE)
    (root / "broken.py").write_text('"""Never parsed since it is broken."""\n(')
    (root / "tests" / "test_x.py").write_text('"""Never read since it is a test of something."""')
    (root / "test_y.py").write_text('"""Never read since it is a test of something."""')
    for number in range(60):
        text = f"Module number {number} says that it is unlike the others.\n\n"
        text += "A shared paragraph that stands in every module here.\n"
        (root / f"m{number}.py").write_text(f'"""{text}"""')
    return Package("made", "1.0", str(root))


def rows_of(folder):
    return {
        split: [json.loads(line) for line in (Path(folder) / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "valid", "test")
    }


def test_paragraphs_without_markup_code_and_headings(package, tmp_path):
    write_splits([package], str(tmp_path), held_out_share=0)
    rows = rows_of(tmp_path)
    assert [row["text"].split("\n") for row in rows["train"] if row["module"] == "made"] == [
        PARAGRAPHS,
        ["Returns: what the inner function gives back."],
    ]
    assert {row["module"] for row in rows["train"]} == {"made", *(f"made.m{number}" for number in range(60))}
    assert rows["valid"] == rows["test"] == []


def test_text_is_written_anew_only_if_a_version_changed_or_a_file_is_missing(package, tmp_path, monkeypatch):
    folder = tmp_path / "text"
    written = []
    publish = python_docs.storage.publish_bytes
    monkeypatch.setattr(
        python_docs.storage, "publish_bytes", lambda path, data: (written.append(Path(path).name), publish(path, data))
    )
    whole = ["train.jsonl", "valid.jsonl", "test.jsonl", "made-of.json"]
    assert write_splits([package], str(folder), held_out_share=0.2) == {"made": "1.0"}
    assert written == whole
    write_splits([package], str(folder), held_out_share=0.2)
    assert written == whole
    write_splits([replace(package, version="1.1")], str(folder), held_out_share=0.2)
    assert written == 2 * whole
    (folder / "valid.jsonl").unlink()
    write_splits([replace(package, version="1.1")], str(folder), held_out_share=0.2)
    assert written == 3 * whole


def test_splits_are_by_module_and_nothing_stands_in_two(package, tmp_path):
    packages = [package, Package("other", "1", package.folder)]
    for name, order in (("a", packages), ("b", packages[::-1])):
        write_splits(order, str(tmp_path / name), held_out_share=0.2)
    found = rows_of(tmp_path / "a")
    assert found == rows_of(tmp_path / "b")
    modules = [{row["module"] for row in rows} for rows in found.values()]
    texts = [[line for row in rows for line in row["text"].split("\n")] for rows in found.values()]
    assert sum(map(len, modules)) == len(set.union(*modules))
    everything = [line for each in texts for line in each]
    assert len(everything) == len(set(everything)) == 60 + len(PARAGRAPHS) + 1
    assert all(texts)


def test_the_demo_reads_what_is_written():
    corpus = load(Config, ["experiment=demo"]).corpus
    assert [corpus.train, corpus.valid, corpus.test] == [(f"{TEXT}/{split}.jsonl",) for split in SPLITS]


def test_standard_library_comes_with_its_version_and_topics():
    versions = {package.name: package.version for package in list_packages()}
    assert versions["python"] == platform.python_version() and "numpy" in versions
    source = b'topics = {"if": "The statement is used for conditional execution here.\\n"}'
    assert list(python_docs._documents("pydoc_data.topics", source)) == [
        ["The statement is used for conditional execution here."]
    ]
