"""What a run tells, while it trains: to `metrics.jsonl`, the terminal, Weights & Biases, Prometheus.

In: what the module measured. Out: one record for each logged step. `metrics.jsonl` is the truth; all else is a copy of
it.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from pipeline.run.account import Standing
from pipeline.run.display import Display
from pipeline.run.gauges import Gauges
from pipeline.run.ledger import Ledger
from pipeline.run.records import SAMPLED_LOSS, SPEED, MetricsFile, Record
from pipeline.scoring.perplexity import Score, finite
from pipeline.training.collectives import Collectives
from pipeline.training.dashboards import GuardedTracker, Reference
from pipeline.training.module import LanguageModelModule
from pipeline.training.sync import Cadence, Sync

log = logging.getLogger(__name__)


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
    """Where the first rank tells things: records, dashboards, the terminal, the ledger.

    Attributes:
        standing: what the ledger tells of the run so far.
        attempt: number of this call of the command.
        kept: where the checkpoints lie, at the end.
    """

    metrics: MetricsFile
    tracker: GuardedTracker
    gauges: Gauges
    display: Display
    ledger: Ledger
    standing: Standing
    attempt: int
    kept: Callable[[], Reference | None]

    def place(self) -> Record:
        """What the ledger adds to a record."""
        now = time.time()
        return {
            "run/goodput": self.standing.goodput(now=now),
            "run/attempt": self.attempt,
            "run/checkpoint_age_seconds": max(0.0, now - self.standing.unsaved_since()),
        }

    def close(self) -> None:
        """Nothing follows."""
        self.display.stop()
        self.gauges.close()
        self.metrics.close()
        self.tracker.refer(self.kept)
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
        """Starts the clock, and tells that a group of workers trains."""
        self.watch.restart()
        self._show_place(cast(LanguageModelModule, pl_module), trainer.global_step, {})

    def _show_place(self, module: LanguageModelModule, step: int, record: Record) -> None:
        if self.reporter is not None:
            self.reporter.gauges.show(step, record, tokens_seen=module.plan.tokens_seen(step))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Records the step if it is due."""
        if self.sync.bad is not None:
            if self.reporter is not None:
                self.reporter.tracker.alert("bad loss", self.sync.bad[1])
            return
        module = cast(LanguageModelModule, pl_module)
        step = trainer.global_step
        self.watch.add_tokens(batch.num_targets)
        record: Record = {}
        num_targets = None
        if self.cadence.logs(step):
            nats, num_targets = module.state.end_interval()
            record |= self._train_record(module, nats, num_targets)
        if self.validate is not None and self.cadence.validates(step):
            record |= self._validation_record(step, module, self.validate)
        if self.reporter is None:
            return
        if record:
            tokens_seen, epoch = module.plan.tokens_seen(step), module.plan.position(step - 1)[0]
            record = {"step": step, "tokens_seen": tokens_seen, "epoch": epoch} | record | self.reporter.place()
            self.reporter.metrics.write(record)
            self.reporter.tracker.log(record)
        self.reporter.display.show(step, record)
        self._show_place(module, step, _without_loss(record) if num_targets == 0 else record)

    def _train_record(self, module: LanguageModelModule, nats: float, num_targets: int) -> Record:
        score = Score(total_nats=nats if num_targets else math.nan, num_targets=num_targets or 1)
        losses: Record = {
            "train/nats_per_token": finite(score.nats_per_token),
            "train/perplexity": finite(score.perplexity),
        }
        by_cluster = _by_cluster(module.model.softmax.clusters, module.state.end_cluster_interval())
        if not module.model.softmax.loss_is_exact:
            losses, by_cluster = {SAMPLED_LOSS: finite(score.nats_per_token)}, {}
        return {
            **losses,
            "train/gradient_norm": finite(float(module.gradient_norm)),
            "train/learning_rate": module.trainer.optimizers[0].param_groups[0]["lr"],
            SPEED: self.watch.tokens_per_second(),
            **by_cluster,
        }

    def _validation_record(self, step: int, module: LanguageModelModule, validate: Callable[[], Score]) -> Record:
        """One rank scores, since all must go on with the same number, and it is told to the others."""
        self.watch.pause()
        with self.sync.unwatched(), module.evaluated():
            began = time.perf_counter()
            score = self.ranks.from_first(validate() if self.ranks.first else None)
            seconds = time.perf_counter() - began
        assert score is not None
        module.state.validations[step] = score.nats_per_token
        if self.reporter is not None and not math.isfinite(score.nats_per_token):
            log.warning("validation at step %d is not finite (%s): it is never the best", step, score.nats_per_token)
        if self.reporter is not None:
            self.reporter.ledger.write("validation", step=step, seconds=seconds)
        if self.reporter is not None and step == module.averages_from():
            log.info("validations get worse: averaging the weights from step %d on", step)
        self.watch.go_on()
        return {
            "valid/nats_per_token": finite(score.nats_per_token),
            "valid/perplexity": finite(score.perplexity),
        }


def _without_loss(record: Record) -> Record:
    """A record of windows that were all passed over: its loss is null for want of targets, and no bad one."""
    losses = ("train/nats_per_token", "train/perplexity", SAMPLED_LOSS)
    return {key: value for key, value in record.items() if key not in losses}


def _by_cluster(clusters: Sequence[str], sums: Sequence[tuple[float, int]]) -> Record:
    """Nats of a target and share of the targets of each cluster of the softmax; no nats where it had no targets.

    Args:
        clusters: their names.
        sums: (nats, targets) of each; empty if no step was made.
    """
    total = sum(num_targets for _, num_targets in sums) or 1
    record: Record = {}
    for name, (nats, num_targets) in zip(clusters, sums, strict=bool(sums)):
        if num_targets:
            record[f"train/cluster_nats/{name}"] = finite(nats / num_targets)
        record[f"train/cluster_share/{name}"] = num_targets / total
    return record
