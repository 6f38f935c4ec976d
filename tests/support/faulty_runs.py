"""Training commands in processes of their own, as a user starts them, to which the tests then do harm.

In: settings of a tiny run, a command, a drawn step. Out: what stands in the run folder and what was told. What is drawn
depends on `WORDLANES_FAULT_SEED` (default 1) and on the test's name, and is printed: `WORDLANES_FAULT_SEED=7 pytest
tests/training/test_faults.py -s`.

The model has dropout, momentum, a plateau schedule and carried state; an epoch has 59 windows, the last one partial,
and a run has two and a half epochs. So a resume that loses any of these ends elsewhere.
"""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch

from jobs.__main__ import main
from pipeline.corpus.lanes import LanePlan
from pipeline.corpus.manifest import read_manifest
from pipeline.run.checkpoint import checkpoint_path, committed_steps, load_checkpoint
from pipeline.run.ledger import read_events
from support.forks import Fork, minding
from support.processes import children, command_line, descendants, gone, stat
from support.runs import records
from support.same import assert_same
from support.typed import over

ROOT = Path(__file__).resolve().parents[2]
SEED = os.environ.get("WORDLANES_FAULT_SEED", "1")
PATIENCE_SECONDS = 180.0  # for whatever must come; a busy machine is no finding
TOTAL = 150
WINDOWS = 59  # of an epoch
SAVE_EVERY = 6
NUM_LANES, BPTT = 4, 14
SETTINGS = [
    f"max_steps={TOTAL}",
    f"stream.num_lanes={NUM_LANES}",
    f"stream.bptt={BPTT}",
    "stream.state=carry",
    "model.embedding_size=8",
    "model.hidden_size=24",
    "model.num_layers=2",
    "model.projection_size=6",
    "model.dropout=0.3",
    "model.softmax.cutoffs=[10,30]",
    "model.softmax.div_value=2",
    "optim=sgd",
    "optim.lr=0.5",
    "optim.momentum=0.9",
    "optim.schedule.kind=plateau",
    "optim.schedule.divide_by=2",
    "checkpoint.validate_every_steps=13",
    f"checkpoint.every_steps={SAVE_EVERY}",
    "logging.every_steps=1",
    "logging.progress=false",
    "tracking.kind=none",
    "accelerator=cpu",
    "cluster=none",
    "cluster.cpus_per_worker=1",
]
JOBS = ("-m", "jobs")

Value = TypeVar("Value")


class Draw:
    """What a test leaves to chance; it prints each choice."""

    def __init__(self, name: str) -> None:
        self._random = random.Random(f"{SEED} {name}")
        print(f"WORDLANES_FAULT_SEED={SEED}")

    def steps(self, *bounds: tuple[int, int]) -> list[int]:
        """A step of each range [first, last]."""
        drawn = [self._random.randint(first, last) for first, last in bounds]
        print(f"drawn steps: {drawn}")
        return drawn

    def step(self, first: int, last: int) -> int:
        """A step of [first, last]."""
        return self.steps((first, last))[0]

    def one(self, values: Sequence[Value]) -> Value:
        """One of the values."""
        drawn = self._random.choice(values)
        print(f"drawn: {drawn}")
        return drawn

    def order(self, values: Sequence[Value]) -> list[Value]:
        """All values, in any order."""
        drawn = self._random.sample(list(values), len(values))
        print(f"drawn order: {drawn}")
        return drawn


class Command:
    """A command in a session of its own, as a terminal starts it; what it tells goes to a file.

    Args:
        arguments: of Python.
        run: the run folder.
        log: that file.
        environment: besides that of the tests.
        afresh: by a new Python, not by a fork of one that has made its imports.
        ignored: signals that it is to ignore.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        run: str,
        log: Path,
        environment: Mapping[str, str],
        afresh: bool,
        ignored: Collection[int],
    ) -> None:
        self.run = run
        self._log = log
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        with log.open("wb") as file:
            self.process = (
                subprocess.Popen(
                    [sys.executable, *arguments],
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    cwd=ROOT,
                    env=environment,
                    start_new_session=True,
                    preexec_fn=partial(minding, ignored),  # noqa: PLW1509 it takes no lock
                )
                if afresh
                else Fork(arguments, log=log, folder=ROOT, environment=environment, ignored=ignored)
            )

    @property
    def told(self) -> str:
        """All that it has told so far."""
        return self._log.read_text(errors="replace")

    def await_that(self, what: str, holds: Callable[[], Any]) -> None:
        """Waits until something holds while the command goes on."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            assert self.process.poll() is None, f"ended with {self.process.returncode} before {what}:\n{self.told}"
            assert time.monotonic() < deadline, f"not in {PATIENCE_SECONDS:g} s: {what}:\n{self.told}"
            time.sleep(0.002)

    def reach(self, step: int) -> int:
        """Waits until a step is recorded; returns the newest that is."""
        self.await_that(f"step {step}", lambda: recorded(self.run) >= step)
        return recorded(self.run)

    def end(self, code: int | tuple[int, ...] = 0) -> str:
        """Waits for the end, by a code of these; returns what was told."""
        found = self.process.wait(PATIENCE_SECONDS)
        assert found in (code if isinstance(code, tuple) else (code,)), f"ended with {found}:\n{self.told}"
        return self.told

    def workers(self) -> list[int]:
        """The process ids of its workers, by rank: they are started in that order."""
        return [pid for nursery in self.nurseries() for pid in children(nursery)]

    def nurseries(self) -> list[int]:
        """The process of which its workers are forks; none where it has no workers."""
        return [pid for pid in children(self.process.pid) if "forkserver" in command_line(pid)]

    def survivors(self) -> list[int]:
        """The processes of its session that are there, but for itself."""
        return [pid for pid in session(self.process.pid) if pid != self.process.pid]

    def kill_all(self) -> None:
        """As if the machine had lost its power."""
        for pid in {self.process.pid, *descendants(self.process.pid), *self.survivors()}:
            kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE_SECONDS)


def kill(pid: int, number: int) -> None:
    """Sends a signal to a process that may have ended meanwhile."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        print(f"process {pid} had ended before signal {number}")


def session(leader: int) -> list[int]:
    """The processes of a session that are there, whoever their parents are by now."""
    pids = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]
    return [pid for pid in pids if not gone(pid) and stat(pid)[3:4] == [str(leader)]]


def stands_still(pid: int) -> bool:
    """Whether a process was stopped by a signal."""
    return stat(pid)[:1] == ["T"]


def recorded(run: str) -> int:
    """The newest whole record's step; 0 if there is none."""
    try:
        with Path(run, "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2000))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    try:
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except ValueError:
        return 0  # all of it was replaced between two looks


def saved(run: str) -> int:
    """The step of the newest checkpoint; 0 if there is none."""
    return max(committed_steps(run), default=0)


def status(run: str) -> dict[str, Any]:
    """What `python -m jobs status --json` tells of a run."""
    with redirect_stdout(io.StringIO()) as told:
        assert main(["status", f"run={run}", "--json"]) == 0
    return json.loads(told.getvalue())


SCRIPT = '''
"""`python -m jobs`, with a fault; each worker imports it too."""
import os, runpy, signal, time
from pathlib import Path
from pipeline.training import dashboards, worker
from pipeline.training.module import LanguageModelModule

def once(name="it"):
    try:
        Path({folder!r}, f"once-{{name}}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

def training_step(module, batch, batch_idx, sound=LanguageModelModule.training_step):
    step, rank = module.global_step + 1, module.ranks.rank
    {harm}
    plain = module.model.nats

    def nats(*given, **named):
        made = plain(*given, **named)
        return made * ({factor})

    module.model.nats = nats
    try:
        return sound(module, batch, batch_idx)
    finally:
        del module.model.nats

LanguageModelModule.training_step = training_step
{more}
if __name__ == "__main__":
    runpy.run_module("jobs", run_name="__main__")
'''


@dataclass(frozen=True)
class World:
    """A corpus, and the commands that train on it.

    Attributes:
        folder: of this test.
        data: the corpus, the same in each test.
        undisturbed: folders of runs that nothing happened to, by what they were told; all tests share them.
        shared_folder: where these are.
        commands: those started in this test.
    """

    folder: Path
    data: str
    undisturbed: dict[tuple[str, ...], str]
    shared_folder: Path
    commands: list[Command] = field(default_factory=list)

    @property
    def plan(self) -> LanePlan:
        """How the corpus is read."""
        num_targets = read_manifest(self.data).splits["train"].num_tokens
        return LanePlan(num_targets=num_targets, num_lanes=NUM_LANES, bptt=BPTT)

    def run(self, name: str = "run") -> str:
        """A run folder of this test."""
        return str(self.folder / name)

    def train(
        self,
        *overrides: str,
        run: str | None = None,
        workers: int | None = None,
        program: Sequence[str] = JOBS,
        environment: Mapping[str, str] | None = None,
        afresh: bool = False,
        ignored: Collection[int] = (),
    ) -> Command:
        """Begins `python -m jobs train`, or goes on with it.

        Args:
            overrides: of SETTINGS.
            run: the run folder.
            workers: cluster.num_workers.
            program: what Python is to run.
            environment: besides that of the tests.
            afresh: by a new Python, not by a fork of one that has made its imports.
            ignored: signals that it is to ignore.
        """
        run = run or self.run()
        more = [] if workers is None else [f"cluster.num_workers={workers}"]
        command = Command(
            [*program, *over(self.verb(run), *more, *overrides)],
            run=run,
            log=self.folder / f"command-{len(self.commands)}.log",
            environment=environment or {},
            afresh=afresh,
            ignored=ignored,
        )
        self.commands.append(command)
        return command

    def verb(self, run: str) -> list[str]:
        """What makes a program train."""
        return ["train", f"data={self.data}", f"run={run}", *SETTINGS]

    def script(self, harm: str = "pass", *, factor: str = "1.0", more: str = "") -> list[str]:
        """A program that does as `-m jobs` does, but for a fault.

        Args:
            harm: a statement, executed before each step is computed, of `step` and `rank`.
            factor: an expression of these, by which the losses of a step are multiplied.
            more: statements, executed in each process.
        """
        path = self.folder / f"script-{len(self.commands)}.py"
        path.write_text(SCRIPT.format(folder=str(self.folder), harm=harm, factor=factor, more=more))
        return [str(path)]

    def unhurried(self) -> list[str]:
        """A program whose steps take long: a request to stop may be met a second later, and is met in time."""
        return self.script("time.sleep(0.05)")

    def lost_tokens(self) -> int:
        """Tokens of the steps that the run folder tells of and that no checkpoint holds; while nobody trains there."""
        return self.plan.tokens_seen(recorded(self.run())) - self.plan.tokens_seen(saved(self.run()))

    def reference(self, *overrides: str, workers: int = 1) -> str:
        """The folder of a run that nothing happens to."""
        key = (f"workers={workers}", *overrides)
        if key not in self.undisturbed:
            run = str(self.shared_folder / str(len(self.undisturbed)))
            self.train(*overrides, run=run, workers=workers).end()
            self.undisturbed[key] = run
        return self.undisturbed[key]

    def end(self) -> None:
        """Ends what a test has left running."""
        for command in self.commands:
            command.kill_all()


def made_again(run: str, plan: LanePlan) -> int:
    """Tokens of the steps that had been made when a group began anew before them, up to where it was stopped."""
    events, made = read_events(run), 0
    groups = [place for place, event in enumerate(events) if event["event"] == "group"]
    for place, following in pairwise([*groups, len(events)]):
        first = events[place]["step"]
        stops = [event["step"] for event in events[place:following] if event["event"] == "stop"]
        last = max(first, min([events[place]["reached_step"], *stops]))
        made += plan.tokens_seen(last) - plan.tokens_seen(first)
    return made


def assert_same_run(run: str, other: str, *, step: int = TOTAL) -> None:
    """Both ended alike: the same bits in the last checkpoint, the same records but for the clock's."""
    left, right = (load_checkpoint(checkpoint_path(each, step)) for each in (run, other))
    for part in ("state_dict", "optimizer_states", "wordlanes"):
        assert_same(left[part], right[part])
    assert records(run) == records(other)


def assert_close_run(run: str, other: str) -> None:
    """Both ended alike, as far as sums over other numbers of ranks can: they are rounded otherwise."""
    left, right = (load_checkpoint(checkpoint_path(each, TOTAL)) for each in (run, other))
    for checkpoint in (left, right):
        del checkpoint["wordlanes"]["identity"], checkpoint["wordlanes"]["state_names"]
    for part in ("state_dict", "optimizer_states", "wordlanes"):
        torch.testing.assert_close(left[part], right[part], rtol=2e-5, atol=2e-6)
    assert [record["step"] for record in records(run)] == [*range(1, TOTAL + 1)]
    for one, two in zip(records(run), records(other), strict=True):
        torch.testing.assert_close(one, two, rtol=2e-5, atol=2e-6)


def assert_sound(run: str, plan: LanePlan, *, faults: Sequence[tuple[str, int | None]]) -> dict[str, Any]:
    """The ledger says that the run is finished, tells of these (kind, rank), and of all that was made again."""
    found = status(run)
    assert (found["state"], found["step"], found["total_steps"]) == ("finished", TOTAL, TOTAL)
    assert [(failure["kind"], failure["rank"]) for failure in found["failures"]] == list(faults), found["failures"]
    assert found["tokens_replayed"] == made_again(run, plan)
    return found


def await_end(pids: Sequence[int]) -> None:
    """Waits until the processes are gone."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.05)


SIGNALS = [
    (number, target)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    for target in ("the command", "the whole group")
]


def send(command: Command, number: int, target: str) -> None:
    """As `kill` does it, or as a terminal does it."""
    if target == "the command":
        os.kill(command.process.pid, number)
    else:
        os.killpg(command.process.pid, number)


def assert_last_line(told: str, beginning: str) -> None:
    """How a command says in one line how it ended."""
    lines = told.splitlines()
    assert "Traceback" not in told, told
    assert lines[-1].startswith(beginning), told
    assert sum(line.startswith(("stopped:", "error:", "interrupted;")) for line in lines) == 1, told
