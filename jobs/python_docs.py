"""The text of the demo: what Python's own documentation says, out of the files that are installed anyway.

In: the sources of the standard library (with `pydoc_data.topics`) and of the packages in `PACKAGES` that are installed;
they are parsed, never imported. Out: a .jsonl file of documents for each split, and the versions it was made of.
Refuses: an installation without sources.

A document is a docstring or a topic; a line of it is a paragraph, its wrapped lines joined and its markup taken off.
Left out is what is not English prose: doctests and code, tables, headings, and paragraphs of fewer than `MIN_WORDS`
words or with too many that are names and symbols. A paragraph that came before is left out too, over all modules in the
order of their names: so what valid or test holds stands nowhere in train. A module's documents all go to one split,
which the hash of its dotted name decides. Folders and files of tests are passed over.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path, PurePosixPath

from pipeline import storage
from pipeline.corpus.units import SPLITS, position_of
from pipeline.errors import CorpusError

# All of them come with wordlanes' own dependencies.
PACKAGES = (
    "datasets",
    "fsspec",
    "huggingface_hub",
    "lightning",
    "networkx",
    "numpy",
    "pandas",
    "pyarrow",
    "pydantic",
    "ray",
    "rich",
    "sympy",
    "torch",
    "torchmetrics",
    "wandb",
)
MADE_OF_NAME = "made-of.json"
RULES = 1  # to be raised when the rules below change, so that the text is written anew
MIN_WORDS = 5
MIN_PLAIN_SHARE = 0.7
PASSED_OVER = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "_vendor",
    "thirdparty_files",
    "__pycache__",
}

PLAIN_WORD = re.compile(r"[(\"'‘“]*[A-Za-z][a-z'’]*(-[A-Za-z'’]+)*[)\"'’”]*[.,;:!?]*[)\"'’”]*")
ROLE = re.compile(r":[a-zA-Z:+-]+:`~?!?([^`<]*?)\s*(?:<[^`>]*>)?`")
LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`_*")
PARAMETER = re.compile(r"[\w*.,\s]+\s:(\s|$)")
BULLET = re.compile(r"([-*•+]|\d+[.)]|\(?[a-z0-9]\))\s+")
RULER = re.compile(r"[^\w\s]{3,}[^\w]*")
SECTION = re.compile(r"\w+:")

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Package:
    """A top-level package, or the standard library, with the folder that holds its sources."""

    name: str
    version: str
    folder: str

    @property
    def prefix(self) -> str:
        """What the dotted names of its modules begin with."""
        return "" if self.name == "python" else f"{self.name}."


def list_packages() -> list[Package]:
    """The standard library, as `python`, and the packages of `PACKAGES` that are installed.

    Raises:
        CorpusError: the standard library has no sources here.
    """
    library = sysconfig.get_paths()["stdlib"]
    if not Path(library, "pydoc_data", "topics.py").is_file():
        raise CorpusError(
            f"{library} holds no pydoc_data/topics.py, so no sources; use a Python with its library's sources"
        )
    found = [Package("python", platform.python_version(), library)]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            found.append(Package(name, importlib.metadata.version(name), next(iter(spec.submodule_search_locations))))
    return found


def write_splits(packages: Sequence[Package], folder: str, *, held_out_share: float) -> dict[str, str]:
    """Publishes `<split>.jsonl` for train, valid and test, unless they are there and made of the same versions.

    Args:
        packages: what to read.
        folder: gets the files, and `made-of.json`, which comes last.
        held_out_share: share of the modules that valid gets, and that test gets.

    Returns:
        the version of each package.
    """
    versions = {package.name: package.version for package in packages}
    record = json.dumps({"rules": RULES, "held_out_share": held_out_share, "versions": versions}, indent=2).encode()
    targets = {split: storage.join(folder, f"{split}.jsonl") for split in SPLITS}
    made_of = storage.join(folder, MADE_OF_NAME)
    if all(map(storage.exists, [*targets.values(), made_of])) and storage.read_bytes(made_of) == record:
        return versions
    storage.remove(made_of)
    for split, rows in _splits(packages, held_out_share=held_out_share).items():
        storage.publish_bytes(targets[split], b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    storage.publish_bytes(made_of, record)
    return versions


def _splits(packages: Sequence[Package], *, held_out_share: float) -> dict[str, list[dict[str, str]]]:
    """The rows of each split: the documents in the order of modules, each paragraph once."""
    modules = sorted((module for package in packages for module in _sources(package)), key=itemgetter(0))
    rows: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}
    seen: set[bytes] = set()
    for name, path in modules:
        position = position_of(name.encode())
        split = "test" if position < held_out_share else "valid" if position < 2 * held_out_share else "train"
        for paragraphs in _documents(name, path.read_bytes()):
            if fresh := [paragraph for paragraph in paragraphs if _is_new(paragraph, seen=seen)]:
                rows[split].append({"module": name, "text": "\n".join(fresh)})
    return rows


def _is_new(paragraph: str, *, seen: set[bytes]) -> bool:
    """Whether the paragraph did not come before, whatever its case; it is noted."""
    key = hashlib.sha256(paragraph.casefold().encode()).digest()
    known = key in seen
    seen.add(key)
    return not known


def _sources(package: Package) -> Iterator[tuple[str, Path]]:
    """The modules of a package with their files, in the order of paths."""
    root = Path(package.folder)
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        name = path.name
        if PASSED_OVER.intersection(parts) or name.startswith(("test_", "conftest")) or name.endswith("_test.py"):
            continue
        dotted = package.prefix + ".".join(PurePosixPath(*parts).with_suffix("").parts)
        yield dotted.removesuffix(".__init__"), path


def _documents(module: str, source: bytes) -> Iterator[list[str]]:
    """The documents of a module, each as its paragraphs; what this Python cannot parse has none."""
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for text in _topics(tree) if module == "pydoc_data.topics" else _docstrings(tree):
        if paragraphs := [each for each in _paragraphs(inspect.cleandoc(text)) if _is_prose(each)]:
            yield paragraphs


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """The docstrings of a module, its classes and functions, in the order of the source."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node, clean=False)):
            yield text
        waiting.extend(reversed([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]))


def _topics(tree: ast.Module) -> Iterator[str]:
    """The texts of `pydoc_data.topics`, which is one assignment of a dictionary of texts."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            yield from ast.literal_eval(node.value).values()


def _paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a document, each as one line: its wrapped lines joined, its markup taken off.

    A blank line, a bullet, a smaller indentation and the text below a parameter's name each begin a new one. A doctest
    goes on to the next blank line.
    """
    held: list[str] = []
    depth = 0
    in_doctest = False
    for line in [*text.expandtabs().split("\n"), ""]:
        content = line.strip()
        indent = len(line) - len(line.lstrip())
        in_doctest = bool(content) and (in_doctest or content.startswith((">>>", "In [")))
        stops = (
            not content
            or in_doctest
            or content.startswith("..")
            or RULER.fullmatch(content)
            or SECTION.fullmatch(content)
        )
        bullet = BULLET.match(content)
        if held and (stops or bullet or indent < depth or PARAMETER.match(held[-1])):
            yield _plain(" ".join(held))
            held = []
        if not stops:
            held.append(content[bullet.end() :] if bullet else content)
            depth = indent
    assert not held


def _plain(paragraph: str) -> str:
    """The paragraph without markup and with single blanks."""
    paragraph = LINK.sub(r"\1", ROLE.sub(r"\1", paragraph))
    return " ".join(paragraph.replace("`", "").replace("**", "").removesuffix("::").split())


def _is_prose(paragraph: str) -> bool:
    words = paragraph.split()
    plain = sum(PLAIN_WORD.fullmatch(word) is not None for word in words)
    return len(words) >= MIN_WORDS and plain >= MIN_PLAIN_SHARE * len(words)
