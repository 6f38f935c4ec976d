"""Tasks run over items, in this process or by Ray.

In: `ClusterConfig`, a function of one argument and its items, all of which can be pickled. Out: (index, result) in the
order in which they are done. Refuses: a task whose worker died `1 + MAX_RETRIES` times. Each task counts for one core.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from pipeline.cluster.ray_session import ray_session
from pipeline.cluster.returns import Item, Result, one_line, returned, unwrapped
from pipeline.config import ClusterConfig
from pipeline.errors import ClusterError

MAX_RETRIES = 3  # of a task whose worker died
TASKS_PER_CPU = 2  # submitted at a time: one runs, one waits at the door


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
    num_cpus = cluster.num_cpus or len(os.sched_getaffinity(0))
    with ray_session(cluster, num_cpus=num_cpus):

        def run_tasks(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
            return _run_by_ray(function, items, num_cpus=num_cpus)

        yield run_tasks


def run_here(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
    """Runs the items one after the other in this process."""
    for index, item in enumerate(items):
        yield index, function(item)


def _run_by_ray(
    function: Callable[[Item], Result], items: Sequence[Item], *, num_cpus: int
) -> Iterator[tuple[int, Result]]:
    """Runs the items as tasks, with a bounded number of them submitted at a time."""
    import ray

    remote: Any = ray.remote(returned).options(num_cpus=1, max_retries=MAX_RETRIES)
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


def _result(reference: Any, *, item: object) -> Any:  # noqa: ANN401  (ray is typed by its values)
    import ray

    try:
        found = ray.get(reference)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        raise ClusterError(
            f"the worker of {item} died {1 + MAX_RETRIES} times ({one_line(error)});"
            " if memory is short, use a smaller cluster.num_cpus"
        ) from error
    return unwrapped(found)
