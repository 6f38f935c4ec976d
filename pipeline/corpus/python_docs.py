"""The embedded corpus: what Python's own documentation says, out of the files that are installed anyway.

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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline import storage
from pipeline.corpus.receipts import is_whole, read_receipt, write_receipt
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
RULES = 1  # to be raised when the rules below change, so that what was extracted before is not taken again
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


@dataclass(frozen=True)
class Extracted:
    """The documents of a package in a file: its digest."""

    sha256: str


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


def extract(package: Package, *, folder: str) -> str:
    """Publishes the documents of a package, then their receipt, unless they are there and sound.

    Args:
        package: what to read.
        folder: gets one .jsonl file, with a row for each document: module (dotted name), paragraphs. It is named by a
            digest of the sources.

    Returns:
        the file's path.
    """
    modules = list(_sources(package))
    digest = hashlib.sha256(f"{RULES} {package.name} {platform.python_version()}".encode())
    for name, path in modules:
        digest.update(f"\n{name} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    target = storage.join(folder, f"{package.name}-{digest.hexdigest()[:32]}.jsonl")
    kept = read_receipt(receipt_of(target), Extracted)
    if kept is None or not is_whole(target, sha256=kept.sha256):
        with storage.publish(target) as file:
            sink = storage.DigestingFile(file)
            for name, path in modules:
                for paragraphs in _documents(name, path.read_bytes()):
                    sink.write(json.dumps({"module": name, "paragraphs": paragraphs}).encode() + b"\n")
        write_receipt(receipt_of(target), Extracted(sink.sha256()))
    return target


def receipt_of(extracted: str) -> str:
    """The path of the receipt of a file of documents."""
    return f"{extracted}.receipt"


def assemble(paths: Sequence[str], *, folder: str, valid_fraction: float, test_fraction: float) -> list[str]:
    """Publishes `<split>.jsonl` for train, valid and test: the documents in the order of modules, each paragraph once.

    Args:
        paths: what `extract` wrote.
        folder: gets the files; a split that a fraction of 0 leaves out gets none.
        valid_fraction: share of the modules.
        test_fraction: share of the modules.

    Returns:
        the names of the splits that were written.
    """
    rows = sorted((json.loads(line) for path in paths for line in storage.read_bytes(path).splitlines()), key=_module)
    texts: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    seen: set[bytes] = set()
    for row in rows:
        position = position_of(row["module"].encode())
        split = (
            "test" if position < test_fraction else "valid" if position < test_fraction + valid_fraction else "train"
        )
        fresh = [paragraph for paragraph in row["paragraphs"] if _is_new(paragraph, seen=seen)]
        if fresh:
            texts[split].append(json.dumps({"module": row["module"], "text": "\n".join(fresh)}).encode() + b"\n")
    asked = {"train": True, "valid": valid_fraction > 0, "test": test_fraction > 0}
    written = [split for split in SPLITS if asked[split]]
    for split in written:
        storage.publish_bytes(storage.join(folder, f"{split}.jsonl"), b"".join(texts[split]))
    return written


def _module(row: dict[str, str]) -> str:
    return row["module"]


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


def versions(packages: Iterable[Package]) -> dict[str, str]:
    """What the text comes from: package → version."""
    return {package.name: package.version for package in packages}
