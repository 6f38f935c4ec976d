"""`python -m jobs logs`: what a run's jobs printed, of every submission, wherever it lies.

In: `run=FOLDER`, and `-f` to follow the last job until it ends. Out: for each submission a line with its id, then what
its cluster keeps; at the end the files with the stacks of workers that failed. Refuses a folder that holds no run. A
cluster that does not answer is told on standard error; it is exit code 2 if none did.
"""

import sys
from collections.abc import Iterator, Sequence
from datetime import datetime

from pipeline import storage
from pipeline.config import RunConfig, given, load
from pipeline.errors import ConfigError
from pipeline.run.job import FAILURES
from pipeline.run.ledger import EVENTS_NAME, events_of_run
from pipeline.run.records import METRICS_NAME
from pipeline.submission.adaptors import ADAPTORS, adaptor_of
from pipeline.submission.record import Submission, submissions

FOLLOW = "-f"
UNANSWERED = 2


def main(arguments: Sequence[str]) -> int:
    """Prints what there is; with `-f` also what comes, of a next submission too."""
    config = load(RunConfig, [each for each in arguments if each != FOLLOW], name="logs")
    run = given("run", config.run)
    shown = answered = 0
    while new := [each for each in submissions(run) if each.number > shown]:
        for each in new:
            answered += _show(each, follow=FOLLOW in arguments and each is new[-1])
            shown = each.number
        if FOLLOW not in arguments:
            break
    if not shown:
        events_of_run(run)
        print(
            f"run={run} was not submitted: it printed to the terminal where it was started; what it did stands in"
            f" {storage.join(run, EVENTS_NAME)} and {storage.join(run, METRICS_NAME)}"
        )
    for path in storage.list_files(storage.join(run, FAILURES)):
        print(f"stack of a worker that failed: {path}")
    return UNANSWERED if shown and not answered else 0


def _show(submission: Submission, *, follow: bool) -> bool:
    """Prints what a job printed, each piece at once; returns whether its cluster answers."""
    began = datetime.fromtimestamp(submission.time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    print(f"==> {submission.id} ({submission.verb}, {submission.kind}, {began}) <==", flush=True)
    end, error = "\n", None
    try:
        for piece in _pieces(submission, follow=follow):
            print(piece, end="", flush=True)
            end = piece[-1:] or end
    except (ConfigError, ImportError) as caught:
        error = caught
    if end != "\n":
        print(flush=True)
    if error is not None:
        print(f"{submission.id}: {error}", file=sys.stderr)
    return error is None


def _pieces(submission: Submission, *, follow: bool) -> Iterator[str]:
    if submission.kind not in ADAPTORS:
        raise ConfigError(f"via={submission.kind} is none of this version; use the version that submitted it")
    return adaptor_of(submission.kind).logs(submission, follow=follow)
