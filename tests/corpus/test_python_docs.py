"""The embedded corpus: prose out of sources, each paragraph once, no module in two splits."""

import json
import platform
from pathlib import Path

import pytest

from pipeline.corpus import python_docs
from pipeline.corpus.python_docs import Package, assemble, extract, list_packages

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


def rows_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_paragraphs_without_markup_code_and_headings(package, tmp_path):
    rows = rows_of(extract(package, folder=str(tmp_path / "docs")))
    assert [row["paragraphs"] for row in rows if row["module"] == "made"] == [
        PARAGRAPHS,
        ["Returns: what the inner function gives back."],
    ]
    assert {row["module"] for row in rows} == {"made", *(f"made.m{number}" for number in range(60))}


def test_extraction_is_taken_again_only_if_a_source_changed(package, tmp_path, monkeypatch):
    folder = str(tmp_path / "docs")
    first = extract(package, folder=folder)
    monkeypatch.setattr(python_docs, "_documents", None)  # would raise if it were called
    assert extract(package, folder=folder) == first
    monkeypatch.undo()
    with Path(package.folder, "m1.py").open("a") as file:
        file.write("\n")
    assert extract(package, folder=folder) != first


def test_splits_are_by_module_and_nothing_stands_in_two(package, tmp_path):
    paths = [extract(package, folder=str(tmp_path / "docs"))]
    other = Package("other", "1", package.folder)
    paths.append(extract(other, folder=str(tmp_path / "docs")))
    found = {}
    for name, order in (("a", paths), ("b", paths[::-1])):
        splits = assemble(order, folder=str(tmp_path / name), valid_fraction=0.2, test_fraction=0.2)
        assert splits == ["train", "valid", "test"]
        found[name] = {split: rows_of(tmp_path / name / f"{split}.jsonl") for split in splits}
    assert found["a"] == found["b"]
    modules = [{row["module"] for row in rows} for rows in found["a"].values()]
    texts = [[line for row in rows for line in row["text"].split("\n")] for rows in found["a"].values()]
    assert sum(map(len, modules)) == len(set.union(*modules))
    everything = [line for each in texts for line in each]
    assert len(everything) == len(set(everything)) == 60 + len(PARAGRAPHS) + 1
    assert all(texts)
    assert assemble(paths, folder=str(tmp_path / "c"), valid_fraction=0.0, test_fraction=0.0) == ["train"]


def test_standard_library_comes_with_its_version_and_topics(tmp_path):
    packages = list_packages()
    versions = python_docs.versions(packages)
    assert versions["python"] == platform.python_version() and "numpy" in versions
    source = b'topics = {"if": "The statement is used for conditional execution here.\\n"}'
    assert list(python_docs._documents("pydoc_data.topics", source)) == [
        ["The statement is used for conditional execution here."]
    ]
