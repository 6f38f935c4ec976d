"""Where a run stands: what its ledger tells, beside what the cluster's client says of its job.

In: the account of the ledger, the last submission, the client's word. Out: a state and its reason. Asks nobody. The
ledger comes first: a client's word counts where the ledger is silent, or tells of an end that a job is to undo.
"""

from dataclasses import dataclass
from typing import Literal

from pipeline.run.account import Account
from pipeline.run.stop import USER
from pipeline.submission.adaptors import JobStatus
from pipeline.submission.record import Submission

# submitted: it has not begun, and no client knows more; lost: it neither goes on nor did it say that it ends
RunState = Literal["submitted", "queued", "running", "stopped", "finished", "lost"]
# without an event, after which a client that knows no living job is believed: two signs of life in an object store
RECENT_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a run stands.

    Attributes:
        state: see `RunState`.
        reason: why, or what else the client says; may be empty.
    """

    state: RunState
    reason: str = ""


def is_newer(submission: Submission, found: Account) -> bool:
    """Whether a run was submitted after the last event of its ledger."""
    return not found.num_attempts or submission.time > found.last_time


def needs_asking(found: Account, submission: Submission, *, stop_cause: str | None) -> bool:
    """Whether the client's word can change where a run stands.

    Args:
        found: the account of the run.
        submission: the last one.
        stop_cause: of the last clean stop.
    """
    if is_newer(submission, found):
        return True
    return found.state in ("running", "silent") or (found.state == "stopped" and stop_cause != USER)


def standing(
    found: Account,
    *,
    now: float,
    submission: Submission | None,
    job: JobStatus | None,
    stop_cause: str | None,
    prepared: bool = False,
) -> Standing:
    """Where a run stands.

    Args:
        found: the account of the run.
        now: unix seconds.
        submission: the last one; None: it was not submitted.
        job: what the client says of it; None: it was not asked.
        stop_cause: of the last clean stop; of a run that has not begun, of the request that stands.
        prepared: whether the corpus is there that the submission was to prepare.
    """
    told = _told(found, now=now, stop_cause=stop_cause)
    if submission is None or job is None:
        return told
    if not found.num_attempts:
        return _not_begun(submission, job, stop_cause=stop_cause, prepared=prepared)
    fresh = found.state == "running" and now - found.last_time < RECENT_SECONDS
    anew = found.state in ("stopped", "finished") or is_newer(submission, found)
    what = _said(submission, job)
    if not fresh and job.state == "queued":
        return Standing(state="queued", reason=job.reason)
    if not fresh and job.state == "running" and anew:
        return Standing(state="running", reason=f"{what} and told no event yet")
    if not fresh and job.state in ("ended", "gone") and told.state in ("running", "lost"):
        return Standing(state="lost", reason=f"{_quiet(found, now=now)}; {what}")
    as_told = (job.state == "running") == (told.state == "running") and job.state not in ("queued", "silent")
    return told if as_told else Standing(state=told.state, reason="; ".join(filter(None, (told.reason, what))))


def shown_seconds(seconds: float) -> str:
    """A length of time as people read it, in its two largest units."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{hours // 24} d {hours % 24} h"


def _not_begun(submission: Submission, job: JobStatus, *, stop_cause: str | None, prepared: bool) -> Standing:
    """Of a run whose ledger tells nothing, so that the client's word is all there is."""
    trains, what = submission.verb == "train", _said(submission, job)
    match job.state:
        case "queued":
            return Standing(state="queued", reason=job.reason)
        case "running":
            return Standing(state="running", reason=f"{what} and told no event yet" if trains else "")
        case "ended" if prepared:
            return Standing(state="finished")
        case "ended" | "gone" if stop_cause is not None:
            return Standing(state="stopped", reason=stop_cause)
        case "ended":
            return Standing(state="lost", reason=f"{what}, before the first event" if trains else what)
        case _:
            return Standing(state="submitted", reason=what)


def _told(found: Account, *, now: float, stop_cause: str | None) -> Standing:
    """As the ledger alone tells it."""
    if not found.num_attempts:
        return Standing(state="submitted")
    match found.state:
        case "silent":
            return Standing(state="lost", reason=_quiet(found, now=now))
        case "stopped":
            return Standing(state="stopped", reason=stop_cause or "")
        case state:
            return Standing(state=state)


def _quiet(found: Account, *, now: float) -> str:
    return f"no event for {shown_seconds(max(now - found.last_time, 0.0))}"


def _said(submission: Submission, job: JobStatus) -> str:
    """What the client says of a job, as a sentence."""
    reason = f" ({job.reason})" if job.reason else ""
    match job.state:
        case "queued":
            return f"{submission.id} is queued{reason}"
        case "running":
            return f"{submission.id} runs"
        case "ended":
            return f"{submission.id} has ended{reason}"
        case "gone":
            return f"{submission.kind} does not know {submission.id}"
        case "silent":
            return f"{submission.kind} does not answer{reason}"
