"""Which code this is: the package's version, and the commit of the checkout that it lies in.

In: nothing. Out: plain values. Imports nothing of the package's other modules.
"""

import logging
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pipeline

log = logging.getLogger(__name__)

GIT_SECONDS = 5.0


@dataclass(frozen=True)
class CodeVersion:
    """The code that runs.

    Attributes:
        version: of the package.
        commit: HEAD's hash of the checkout that the package lies in; None: it lies in none, or git does not tell.
        dirty: whether tracked files differ from the commit; None: not known.
    """

    version: str
    commit: str | None
    dirty: bool | None


def code_version() -> CodeVersion:
    """The code that runs; asks git, for `GIT_SECONDS` at most each time."""
    return _of_folder(Path(pipeline.__file__).resolve().parent)


def _of_folder(package: Path) -> CodeVersion:
    """The package may be installed below a checkout of something else, so git must track its `__init__.py`."""
    commit = dirty = None
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is not None:
        commit = _git(package, "rev-parse", "--verify", "HEAD")
        changes = _git(package, "status", "--porcelain", "--untracked-files=no")
        dirty = None if changes is None else bool(changes)
    return CodeVersion(pipeline.__version__, commit, dirty if commit is not None else None)


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None: there is no git, it failed, or it was too slow."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=GIT_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("git does not tell of %s: %s", folder, error)
        return None
    return done.stdout.strip()
