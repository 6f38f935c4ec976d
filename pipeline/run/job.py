"""What a command, the backend that starts workers, and the workers exchange; each of it stands here once.

A command makes a `Job`; a backend gives each worker its `Place`; the worker trains and gives a `Result`; a group of
workers that is lost on the way is a `WorkerFailure`. Imports neither torch nor lightning, so that a command is quick.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline import storage
from pipeline.config import Config
from pipeline.errors import ClusterError, PipelineError
from pipeline.masking import masked
from pipeline.run.gauges import Sink
from pipeline.run.ledger import Ledger, read_events

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from lightning.pytorch.strategies import DDPStrategy

log = logging.getLogger(__name__)

FAILURES = "failures"  # folder of a run: the stacks of workers that raised
LEAST_EXCHANGE_SECONDS = 1800.0  # torch's own limit for an exchange of gradients


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker of a run is given.

    Attributes:
        config: of the run, with its places given and absolute.
        total_steps: of the run.
        steps_per_epoch: for people.
        attempt: number of this call of the command.
        corpus: fingerprint of the manifest that the command read; each worker must find the same.
    """

    config: Config
    total_steps: int
    steps_per_epoch: int
    attempt: int
    corpus: str

    @property
    def run(self) -> str:
        """The run folder."""
        assert self.config.run is not None
        return self.config.run

    @property
    def exchange_seconds(self) -> float:
        """After which torch gives an exchange of gradients up; the watchdog speaks before it."""
        return max(LEAST_EXCHANGE_SECONDS, 2 * (self.config.guard.hang_seconds or 0.0))


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker stands: what Lightning's Trainer needs to know of it, and what it may ask its backend.

    Attributes:
        devices, num_nodes: as the Trainer takes them.
        distributed: whether there are other workers.
        accelerator: `cpu` or `cuda`, where the backend decides it; None: as configured.
        strategy: the class of the Trainer's strategy; None: Lightning's own.
        environment: Lightning's plugin for this cluster; None: the worker is alone.
        num_threads: of torch on the CPU; None: as many as torch likes.
        stop_cause: a signal's name once whoever started this worker is gone; each rank asks.
        preempted: whether a machine of the group is about to be taken away; all ranks ask together.
        gauges: hands the run's numbers on to the cluster's own monitoring; None: it has none.
    """

    devices: int | str = 1
    num_nodes: int = 1
    distributed: bool = False
    accelerator: str | None = None
    strategy: "type[DDPStrategy] | None" = None
    environment: "ClusterEnvironment | None" = None
    num_threads: int | None = None
    stop_cause: Callable[[], str | None] = lambda: None
    preempted: Callable[[], bool] = bool
    gauges: Sink | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """How the workers ended.

    Attributes:
        step: updates made.
        first_step: those that were made when the last group of workers began; None: none has.
        stop: what they were asked to stop by, a signal's name or `stop.USER`; None: they came to the end.
        bad: (step, why) of a step whose loss or update is bad.
        lost: one line on a run folder that was removed or replaced meanwhile.
    """

    step: int
    first_step: int | None = None
    stop: str | None = None
    bad: tuple[int, str] | None = None
    lost: str | None = None


Work = Callable[[Place, Job], Result]  # a worker's part; all ranks run it, together


@dataclass(frozen=True, kw_only=True)
class WorkerFailure:
    """A worker group that was lost: the rank that went first and the cause, as far as they are known.

    Attributes:
        kind: `worker`, `hang`, or `preemption` if its machine was taken away with notice.
        stack: of what the worker raised; it is kept in the run folder.
    """

    rank: int | None
    cause: str
    kind: str = "worker"
    stack: str | None = None


def report_failure(job: Job, failure: WorkerFailure) -> None:
    """Writes a lost worker group down in the run folder, from whichever process notices it.

    The rank that notices a hang has reported it already. A store that does not serve ends no run: it is logged.
    """
    try:
        events = read_events(job.run)
        if events and events[-1]["event"] == "fault" and events[-1]["kind"] == "hang":
            return
        cause = failure.cause
        if failure.stack is not None:
            place = storage.join(job.run, FAILURES, f"attempt-{job.attempt}-rank-{failure.rank}-{len(events)}.txt")
            storage.publish_bytes(place, masked(failure.stack).encode())
            cause = f"{cause}; its stack is in {place}"
        log.warning("%s: rank %s: %s", failure.kind, failure.rank, cause)
        ledger = Ledger(job.run, attempt=job.attempt)
        ledger.write("fault", kind=failure.kind, cause=cause, rank=failure.rank, fatal=True)
    except PipelineError as error:
        log.warning("a lost worker group is not written down in the run folder: %s", error)


def given_up(job: Job, failure: WorkerFailure, *, num_failures: int) -> ClusterError:
    """What is raised once more groups were lost than `max_failures` allows.

    Args:
        job: of the run.
        failure: the last one.
        num_failures: how many there were.
    """
    groups = "a worker group was lost" if num_failures == 1 else f"{num_failures} worker groups were lost, the last"
    return ClusterError(
        f"{groups} by rank {failure.rank} ({failure.cause}); cluster.max_failures={job.config.cluster.max_failures}"
        " allows no more; the same command goes on"
    )


def threads_of_each(job: Job, workers_here: int) -> int:
    """Threads of each worker of a machine: two that share a core wait for each other more than they compute."""
    return job.config.cluster.cpus_per_worker or max(1, len(os.sched_getaffinity(0)) // workers_here)
