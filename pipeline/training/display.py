"""What the terminal shows of a run, whether its workers are this process or write to the run folder elsewhere."""

import logging
import threading
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline import storage
from pipeline.errors import PipelineError
from pipeline.run.ledger import read_events
from pipeline.run.records import METRICS_NAME, Record, read_records, step_of

log = logging.getLogger(__name__)

FOLLOW_SECONDS = 1.0  # between looks at what workers elsewhere have written
FOLLOW_STORE_SECONDS = 10.0  # where each look is a transfer
FOLLOW_REST = 10.0  # times as long as a look takes: that of a run of weeks reads megabytes
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
        self._told = time.perf_counter()
        self._note = ""
        console = Console(stderr=True)
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
        if "train/perplexity" in record:
            rate = record.get("speed/tokens_per_second") or 0.0
            self._note = f"perplexity {_shown(record['train/perplexity'])} at {rate:,.0f} words/s"
        epoch = f"epoch {(step - 1) // self._steps_per_epoch + 1}/{-(-self._total_steps // self._steps_per_epoch)}"
        self._bar.update(self._task, completed=step, description=epoch, note=self._note)
        valid = f"validation perplexity {_shown(record['valid/perplexity'])}" if "valid/perplexity" in record else ""
        quiet_seconds = time.perf_counter() - self._told
        if valid or (self._bar.disable and self._drawn and self._note and quiet_seconds > PLAIN_SECONDS):
            self._told = time.perf_counter()
            parts = [f"step {step}/{self._total_steps}", epoch, self._note, valid]
            log.info("%s", ", ".join(part for part in parts if part))


class Follower:
    """Shows a run whose workers have no terminal, from what they write to the run folder.

    Args:
        run: the run folder.
        display: where to show it.
    """

    def __init__(self, run: str, display: Display) -> None:
        self.run = run
        self.display = display
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)
        self._seconds = FOLLOW_SECONDS if storage.is_local(run) else FOLLOW_STORE_SECONDS
        self._num_records = len(self._records())
        self._num_events = len(read_events(run))

    def start(self) -> None:
        """From now on."""
        self._thread.start()

    def stop(self) -> None:
        """Shows what is left."""
        self._ended.set()
        self._thread.join()
        self.display.stop()

    def _follow(self) -> None:
        seconds = self._seconds
        while not self._ended.wait(seconds):
            began = time.perf_counter()
            self._look()
            seconds = max(self._seconds, FOLLOW_REST * (time.perf_counter() - began))
        self._look()

    def _look(self) -> None:
        try:
            events, records = read_events(self.run), self._records()
        except PipelineError:
            return  # whoever writes there tells of it
        for event in events[self._num_events :]:
            self._tell(event, records)
        self._num_events = max(self._num_events, len(events))  # a ledger that is gone may come back
        for record in records[self._num_records :]:
            self.display.show(step_of(record), record)
        self._num_records = len(records)

    def _records(self) -> list[Record]:
        return read_records(storage.join(self.run, METRICS_NAME))

    def _tell(self, event: dict[str, Any], records: list[Record]) -> None:
        match event["event"]:
            case "group":
                self.display.start(event["step"])
                workers = "1 worker" if event["world_size"] == 1 else f"{event['world_size']} workers"
                log.info("%s, from step %d", workers, event["step"])
                self._num_records = sum(step_of(record) <= event["step"] for record in records)
            case "fault":
                who = f"rank {event['rank']}: " if event["kind"] == "worker" and event["rank"] is not None else ""
                log.warning("%s: %s%s", event["kind"], who, event["cause"])
            case "skip":
                log.warning("step %d is passed over", event["step"])


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2f}"
