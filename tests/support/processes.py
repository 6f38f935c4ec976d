"""The processes that tests look for in /proc: any of them may end between two looks."""

from contextlib import suppress
from pathlib import Path


def children(pid: int) -> list[int]:
    """The processes that a process started, from any of its threads, and that are there, the oldest first."""
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # a thread ends sooner than its process
                found += [int(each) for each in (task / "children").read_text().split()]
    return sorted(found)


def descendants(pid: int) -> list[int]:
    """The children of a process and theirs."""
    return [each for child in children(pid) for each in (child, *descendants(child))]


def command_line(pid: int) -> str:
    """What a process was started as; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def gone(pid: int) -> bool:
    """Whether a process has ended, though nobody may have asked how."""
    return "".join(stat(pid)[:1]) in ("", "Z", "X")


def stat(pid: int) -> list[str]:
    """State, parent, group, session and so on; empty if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
