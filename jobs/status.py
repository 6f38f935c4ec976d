"""`python -m jobs status`: how a run stands, where its time went and what went wrong.

In: `run=FOLDER`, of a run that goes on or has ended. Out: a line, a table and lists, or one JSON object. Refuses a
folder without a ledger. No checkpoint is read: one that has its mark and its size is taken to be whole.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from rich.console import Console
from rich.table import Table

from pipeline.config import RunConfig, given, load
from pipeline.run.account import Account, Failure, account
from pipeline.run.checkpoint import committed_steps, looks_whole
from pipeline.run.ledger import Event, events_of_run


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


def main(arguments: Sequence[str]) -> None:
    """Reads the ledger and prints the account of it."""
    config = load(RunConfig, [each for each in arguments if each != "--json"], name="status")
    run = given("run", config.run)
    events = events_of_run(run)
    found, saved = account(events, now=time.time()), _saved(run, events)
    if "--json" in arguments:
        print(json.dumps(as_json(found, saved)))
        return
    print(_first_line(found, saved))
    Console().print(_table(found))
    print("\n".join(_lines(found)))


def as_json(found: Account, saved: Saved) -> dict[str, object]:
    """The object that `--json` prints; times are unix seconds."""
    return asdict(found) | {"shares": found.shares} | asdict(saved)


def _saved(run: str, events: Sequence[Event]) -> Saved:
    sizes = {event["step"]: event["size_bytes"] for event in events if event["event"] == "checkpoint"}
    steps = committed_steps(run)[::-1]
    whole = (step for step in steps if looks_whole(run, step, size_bytes=sizes.get(step)))
    return Saved(saved_step=steps[0] if steps else None, resumes_from=next(whole, None if steps else 0))


def _first_line(found: Account, saved: Saved) -> str:
    parts = [found.state if found.state != "silent" else f"silent since {_local(found.last_time)}"]
    if found.total_steps:
        parts.append(f"step {found.step}/{found.total_steps} ({found.step / found.total_steps:.1%})")
    else:
        parts.append(f"step {found.step}")
    if found.world_size is not None:
        parts.append(f"world size {found.world_size}")
    return f"{', '.join([*parts, _counted(found.num_attempts, 'attempt')])}; {_going_on(found, saved)}"


def _going_on(found: Account, saved: Saved) -> str:
    """Which step is saved, and what the same command would do."""
    kept = "nothing is saved" if saved.saved_step is None else f"step {saved.saved_step} is saved"
    if saved.resumes_from is None:
        return f"{kept} but damaged, and no other: the same command refuses"
    if saved.resumes_from == 0:
        return f"{kept}: the same command begins anew"
    if saved.resumes_from != saved.saved_step:
        kept += " but damaged"
    if found.total_steps is not None and saved.resumes_from >= found.total_steps:
        return f"{kept}: the same command has nothing to do"
    return f"{kept}: the same command goes on from step {saved.resumes_from}"


def _table(found: Account) -> Table:
    table = Table("time", "share", "seconds")
    for column in table.columns[1:]:
        column.justify = "right"
    for category, share in found.shares.items():
        table.add_row(category, f"{share:.1%}", f"{found.seconds[category]:,.1f}")
    table.add_section()
    table.add_row("wall", "", f"{sum(found.seconds.values()):,.1f}")
    return table


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
