"""The only worker is this process."""

from pipeline.cluster.launchers import Rank
from pipeline.run.job import Job, Place, Result, Work


def prepare(*, modules: list[str]) -> None:
    """Nothing: this process imports what it needs when it needs it."""


def run(work: Work, job: Job, rank: Rank | None) -> Result:
    """Runs the worker's part here.

    Args:
        work: the worker's part.
        job: what each worker is given.
        rank: the place of this process, if a launcher started it as one of several.
    """
    return work(Place(num_threads=job.config.cluster.cpus_per_worker), job)
