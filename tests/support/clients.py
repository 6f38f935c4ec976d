"""A cluster that is not there: an adaptor whose jobs stand as a test says, and records of submissions to it."""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

import pytest

from pipeline.config import SubmitConfig, load
from pipeline.errors import ConfigError
from pipeline.submission.adaptors import ADAPTORS, JobStatus
from pipeline.submission.record import Submission, job_id, record, via_of

MODULE = "support.client_of_{}"  # there is no such file


@dataclass
class Client:
    """What a cluster's client knows, and what it was told.

    Attributes:
        jobs: by the id of the submission; one that is not there is gone.
        printed: what a job printed, by id; None: nobody answers.
        refuses: why no job can be cancelled; None: it can.
        asked, cancelled, followed: ids, in order.
        look: called with an id before its status is told.
    """

    jobs: dict[str, JobStatus] = field(default_factory=dict)
    printed: dict[str, list[str] | None] = field(default_factory=dict)
    refuses: str | None = None
    asked: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    followed: list[str] = field(default_factory=list)
    look: Callable[[str], object] = str

    def status(self, submission: Submission) -> JobStatus:
        self.asked.append(submission.id)
        self.look(submission.id)
        return self.jobs.get(submission.id, JobStatus(state="gone"))

    def cancel(self, submission: Submission) -> None:
        if self.refuses is not None:
            raise ConfigError(self.refuses)
        self.cancelled.append(submission.id)
        self.jobs[submission.id] = JobStatus(state="ended", reason="CANCELLED")

    def logs(self, submission: Submission, *, follow: bool) -> Iterator[str]:
        if follow:
            self.followed.append(submission.id)
        pieces = self.printed[submission.id]
        if pieces is None:
            raise ConfigError("the client does not answer; ask where it is")
        yield from pieces


def client_of(kind: str, patch: pytest.MonkeyPatch) -> Client:
    """A client in the place of a kind's adaptor."""
    client = Client()
    patch.setitem(sys.modules, MODULE.format(kind), client)  # type: ignore[arg-type]  # it does what a module does
    patch.setitem(ADAPTORS, kind, MODULE.format(kind))
    return client


def submitted(
    run: str,
    *,
    number: int = 1,
    kind: str = "slurm",
    verb: str = "train",
    seconds_ago: float = 0.0,
    data: str = "/data",
) -> Submission:
    """A submission, written down in its run folder."""
    submission = Submission(
        id=job_id(run, number=number),
        number=number,
        via=via_of(_section(kind)),
        verb=verb,
        run=run,
        arguments=(f"data={data}", f"run={run}"),
        time=time.time() - seconds_ago,
        configuration="0" * 16,
        version="1",
        commit=None,
        dirty=None,
    )
    assert record(submission)
    return submission


@cache
def _section(kind: str):
    return load(SubmitConfig, [f"via={kind}"], name="submit").via
