"""What is to be known of a run, or of each run in a folder, put together from its folder and from its job.

In: a run folder. Out: one value with everything that `status` shows. Reads the ledger, the end of the metrics and small
files; no checkpoint. Refuses what cannot be read.
"""

import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline import storage
from pipeline.errors import ConfigError, PipelineError
from pipeline.masking import last_name
from pipeline.run.account import Account, Failure, account
from pipeline.run.checkpoint import committed_steps, looks_whole
from pipeline.run.ledger import EVENTS_NAME, PARTS, Event, events_of_run, read_events
from pipeline.run.plan import HOUR_SECONDS, Row, compared, read_plan, seconds_left
from pipeline.run.records import SPEED, VALIDATION, Record, last_records, last_validation, speed_of, step_of
from pipeline.run.stop import stop_request
from pipeline.submission.adaptors import JobStatus
from pipeline.submission.asking import ask
from pipeline.submission.record import FOLDER, Submission, last_submission
from pipeline.submission.standing import Standing, needs_asking, standing

RECORDS_BYTES = 1 << 17  # of the metrics' end: some 500 records
SPEED_RECORDS = 20  # the newest, of which the speed is told
NUM_READERS = 8  # of runs at the same time, for object stores
OF_A_RUN = rf"(?:{re.escape(EVENTS_NAME)}|{PARTS}/[^/]+\.jsonl|{FOLDER}/[^/]+\.json)"


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a run folder holds of the steps that were made.

    Attributes:
        saved_step: of the newest committed checkpoint; None: there is none.
        resumes_from: the step that the same command would go on from, 0 if it would begin anew; None: it would refuse,
            since there are checkpoints and none seems whole.
    """

    saved_step: int | None
    resumes_from: int | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run measured last; None where nothing tells it.

    Attributes:
        perplexity: of the last validation, else of training.
        perplexity_of: `validation` or `training`.
        perplexity_step: where it was taken.
        words_per_second: of all ranks together, by the last records.
    """

    perplexity: float | None
    perplexity_of: str | None
    perplexity_step: int | None
    words_per_second: float | None


@dataclass(frozen=True, kw_only=True)
class Overview:
    """A run, as `status` shows it.

    Attributes:
        run: its folder.
        found: the account of its ledger; of no attempt if it has not begun.
        saved, measured, standing: see there.
        submission: the last one; None: it was not submitted.
        job: what the client says of it; None: it was not asked.
        last_time: of the last event, or of the submission; unix seconds.
        goodput: the productive share of the wall time; None: it has not begun.
        checkpoint_age_seconds: since the last one was saved; None: there is none.
        seconds_left: at the pace of now; None: it does not go on, or nothing tells it yet.
        plan: what was planned beside what it came to; empty if nothing was planned.
    """

    run: str
    found: Account
    saved: Saved
    measured: Measured
    standing: Standing
    submission: Submission | None
    job: JobStatus | None
    last_time: float
    goodput: float | None
    checkpoint_age_seconds: float | None
    seconds_left: float | None
    plan: list[Row]

    @property
    def name(self) -> str:
        """The run folder's own."""
        return last_name(self.run)

    @property
    def last_failure(self) -> Failure | None:
        """The newest failure; None: there was none."""
        return self.found.failures[-1] if self.found.failures else None


@dataclass(frozen=True, kw_only=True)
class _Read:
    """What a run folder holds."""

    run: str
    events: list[Event]
    found: Account
    records: list[Record]
    submission: Submission | None


def overview(run: str) -> Overview | None:
    """The overview of one run; None: the folder has neither a ledger with events nor submissions.

    Raises:
        ConfigError: it cannot be read.
    """
    read = _read(run)
    if not read.events and read.submission is None:
        return None
    return _put_together(read, _answers([read]), now=time.time())


def overviews(runs: Sequence[str]) -> list[Overview | ConfigError]:
    """The overview of each run, or why there is none, in the order of the runs."""
    with ThreadPoolExecutor(NUM_READERS) as pool:
        read = list(pool.map(_read_or_why, runs))
        answers, now = _answers([each for each in read if isinstance(each, _Read)]), time.time()
        return list(pool.map(lambda each: _put_together_or_why(each, answers, now=now), read))


def runs_in(folder: str) -> list[str]:
    """The runs among the direct subfolders of a folder, sorted. An object store is asked for one listing.

    Raises:
        ConfigError: the folder cannot be listed.
    """
    if storage.is_local(folder):
        names = [name for name in storage.folders_in(folder) if _holds_run(storage.join(folder, name))]
    else:
        root = re.escape(storage.canonical(folder).rstrip("/"))
        found = (re.fullmatch(rf"{root}/([^/]+)/{OF_A_RUN}", path) for path in storage.list_files(folder))
        names = sorted({match[1] for match in found if match})
    return [storage.join(folder, name) for name in names]


def _holds_run(folder: str) -> bool:
    """Whether a local folder is that of a run, or cannot be read: then its row says so."""
    try:
        return any(storage.list_files(storage.join(folder, each)) for each in (EVENTS_NAME, f"{FOLDER}/*.json"))
    except ConfigError:
        return True


def _read(run: str) -> _Read:
    events, now = read_events(run), time.time()
    found = account(events, now=now)
    if found.state == "silent":
        from pipeline.run.folder import read_hang_seconds  # imports pyarrow, which takes half a second

        found = account(events, now=now, hang_seconds=read_hang_seconds(run))
    last = last_submission(run)
    return _Read(
        run=run, events=events, found=found, records=last_records(run, num_bytes=RECORDS_BYTES), submission=last
    )


def _read_or_why(run: str) -> _Read | ConfigError:
    try:
        read = _read(run)
        if not read.events and read.submission is None:
            events_of_run(run)  # refuses it
        return read
    except PipelineError as error:
        return ConfigError(str(error))


def _put_together_or_why(
    read: _Read | ConfigError, answers: dict[str, JobStatus], *, now: float
) -> Overview | ConfigError:
    if isinstance(read, ConfigError):
        return read
    try:
        return _put_together(read, answers, now=now)
    except PipelineError as error:
        return ConfigError(str(error))


def _answers(read: Sequence[_Read]) -> dict[str, JobStatus]:
    return ask(
        each.submission
        for each in read
        if each.submission is not None
        and needs_asking(each.found, each.submission, stop_cause=_stop_cause(each.events))
    )


def _put_together(read: _Read, answers: dict[str, JobStatus], *, now: float) -> Overview:
    run, found, submission = read.run, read.found, read.submission
    job = None if submission is None else answers.get(submission.id)
    begun = found.num_attempts > 0
    where = standing(
        found,
        now=now,
        submission=submission,
        job=job,
        stop_cause=_stop_cause(read.events) if begun else _requested(run),
        prepared=submission is not None and not begun and _prepared(submission),
    )
    measured = _measured(run, read.records)
    left = None
    if where.state == "running":
        left = seconds_left(found, events=read.events, records=_newest_speeds(read.records))
    saved_times = [event["time"] for event in read.events if event["event"] == "checkpoint"]
    return Overview(
        run=run,
        found=found,
        saved=_saved(run, read.events),
        measured=measured,
        standing=where,
        submission=submission,
        job=job,
        last_time=max(found.last_time if begun else 0.0, 0.0 if submission is None else submission.time),
        goodput=found.shares["productive"] if begun else None,
        checkpoint_age_seconds=max(now - saved_times[-1], 0.0) if saved_times else None,
        seconds_left=left,
        plan=_plan(read, measured, left_seconds=left),
    )


def _saved(run: str, events: Sequence[Event]) -> Saved:
    sizes = {event["step"]: event["size_bytes"] for event in events if event["event"] == "checkpoint"}
    steps = committed_steps(run)[::-1]
    whole = (step for step in steps if looks_whole(run, step, size_bytes=sizes.get(step)))
    return Saved(saved_step=steps[0] if steps else None, resumes_from=next(whole, None if steps else 0))


def _measured(run: str, records: Sequence[Record]) -> Measured:
    validated = next((each for each in reversed(records) if VALIDATION in each), None) or last_validation(run)
    trained = next((each for each in reversed(records) if "train/perplexity" in each), None)
    last = validated or trained
    return Measured(
        perplexity=None if last is None else last.get(VALIDATION, last.get("train/perplexity")),
        perplexity_of="validation" if validated else "training" if trained else None,
        perplexity_step=None if last is None else step_of(last),
        words_per_second=speed_of(_newest_speeds(records)),
    )


def _newest_speeds(records: Sequence[Record]) -> list[Record]:
    """The last records that have a speed."""
    return [each for each in records if each.get(SPEED)][-SPEED_RECORDS:]


def _plan(read: _Read, measured: Measured, *, left_seconds: float | None) -> list[Row]:
    try:
        forecast = read_plan(read.run)
    except ConfigError as error:
        return [Row(name="plan", planned="cannot be read", fact=str(error))]
    if forecast is None:
        return []
    return compared(
        forecast,
        found=read.found,
        events=read.events,
        words_per_second=measured.words_per_second,
        hours_left=None if left_seconds is None else left_seconds / HOUR_SECONDS,
    )


def _stop_cause(events: Sequence[Event]) -> str | None:
    return next((event["cause"] for event in reversed(events) if event["event"] == "stop"), None)


def _requested(run: str) -> str | None:
    """The cause of the request to stop that stands in the folder of a run that has not begun."""
    request = stop_request(run, attempt=1)
    return None if request is None else request.cause


def _prepared(submission: Submission) -> bool:
    """Whether the corpus is there that a submission of `prepare` makes; its manifest is written last."""
    from pipeline.corpus.manifest import MANIFEST_NAME  # imports pyarrow, as above

    data = next((each.partition("=")[2] for each in submission.arguments if each.startswith("data=")), None)
    return submission.verb == "prepare" and bool(data) and storage.exists(storage.join(str(data), MANIFEST_NAME))
