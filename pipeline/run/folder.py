"""The run folder while it is trained in: where it may stand, who holds it, and what becomes of a run that loses it.

In: the places of a configuration. Out: locks, and the place that a run is saved to. Refuses a folder that cannot be
written to, that of a corpus, and one that another process trains in. An object store has neither folders nor locks: it
is asked only whether a corpus stands there.
"""

import errno
import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from pipeline import storage
from pipeline.config import Config, import_extensions, validated
from pipeline.corpus.manifest import MANIFEST_NAME
from pipeline.errors import ConfigError, reason_of
from pipeline.masking import masked_tree
from pipeline.run import checkpoint
from pipeline.run.ledger import EVENTS_NAME
from pipeline.run.records import METRICS_NAME
from pipeline.run.stop import ATTEMPT_NAME
from pipeline.upgrades import upgraded_configuration

log = logging.getLogger(__name__)

CONFIG_NAME = "config.yaml"
LOCK_NAME = ".lock"  # of the command
WRITER_LOCK_NAME = ".writer.lock"  # of the first rank
FILES = (CONFIG_NAME, METRICS_NAME, EVENTS_NAME, ATTEMPT_NAME, LOCK_NAME, WRITER_LOCK_NAME)
MOST_BYTES = 1 << 20  # of a configuration; ours have some 3,000
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # of a file system that knows none


def check_run_folder(run: str, *, data: str) -> None:
    """Refuses a folder that is no place for a run; writes nothing.

    Args:
        run, data: absolute where they are local; a folder within the other is a place like any other.

    Raises:
        ConfigError: it is the folder of a corpus, or it cannot be written to.
    """
    if _place(run) == _place(data):
        raise ConfigError(f"run={run} is the same folder as data={data}; use a run=FOLDER of its own")
    if storage.exists(storage.join(run, MANIFEST_NAME)):
        raise ConfigError(f"run={run} holds a prepared corpus ({MANIFEST_NAME}); use a run=FOLDER of its own")
    if storage.is_local(run):
        _check_writable(Path(run))


def _place(folder: str) -> str:
    return storage.canonical(folder).rstrip("/")


def _check_writable(run: Path) -> None:
    there = next(path for path in (run, *run.parents) if os.path.lexists(path))
    if not storage.is_folder(str(there)):
        raise ConfigError(f"run={run} cannot be written: {there} is no folder; use another run=FOLDER")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(
            f"run={run} cannot be written: no right to write in {there}; mend it or use another run=FOLDER"
        )
    for path in (storage.join(str(run), name) for name in FILES):
        if storage.is_folder(path):
            raise ConfigError(f"{path} is a folder, where a run has a file; remove it or use another run=FOLDER")
        if storage.exists(path) and not os.access(path, os.R_OK | os.W_OK):
            raise ConfigError(f"{path} cannot be read and written; mend its rights or use another run=FOLDER")
    folder = storage.join(str(run), checkpoint.FOLDER)
    right = os.R_OK | os.W_OK | os.X_OK
    if os.path.lexists(folder) and not (storage.is_folder(folder) and os.access(folder, right)):
        raise ConfigError(f"{folder} is no folder that can be written; mend it or use another run=FOLDER")


@contextmanager
def held(run: str, *, name: str, patience_seconds: float, taken: str) -> Iterator[Callable[[], bool]]:
    """Keeps a run folder to this process, in one role.

    Args:
        run: the folder, made if need be.
        name: of the file that is locked.
        patience_seconds: for another process to let go of it.
        taken: what to say if it does not.

    Yields:
        whether the folder is still the one that is held.

    Raises:
        ConfigError: another process holds it, or the folder cannot be written to.
    """
    if not storage.is_local(run):
        yield lambda: True
        return
    path = Path(run, name)
    with storage.lock_file(str(path)) as descriptor:
        _lock(descriptor, path, patience_seconds=patience_seconds, taken=f"run={run} {taken}")
        yield lambda: path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor))


def _lock(descriptor: int, path: Path, *, patience_seconds: float, taken: str) -> None:
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise ConfigError(taken) from error
            time.sleep(0.1)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise ConfigError(f"{path} cannot be locked ({error.strerror}); use another run=FOLDER") from error
            log.warning("%s: no locks there (%s), so nobody else may train in this folder", path, error.strerror)
            return


class PlainLoader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Plain values alone, and no aliases, which we never write: a few lines of them stand for more than any memory."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The next node.

        Raises:
            YAMLError: it is an alias.
        """
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1} holds an alias")
        return super().compose_node(parent, index)


def write_config(config: Config) -> None:
    """Leaves the configuration in the run folder that it names, with its secrets masked."""
    assert config.run is not None
    text = yaml.safe_dump(masked_tree(config.model_dump(mode="json")), sort_keys=False, allow_unicode=True)
    storage.publish_bytes(storage.join(config.run, CONFIG_NAME), text.encode())


def _read_tree(run: str) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """What stands in a run's configuration, and its extensions.

    Raises:
        ConfigError: the folder holds none, or it is no tree.
    """
    path = storage.join(run, CONFIG_NAME)
    if not storage.exists(path):
        raise ConfigError(f"run={run} holds no {CONFIG_NAME}; give the folder that `python -m jobs train` wrote")
    try:
        if (size_bytes := storage.size_bytes(path)) > MOST_BYTES:
            raise ValueError(f"found {size_bytes} bytes, needed {MOST_BYTES} at most")
        tree = upgraded_configuration(yaml.load(storage.read_bytes(path).decode(), PlainLoader))
        extensions = tuple(tree.get("extensions", ()))
    except (ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise _unreadable(path, error) from error
    return tree, extensions


def read_config(run: str) -> Config:
    """The resolved configuration of a run folder; its extensions are imported.

    Raises:
        ConfigError: the folder holds no run, its configuration is not one of this version, or an extension is missing.
    """
    tree, extensions = _read_tree(run)
    import_extensions(extensions)
    try:
        return validated(Config, json.dumps(tree))
    except ConfigError as error:
        raise _unreadable(storage.join(run, CONFIG_NAME), error) from error


def read_hang_seconds(run: str) -> float | None:
    """After how long a step of a run is taken to hang; None: no watch is kept, or its configuration does not tell.

    Imports no extension.
    """
    with suppress(ConfigError):
        guard = _read_tree(run)[0].get("guard")
        seconds = guard.get("hang_seconds") if isinstance(guard, dict) else None
        return float(seconds) if isinstance(seconds, int | float) else None
    return None


def _unreadable(path: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{path} is not the configuration of a run: {reason_of(error)};"
        " restore it, or go on with the run by `python -m jobs train`, which writes it anew"
    )


class RunFolder:
    """Notices that the run folder was removed or replaced while training, and finds the run another place.

    If nothing stands under its name any more, it is made anew; what stands there otherwise is left as it is, and the
    run goes to a folder beside it.

    Args:
        run: the folder, which is there; in an object store nothing is ever noticed.
        spare: the name of a folder beside it; another one is found if that is taken.

    Attributes:
        path: where the run is written to now.
        lost: what became of the folder; None: nothing.
        move: called to have all that is written go on in another folder, which is there.
    """

    def __init__(self, run: str, *, spare: str) -> None:
        self.path = self._run = run
        self.lost: str | None = None
        self.move: Callable[[str], None] = lambda path: None
        self._spare = spare
        self._moved = False
        self._held: int | None = None  # while it is held, no other folder can have its number
        if storage.is_local(run):
            try:
                self._held = os.open(run, os.O_PATH | os.O_DIRECTORY)
            except OSError as error:
                raise ConfigError(
                    f"run={run} is no folder any more ({error.strerror}); run the command again"
                ) from error

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Looks no more."""
        if self._held is not None:
            os.close(self._held)
        self._held = None

    def is_lost(self) -> bool:
        """Whether the folder was removed or replaced; told in a line when it is first noticed."""
        if self.lost is None and self._held is not None:
            self.lost = self._look(self._held)
            if self.lost is not None:
                log.warning("run=%s %s while it was trained in; saving what can be saved", self._run, self.lost)
        return self.lost is not None

    def place(self) -> str:
        """Where to save now.

        Raises:
            ConfigError: the folder is lost, and another one cannot be written to.
        """
        if self.is_lost() and not self._moved:
            if not self._free():
                names = (self._spare if number == 1 else f"{self._spare}-{number}" for number in count(1))
                self.path = next(name for name in names if not os.path.lexists(name))
            storage.make_folder(self.path)
            self.move(self.path)
            self._moved = True
        return self.path

    def verdict(self) -> str | None:
        """One line for the user on a folder that is lost, once what could be saved is; None if it is not."""
        if self.lost is None:
            return None
        step = max(checkpoint.committed_steps(self.path), default=0) if self._moved else 0
        what = f"run={self._run} {self.lost} while it was trained in"
        if not step:
            return f"{what}; nothing is saved since: put it back, or begin anew with another run=FOLDER"
        if self.path == self._run:
            return f"{what}; it is made anew and step {step} is saved there: the same command goes on"
        return f"{what}; step {step} is saved in {self.path}: go on with run={self.path}"

    def _look(self, held: int) -> str | None:
        try:
            there = Path(self._run).stat()
        except (FileNotFoundError, NotADirectoryError):
            return "was removed"
        except OSError:
            return None  # a file system that does not answer has lost nothing yet
        return None if os.path.samestat(there, os.fstat(held)) else "was replaced"

    def _free(self) -> bool:
        """Whether nothing stands under the folder's name but what a checkpoint that was just being written left."""
        if not os.path.lexists(self._run):
            return True
        own = rf"{re.escape(self._run)}/{checkpoint.FOLDER}(/{checkpoint.NAME}.*)?"
        return Path(self._run).is_dir() and all(re.fullmatch(own, str(path)) for path in Path(self._run).rglob("*"))
