"""The folder that a corpus is prepared in: names in it, what it must not be, and the lock on it.

In: the corpus folder, local or in an object store, and what is to be read. Out: paths; the folder, locked by this
process. Refuses, before anything is written: a file; a folder that holds input or that input takes in, since the next
call would read what this one wrote; a folder with files of the user's own at names that a corpus takes; a folder in
which another process prepares.
"""

import fcntl
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.config import CorpusConfig
from pipeline.corpus.manifest import MANIFEST_NAME, VOCABULARY_NAME, read_manifest
from pipeline.corpus.readers.dataset import reads_files
from pipeline.corpus.tokens import is_token_shard
from pipeline.corpus.units import SPLITS, Source
from pipeline.corpus.vocabulary import read_vocabulary
from pipeline.errors import ConfigError, CorpusError

WORK = ".work"  # what a rerun need not redo; hidden, so that it is never taken for text or for a folder of the user's
LOCK_NAME = "lock"
SHARD_NAME = re.compile(r"\d{5,}\.arrow((\.[0-9a-f]{8})?\.tmp)?")  # and what a killed task left of one
MEND = "use another data=FOLDER"


def shard_name(split: str, number: int) -> str:
    """Path of a token shard below the corpus folder."""
    return f"{split}/{number:05d}.arrow"


def receipt_name(shard: str) -> str:
    """Path below the corpus folder of the receipt of a shard."""
    return f"{WORK}/{shard.removesuffix('.arrow')}.json"


def kept_paths(data: str, folder: str, key: str) -> tuple[str, str]:
    """Where the work folder keeps an artifact of a key, and its receipt.

    Args:
        data: the corpus folder.
        folder: of the work folder: what kind of artifact.
        key: of what it is made of.
    """
    stem = storage.join(data, WORK, folder, key)
    return f"{stem}.arrow", f"{stem}.json"


def check_folder(data: str, corpus: CorpusConfig) -> None:
    """Looks whether a corpus can be prepared in a folder and nothing be lost by it.

    Args:
        data: the corpus folder; it need not be there.
        corpus: what is to be read, of which `data` must be apart.

    Raises:
        ConfigError: it cannot; names the folder and what stands against it.
    """
    if storage.exists(data) and not storage.is_folder(data):
        raise ConfigError(f"data={data} is a file, needed a folder; {MEND}")
    output = _place(data)
    for key, path in _named_inputs(corpus):
        _refuse_within(data, key, [path])
        if _takes_in(_place(path), output, is_folder=storage.is_folder(path)):
            raise ConfigError(f"{key}={path} takes in data={data}, which prepare writes to; {MEND}")
    _refuse_own_files(data)


def check_sources(data: str, corpus: CorpusConfig, sources: Sequence[Source]) -> None:
    """Looks whether the files to read lie apart from the corpus folder; some may be reached through links.

    Args:
        data: the corpus folder.
        corpus: says whether the sources are files.
        sources: what it names.

    Raises:
        ConfigError: one of them lies in the corpus folder.
    """
    if reads_files(corpus):
        for split in SPLITS:
            _refuse_within(data, f"corpus.{split}", [each.path for each in sources if each.split == split])


@contextmanager
def reserved(data: str) -> Iterator[None]:
    """Keeps a corpus folder to this process until the context or the process ends, however it ends.

    In an object store nothing is held: a lock there would be an object, which outlives a process that is killed.

    Raises:
        ConfigError: another process prepares there, or the folder cannot be written to.
    """
    busy = f"data={data} is being prepared by another process; wait for it or {MEND}"
    with locked(storage.join(data, WORK, LOCK_NAME), busy=busy):
        yield


@contextmanager
def locked(path: str, *, busy: str) -> Iterator[None]:
    """Keeps a local file locked until the context or the process ends; nothing is done in an object store.

    Args:
        path: the file, which is made if need be.
        busy: what to say where another process holds it.

    Raises:
        ConfigError: another process holds it, or the file cannot be written.
    """
    if not storage.is_local(path):
        yield
        return
    with storage.lock_file(path) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(busy) from error
        except OSError:
            pass  # there are no locks here
        yield


# --- input and output apart


def _named_inputs(corpus: CorpusConfig) -> list[tuple[str, str]]:
    """Key and value of all that names a path to read."""
    named = [("corpus.vocabulary.path", corpus.vocabulary.path)] if corpus.vocabulary.path is not None else []
    if reads_files(corpus):
        return named + [(f"corpus.{split}", each) for split in SPLITS for each in getattr(corpus, split) or ()]
    if corpus.dataset is not None and storage.exists(corpus.dataset):
        return [*named, ("corpus.dataset", corpus.dataset)]
    return named


def _refuse_within(data: str, key: str, paths: Sequence[str]) -> None:
    output = _place(data)
    for path in paths:
        if _place(path)[: len(output)] == output:
            raise ConfigError(f"{key}: {path} lies in data={data}, which prepare writes to; {MEND}")


def _place(path: str) -> tuple[str, ...]:
    """The protocol and the names that lead to a path, so that it does not matter how it is spelt."""
    return PurePosixPath(storage.canonical(path)).parts


def _takes_in(pattern: tuple[str, ...], folder: tuple[str, ...], *, is_folder: bool) -> bool:
    """Whether a folder of input, or a glob, would give files that a preparation writes into a folder."""
    if is_folder:
        return folder[: len(pattern)] == pattern
    written = [MANIFEST_NAME, VOCABULARY_NAME, *(shard_name(split, 0) for split in SPLITS)]
    return any(_matches((*folder, *name.split("/")), pattern) for name in written)


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


# --- whose files


def shard_files(data: str, split: str) -> list[str]:
    """The files of a corpus folder that are named as token shards of a split, half-written ones too."""
    folder = storage.join(data, split)
    depth = len(_place(folder))
    found = [path for path in storage.list_files(folder) if SHARD_NAME.fullmatch(path.rpartition("/")[2])]
    return [path for path in found if len(_place(path)) == depth + 1]


def _refuse_own_files(data: str) -> None:
    """Refuses a folder in which a preparation would replace or remove what none has written."""
    shards = {f"{split}/{PurePosixPath(path).name}": path for split in SPLITS for path in shard_files(data, split)}
    named = _named_shards(data)
    others = [name for name, path in shards.items() if name not in (named or ()) and not _is_ours(name, path, data)]
    if named is None and not storage.is_folder(storage.join(data, WORK)):
        if storage.exists(storage.join(data, MANIFEST_NAME)):
            others.append(MANIFEST_NAME)
        if storage.exists(storage.join(data, VOCABULARY_NAME)) and not _is_vocabulary(data):
            others.append(VOCABULARY_NAME)
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ConfigError(
            f"data={data} holds {others[0]}{more}, which no preparation wrote there; move it away or {MEND}"
        )


def _named_shards(data: str) -> set[str] | None:
    """The names of the shards in a corpus folder's manifest; None if no manifest can be read."""
    try:
        manifest = read_manifest(data)
    except CorpusError:
        return None
    return {shard.name for split in manifest.splits.values() for shard in split.shards}


def _is_ours(name: str, path: str, data: str) -> bool:
    """Whether a shard is half-written, has a receipt, or says of itself what it is."""
    return name.endswith(".tmp") or storage.exists(storage.join(data, receipt_name(name))) or is_token_shard(path)


def _is_vocabulary(data: str) -> bool:
    try:
        read_vocabulary(storage.join(data, VOCABULARY_NAME))
    except CorpusError:
        return False
    return True
