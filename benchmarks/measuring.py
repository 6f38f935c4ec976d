"""What a command costs, with all processes that it starts; and environments in which peers are installed.

In: a command. Out: CPU seconds, wall time, peak memory, and what it printed. Refuses: a command that fails. Linux only.

This process becomes the one to which orphans fall (`PR_SET_CHILD_SUBREAPER`), so that daemons, as those of Ray, stay
among its descendants. A command has ended once all of them have; daemons that do not end by themselves are killed.

CPU seconds are the larger of two counts. The kernel's sum over all that were waited for (`wait4`) is exact, but lacks
processes whose parent waits for none, as Ray's workers. The sum of what /proc last said of every process has these too,
and lacks at most `LOOK_SECONDS` of each.

Memory is the sum over all processes at one moment of their proportional set size (a page that several map counts once
in all), as seen every `LOOK_SECONDS`. Of it, `own` leaves out what is mapped from files, which the system may drop.
"""

import ctypes
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PEERS = Path(__file__).resolve().parent / "peers"
LOOK_SECONDS = 0.05
END_SECONDS = 20.0  # that daemons have to end by themselves
PR_SET_CHILD_SUBREAPER = 36
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """What a command cost.

    Attributes:
        cpu_seconds: of all processes, until the last of them had ended.
        wall_seconds: until the command itself had ended.
        peak_bytes, own_peak_bytes: of all processes together, and without what is mapped from files.
        process_peak_bytes: the largest resident size of one process, as `time -v` shows it.
        num_processes: that were seen; one that lives for less than `LOOK_SECONDS` may be missed.
    """

    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int
    own_peak_bytes: int
    process_peak_bytes: int
    num_processes: int


@dataclass
class _Looks:
    """What /proc said of a command's processes."""

    seconds: dict[tuple[int, int], float] = field(default_factory=dict)  # by process and its start
    peak_bytes: int = 0
    own_peak_bytes: int = 0

    def look(self) -> None:
        size, own = 0, 0
        for pid, began, seconds in descendants():
            self.seconds[pid, began] = seconds
            with suppress(OSError):  # it has ended
                found = _rollup(pid)
                size += found["Pss"]
                own += found["Pss_Anon"] + found["Pss_Shmem"]
        self.peak_bytes = max(self.peak_bytes, size)
        self.own_peak_bytes = max(self.own_peak_bytes, own)


def descendants() -> list[tuple[int, int, float]]:
    """(process, when it began, its CPU seconds so far) of all below this one, whether they run or wait to be reaped."""
    children: dict[int, list[tuple[int, int, float]]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                values = (folder / "stat").read_text().rpartition(")")[2].split()
                seconds = (int(values[11]) + int(values[12])) / TICKS
                children.setdefault(int(values[1]), []).append((int(folder.name), int(values[19]), seconds))
    found = children.get(os.getpid(), [])
    for pid, *_ in found:  # grows meanwhile
        found += children.get(pid, [])
    return found


def _rollup(pid: int) -> dict[str, int]:
    """Bytes of each kind of a process's memory."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: 1024 * int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}


def measure(
    command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None, limit_seconds: float = 900.0
) -> tuple[Cost, str]:
    """Runs a command.

    Args:
        command: what to run, from the root of the checkout.
        environment: what to add to this process's.
        limit_seconds: after which it is killed.

    Returns:
        what it cost and its standard output.

    Raises:
        RuntimeError: it failed; with the last line that it printed about it.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    looks, over = _Looks(), threading.Event()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        begun = time.monotonic()
        child = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
        )

        def keep_looking() -> None:
            while not over.wait(LOOK_SECONDS):
                looks.look()
                if time.monotonic() > begun + limit_seconds:
                    _kill()

        watcher = threading.Thread(target=keep_looking)
        watcher.start()
        try:
            status, wall_seconds, reaped = _reap(child.pid, begun=begun)
        finally:
            over.set()
            watcher.join()
            _kill()
        child.returncode = os.waitstatus_to_exitcode(status)
        for file in (output, errors):
            file.seek(0)
        if child.returncode:
            said = [line for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
            raise RuntimeError(f"exit code {child.returncode}: {said[-1] if said else 'nothing said'}")
        printed = output.read().decode(errors="replace")
    cost = Cost(
        cpu_seconds=max(sum(each.ru_utime + each.ru_stime for each in reaped), sum(looks.seconds.values())),
        wall_seconds=wall_seconds,
        peak_bytes=looks.peak_bytes,
        own_peak_bytes=looks.own_peak_bytes,
        process_peak_bytes=1024 * max(each.ru_maxrss for each in reaped),
        num_processes=len(looks.seconds),
    )
    return cost, printed


def _reap(child: int, *, begun: float) -> tuple[int, float, list]:
    """Waits for a child, and then for all that it left: (exit status of the child, seconds that it took, usages)."""
    usages, status, wall_seconds, deadline = [], 0, 0.0, float("inf")
    while True:
        try:
            pid, ended_by, usage = os.wait4(-1, 0 if deadline == float("inf") else os.WNOHANG)
        except ChildProcessError:
            return status, wall_seconds, usages
        if pid:
            usages.append(usage)
        else:
            time.sleep(LOOK_SECONDS)
        if pid == child:
            status, wall_seconds = ended_by, time.monotonic() - begun
            deadline = time.monotonic() + END_SECONDS
        if time.monotonic() > deadline:
            _kill()


def _kill() -> None:
    for pid, *_ in descendants():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# --- peers


def environment(name: str, folder: Path) -> Path | None:
    """The Python of a peer's own virtual environment, which is made once; None, and a line, if it cannot be installed.

    Args:
        name: of the peer, as its file of requirements in benchmarks/peers/.
        folder: in which `.venv-<name>` lies.
    """
    requirements = (PEERS / f"{name}.txt").read_text()
    place = folder.resolve() / f".venv-{name}"
    python, installed = place / "bin" / "python", place / "installed.txt"
    if installed.exists() and installed.read_text() == requirements:
        return python
    print(f"installing {name} into {place}", flush=True)
    file = str(PEERS / f"{name}.txt")
    try:
        subprocess.run([sys.executable, "-m", "venv", place], check=True, capture_output=True, text=True)
        install = [python, "-m", "pip", "install", "--quiet", "--requirement", file]
        subprocess.run(install, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        said = [line for line in (error.stderr or error.stdout or "").splitlines() if line.startswith("ERROR")]
        print(f"{name} is left out, it cannot be installed: {said[-1] if said else error}", flush=True)
        return None
    installed.write_text(requirements)
    return python


def last_json(printed: str) -> dict:
    """What a peer's script says of its result: its last line."""
    found: dict = json.loads(printed.strip().splitlines()[-1])
    return found


# --- what is shown


def medians(costs: Sequence[Cost]) -> dict[str, float]:
    """The median over rounds of each part of the cost."""
    return {name: statistics.median(asdict(each)[name] for each in costs) for name in asdict(costs[0])}


def show(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table, its first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([f"{row[0]:<{widths[0]}}", *cells]))


def cost_cells(cost: Mapping[str, float]) -> list[str]:
    """CPU s, wall s, peak MB, own MB."""
    sizes = [f"{cost[name] / 1e6:,.0f}" for name in ("peak_bytes", "own_peak_bytes")]
    return [f"{cost['cpu_seconds']:.1f}", f"{cost['wall_seconds']:.1f}", *sizes]


def reached(is_met: bool, aim: float) -> str:
    """An aim, and whether it is met."""
    return f"{aim:g} {'met' if is_met else 'missed'}"


COST_HEADER = ("CPU s", "wall s", "peak MB", "own MB")


def save(kind: str, result: Mapping[str, object]) -> None:
    """Writes benchmarks/results/<kind>-<date>.json."""
    today = date.today().isoformat()
    machine = {"machine": f"{os.cpu_count()} CPU cores", "python": platform.python_version()}
    path = Path(__file__).parent / "results" / f"{kind}-{today}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"date": today, **machine, **result}, indent=2) + "\n")
    print(f"saved: {path.relative_to(ROOT)}")


def each_round(num_rounds: int, runs: Mapping[str, Callable[[int], None]]) -> list[str]:
    """Runs all in turns, a round after the other.

    Args:
        num_rounds: rounds.
        runs: (number of the round) → nothing, by name; one that fails is named and left out from then on.

    Returns:
        the names of those that came to the end.
    """
    left = list(runs)
    for number in range(num_rounds):
        for name in list(left):
            try:
                runs[name](number)
            except RuntimeError as error:
                print(f"{name} is left out, it failed: {error}", flush=True)
                left.remove(name)
    return left


def fresh(folder: Path) -> Path:
    """An empty folder of that name."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
