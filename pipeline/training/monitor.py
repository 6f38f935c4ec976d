"""What a run tells: `metrics.jsonl`, the terminal, Weights & Biases.

In: what the module measured. Out: one record for each logged step. `metrics.jsonl` is the truth; a tracker is a copy of
it, and one that fails is dropped with a warning and never stops training.
"""

import json
import logging
import math
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline import storage
from pipeline.config import TrackingConfig
from pipeline.errors import ConfigError
from pipeline.scoring.perplexity import Score
from pipeline.training.ledger import Ledger, read_events
from pipeline.training.module import LanguageModelModule
from pipeline.training.peers import Peers
from pipeline.training.pulse import Pulse, Schedule

log = logging.getLogger(__name__)

Record = dict[str, float | int | None]
METRICS_NAME = "metrics.jsonl"
FOLLOW_SECONDS = 1.0  # between looks at what workers elsewhere have written
PLAIN_SECONDS = 30.0  # between lines where there is no terminal to draw a bar on


def finite(value: float) -> float | None:
    """The value, or None where it is not a finite number, which JSON cannot hold."""
    return value if math.isfinite(value) else None


class MetricsFile:
    """`metrics.jsonl`: one object a line. On a local disk each is there at once; an object store gets them by `commit`.

    A disk that is full is told of once; what could not be written waits, and is written when there is room again.

    Args:
        path: in the run folder.
        last_step: records beyond it belong to steps that are to be made again; they are removed.

    Attributes:
        reached_step: of the last record found, kept or not.
    """

    def __init__(self, path: str, *, last_step: int) -> None:
        found = _whole_lines(path)
        steps = [int(json.loads(line)["step"]) for line in found]
        self.reached_step = max(steps, default=0)
        self._path = path
        self._text = "".join(line for line, step in zip(found, steps, strict=True) if step <= last_step)
        self._unwritten = b""
        self._told = False
        storage.publish_bytes(path, self._text.encode())
        self._file = Path(path).open("ab", buffering=0) if storage.is_local(path) else None  # noqa: SIM115

    def write(self, record: Record) -> None:
        """Adds a record."""
        line = json.dumps(record) + "\n"
        if self._file is None:
            self._text += line
            return
        self._unwritten += line.encode()
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            self._tell(error)

    def commit(self) -> None:
        """Makes what was written so far outlast the machine; a checkpoint is not to be ahead of its records."""
        try:
            if self._file is None:
                storage.publish_bytes(self._path, self._text.encode())
            else:
                os.fsync(self._file.fileno())
        except (OSError, ConfigError) as error:
            self._tell(error)

    def close(self) -> None:
        """No record follows."""
        self.commit()
        if self._file is not None:
            self._file.close()

    def _tell(self, error: Exception) -> None:
        if not self._told:
            log.warning("%s lacks records, training goes on: %s", self._path, error)
        self._told = True


def _whole_lines(path: str) -> list[str]:
    """The lines of a file that end; a kill may have cut the last one."""
    if not storage.exists(path):
        return []
    return [line for line in storage.read_bytes(path).decode().splitlines(keepends=True) if line.endswith("\n")]


class Tracker(Protocol):
    """A dashboard."""

    def log(self, record: Record) -> None:
        """Takes a record."""

    def finish(self) -> None:
        """No record follows."""


class NoTracker:
    """No dashboard."""

    def log(self, record: Record) -> None:
        """Passes the record over."""

    def finish(self) -> None:
        """Nothing to finish."""


class WandbTracker:
    """Weights & Biases, with `tokens_seen` as the axis: a resumed run may see a step twice, a token count is a place.

    Args:
        tracking: the section.
        run: the run folder; wandb's own files go there.
        config: what the run's page shows as its configuration.
    """

    def __init__(self, tracking: TrackingConfig, *, run: str, config: dict[str, Any]) -> None:
        import wandb

        mode = tracking.mode
        if mode == "auto":
            mode = "online" if wandb.login(prompt=False) else "offline"
        self._run = wandb.init(
            project=tracking.project,
            name=Path(run).name,
            id=_tracking_id(run),
            dir=run if storage.is_local(run) else tempfile.mkdtemp(prefix="wandb-"),
            mode=mode,
            resume="allow" if mode == "online" else None,
            config=config,
            settings=wandb.Settings(console="off", silent=True, disable_git=True),
        )
        self._run.define_metric("tokens_seen")
        self._run.define_metric("*", step_metric="tokens_seen")

    def log(self, record: Record) -> None:
        """Sends a record."""
        self._run.log({key: value for key, value in record.items() if value is not None})

    def finish(self) -> None:
        """Flushes what is on the way."""
        self._run.finish()


def _tracking_id(run: str) -> str:
    """The run's name on the dashboard's side: the same for every attempt."""
    path = storage.join(run, "tracking-id")
    if not storage.exists(path):
        storage.publish_bytes(path, uuid.uuid4().hex[:8].encode())
    return storage.read_bytes(path).decode()


class GuardedTracker:
    """A tracker whose failures end in a warning: after the first it is left alone."""

    def __init__(self, start: Callable[[], Tracker], *, on_failure: Callable[[str], None] = lambda cause: None) -> None:
        self._on_failure = on_failure
        self._tracker: Tracker = NoTracker()
        self._guarded(lambda: setattr(self, "_tracker", start()))

    def log(self, record: Record) -> None:
        """Passes a record on."""
        self._guarded(lambda: self._tracker.log(record))

    def finish(self) -> None:
        """No record follows."""
        self._guarded(self._tracker.finish)

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 whatever a tracker raises, training goes on; it is told below
            log.warning("tracking stops, training goes on: %s: %s", type(error).__name__, error)
            self._tracker = NoTracker()
            self._on_failure(f"{type(error).__name__}: {' '.join(str(error).split())}")


class Stopwatch:
    """Tokens per second of the time that it ran."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """From zero, running."""
        self._num_tokens, self._seconds, self._since = 0, 0.0, time.perf_counter()

    def pause(self) -> None:
        """What follows does not count until `go_on`."""
        self._seconds += time.perf_counter() - self._since

    def go_on(self) -> None:
        """Counts again."""
        self._since = time.perf_counter()

    def add_tokens(self, num_tokens: int) -> None:
        """Counts tokens of a step."""
        self._num_tokens += num_tokens

    def tokens_per_second(self) -> float:
        """The rate since it was last asked for; begins anew."""
        self.pause()
        rate = self._num_tokens / max(self._seconds, 1e-9)
        self.restart()
        return rate


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
            rate = record["speed/tokens_per_second"] or 0.0
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
        self._num_records = len(_whole_lines(storage.join(run, METRICS_NAME)))
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
        while not self._ended.wait(FOLLOW_SECONDS):
            self._look()
        self._look()

    def _look(self) -> None:
        events = read_events(self.run)
        for event in events[self._num_events :]:
            self._tell(event)
        self._num_events = len(events)
        records = [json.loads(line) for line in _whole_lines(storage.join(self.run, METRICS_NAME))]
        for record in records[self._num_records :]:
            self.display.show(record["step"], record)
        self._num_records = len(records)

    def _tell(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "group":
                self.display.start(event["step"])
                workers = "1 worker" if event["world_size"] == 1 else f"{event['world_size']} workers"
                log.info("%s, from step %d", workers, event["step"])
                records = _whole_lines(storage.join(self.run, METRICS_NAME))
                self._num_records = sum(json.loads(line)["step"] <= event["step"] for line in records)
            case "fault":
                who = f"rank {event['rank']}: " if event["kind"] == "worker" and event["rank"] is not None else ""
                log.warning("%s: %s%s", event["kind"], who, event["cause"])
            case "skip":
                log.warning("step %d is passed over", event["step"])


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2f}"


@dataclass(frozen=True, kw_only=True)
class Reporter:
    """Where the first rank tells things: records, the dashboard, the terminal, the ledger."""

    metrics: MetricsFile
    tracker: GuardedTracker
    display: Display
    ledger: Ledger

    def close(self) -> None:
        """Nothing follows."""
        self.display.stop()
        self.metrics.close()
        self.tracker.finish()


class Monitor(Callback):
    """Validates where it is due, and records: every N steps, and each validation. The first rank does both.

    Args:
        schedule: when something is due.
        peers: the ranks.
        pulse: what the ranks agreed on in this step.
        validate: scores the validation split; None if there is none.
        reporter: of the first rank; None on the others.
    """

    def __init__(
        self,
        *,
        schedule: Schedule,
        peers: Peers,
        pulse: Pulse,
        validate: Callable[[], Score] | None,
        reporter: Reporter | None,
    ) -> None:
        self.schedule = schedule
        self.peers = peers
        self.pulse = pulse
        self.validate = validate
        self.reporter = reporter
        self.watch = Stopwatch()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self.watch.restart()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Records the step if it is due."""
        if self.pulse.bad is not None:
            return
        module = cast(LanguageModelModule, pl_module)
        step = trainer.global_step
        self.watch.add_tokens(batch.num_targets)
        record: Record = {}
        if self.schedule.logs(step):
            record |= self._train_record(module)
        if self.validate is not None and self.schedule.validates(step):
            record |= self._validation_record(step, module, self.validate)
        if self.reporter is None:
            return
        if record:
            tokens_seen, epoch = module.plan.tokens_seen(step), module.plan.position(step - 1)[0]
            record = {"step": step, "tokens_seen": tokens_seen, "epoch": epoch} | record
            self.reporter.metrics.write(record)
            self.reporter.tracker.log(record)
        self.reporter.display.show(step, record)

    def _train_record(self, module: LanguageModelModule) -> Record:
        nats, num_targets = module.interval_nats, module.interval_targets
        module.interval_nats, module.interval_targets = 0.0, 0
        score = Score(total_nats=nats if num_targets else math.nan, num_targets=num_targets or 1)
        return {
            "train/nats_per_token": finite(score.nats_per_token),
            "train/perplexity": finite(score.perplexity),
            "train/gradient_norm": finite(float(module.gradient_norm)),
            "train/learning_rate": module.trainer.optimizers[0].param_groups[0]["lr"],
            "speed/tokens_per_second": self.watch.tokens_per_second(),
        }

    def _validation_record(self, step: int, module: LanguageModelModule, validate: Callable[[], Score]) -> Record:
        """One rank scores, since all must go on with the same number, and it is told to the others."""
        self.watch.pause()
        with self.pulse.unwatched():
            began = time.perf_counter()
            score = self.peers.from_first(validate() if self.peers.first else None)
            seconds = time.perf_counter() - began
        assert score is not None
        module.validations[step] = score.nats_per_token
        if self.reporter is not None:
            self.reporter.ledger.write("validation", step=step, seconds=seconds)
        self.watch.go_on()
        return {
            "valid/nats_per_token": finite(score.nats_per_token),
            "valid/perplexity": finite(score.perplexity),
        }
