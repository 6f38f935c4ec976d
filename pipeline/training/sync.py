"""What the ranks agree on while they train: are the losses sound, is it time to save, is the run to stop.

In: the losses of the steps, requests to stop, clocks. Out: the same answer on every rank, about once a second and
wherever a record, a validation or a checkpoint is due. Between these, no step waits for a device or for another rank.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from pipeline.config import GuardConfig
from pipeline.run.ledger import Ledger
from pipeline.run.stop import SIGNALS, USER, StopSignals
from pipeline.training.losswatch import LossWatch
from pipeline.training.module import LanguageModelModule, Measured
from pipeline.training.watchdog import Watchdog

log = logging.getLogger(__name__)

SETTLE_SECONDS = 1.0  # between two agreements
MOST_STEPS = 1000  # between two agreements, whatever the clock says
PROGRESS_SECONDS = 10.0  # between two signs of life in the ledger
NOTICE_SECONDS = 5.0  # between two questions whether a machine is about to be taken away
LOST = "lost"  # the run folder was: what can be saved is saved elsewhere
CAUSES = (*SIGNALS, USER, LOST)


@dataclass(frozen=True, kw_only=True)
class Cadence:
    """In which steps something is due.

    Attributes:
        log_every, save_every, validate_every: steps between.
        total_steps: of the run; its end is validated and saved too.
    """

    log_every: int
    save_every: int
    validate_every: int
    total_steps: int

    def logs(self, step: int) -> bool:
        """Whether the step is recorded."""
        return step % self.log_every == 0

    def saves(self, step: int) -> bool:
        """Whether a checkpoint stands at the step, whatever else calls for one."""
        return step % self.save_every == 0

    def validates(self, step: int) -> bool:
        """Whether the validation split is scored after the step."""
        return step % self.validate_every == 0 or step == self.total_steps

    def anything(self, step: int) -> bool:
        """Whether the ranks must have judged all losses up to the step."""
        return self.logs(step) or self.saves(step) or self.validates(step)


@dataclass(frozen=True, kw_only=True)
class Suspicion:
    """Steps to pass over when they are made again, unless an update before them turns out to be to blame.

    A loss that is not finite may come of an update long before it: of a row of the embedding that nobody read since.
    So all is judged after each step that comes before these.

    Attributes:
        steps: rising.
        why: what was found.
    """

    steps: tuple[int, ...]
    why: str


class Host(Protocol):
    """What a rank asks of where it stands."""

    def stop_cause(self) -> str | None:
        """One of CAUSES if the run is to stop; each rank asks, and one that knows of it is enough."""

    def preempted(self) -> bool:
        """Whether a machine of the run is about to be taken away; all ranks ask together."""


class Sync(Callback):
    """Stands first among the callbacks; the others read what it found.

    Args:
        cadence: where the ranks must agree in any case.
        guard: the section.
        host: where this rank stands.
        save_seconds: between checkpoints; None: by steps alone.
        reached_step: steps up to this one were made before, and are made again now.
        suspicion: steps that may have to be passed over; None: none.
        ledger: of the first rank; None on the others.
        watchdog: told of each step; None: nobody watches.

    Attributes:
        bad: (step, why) of the first step that is bad.
        stop: one of CAUSES, why the run stops after this step.
        save: why a checkpoint is to be written now: `time` or `notice`.
    """

    def __init__(
        self,
        *,
        cadence: Cadence,
        guard: GuardConfig,
        host: Host,
        save_seconds: float | None,
        reached_step: int,
        suspicion: Suspicion | None = None,
        ledger: Ledger | None,
        watchdog: Watchdog | None,
    ) -> None:
        self.cadence = cadence
        self.guard = guard
        self.host = host
        self.save_seconds = save_seconds
        self.reached_step = reached_step
        self.suspicion = suspicion
        self.ledger = ledger
        self.watchdog = watchdog
        self.bad: tuple[int, str] | None = None
        self.stop: str | None = None
        self.save: str | None = None
        self._signals = StopSignals()
        self._losses = LossWatch(deviations=None, window_steps=1)
        self._next_step = 0
        self._noticed = False
        self._steps_again, self._seconds_again = 0, 0.0
        self._batch_began = self._settled = self._saved = self._progress_at = self._asked_notice = time.perf_counter()
        self._asked = 0.0
        self._settled_step = 0

    def listen(self) -> None:
        """From now on a signal is a request to stop after a step."""
        self._signals.catch()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to count and to watch."""
        module = cast(LanguageModelModule, pl_module)
        self._losses = LossWatch(
            deviations=self.guard.spike_deviations,
            window_steps=self.guard.spike_window_steps,
            history=module.state.loss_history,
        )
        self._next_step, self._settled_step = trainer.global_step + 1, trainer.global_step
        self._settled = self._saved = self._progress_at = time.perf_counter()
        if self.ledger is not None:
            self.ledger.write("training", step=trainer.global_step)
        if self.watchdog is not None:
            self.watchdog.start(trainer.global_step)
        self._pass_over(module, trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Notes that the step has its data."""
        self._batch_began = time.perf_counter()
        if self.watchdog is not None:
            self.watchdog.mark(trainer.global_step, "computing")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        """Notes that what follows waits for the other ranks."""
        if self.watchdog is not None:
            self.watchdog.mark(trainer.global_step, "exchanging")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Agrees with the others if it is time to."""
        module = cast(LanguageModelModule, pl_module)
        step = trainer.global_step
        if self.watchdog is not None:
            self.watchdog.mark(step, "between steps")
        if step <= self.reached_step:
            self._steps_again += 1
            self._seconds_again += time.perf_counter() - self._batch_began
            if step == self.reached_step:
                self._write_replayed(module, step)
        self.save = None
        if step >= self._next_step or self.cadence.anything(step) or self._suspects(step):
            self._settle(module, step)
            if self.bad is not None or self.stop is not None:
                trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells what is left to tell, and listens no more."""
        module = cast(LanguageModelModule, pl_module)
        self._write_replayed(module, trainer.global_step)
        self.release()
        module.ranks.sums([0.0])  # the first rank keeps the watchdog's board until nobody looks at it

    def release(self) -> None:
        """Gives the signals back and ends the watch; a second call does nothing."""
        self._signals.release()
        if self.watchdog is not None:
            self.watchdog.stop()

    def saved(self) -> None:
        """A checkpoint has been begun: the clock for the next one starts."""
        self._saved = time.perf_counter()

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """For what may take any time, such as a validation; only a rank that is gone altogether is noticed then."""
        with self.watchdog.paused() if self.watchdog is not None else nullcontext():
            yield

    def _settle(self, module: LanguageModelModule, step: int) -> None:
        """One collective: the losses since the last one, and what each rank has to say."""
        first = module.ranks.first
        now = time.perf_counter()
        cause = self._signals.cause or self._stop_cause(now)
        stops = [float(cause == name) for name in CAUSES]
        decided = self._decisions(step, now) if first else [0.0, 0.0, 0.0]
        measured, sums = module.settle([*stops, *decided])
        num_steps, time_to_save, time_to_ask = sums[len(CAUSES) :]
        self._next_step = step + int(num_steps)
        self._settled, self._settled_step = now, step
        self._take(module, measured)
        self.stop = next((name for name, count in zip(CAUSES, sums, strict=False) if count), self.stop)
        if time_to_save:
            self.save = "time"
        if time_to_ask and self.host.preempted():
            self._noticed, self.save = True, "notice"
            if self.ledger is not None:
                log.warning("a machine of this run is about to be taken away: saving step %d", step)
                self.ledger.write(
                    "fault", kind="preemption", cause="notice of preemption", rank=None, fatal=False, step=step
                )
        if self.ledger is not None and now - self._progress_at >= PROGRESS_SECONDS:
            self._write_replayed(module, step)
            self.ledger.write("progress", step=step)
            self._progress_at = now
        if self.bad is None and (self._to_be_saved(step) or self._suspects(step)):
            self._check_all(module, step)
        if self.bad is None:
            self._pass_over(module, step)

    def _stop_cause(self, now: float) -> str | None:
        """What the host says; it is not asked more often than the ranks settle by the clock."""
        if now - self._asked < SETTLE_SECONDS:
            return None
        self._asked = now
        return self.host.stop_cause()

    def _decisions(self, step: int, now: float) -> list[float]:
        """What the first rank decides for all: steps to the next sync, whether to save, whether to ask for a notice."""
        num_steps = max(1, step - self._settled_step)
        rate = num_steps / max(now - self._settled, 1e-6)
        time_to_save = self.save_seconds is not None and now - self._saved >= self.save_seconds
        time_to_ask = not self._noticed and now - self._asked_notice >= NOTICE_SECONDS
        if time_to_ask:
            self._asked_notice = now
        return [
            float(min(MOST_STEPS, max(1, int(rate * SETTLE_SECONDS)))),
            float(time_to_save),
            float(time_to_ask),
        ]

    def _take(self, module: LanguageModelModule, measured: Sequence[Measured]) -> None:
        """Takes the steps into the interval's sums up to the first that is bad."""
        for step, nats, norm, cluster_nats, cluster_targets in measured:
            num_targets = module.plan.targets_in(step - 1)
            if step - 1 in module.state.skipped:
                continue
            why = self._losses.check(step, nats / num_targets)
            if math.isfinite(nats) and not math.isfinite(norm):
                why = f"gradient norm is not finite ({norm}) at step {step}"
            if why is not None and self.guard.on_bad_loss != "ignore":
                self.bad = (step, why)
                return
            module.state.add(nats, num_targets)
            module.state.add_clusters(cluster_nats, cluster_targets)
        module.state.loss_history = list(self._losses.history)

    def _suspects(self, step: int) -> bool:
        """Whether the step is made again to find out which update is to blame."""
        return self.suspicion is not None and step < self.suspicion.steps[0]

    def _to_be_saved(self, step: int) -> bool:
        """Whether a checkpoint is written at the step, for whatever reason."""
        due = self.cadence.saves(step) or self.cadence.validates(step)
        return due or self.save is not None or self.stop is not None

    def _check_all(self, module: LanguageModelModule, step: int) -> None:
        """Judges all that a checkpoint would hold: the losses so far need not have shown what is wrong with it."""
        if self.guard.on_bad_loss == "ignore":
            return
        if found := module.not_finite():
            self.bad = (step, f"not finite after step {step}: {', '.join(found)}")

    def _pass_over(self, module: LanguageModelModule, step: int) -> None:
        """Passes over what was suspected, once all before it is known to be sound."""
        if self.suspicion is None or step != self.suspicion.steps[0] - 1:
            return
        for each in self.suspicion.steps:
            module.state.skipped.add(each - 1)
            epoch, window = module.plan.position(each - 1)
            if self.ledger is not None:
                log.warning("%s: passing over step %d, window %d of epoch %d", self.suspicion.why, each, window, epoch)
                self.ledger.write(
                    "skip",
                    step=each,
                    epoch=epoch,
                    window=window,
                    num_tokens=module.plan.targets_in(each - 1),
                    tokens=[
                        stored
                        for start, stop in module.plan.lane_ranges(each - 1)
                        for stored in module.order.stored(epoch, start, stop) or [(start, stop)]
                    ],
                )

    def _write_replayed(self, module: LanguageModelModule, step: int) -> None:
        """Tells the ledger of steps that were made again since it was last told."""
        if self.ledger is not None and self._steps_again:
            num_tokens = module.plan.tokens_seen(min(step, self.reached_step)) - module.plan.tokens_seen(
                min(step, self.reached_step) - self._steps_again
            )
            self.ledger.write(
                "replayed", step=step, num_steps=self._steps_again, num_tokens=num_tokens, seconds=self._seconds_again
            )
        self._steps_again, self._seconds_again = 0, 0.0
