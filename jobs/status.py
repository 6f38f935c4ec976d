"""`python -m jobs status`: how a run stands, where its time went and what went wrong; of a folder of runs, a table.

In: `run=FOLDER`, of a run that waits, goes on or has ended, or of such folders. Out: lines and tables, or JSON: an
object, of a folder of runs a list of them. Refuses a folder that holds neither. No checkpoint is read: one that has its
mark and its size is taken to be whole.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.config import RunConfig, given, load
from pipeline.errors import ConfigError
from pipeline.masking import last_name
from pipeline.run.account import Account, Failure
from pipeline.run.ledger import events_of_run
from pipeline.submission.overview import Measured, Overview, Saved, overview, overviews, runs_in
from pipeline.submission.standing import shown_seconds

CAUSE_LENGTH = 60  # characters of a failure's cause in a table
COLUMNS = ("run", "state", "step", "saved", "perplexity", "words/s", "goodput", "saved ago", "left", "last failure")
PIPE_WIDTH = 1000  # so that rows stay whole where there is no terminal
NUM_TEXTS = 2  # columns at the left that hold text


def main(arguments: Sequence[str]) -> None:
    """Reads what there is and prints it."""
    config = load(RunConfig, [each for each in arguments if each != "--json"], name="status")
    folder = given("run", config.run)
    if (shown := overview(folder)) is not None:
        print(json.dumps(as_json(shown))) if "--json" in arguments else _print_run(shown)
        return
    runs = runs_in(folder)
    if not runs:
        events_of_run(folder)  # refuses it
    found = sorted(zip(runs, overviews(runs), strict=True), key=_activity, reverse=True)
    if "--json" in arguments:
        print(json.dumps([_row_as_json(run, each) for run, each in found]))
    else:
        _console().print(_table_of_runs(found))


def as_json(shown: Overview) -> dict[str, object]:
    """The object that `--json` prints; times are unix seconds."""
    job, submission = shown.job, shown.submission
    return {
        **asdict(shown.found),
        "shares": shown.found.shares,
        **asdict(shown.saved),
        **asdict(shown.standing),
        **asdict(shown.measured),
        "last_time": shown.last_time,
        "goodput": shown.goodput,
        "checkpoint_age_seconds": shown.checkpoint_age_seconds,
        "seconds_left": shown.seconds_left,
        "last_failure": shown.last_failure and asdict(shown.last_failure),
        "submission": submission and {**asdict(submission), "job": job and asdict(job)},
        "plan": [row._asdict() for row in shown.plan],
    }


def _row_as_json(run: str, shown: Overview | ConfigError) -> dict[str, object]:
    about: dict[str, object] = {"run": run, "name": last_name(run)}
    if isinstance(shown, ConfigError):
        return about | {"state": None, "error": str(shown)}
    return about | {"error": None} | as_json(shown)


def _activity(each: tuple[str, Overview | ConfigError]) -> float:
    return each[1].last_time if isinstance(each[1], Overview) else 0.0


def _print_run(shown: Overview) -> None:
    print(_first_line(shown))
    if line := ", ".join(_numbers(shown)):
        print(line)
    if shown.submission is not None:
        print(_submission(shown))
    if shown.plan:
        _console().print(_plan(shown))
    if shown.found.num_attempts:
        _console().print(_table(shown.found))
        print("\n".join(_lines(shown.found)))


def _console() -> Console:
    """A terminal, or whole lines where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)


def _first_line(shown: Overview) -> str:
    found, where = shown.found, shown.standing
    state = f"{where.state} ({where.reason})" if where.reason else where.state
    if not found.num_attempts:
        return state
    parts = [state, f"step {_step(found)}{_share(found)}"]
    if found.world_size is not None:
        parts.append(f"world size {found.world_size}")
    return f"{', '.join([*parts, _counted(found.num_attempts, 'attempt')])}; {_going_on(found, shown.saved)}"


def _step(found: Account) -> str:
    return f"{found.step}/{found.total_steps}" if found.total_steps else str(found.step)


def _share(found: Account) -> str:
    return f" ({found.step / found.total_steps:.1%})" if found.total_steps else ""


def _going_on(found: Account, saved: Saved) -> str:
    """Which step is saved, and what the same command would do."""
    kept = "nothing is saved" if saved.saved_step is None else f"step {saved.saved_step} is saved"
    if saved.resumes_from is None:
        return f"{kept} but damaged, and no other: the same command refuses"
    if saved.saved_step is None and saved.resumes_from == 0:
        return f"{kept}: the same command begins anew"
    if saved.resumes_from != saved.saved_step:
        kept += " but damaged"
    if found.total_steps is not None and saved.resumes_from >= found.total_steps:
        return f"{kept}: the same command has nothing to do"
    return f"{kept}: the same command goes on from step {saved.resumes_from}"


def _numbers(shown: Overview) -> Iterable[str]:
    """What is measured, each with its name; what is not known is left out."""
    measured = shown.measured
    if measured.perplexity_of is not None:
        yield f"perplexity {_perplexity(measured)} ({measured.perplexity_of}, step {measured.perplexity_step})"
    if measured.words_per_second is not None:
        yield f"{measured.words_per_second:,.0f} words/s"
    if shown.goodput is not None:
        yield f"goodput {shown.goodput:.1%}"
    if shown.checkpoint_age_seconds is not None:
        yield f"last checkpoint {shown_seconds(shown.checkpoint_age_seconds)} ago"
    if shown.seconds_left is not None:
        yield f"{shown_seconds(shown.seconds_left)} left"


def _perplexity(measured: Measured) -> str:
    return "not finite" if measured.perplexity is None else f"{measured.perplexity:.2f}"


def _submission(shown: Overview) -> str:
    submission, job = shown.submission, shown.job
    assert submission is not None
    name = f": {job.name}" if job is not None and job.name else ""
    return f"submitted as {submission.id} ({submission.kind}{name}), {_local(submission.time)}"


def _plan(shown: Overview) -> Table:
    table = Table("plan", "planned", "so far")
    for row in shown.plan:
        table.add_row(row.name, row.planned, row.fact)
    return table


def _table(found: Account) -> Table:
    table = Table("time", "share", "seconds")
    for column in table.columns[1:]:
        column.justify = "right"
    for category, share in found.shares.items():
        table.add_row(category, f"{share:.1%}", f"{found.seconds[category]:,.1f}")
    table.add_section()
    table.add_row("wall", "", f"{sum(found.seconds.values()):,.1f}")
    return table


def _table_of_runs(found: Sequence[tuple[str, Overview | ConfigError]]) -> Table:
    table = Table(*COLUMNS)
    for column in table.columns[NUM_TEXTS:-1]:
        column.justify = "right"
    for run, shown in found:
        table.add_row(*(Text(cell) for cell in _cells(run, shown)))
    return table


def _cells(run: str, shown: Overview | ConfigError) -> list[str]:
    if isinstance(shown, ConfigError):
        return [last_name(run), "cannot be read", *[""] * (len(COLUMNS) - 3), str(shown)]
    begun, measured, failure = shown.found.num_attempts > 0, shown.measured, shown.last_failure
    where, ago, left = shown.standing, shown.checkpoint_age_seconds, shown.seconds_left
    return [
        shown.name,
        f"{where.state} ({where.reason})" if where.reason else where.state,
        _step(shown.found) if begun else "",
        "" if shown.saved.saved_step is None else str(shown.saved.saved_step),
        "" if measured.perplexity_of is None else _perplexity(measured),
        "" if measured.words_per_second is None else f"{measured.words_per_second:,.0f}",
        "" if shown.goodput is None else f"{shown.goodput:.1%}",
        "" if ago is None else shown_seconds(ago),
        "" if left is None else shown_seconds(left),
        "" if failure is None else f"{failure.kind}: {_shortened(failure.cause)}",
    ]


def _shortened(cause: str) -> str:
    line = " ".join(cause.split())
    return line if len(line) <= CAUSE_LENGTH else f"{line[: CAUSE_LENGTH - 1]}…"


def _lines(found: Account) -> list[str]:
    """What is counted, a line each; below it a line for each skip, failure and resize."""
    return [
        f"checkpoints: {found.num_checkpoints}, {found.checkpoint_seconds:,.1f} s in all,"
        f" {found.largest_checkpoint_seconds:,.1f} s at most",
        f"replayed: {_counted(found.tokens_replayed, 'token')} in {_counted(found.steps_replayed, 'step')}",
        f"skipped: {_counted(found.tokens_skipped, 'token')} in {_counted(len(found.skips), 'window')}",
        *(
            f"  {_local(skip['time'])}  step {skip['step']}, epoch {skip['epoch']}, window {skip['window']}:"
            f" {_counted(skip['num_tokens'], 'token')}"
            for skip in found.skips
        ),
        f"failures: {len(found.failures)}",
        *(_failure(failure) for failure in found.failures),
        f"resizes: {len(found.resizes)}",
        *(
            f"  {_local(resize['time'])}  from {resize['from_size']} to {resize['to_size']} workers"
            for resize in found.resizes
        ),
    ]


def _failure(failure: Failure) -> str:
    rank = "" if failure.rank is None else f", rank {failure.rank}"
    went_on = "" if failure.fatal else ", training went on"
    cause = " ".join(failure.cause.split())
    return f"  {_local(failure.time)}  step {failure.step}, {failure.kind}{rank}{went_on}: {cause}"


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _local(time_seconds: float) -> str:
    return datetime.fromtimestamp(time_seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
