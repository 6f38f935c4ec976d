"""A group of workers that train together: what one is told, how one is lost, and what all ways to start them share."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from pipeline.cluster.outcome import one_line
from pipeline.config import ClusterConfig
from pipeline.errors import ClusterError

SAME_WISH_SECONDS = 1.0  # a terminal and a supervisor may both pass on one Ctrl-C


@dataclass(frozen=True, kw_only=True)
class Worker:
    """The place of one training worker: what Lightning's Trainer needs to know of it, and what it may ask its cluster.

    Attributes:
        devices, num_nodes: as the Trainer takes them.
        distributed: whether there are others.
        strategy: the class of the Trainer's strategy; None: Lightning's own.
        environment: Lightning's plugin for this cluster; None: there is none to know of.
        num_threads: of torch on the CPU; None: as many as torch likes.
        stop_request: a wish of whoever started the workers that they stop, as a signal's name; each rank asks.
        preempted: whether a machine of the group is about to be taken away; for the first rank.
        accelerator: `cpu` or `cuda`, where the cluster decides it; None: as configured.
    """

    devices: int | str
    num_nodes: int
    distributed: bool
    accelerator: str | None = None
    strategy: type[Any] | None = None
    environment: Any = None
    num_threads: int | None = None
    stop_request: Callable[[], str | None] = lambda: None
    preempted: Callable[[], bool] = bool


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A worker group that was lost: the rank that went first and the cause, as far as they are known.

    Attributes:
        kind: `worker`, `hang`, or `preemption` if its machine was taken away with notice.
    """

    rank: int | None
    cause: str
    kind: str = "worker"


# What a worker does with its place and the job: it trains with the others, and gives what the caller is to know.
Train = Callable[[Worker, Any], Any]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How workers are started.

    Attributes:
        cluster: the section.
        use_gpu: one GPU for each worker; else they exchange over gloo on CPUs. None: if Ray has any.
        timeout_seconds: of an exchange of gradients.
        hang_seconds: without word of a worker before it is taken to hang; None: nobody watches.
        name: of this attempt.
        folder: for the stacks of workers that raised.
        set_up: called first in each worker that is a process of its own, with its rank: logging and the like.
        on_loss: told of each worker group that is lost; called wherever that is noticed.
    """

    cluster: ClusterConfig
    use_gpu: bool | None
    timeout_seconds: float
    hang_seconds: float | None
    name: str
    folder: str
    set_up: Callable[[int], None]
    on_loss: Callable[[Loss], None]


def threads_of_each(cluster: ClusterConfig, workers_here: int) -> int:
    """Threads of each worker: two that share a core wait for each other more than they compute."""
    return cluster.cpus_per_worker or max(1, len(os.sched_getaffinity(0)) // workers_here)


@contextmanager
def signals_to(tell: Callable[[str], None]) -> Iterator[None]:
    """Has SIGTERM, Ctrl-C and the terminal's end told by name instead of acted on.

    Where SIGHUP is ignored, as under nohup, it stays so.
    """

    def told(number: int, frame: FrameType | None) -> None:
        tell(signal.Signals(number).name)

    numbers = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        numbers.remove(signal.SIGHUP)
    before = {number: signal.signal(number, told) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Wishes:
    """The signals by which a command was asked to stop.

    Args:
        grace_seconds: that the workers have from the first wish on.

    Attributes:
        last: the name of the last one; None: nobody asked.
    """

    def __init__(self, *, grace_seconds: float) -> None:
        self.last: str | None = None
        self._grace_seconds = grace_seconds
        self._since = 0.0
        self._deadline = float("inf")

    @property
    def late(self) -> bool:
        """Whether the time for the workers is over."""
        return time.monotonic() > self._deadline

    def add(self, name: str) -> bool:
        """Notes one; whether it is a second Ctrl-C, not right after the first."""
        now = time.monotonic()
        again = self.last == name == "SIGINT" and now - self._since > SAME_WISH_SECONDS
        self.last, self._since = name, now
        self._deadline = min(self._deadline, now + self._grace_seconds)
        return again


def given_up(losses: int, loss: Loss, cluster: ClusterConfig) -> ClusterError:
    """What is raised once more groups were lost than `max_failures` allows."""
    groups = "a worker group was lost" if losses == 1 else f"{losses} worker groups were lost, the last"
    return ClusterError(
        f"{groups} by rank {loss.rank} ({loss.cause}); cluster.max_failures={cluster.max_failures} allows no more;"
        " the same command goes on"
    )


def cause_of(error: BaseException) -> str:
    """The last line of an error's text that says something: below it stands the stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(lines[-1] if lines else type(error).__name__)
