"""The machines: tasks run over items, in this process or by Ray. The only home of ray.

In: `ClusterConfig`, a function of one argument that can be pickled, and its items. Out: (index, result) in the order in
which tasks are done. Refuses: a task whose worker died `1 + MAX_RETRIES` times.

`kind: none` runs one item after the other in this process and never imports ray. `kind: local` starts Ray on this
machine, which serves all phases of a job until the context ends. Each task counts for one core, and it is run again if
its worker dies. A `PipelineError` is the user's: it reaches the caller as it was raised, and is not tried again.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from pipeline.config import ClusterConfig
from pipeline.errors import ClusterError, PipelineError

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_RETRIES = 3  # of a task whose worker died
TASKS_PER_CPU = 2  # submitted at a time: one runs, one waits at the door
OBJECT_STORE_BYTES = 80 << 20  # receipts are small; /dev/shm of a container is too


class RunTasks(Protocol):
    """Runs a function over items and gives (index of the item, result) in the order in which they are done."""

    def __call__(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result]]: ...  # pragma: no cover


@contextmanager
def task_runner(cluster: ClusterConfig) -> Iterator[RunTasks]:
    """What runs tasks on the machine that is asked for, until the context ends.

    Args:
        cluster: `kind`, and for `local` the number of tasks at a time (null: one for each core).

    Yields:
        a `RunTasks`. Its iterator raises the `PipelineError` of a task, or `ClusterError` if workers die of it.
    """
    if cluster.kind == "none":
        yield run_here
        return
    import ray

    num_cpus = cluster.num_cpus or len(os.sched_getaffinity(0))
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    try:

        def run_tasks(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
            return _run_by_ray(function, items, num_cpus=num_cpus)

        yield run_tasks
    finally:
        ray.shutdown()


def run_here(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
    """Runs the items one after the other in this process."""
    for index, item in enumerate(items):
        yield index, function(item)


def _run_by_ray(
    function: Callable[[Item], Result], items: Sequence[Item], *, num_cpus: int
) -> Iterator[tuple[int, Result]]:
    """Runs the items as tasks, with a bounded number of them submitted at a time."""
    import ray

    remote: Any = ray.remote(_outcome).options(num_cpus=1, max_retries=MAX_RETRIES)
    waiting = list(range(len(items)))[::-1]
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < TASKS_PER_CPU * num_cpus:
                index = waiting.pop()
                running[remote.remote(function, items[index])] = index
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                index = running.pop(reference)
                yield index, _result(reference, item=items[index])
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _outcome(function: Callable[[Item], Result], item: Item) -> Result | PipelineError:
    """Runs in a worker. A user's error comes back as a value: raised, Ray would wrap it and print its stack."""
    try:
        return function(item)
    except PipelineError as error:
        return error.with_traceback(None)


def _result(reference: Any, *, item: object) -> Any:  # noqa: ANN401  (ray is typed by its values)
    import ray

    try:
        outcome = ray.get(reference)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ClusterError(
            f"the worker of {item} died {1 + MAX_RETRIES} times ({reason});"
            " if memory is short, use a smaller cluster.num_cpus"
        ) from error
    if isinstance(outcome, PipelineError):
        raise outcome
    return outcome
