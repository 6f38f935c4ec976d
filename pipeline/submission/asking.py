"""Clients are asked for the jobs of runs, and nobody waits long for one that does not answer.

In: submissions. Out: what the clients say of them; a client that does not answer in time is silent.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

from pipeline.errors import PipelineError
from pipeline.submission.adaptors import ADAPTORS, JobStatus, adaptor_of
from pipeline.submission.record import Submission

PATIENCE_SECONDS = 10.0  # with all clients together


def job_status(submission: Submission) -> JobStatus:
    """What the client says of a job, however long it takes; a record that this version cannot read is silent too."""
    if submission.kind not in ADAPTORS:
        return JobStatus(state="silent", reason=f"via={submission.kind} is none of this version")
    try:
        return adaptor_of(submission.kind).status(submission)
    except (PipelineError, ImportError) as error:
        return JobStatus(state="silent", reason=str(error))


def ask(wanted: Iterable[Submission]) -> dict[str, JobStatus]:
    """What the clients say of jobs, by the id of the submission.

    Clients are asked at the same time. One that is silent once is not asked for its other jobs.
    """
    groups: dict[tuple[str, object, object], list[Submission]] = defaultdict(list)
    for each in wanted:
        groups[each.kind, each.via.get("address"), each.via.get("context")].append(each)
    found: dict[str, JobStatus] = {}
    threads = [
        threading.Thread(target=_ask_client, args=(group, found), name=f"ask {kind}", daemon=True)
        for (kind, *_), group in groups.items()
    ]
    deadline = time.monotonic() + PATIENCE_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0.0))
    late = JobStatus(state="silent", reason=f"waited {PATIENCE_SECONDS:g} s")
    return {each.id: found.get(each.id, late) for group in groups.values() for each in group}


def _ask_client(group: Sequence[Submission], found: dict[str, JobStatus]) -> None:
    """In a thread: one job after the other."""
    silent: JobStatus | None = None
    for each in group:
        status = silent or job_status(each)
        found[each.id] = status
        silent = status if status.state == "silent" else None
