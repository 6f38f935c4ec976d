"""Tasks run over items, in this process or by Ray on one machine or many.

In: `ClusterConfig`, a function of one argument and its items, all of which can be pickled. Out: (index, result) in the
order in which they are done, with an error in place of the result of a task that failed, so that the others go on.

    a PipelineError     is a value at once: the input is what it is, and another trial would meet it again
    one of TRANSIENT    memory fell short, or the work folder could not be read: Ray tries the task again, maybe on
                        another machine. Text that cannot be read, or a place that cannot be written, is a PipelineError
    a worker is gone    or its machine: Ray tries the task again
    anything else       is a mistake of ours, and ends the tasks with its stack trace

Ray tries a task `1 + MAX_RETRIES` times in all; in this process there is one trial. Each task counts for one core.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from pipeline.cluster.ray_session import ray_api, ray_session
from pipeline.cluster.returns import Item, Result, one_line, returned
from pipeline.config import ClusterConfig
from pipeline.errors import ClusterError, PipelineError, reason_of

log = logging.getLogger(__name__)

MAX_RETRIES = 3
TRANSIENT = (OSError, MemoryError)
TASKS_PER_CPU = 2  # submitted at a time: one runs, one waits at the door
NO_IMPORT = "failed to import on the worker"  # Ray's words
LOOK_SECONDS = 2.0  # between looks at how many cores the cluster has


class RunTasks(Protocol):
    """Runs a function over items and gives (index of the item, result or error) in the order in which they are done."""

    def __call__(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result | PipelineError]]: ...  # pragma: no cover


@contextmanager
def task_runner(cluster: ClusterConfig) -> Iterator[RunTasks]:
    """What runs tasks on the machines that are asked for, until the context ends.

    Args:
        cluster: `kind`, and the number of tasks at a time (null: one for each core, of all machines).

    Yields:
        a `RunTasks`. Its errors are the `PipelineError` of a task, or a `ClusterError` where each trial failed.
    """
    if cluster.kind == "none":
        yield run_here
        return
    with ray_session(cluster, num_cpus=cluster.num_cpus or len(os.sched_getaffinity(0))):

        def run_tasks(
            function: Callable[[Item], Result], items: Sequence[Item]
        ) -> Iterator[tuple[int, Result | PipelineError]]:
            # a Ray of our own has so many cores; in one that is joined the number itself is the bound
            return _run_by_ray(function, items, most=cluster.num_cpus if cluster.kind == "ray" else None)

        yield run_tasks


def run_here(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result | PipelineError]]:
    """Runs the items one after the other in this process."""
    for index, item in enumerate(items):
        yield index, _returned_here(function, item)


def _returned_here(function: Callable[[Item], Result], item: Item) -> Result | PipelineError:
    try:
        return returned(function, item)
    except TRANSIENT as error:
        return ClusterError(f"{reason_of(error)}; mend it, and the same command goes on")


def _run_by_ray(
    function: Callable[[Item], Result], items: Sequence[Item], *, most: int | None
) -> Iterator[tuple[int, Result | PipelineError]]:
    """Runs the items as tasks, with a bounded number of them submitted at a time, on all machines alike.

    Args:
        function: goes to each machine once.
        items: each goes with its task.
        most: tasks at a time, however many cores there are.
    """
    import ray

    remote: Any = ray.remote(_in_worker).options(
        num_cpus=1, max_retries=MAX_RETRIES, retry_exceptions=list(TRANSIENT), scheduling_strategy="SPREAD"
    )
    place, folder = ray.put(function), str(Path.cwd())
    room, waiting, running = _Room(most), enumerate(items), dict[Any, int]()
    try:
        while True:
            for index, item in islice(waiting, max(room.size() - len(running), 0)):
                running[remote.remote(place, item, folder)] = index
            if not running:
                return
            done, _ = ray.wait(list(running), timeout=LOOK_SECONDS)
            for reference in done:
                yield running.pop(reference), _result(reference)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _in_worker(function: Callable[[Item], Result], item: Item, folder: str) -> Result | PipelineError:
    """A task, in the folder of the command: so that relative paths lead where they lead there."""
    with suppress(OSError):  # it is not on this machine, nor is then what lies in it
        os.chdir(folder)
    return returned(function, item)


class _Room:
    """How many tasks may be submitted at a time: in proportion to the cores of the cluster, which grows and shrinks.

    Args:
        most: however many cores there are; None: no bound of its own.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._size, self._due = 0, 0.0

    def size(self) -> int:
        """At least one, so that a cluster that grows by demand sees some."""
        if time.monotonic() >= self._due:
            num_cores = int(ray_api().cluster_resources().get("CPU", 0))
            if num_cores == 0 and self._size != 1:
                log.warning("the Ray cluster has no cores; tasks wait for a machine to join it")
            bound = TASKS_PER_CPU * num_cores or 1
            self._size, self._due = min(bound, self._most or bound), time.monotonic() + LOOK_SECONDS
        return self._size


def _result(reference: Any) -> Any:  # noqa: ANN401  (ray is typed by its values)
    """The result of a task, or its error; raises what was a mistake of ours."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if NO_IMPORT in str(error.cause):
            raise ClusterError(
                f"a machine of the cluster cannot import this program ({str(error).splitlines()[-1]}); install the"
                " same version on each, or start the command in a folder that all of them see"
            ) from None
        if not isinstance(error.cause, TRANSIENT):
            raise
        return ClusterError(
            f"{1 + MAX_RETRIES} trials failed ({reason_of(error.cause)}); mend it, and the same command goes on;"
            " every machine of the cluster must see the same folders"
        )
    except (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.ObjectLostError,
    ) as error:
        return ClusterError(
            f"the worker died {1 + MAX_RETRIES} times ({one_line(error)});"
            " if memory is short, use a smaller cluster.num_cpus"
        )
