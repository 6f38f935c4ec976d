"""Checkpoints: written whole and beside the training, refused unless whole, kept as configured.

In: Lightning's dictionary. Out: `checkpoints/step-<n>.ckpt` and, as the mark that it is committed,
`step-<n>.ckpt.sha256`. Refuses, by name, a file that does not match its digest and a checkpoint of another run.
"""

import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import CheckpointIO

from pipeline import storage
from pipeline.config import CheckpointConfig
from pipeline.errors import CheckpointError, ConfigError, PipelineError
from pipeline.training.ledger import Ledger
from pipeline.training.module import OWN_KEY, LanguageModelModule
from pipeline.training.monitor import MetricsFile
from pipeline.training.peers import Peers
from pipeline.training.pulse import Pulse, Schedule
from pipeline.training.retention import steps_to_keep

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
Checkpoint = dict[str, Any]


def checkpoint_path(run: str, step: int) -> str:
    """Where the checkpoint of a step stands in a run folder."""
    return storage.join(run, FOLDER, f"step-{step}.ckpt")


def committed_steps(run: str) -> list[int]:
    """The steps of which the run folder holds a committed checkpoint, rising."""
    names = storage.list_files(storage.join(run, FOLDER))
    found = [re.search(r"/step-(\d+)\.ckpt\.sha256$", name) for name in names]
    return sorted(int(match[1]) for match in found if match)


def remove_uncommitted(run: str) -> None:
    """Removes what a kill left behind of a checkpoint that it cut short."""
    committed = {checkpoint_path(run, step) for step in committed_steps(run)}
    for path in storage.list_files(storage.join(run, FOLDER)):
        if path.endswith(".tmp") or (path.endswith(".ckpt") and path not in committed):
            storage.remove(path)


def save_checkpoint(checkpoint: Mapping[str, Any], path: str) -> None:
    """Writes a checkpoint whole, then its digest, which commits it."""
    with storage.publish(path) as file:
        digesting = storage.DigestingFile(file)
        torch.save(dict(checkpoint), cast(Any, digesting))
    storage.publish_bytes(f"{path}.sha256", digesting.sha256().encode() + b"\n")


def load_checkpoint(path: str) -> dict[str, Any]:
    """Reads a checkpoint to the CPU, after its digest is known to match.

    Raises:
        CheckpointError: it is missing, or its bytes are not those that were written.
    """
    mark = f"{path}.sha256"
    if not storage.exists(path) or not storage.exists(mark):
        missing, there = (mark, path) if storage.exists(path) else (path, mark)
        raise CheckpointError(f"{missing} does not exist; remove {there} to go on from the checkpoint before")
    needed = storage.read_bytes(mark).decode(errors="replace").strip()
    if (found := storage.sha256(path)) != needed:
        raise CheckpointError(
            f"{path} is damaged: found sha256 {found} of {storage.size_bytes(path)} bytes, needed {needed};"
            f" remove it and {mark} to go on from the checkpoint before"
        )
    with storage.open_read(path) as file:
        return cast(dict[str, Any], torch.load(file, map_location="cpu", weights_only=True))


def check_identity(found: Mapping[str, str], needed: Mapping[str, str], *, path: str) -> None:
    """Compares what a checkpoint was trained with and what is configured now.

    Raises:
        ConfigError: names every key that differs, with both values.
    """
    keys = [*needed, *(key for key in found if key not in needed)]
    differing = [key for key in keys if found.get(key) != needed.get(key)]
    if differing:
        named = ", ".join(f"{key} was {found.get(key)} and is {needed.get(key)}" for key in differing)
        raise ConfigError(f"{path} is of another run: {named}; set it back or use another run=FOLDER")


def best_step(validations: Mapping[int, float], steps: Sequence[int]) -> int | None:
    """The step of the best validation among those with a checkpoint, the first of equals; None if there is none.

    NaN is never best.
    """
    validated = [step for step in steps if not math.isnan(validations.get(step, math.nan))]
    return min(validated, key=lambda step: (validations[step], step), default=None)


def newest_sound(
    run: str, *, on_damaged: Callable[[int, str], None] = lambda step, why: None
) -> tuple[int, Checkpoint] | None:
    """The newest checkpoint that is whole, with its step; None if there is no checkpoint at all.

    Args:
        run: the run folder.
        on_damaged: told the step of each that is passed over, and what is wrong with it.

    Raises:
        CheckpointError: there are some and none is whole; to begin anew is not for us to decide.
    """
    errors: list[CheckpointError] = []
    for step in reversed(committed_steps(run)):
        try:
            found = step, load_checkpoint(checkpoint_path(run, step))
        except CheckpointError as error:
            errors.append(error)
            continue
        for each in errors:
            on_damaged(step, f"{each.args[0].partition(';')[0]}")
        return found
    if errors:
        raise errors[0]
    return None


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


def remove_checkpoint(path: str) -> None:
    """Takes the commit mark away first, so that no committed checkpoint is ever missing."""
    storage.remove(f"{path}.sha256")
    storage.remove(path)


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


def own_part(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What the run itself put into a checkpoint: identity, tokens seen, validations, carried state."""
    return cast(dict[str, Any], checkpoint[OWN_KEY])
