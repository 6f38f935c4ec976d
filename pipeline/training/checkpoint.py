"""Checkpoints: written whole, refused unless whole, kept as configured.

In: Lightning's dictionary. Out: `checkpoints/step-<n>.ckpt` and, as the mark that it is committed,
`step-<n>.ckpt.sha256`. Refuses, by name, a file that does not match its digest and a checkpoint of another run.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import CheckpointIO

from pipeline import storage
from pipeline.config import CheckpointConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.training.module import OWN_KEY, LanguageModelModule

FOLDER = "checkpoints"


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
    needed = storage.read_bytes(mark).decode().strip()
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
    """The step of the best validation among those with a checkpoint, the first of equals; None if there is none."""
    validated = [step for step in steps if step in validations]
    return min(validated, key=lambda step: (validations[step], step), default=None)


class WholeFileIO(CheckpointIO):
    """Lightning's way to disk, through the functions above."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """See the function of this name."""
        save_checkpoint(checkpoint, str(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """See the function of this name; always to the CPU, tensors and plain values only."""
        return load_checkpoint(str(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Takes the commit mark away first, so that no committed checkpoint is ever missing."""
        storage.remove(f"{path}.sha256")
        storage.remove(str(path))


class Checkpointer(Callback):
    """Saves every N steps, after each validation and at the end; keeps the last ones and the best.

    Stands last among the callbacks, so that a checkpoint holds the validation of its own step.
    """

    def __init__(self, run: str, config: CheckpointConfig) -> None:
        self.run = run
        self.config = config

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves if the step is due, then removes what need not be kept."""
        module = cast(LanguageModelModule, pl_module)
        step = trainer.global_step
        if step % self.config.every_steps == 0 or step in module.validations or step == module.total_steps:
            trainer.save_checkpoint(checkpoint_path(self.run, step))
            self._remove_others(trainer, module)

    def _remove_others(self, trainer: Trainer, module: LanguageModelModule) -> None:
        steps = [step for step in committed_steps(self.run) if step <= trainer.global_step]
        by_nats = sorted((module.validations[step], step) for step in steps if step in module.validations)
        keep = {*steps[-self.config.keep_last :], *(step for _, step in by_nats[: self.config.keep_best])}
        for step in steps:
            if step not in keep:
                trainer.strategy.remove_checkpoint(checkpoint_path(self.run, step))


def own_part(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What the run itself put into a checkpoint: identity, tokens seen, validations, carried state."""
    return cast(dict[str, Any], checkpoint[OWN_KEY])
