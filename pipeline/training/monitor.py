"""What a run tells, while it trains: to `metrics.jsonl`, the terminal, Weights & Biases.

In: what the module measured. Out: one record for each logged step. `metrics.jsonl` is the truth; a tracker is a copy of
it, and one that fails is dropped with a warning and never stops training.
"""

import logging
import math
import shlex
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from pipeline import storage
from pipeline.config import TrackingConfig
from pipeline.run.display import Display
from pipeline.run.ledger import Ledger
from pipeline.run.records import MetricsFile, Record
from pipeline.run.tracking import sync_line, tracking_id
from pipeline.scoring.perplexity import Score, finite
from pipeline.training.collectives import Collectives
from pipeline.training.module import LanguageModelModule
from pipeline.training.sync import Cadence, Sync

log = logging.getLogger(__name__)

PROJECT = "wordlanes"  # on the dashboard, where nobody names another
SERVER_SECONDS = 60.0  # for its server, at a run's start and at its end


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

    What the configuration leaves null is wandb's own to find, from WANDB_MODE, WANDB_PROJECT and the like or from its
    settings files; without a mode it is online if a key is configured. Identity and folder are always the run's.
    Where the server does not answer, records are kept offline, for `wandb sync` to send later.

    Args:
        tracking: the section.
        run: the run folder; wandb's own files go there.
        config: what the run's page shows as its configuration.
        report: told why records that were to be sent are kept offline.
    """

    def __init__(
        self, tracking: TrackingConfig, *, run: str, config: dict[str, Any], report: Callable[[str], None]
    ) -> None:
        import wandb

        quiet = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            init_timeout=SERVER_SECONDS,
            finish_timeout=SERVER_SECONDS,
            finish_timeout_raises=True,
        )
        settings = wandb.setup(quiet).settings
        mode = tracking.mode or (settings.mode if "mode" in settings.model_fields_set else None)
        self._elsewhere: str | None = None
        if mode == "disabled":
            self._run = wandb.init(mode=mode)
            return
        if not storage.is_local(run):
            self._elsewhere = tempfile.mkdtemp(prefix="wandb-")

        def start(mode: Any) -> wandb.Run:  # one of wandb's words
            return wandb.init(
                project=tracking.project or settings.project or PROJECT,
                name=settings.run_name or Path(run).name,
                id=tracking_id(run),
                dir=self._elsewhere or run,
                mode=mode,
                resume="allow",  # offline too: else each part of a run would be sent as if it were the first
                config=config,
                settings=quiet,
            )

        started = None
        if mode not in ("offline", "dryrun"):
            try:
                if wandb.login(prompt=False):
                    started = start(mode or "online")
                elif mode is not None:
                    report("records are kept offline: no key of Weights & Biases is configured")
            except wandb.Error as error:
                report(f"records are kept offline: {' '.join(str(error).split())}")
                _leave_service()  # what has failed still holds the identity (wandb#9865)
        self._run = started or start("offline")
        self._run.define_metric("tokens_seen")
        self._run.define_metric("*", step_metric="tokens_seen")

    def log(self, record: Record) -> None:
        """Sends a record."""
        self._run.log({key: value for key, value in record.items() if value is not None})

    def finish(self) -> None:
        """Flushes what is on the way.

        Raises:
            TimeoutError: the server does not take it; names the command that sends it later.
        """
        try:
            self._run.finish()
        except TimeoutError as error:
            _leave_service()
            raise TimeoutError(
                f"not all is sent yet; `wandb sync {shlex.quote(self._run.sync_dir)}` does it"
            ) from error
        if self._elsewhere is not None and (line := sync_line(self._elsewhere, identity=self._run.id)):
            log.info("%s", line)


def _leave_service() -> None:
    """Ends wandb's process; one that does not end is left alone, and ends with this process, which it watches."""
    import wandb

    ending = threading.Thread(target=wandb.teardown, name="wandb-teardown", daemon=True)
    ending.start()
    ending.join(SERVER_SECONDS)


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
        cadence: when something is due.
        ranks: the ranks.
        sync: what the ranks agreed on in this step.
        validate: scores the validation split; None if there is none.
        reporter: of the first rank; None on the others.
    """

    def __init__(
        self,
        *,
        cadence: Cadence,
        ranks: Collectives,
        sync: Sync,
        validate: Callable[[], Score] | None,
        reporter: Reporter | None,
    ) -> None:
        self.cadence = cadence
        self.ranks = ranks
        self.sync = sync
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
        if self.sync.bad is not None:
            return
        module = cast(LanguageModelModule, pl_module)
        step = trainer.global_step
        self.watch.add_tokens(batch.num_targets)
        record: Record = {}
        if self.cadence.logs(step):
            record |= self._train_record(module)
        if self.validate is not None and self.cadence.validates(step):
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
        nats, num_targets = module.state.end_interval()
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
        with self.sync.unwatched():
            began = time.perf_counter()
            score = self.ranks.from_first(validate() if self.ranks.first else None)
            seconds = time.perf_counter() - began
        assert score is not None
        module.state.validations[step] = score.nats_per_token
        if self.reporter is not None and not math.isfinite(score.nats_per_token):
            log.warning("validation at step %d is not finite (%s): it is never the best", step, score.nats_per_token)
        if self.reporter is not None:
            self.reporter.ledger.write("validation", step=step, seconds=seconds)
        self.watch.go_on()
        return {
            "valid/nats_per_token": finite(score.nats_per_token),
            "valid/perplexity": finite(score.perplexity),
        }
