"""Training workers on the machines that are asked for.

In: a function of its place and a job, which can be pickled. Out: the first rank's result. Refuses: a group that is
lost more than `max_failures` times. A `PipelineError` is the user's: it reaches the caller as it was raised, and is not
tried again.
"""

from collections.abc import Sequence
from typing import Any

from pipeline.cluster.group import Launch, Train, Worker
from pipeline.cluster.launchers import Rank
from pipeline.cluster.processes import begin_imports, train_in_processes, train_launched
from pipeline.cluster.ray_train import train_by_ray
from pipeline.config import ClusterConfig


def expect_workers(cluster: ClusterConfig, *, launched: Rank | None, modules: Sequence[str]) -> None:
    """Has what workers of this machine import be imported while the command does its own part; to be called early."""
    if cluster.kind == "none" and (cluster.num_workers or 1) > 1 and launched is None:
        begin_imports(modules)


def run_workers(train: Train, job: Any, launch: Launch, *, launched: Rank | None = None) -> Any:  # noqa: ANN401
    """Runs `train` on every worker, again if a group is lost, and gives the first rank's result.

    Args:
        train: a worker's part.
        job: what it is told.
        launch: how workers are started.
        launched: the place of this process if it is one of several that all call this; None: it is alone.

    Raises:
        ClusterError: more groups were lost than `max_failures`, or there is no such cluster.
        PipelineError: whatever a worker raised of these; it is not tried again.
    """
    cluster = launch.cluster
    if cluster.kind != "none":
        return train_by_ray(train, job, launch)
    if launched is not None:
        return train_launched(launched, train, job, launch)
    if (cluster.num_workers or 1) > 1:
        return train_in_processes(train, job, launch)
    return train(Worker(devices=1, num_nodes=1, distributed=False, num_threads=cluster.cpus_per_worker), job)
