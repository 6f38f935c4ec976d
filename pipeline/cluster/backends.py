"""The ways to start workers, and which one a run takes.

In: `ClusterConfig`, and the place that a launcher gave this process. Out: a backend, which runs a worker's part on
every worker, again if a group is lost, and gives the first rank's result. A new way is one file and one row of the
table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

from pipeline.cluster.launchers import Rank
from pipeline.config import ClusterConfig
from pipeline.run.job import Job, Result, Work


class Backend(Protocol):
    """A module that starts workers."""

    def prepare(self, *, modules: list[str]) -> None:
        """Has workers of this machine import what they need while the command does its own part; may do nothing."""

    def run(self, work: Work, job: Job, rank: Rank | None) -> Result:
        """Runs a worker's part on every worker.

        Args:
            work: the part.
            job: what each worker is given.
            rank: the place of this process, if a launcher started it as one of several.

        Raises:
            ClusterError: more groups were lost than `cluster.max_failures`, or there is no such cluster.
            PipelineError: whatever a worker raised of these; it is not tried again.
        """


@dataclass(frozen=True)
class Row:
    """A way to start workers.

    Attributes:
        fits: whether it is the one for a section and the place that a launcher gave this process.
        module: a `Backend`.
    """

    fits: Callable[[ClusterConfig, Rank | None], bool]
    module: str


BACKENDS: dict[str, Row] = {  # of those that fit the last one is taken, so that rows from outside come first
    "alone": Row(lambda cluster, rank: True, "pipeline.cluster.alone"),
    "processes": Row(lambda cluster, rank: (cluster.num_workers or 1) > 1, "pipeline.cluster.processes"),
    "launched": Row(lambda cluster, rank: rank is not None, "pipeline.cluster.launched"),
    "ray": Row(lambda cluster, rank: cluster.kind in ("local", "ray"), "pipeline.cluster.ray_train"),
}


def choose_backend(cluster: ClusterConfig, rank: Rank | None) -> Backend:
    """The backend for a section.

    Args:
        cluster: the section.
        rank: the place of this process if a launcher started it as one of several; None: it stands alone.
    """
    row = next(row for row in reversed(BACKENDS.values()) if row.fits(cluster, rank))
    return cast(Backend, import_module(row.module))
