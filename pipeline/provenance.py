"""Which code this is, and on which machine: the commit of the checkout, versions of packages, processor, GPUs.

In: nothing. Out: plain values. Imports nothing of the package's other modules, and neither torch nor Ray.
"""

import importlib.metadata
import logging
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pipeline

log = logging.getLogger(__name__)

GIT_SECONDS = 5.0
PACKAGES = ("torch", "lightning", "ray", "numpy", "pyarrow", "wandb")


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


def environment() -> dict[str, str]:
    """The machine and the packages of this process, by name; what is not known or not installed is left out.

    Values are text for people: `python` 3.11.7, `torch` 2.13.0+cpu, `host`, `system`, `cpu` with its cores, `gpu` with
    each kind's number.
    """
    found = {
        "python": platform.python_version(),
        **{name: version for name in PACKAGES if (version := _version(name))},
        "host": platform.node(),
        "system": platform.platform(),
        "cpu": _processor(),
        "gpu": _gpus(),
    }
    return {name: value for name, value in found.items() if value}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor(place: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, if Linux tells one, and the cores that this process may use."""
    named = re.search(r"^model name\s*: (.+)$", place.read_text(), re.MULTILINE) if place.exists() else None
    num_cores = len(os.sched_getaffinity(0))
    cores = "1 core" if num_cores == 1 else f"{num_cores} cores"
    return f"{named[1] if named else platform.machine()}, {cores}"


def _gpus(place: Path = Path("/proc/driver/nvidia/gpus")) -> str | None:
    """The kinds of the GPUs that NVIDIA's driver shows on this machine, with their numbers."""
    texts = [file.read_text() for file in sorted(place.glob("*/information"))]
    names = [found[1] for text in texts if (found := re.search(r"^Model:\s*(.+)$", text, re.MULTILINE))]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or None


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
