"""When checkpoints are saved and which are kept: by Lightning, and written beside the training.

In: what the ranks agreed on, Lightning's dictionary. Out: committed checkpoints, and the ledger's word on them.
"""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import CheckpointIO

from pipeline import storage
from pipeline.config import CheckpointConfig
from pipeline.errors import CheckpointError, PipelineError
from pipeline.training.checkpoint import (
    Checkpoint,
    checkpoint_path,
    committed_steps,
    load_checkpoint,
    remove_checkpoint,
    save_checkpoint,
)
from pipeline.training.ledger import Ledger
from pipeline.training.module import LanguageModelModule
from pipeline.training.peers import Peers
from pipeline.training.pulse import Pulse, Schedule
from pipeline.training.records import MetricsFile
from pipeline.training.retention import steps_to_keep

log = logging.getLogger(__name__)


class BackgroundIO(CheckpointIO):
    """Lightning's way to the store: a checkpoint is copied at once and written by a thread, one at a time.

    Attributes:
        at_hand: checkpoints that were read already, by path; each is handed out once.
    """

    def __init__(self) -> None:
        self.at_hand: dict[str, Checkpoint] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[tuple[float, int, str | None]] | None = None

    def save_checkpoint(self, checkpoint: Checkpoint, path: Any, storage_options: Any = None) -> None:
        """Returns once the checkpoint is copied; waits for the one before."""
        if self._writing is not None:
            self._writing.exception()
        self._writing = self._thread.submit(_write, _copied(checkpoint), str(path))

    def outcome(self, *, wait: bool) -> tuple[float, int, str | None] | None:
        """(seconds, bytes, error) of the last write; None if it is still under way, or was asked for already."""
        if self._writing is None or not (wait or self._writing.done()):
            return None
        writing, self._writing = self._writing, None
        return writing.result()

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> Checkpoint:
        """See the function of this name; always to the CPU, tensors and plain values only."""
        return self.at_hand.pop(str(path), None) or load_checkpoint(str(path))

    def remove_checkpoint(self, path: Any) -> None:
        """See the function of this name."""
        remove_checkpoint(str(path))

    def teardown(self) -> None:
        """Lets the write that is under way end."""
        self._thread.shutdown()


def _write(checkpoint: Checkpoint, path: str) -> tuple[float, int, str | None]:
    """In the thread. What the store refuses is an outcome; training goes on with the checkpoint before."""
    began = time.perf_counter()
    try:
        save_checkpoint(checkpoint, path)
    except PipelineError as error:
        return time.perf_counter() - began, 0, str(error)
    return time.perf_counter() - began, storage.size_bytes(path), None


def _copied(value: Any) -> Any:
    """The value with its tensors copied to the CPU, so that training may go on to change them."""
    match value:
        case torch.Tensor():
            return value.detach().to("cpu", copy=True)
        case dict():
            return type(value)((key, _copied(each)) for key, each in value.items())
        case list() | tuple():
            return type(value)(_copied(each) for each in value)
        case _:
            return value


class Checkpointer(Callback):
    """Saves when it is due, and keeps what is configured.

    Stands last among the callbacks, so that a checkpoint holds the validation of its own step.

    Args:
        run: the run folder.
        config: the section.
        schedule: when something is due.
        peers: the ranks; the first one writes.
        pulse: what the ranks agreed on in this step.
        io: the trainer's.
        metrics, ledger: of the first rank; None on the others.
    """

    def __init__(
        self,
        run: str,
        *,
        config: CheckpointConfig,
        schedule: Schedule,
        peers: Peers,
        pulse: Pulse,
        io: BackgroundIO,
        metrics: MetricsFile | None,
        ledger: Ledger | None,
    ) -> None:
        self.run = run
        self.config = config
        self.schedule = schedule
        self.peers = peers
        self.pulse = pulse
        self.io = io
        self.metrics = metrics
        self.ledger = ledger
        self._begun: tuple[int, str, float] | None = None  # step, reason, blocking seconds of the write under way

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves if the step is due, then removes what need not be kept."""
        module = cast(LanguageModelModule, pl_module)
        reason = self._reason(trainer.global_step, module)
        if reason is None:
            self._tell(module, wait=False)
            return
        with self.pulse.unwatched():  # a store may be slow
            error = self._save(trainer, module, reason)
        if error is not None and reason == "end":
            raise CheckpointError(f"the last checkpoint is not written: {error}")

    def _save(self, trainer: Trainer, module: LanguageModelModule, reason: str) -> str | None:
        """Begins to write; where the process may end soon, waits for the outcome and gives the error on all ranks."""
        began = time.perf_counter()
        self._tell(module, wait=True)
        if self.metrics is not None:
            self.metrics.commit()
        trainer.save_checkpoint(checkpoint_path(self.run, trainer.global_step))
        self._begun = (trainer.global_step, reason, time.perf_counter() - began)
        self.pulse.saved()
        if reason in ("stop", "notice", "end"):
            return self.peers.from_first(self._tell(module, wait=True))
        return None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells of the last write."""
        self._tell(cast(LanguageModelModule, pl_module), wait=True)

    def _reason(self, step: int, module: LanguageModelModule) -> str | None:
        if self.pulse.bad is not None:
            return None
        if step == module.total_steps:
            return "end"
        if self.pulse.stop is not None:
            return "stop"
        if self.pulse.save is not None:
            return self.pulse.save
        if step in module.validations:
            return "validation"
        return "steps" if self.schedule.saves(step) else None

    def _tell(self, module: LanguageModelModule, *, wait: bool) -> str | None:
        """Tells how the write under way ended, if it has; returns its error."""
        outcome = self.io.outcome(wait=wait)
        if outcome is None or self._begun is None:
            return None
        (step, reason, blocking_seconds), (seconds, size_bytes, error) = self._begun, outcome
        assert self.ledger is not None
        if error is None:
            self.ledger.write(
                "checkpoint",
                step=step,
                seconds=blocking_seconds,
                write_seconds=seconds,
                size_bytes=size_bytes,
                reason=reason,
            )
            self._remove_others(step, module)
        else:
            log.warning("checkpoint of step %d is not written, training goes on: %s", step, error)
            self.ledger.write("fault", kind="disk", cause=error, rank=0, fatal=False, step=step)
        return error

    def _remove_others(self, newest: int, module: LanguageModelModule) -> None:
        steps = [step for step in committed_steps(self.run) if step <= newest]
        keep = steps_to_keep(
            steps,
            validations=module.validations,
            keep_last=self.config.keep_last,
            keep_best=self.config.keep_best,
            keep_every_steps=self.config.keep_every_steps,
        )
        for step in steps:
            if step not in keep:
                remove_checkpoint(checkpoint_path(self.run, step))
