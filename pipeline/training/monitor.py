"""What a run tells, while it trains: to `metrics.jsonl`, the terminal, Weights & Biases.

In: what the module measured. Out: one record for each logged step. `metrics.jsonl` is the truth; a tracker is a copy of
it, and one that fails is dropped with a warning and never stops training.
"""

import logging
import math
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from pipeline import storage
from pipeline.config import TrackingConfig
from pipeline.scoring.perplexity import Score, finite
from pipeline.training.display import Display
from pipeline.training.ledger import Ledger
from pipeline.training.module import LanguageModelModule
from pipeline.training.peers import Peers
from pipeline.training.pulse import Pulse, Schedule
from pipeline.training.records import MetricsFile, Record

log = logging.getLogger(__name__)


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
        if self.reporter is not None and not math.isfinite(score.nats_per_token):
            log.warning("validation at step %d is not finite (%s): it is never the best", step, score.nats_per_token)
        if self.reporter is not None:
            self.reporter.ledger.write("validation", step=step, seconds=seconds)
        self.watch.go_on()
        return {
            "valid/nats_per_token": finite(score.nats_per_token),
            "valid/perplexity": finite(score.perplexity),
        }
