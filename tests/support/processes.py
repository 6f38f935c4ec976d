"""The processes that tests look for in /proc: any of them may end between two looks."""

import struct
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

LISTENS = "0A"  # in /proc/net/tcp


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


def listeners(pids: Iterable[int]) -> set[tuple[str, int]]:
    """(address, port) of each socket of TCP on which one of some processes listens."""
    sockets = {each for pid in pids for each in _sockets(pid)}
    return {place for number, place in _listening().items() if number in sockets}


def _sockets(pid: int) -> list[str]:
    """The numbers of a process's sockets."""
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                found.append(str(each.readlink()))
    return [each.removeprefix("socket:[").rstrip("]") for each in found if each.startswith("socket:[")]


def _listening() -> dict[str, tuple[str, int]]:
    """Address and port of what listens on this machine, by the socket's number."""
    found = {}
    for family in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{family}").read_text().splitlines()[1:]:
            _, place, _, state, *_, number = line.split()[:10]
            if state == LISTENS:
                address, _, port = place.partition(":")
                words = [int(address[start : start + 8], 16) for start in range(0, len(address), 8)]
                kind = IPv4Address if family == "tcp" else IPv6Address
                found[number] = str(kind(struct.pack(f"={len(words)}I", *words))), int(port, 16)
    return found
