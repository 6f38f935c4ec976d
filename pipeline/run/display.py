"""What the terminal shows of a run, whether its workers are this process or write to the run folder elsewhere."""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline import storage
from pipeline.errors import PipelineError
from pipeline.run.job import Job
from pipeline.run.ledger import Event, events_tail
from pipeline.run.records import SAMPLED_LOSS, SPEED, Record, records_tail, step_of

log = logging.getLogger(__name__)

FOLLOW_SECONDS = 1.0  # between looks at what workers elsewhere have written
FOLLOW_STORE_SECONDS = 10.0  # where each look is a transfer
PLAIN_SECONDS = 30.0  # between lines where there is no terminal to draw a bar on


class Display:
    """What the terminal shows: a bar where there is one to draw on, else a line now and then.

    Args:
        total_steps, steps_per_epoch: of the run.
        drawn: whether to show anything before the first validation.
    """

    def __init__(self, *, total_steps: int, steps_per_epoch: int, drawn: bool) -> None:
        self._steps_per_epoch = steps_per_epoch
        self._total_steps = total_steps
        self._shown_at = time.perf_counter()
        self._note = ""
        console = Console(file=sys.stderr)  # that of now, whatever is put in its place later
        self._drawn = drawn
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps"),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (drawn and console.is_terminal),
            transient=True,
        )
        self._task = self._bar.add_task("training", total=total_steps, note="")

    def start(self, step: int) -> None:
        """Begins at a step."""
        self._bar.start()
        self._bar.update(self._task, completed=step)

    def stop(self) -> None:
        """Leaves the terminal as it was."""
        self._bar.stop()

    def show(self, step: int, record: Record) -> None:
        """Moves to a step; `record` is empty where the step is not logged."""
        for key, name in (("train/perplexity", "perplexity"), (SAMPLED_LOSS, "sampled loss")):
            if key in record:
                rate = record.get(SPEED) or 0.0
                self._note = f"{name} {_shown(record[key])} at {rate:,.0f} words/s"
        epoch = f"epoch {(step - 1) // self._steps_per_epoch + 1}/{-(-self._total_steps // self._steps_per_epoch)}"
        self._bar.update(self._task, completed=step, description=epoch, note=self._note)
        valid = f"validation perplexity {_shown(record['valid/perplexity'])}" if "valid/perplexity" in record else ""
        quiet_seconds = time.perf_counter() - self._shown_at
        if valid or (self._bar.disable and self._drawn and self._note and quiet_seconds > PLAIN_SECONDS):
            self._shown_at = time.perf_counter()
            parts = [f"step {step}/{self._total_steps}", epoch, self._note, valid]
            log.info("%s", ", ".join(part for part in parts if part))


class Follower:
    """Shows a run whose workers have no terminal, from what they write to the run folder.

    Args:
        run: the run folder.
        display: where to show it.

    Attributes:
        working: whether a group of workers has begun and is not known to be lost.
    """

    def __init__(self, run: str, display: Display) -> None:
        self.display = display
        self.working = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        self._seconds = FOLLOW_SECONDS if storage.is_local(run) else FOLLOW_STORE_SECONDS
        self._events, self._records = events_tail(run), records_tail(run)
        self._time = max((event["time"] for event in self._events.new()), default=0.0)  # of the last event
        self._step = max((step_of(record) for record in self._records.new()), default=0)  # of the last record

    def start(self) -> None:
        """From now on."""
        self._thread.start()

    def stop(self) -> None:
        """Shows what is left."""
        self._ended.set()
        self._thread.join()
        self.display.stop()

    def _follow(self) -> None:
        while not self._ended.wait(self._seconds):
            self.look()
        self.look()

    def look(self) -> None:
        """Shows what is new."""
        try:
            events, records = self._events.new(), self._records.new()
        except PipelineError:
            return  # whoever writes there says so
        for event in events:
            if not self._events.restarted or event["time"] > self._time:  # a ledger that was removed is written anew
                self._show(event)
            self._time = max(self._time, event["time"])
        for record in records:
            if (step := step_of(record)) > self._step:
                self._step = step
                self.display.show(step, record)

    def _show(self, event: Event) -> None:
        match event["event"]:
            case "group":
                self.working, self._step = True, event["step"]
                self.display.start(event["step"])
                workers = "1 worker" if event["world_size"] == 1 else f"{event['world_size']} workers"
                log.info("%s, from step %d", workers, event["step"])
            case "fault":
                self.working = self.working and not event["fatal"]
                who = f"rank {event['rank']}: " if event["kind"] == "worker" and event["rank"] is not None else ""
                log.warning("%s: %s%s", event["kind"], who, event["cause"])
            case "skip":
                log.warning("step %d is passed over", event["step"])


@contextmanager
def following(job: Job) -> Iterator[Follower]:
    """A run folder is shown on the terminal until the context ends."""
    logging_config = job.config.logging
    display = Display(total_steps=job.total_steps, steps_per_epoch=job.steps_per_epoch, drawn=logging_config.progress)
    follower = Follower(job.run, display)
    follower.start()
    try:
        yield follower
    finally:
        follower.stop()


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2f}"
