"""`python -m jobs stop`: asks a run to save its state and stop, from anywhere that sees its folder, and ends its job.

In: `run=FOLDER`, whoever launched the run. Out: a line or a JSON object on where it is saved. The request holds until a
person starts the run again: restarts and requeues by a machine honour it. A job that waits is cancelled at once; one
whose workers train is cancelled once they have stopped, and never before. Refuses a folder without a ledger and without
submissions.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from pipeline import storage
from pipeline.config import RunConfig, given, load
from pipeline.errors import ConfigError
from pipeline.run.account import Account, State, account
from pipeline.run.checkpoint import committed_steps
from pipeline.run.folder import read_config
from pipeline.run.ledger import events_of_run, read_events
from pipeline.run.stop import LOOK_SECONDS, LOOK_STORE_SECONDS, USER, request_stop
from pipeline.submission.adaptors import JobStatus, adaptor_of
from pipeline.submission.asking import ask
from pipeline.submission.record import Submission, last_submission
from pipeline.submission.standing import is_newer

LATE = 1  # exit code where the run has not stopped in time, or its job may go on; the request stands
WAIT_SECONDS = 0.2  # between two looks at a ledger on a local disk
END_SECONDS = 15.0  # for a job to end by itself once its run has stopped
ASK_AGAIN_SECONDS = 1.0  # between two questions to a client


@dataclass(frozen=True, kw_only=True)
class Job:
    """The job of the last submission.

    Attributes:
        submission: its record.
        status: what the client said last.
        cancelled: whether it was cancelled now.
        trouble: why it could not be cancelled; empty: nothing went wrong.
    """

    submission: Submission
    status: JobStatus
    cancelled: bool = False
    trouble: str = ""

    def may_go_on(self, found: Account) -> bool:
        """Whether it runs still, or may begin by itself, as far as is known."""
        if self.status.state == "silent":
            return found.state not in ("stopped", "finished") or is_newer(self.submission, found)
        return self.status.alive and not self.cancelled


def main(arguments: Sequence[str]) -> int:
    """Leaves the request, waits for the ledger's word for as long as workers have to stop, and ends the job."""
    config = load(RunConfig, [each for each in arguments if each != "--json"], name="stop")
    run = storage.absolute(given("run", config.run))
    last = last_submission(run)
    found = account(events_of_run(run) if last is None else read_events(run), now=time.time())
    was_running = found.state == "running"
    if found.state != "finished" or (last is not None and is_newer(last, found)):
        request_stop(run, cause=USER, attempt=None)
    if was_running:
        found = _await_end(run, going_on=("running",))
    job = None if last is None else Job(submission=last, status=_asked(last))
    if job is not None and job.status.alive:
        found, job = _end(run, found, job)
    step = max(committed_steps(run), default=0)
    if "--json" in arguments:
        about = {"run": run, "state": found.state, "was_running": was_running, "saved_step": step}
        print(json.dumps(about | ({} if job is None else _as_json(job))))
    else:
        lines = [_line(run, found, step=step, was_running=was_running), *([] if job is None else [_job_line(job)])]
        print("\n".join(lines))
    return LATE if found.state == "running" or (job is not None and job.may_go_on(found)) else 0


def _asked(submission: Submission) -> JobStatus:
    return ask([submission])[submission.id]


def _end(run: str, found: Account, job: Job) -> tuple[Account, Job]:
    """Ends a job that waits or runs, unless its workers may hold steps that are not saved.

    A run that has just stopped ends its job by itself, after it has told its dashboard. One that has not begun has
    nothing to save, and would pass over the request if it is the first start.

    Returns:
        the account then, and the job.
    """
    if job.status.state == "running" and found.state == "silent":  # hung, or at something long
        found = _await_end(run, going_on=("running", "silent"))
    if job.status.state == "running" and found.state in ("running", "silent"):
        return found, job
    stopped_seconds = max(time.time() - found.last_time, 0.0) if found.num_attempts else END_SECONDS
    deadline = time.monotonic() + END_SECONDS - stopped_seconds
    while job.status.state == "running" and time.monotonic() < deadline:
        time.sleep(ASK_AGAIN_SECONDS)
        job = replace(job, status=_asked(job.submission))
    return found, _cancelled(job) if job.status.alive else job


def _cancelled(job: Job) -> Job:
    try:
        adaptor_of(job.submission.kind).cancel(job.submission)
    except ConfigError as error:
        return replace(job, trouble=str(error))
    return replace(job, cancelled=True)


def _await_end(run: str, *, going_on: tuple[State, ...]) -> Account:
    """The account once the run is in none of these states any more, or the time that its workers have is over."""
    local, seconds = storage.is_local(run), read_config(run).cluster.grace_seconds
    deadline = time.monotonic() + seconds + (LOOK_SECONDS if local else LOOK_STORE_SECONDS)
    while True:
        found = account(events_of_run(run), now=time.time())
        if found.state not in going_on or time.monotonic() > deadline:
            return found
        time.sleep(WAIT_SECONDS if local else LOOK_STORE_SECONDS / 2)


def _line(run: str, found: Account, *, step: int, was_running: bool) -> str:
    saved = f"step {step} is saved" if step else "nothing is saved"
    if found.state == "running":
        return f"run={run} goes on still, {saved}; the request stands: look again by `python -m jobs status run={run}`"
    if not found.num_attempts:
        return f"run={run} has not begun, {saved}; the same command begins it"
    if found.state == "finished":
        return f"run={run} is finished, {saved}"
    if was_running:
        return f"run={run} has stopped, {saved}; the same command goes on"
    return (
        f"run={run} does not run ({found.state}), {saved}; a restart by a machine will not go on, the same command will"
    )


def _job_line(job: Job) -> str:
    name, kind, reason = job.submission.id, job.submission.kind, job.status.reason
    if job.trouble:
        return f"{name} could not be cancelled and may go on: {job.trouble}"
    if job.cancelled:
        return f"{name} is cancelled"
    match job.status.state:
        case "silent":
            return f"{kind} does not answer ({reason}): it is not known whether {name} goes on"
        case "gone":
            return f"{kind} does not know {name}"
        case "ended":
            return f"{name} has ended"
        case _:
            return f"{name} runs still"


def _as_json(job: Job) -> dict[str, object]:
    """What `--json` adds of a run that was submitted."""
    return {
        "submission": job.submission.id,
        "via": job.submission.kind,
        "job": asdict(job.status),
        "cancelled": job.cancelled,
        "trouble": job.trouble,
    }
