"""When checkpoints are saved and which are kept: by Lightning, and written beside the training.

In: what the ranks agreed on, Lightning's dictionary. Out: committed checkpoints, and the ledger's word on them. No step
waits for the disk or the store, unless the checkpoint before is not written yet or the process may end after this one.
"""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import CheckpointIO

from pipeline.config import CheckpointConfig
from pipeline.errors import CheckpointError, PipelineError
from pipeline.run.checkpoint import (
    Checkpoint,
    checkpoint_path,
    committed_steps,
    load_checkpoint,
    remove_checkpoint,
    save_checkpoint,
)
from pipeline.run.folder import RunFolder
from pipeline.run.ledger import Ledger
from pipeline.run.records import MetricsFile
from pipeline.run.retention import steps_to_keep
from pipeline.training.collectives import Collectives
from pipeline.training.module import LanguageModelModule
from pipeline.training.sync import Cadence, Sync

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Written:
    """How a write ended.

    Attributes:
        seconds: that it took, beside the training.
        size_bytes: of the checkpoint; 0 if it is not written.
        error: why it is not written; None: it is.
        note: what else was found wrong; None: nothing.
    """

    seconds: float
    size_bytes: int = 0
    error: str | None = None
    note: str | None = None


class BackgroundIO(CheckpointIO):
    """Lightning's way to the store: a checkpoint is copied at once and written by a thread, one at a time.

    Attributes:
        world_size: ranks of the run.
        at_hand: checkpoints that were read already, by path; each is handed out once.
        before: called by the thread before the next checkpoint is written.
        after: called by it once that is written; gives what is wrong, or None.
    """

    def __init__(self, *, world_size: int) -> None:
        self.world_size = world_size
        self.at_hand: dict[str, Checkpoint] = {}
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], str | None] = lambda: None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[Written] | None = None

    def save_checkpoint(self, checkpoint: Checkpoint, path: Any, storage_options: Any = None) -> None:
        """Returns once the checkpoint is copied; waits for the one before."""
        if self._writing is not None:
            self._writing.exception()
        self._writing = self._thread.submit(
            _write, _copied(checkpoint), str(path), self.world_size, self.before, self.after
        )

    def outcome(self, *, wait: bool) -> Written | None:
        """Of the last write; None if it is still under way, or was asked for already."""
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


def _write(
    checkpoint: Checkpoint, path: str, world_size: int, before: Callable[[], None], after: Callable[[], str | None]
) -> Written:
    """In the thread. What the store refuses is an outcome; training goes on with the checkpoint before."""
    before()
    began = time.perf_counter()
    try:
        size_bytes = save_checkpoint(checkpoint, path, world_size=world_size)
    except PipelineError as error:
        return Written(seconds=time.perf_counter() - began, error=str(error))
    return Written(seconds=time.perf_counter() - began, size_bytes=size_bytes, note=after())


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
        cadence: when something is due.
        ranks: the ranks; the first one writes.
        sync: what the ranks agreed on in this step.
        io: the trainer's.
        folder, metrics, ledger: of the first rank; None on the others.
    """

    def __init__(
        self,
        run: str,
        *,
        config: CheckpointConfig,
        cadence: Cadence,
        ranks: Collectives,
        sync: Sync,
        io: BackgroundIO,
        folder: RunFolder | None,
        metrics: MetricsFile | None,
        ledger: Ledger | None,
    ) -> None:
        self.run = run
        self.config = config
        self.cadence = cadence
        self.ranks = ranks
        self.sync = sync
        self.io = io
        self.folder = folder
        self.metrics = metrics
        self.ledger = ledger
        self._begun: tuple[int, str, float] | None = None  # step, reason, blocking seconds of the write under way
        self._newest: str | None = None  # the last one written

    def state_dict(self) -> dict[str, Any]:
        """What a resume compares the records with that it finds."""
        return {} if self.metrics is None else {"num_records": self.metrics.num_records}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves if the step is due, then removes what need not be kept."""
        module = cast(LanguageModelModule, pl_module)
        reason = self._reason(trainer.global_step, module)
        if reason is None:
            self._report_write(wait=False)
            return
        with self.sync.unwatched():  # a store may be slow
            error = self._save(trainer, module, reason)
        if error is not None and reason == "end":
            raise CheckpointError(f"the last checkpoint is not written: {error}")

    def _save(self, trainer: Trainer, module: LanguageModelModule, reason: str) -> str | None:
        """Begins to write; where the process may end soon, waits for the outcome and gives the error on all ranks."""
        began = time.perf_counter()
        self._report_write(wait=True)
        run = self.ranks.agree(lambda: self.run if self.folder is None else self.folder.place())
        path = checkpoint_path(run, trainer.global_step)
        if self.metrics is not None:
            expected = self._newest if self.folder is None or self.folder.lost is None else None
            self.io.before = self.metrics.commit()
            self.io.after = partial(
                _tidy, run, trainer.global_step, dict(module.state.validations), self.config, expected=expected
            )
        trainer.save_checkpoint(path)
        self._begun = (trainer.global_step, reason, time.perf_counter() - began)
        self.sync.saved()
        if reason in ("stop", "notice", "end"):
            return self.ranks.from_first(self._report_write(wait=True))
        return None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells of the last write."""
        self._report_write(wait=True)

    def _reason(self, step: int, module: LanguageModelModule) -> str | None:
        if self.sync.bad is not None:
            return None
        if step == module.total_steps:
            return "end"
        if self.sync.stop is not None:
            return "stop"
        if self.sync.save is not None:
            return self.sync.save
        if step in module.state.validations:
            return "validation"
        return "steps" if self.cadence.saves(step) else None

    def _report_write(self, *, wait: bool) -> str | None:
        """Tells how the write under way ended, if it has; returns its error."""
        written = self.io.outcome(wait=wait)
        if written is None or self._begun is None:
            return None
        step, reason, blocking_seconds = self._begun
        assert self.ledger is not None and self.folder is not None
        if self.folder.is_lost() and reason not in ("stop", "end"):
            return written.error  # it was for the folder that is lost, which is told
        if written.error is None:
            self._newest = checkpoint_path(self.folder.path, step)
            self.ledger.write(
                "checkpoint",
                step=step,
                seconds=blocking_seconds,
                write_seconds=written.seconds,
                size_bytes=written.size_bytes,
                reason=reason,
            )
        else:
            log.warning("checkpoint of step %d is not written, training goes on: %s", step, written.error)
        if written.note is not None:
            log.warning("%s; training goes on", written.note)
        for cause in filter(None, (written.error, written.note)):
            self.ledger.write("fault", kind="disk", cause=cause, rank=0, fatal=False, step=step)
        return written.error


def _tidy(
    run: str, newest: int, validations: Mapping[int, float], config: CheckpointConfig, *, expected: str | None
) -> str | None:
    """In the thread, once a checkpoint is written: removes what need not be kept. Gives what was found wrong.

    Args:
        run: the run folder.
        newest: the step that was written; what is beyond it is not touched.
        validations: nats per token by step.
        config: the section.
        expected: the checkpoint that was written before, if any.
    """
    try:
        steps = [step for step in committed_steps(run) if step <= newest]
        gone = expected is not None and expected not in {checkpoint_path(run, step) for step in steps}
        keep = steps_to_keep(
            steps,
            validations=validations,
            keep_last=config.keep_last,
            keep_best=config.keep_best,
            keep_every_steps=config.keep_every_steps,
        )
        for step in steps:
            if step not in keep:
                remove_checkpoint(checkpoint_path(run, step))
    except (PipelineError, OSError) as error:
        return f"checkpoints that need not be kept are not removed: {error}"
    return f"{expected} was removed by something else" if gone else None
