"""`python -m jobs train`: trains a language model on a prepared corpus, or goes on with a run.

torch and lightning, which take seconds to import, are imported when the configuration is known to be right, and by the
processes that need them.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from jobs import console
from pipeline import storage
from pipeline.cluster.group import Launch, Loss
from pipeline.cluster.launchers import Rank, told_rank
from pipeline.cluster.workers import expect_workers, run_workers
from pipeline.config import Config, load
from pipeline.run.job import Ending, Job, exchange_seconds
from pipeline.run.ledger import Ledger, read_events
from pipeline.run.tracking import what_waits
from pipeline.training.display import Display, Follower

if TYPE_CHECKING:
    from pipeline.training.trainer import Outcome

WORKER = "pipeline.training.worker"

log = logging.getLogger("pipeline.jobs")


def main(arguments: Sequence[str]) -> None:
    """Trains and says how it ended, and how to send what a dashboard has not got yet."""
    config = load(Config, arguments)
    rank = told_rank(os.environ, config.cluster)
    try:
        report(run(config, rank))
    finally:
        if rank is None or rank.rank == 0:
            _tell_what_waits(config)


def run(config: Config, rank: Rank | None = None) -> "Outcome":
    """Trains on the cluster of the configuration; as one of several processes if a launcher gave this one a rank."""
    expect_workers(config.cluster, launched=rank, modules=[WORKER])
    from pipeline.training.trainer import train

    launched = (rank.rank, rank.world_size) if rank is not None else None
    return train(config, start_workers=partial(_start_workers, rank), launched=launched)


def _start_workers(rank: Rank | None, job: Job) -> Ending | str:
    config = job.config
    assert config.run is not None
    launch = Launch(
        cluster=config.cluster,
        use_gpu={"cuda": True, "cpu": False}.get(config.accelerator),
        timeout_seconds=exchange_seconds(config),
        hang_seconds=config.guard.hang_seconds,
        name=f"attempt-{job.attempt}",
        folder=storage.join(config.run, "failures"),
        set_up=console.set_up,
        on_loss=partial(_tell_of_loss, config.run, job.attempt),
    )
    with _shown(job):
        ending: Ending | str = run_workers(work, job, launch, launched=rank)
    return ending


def work(place: Any, job: Job) -> Ending:  # noqa: ANN401  (a place to stand)
    """A worker's part, in its own process, which may be this one."""
    from pipeline.training import worker

    console.quiet_lightning()
    return worker.work(place, job)


@contextmanager
def _shown(job: Job) -> Iterator[None]:
    """Ray's workers have no terminal: what they write to the run folder is shown here."""
    config = job.config
    if config.cluster.kind == "none":
        yield
        return
    assert config.run is not None
    display = Display(total_steps=job.total_steps, steps_per_epoch=job.steps_per_epoch, drawn=config.logging.progress)
    follower = Follower(config.run, display)
    follower.start()
    try:
        yield
    finally:
        follower.stop()


def _tell_of_loss(run: str, attempt: int, loss: Loss) -> None:
    """A hang was told of by the rank that noticed it. Under Ray this runs in another process than the command's."""
    events = read_events(run)
    if events and events[-1]["event"] == "fault" and events[-1]["kind"] == "hang":
        return
    log.warning("%s: rank %s: %s", loss.kind, loss.rank, loss.cause)
    Ledger(run, attempt=attempt).write("fault", kind=loss.kind, cause=loss.cause, rank=loss.rank, fatal=True)


def _tell_what_waits(config: Config) -> None:
    if config.tracking.kind == "none" or config.run is None:
        return
    if line := what_waits(storage.absolute(config.run)):
        print(line)


def report(outcome: "Outcome") -> None:
    """One line on the end of a run."""
    if outcome.first_step == outcome.step:
        print(f"{outcome.run} is finished at step {outcome.step}; raise max_epochs or max_steps to go on")
    else:
        print(f"{outcome.run} is trained to step {outcome.step} (from step {outcome.first_step})")
