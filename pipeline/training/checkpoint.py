"""Checkpoints: written whole, refused unless whole.

In: Lightning's dictionary. Out: `checkpoints/step-<n>.ckpt` and, as the mark that it is committed,
`step-<n>.ckpt.sha256`. Refuses, by name, a file that does not match its digest and a checkpoint of another run.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch

from pipeline import storage
from pipeline.errors import CheckpointError, ConfigError
from pipeline.upgrades import upgraded_identity

OWN_KEY = "wordlanes"  # where our part of a checkpoint stands
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


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether every number of the tensors is finite; reads them all, and waits for their device."""
    return all(bool(each.isfinite().all()) for each in tensors)


def check_finite(found: object, *, path: str) -> None:
    """Refuses a checkpoint, or a part of one, with a tensor that is not finite: nothing can be made of it.

    Raises:
        CheckpointError: names the checkpoint.
    """
    if not all_finite(_tensors(found)):
        raise CheckpointError(
            f"{path} holds weights that are not finite; remove it and {path}.sha256 to go on from the checkpoint before"
        )


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)


def check_identity(found: Mapping[str, str], needed: Mapping[str, str], *, path: str) -> None:
    """Compares what a checkpoint was trained with and what is configured now.

    Raises:
        ConfigError: names every key that differs, with both values.
    """
    found = upgraded_identity(found, needed=needed)
    keys = [*needed, *(key for key in found if key not in needed)]
    differing = [key for key in keys if found.get(key) != needed.get(key)]
    if differing:
        named = ", ".join(f"{key} was {found.get(key)} and is {needed.get(key)}" for key in differing)
        raise ConfigError(f"{path} is of another run: {named}; set it back or use another run=FOLDER")


def best_step(validations: Mapping[int, float], steps: Sequence[int]) -> int | None:
    """The step of the best validation among those with a checkpoint, the first of equals; None if there is none.

    One that is not finite is never best.
    """
    validated = [step for step in steps if math.isfinite(validations.get(step, math.nan))]
    return min(validated, key=lambda step: (validations[step], step), default=None)


def newest_sound(
    run: str, *, finite: bool, on_damaged: Callable[[int, str], None] = lambda step, why: None
) -> tuple[int, Checkpoint] | None:
    """The newest checkpoint that is whole, with its step; None if there is no checkpoint at all.

    Args:
        run: the run folder.
        finite: passes those over, too, whose weights are not finite, which earlier versions saved.
        on_damaged: told the step of each that is passed over, and what is wrong with it.

    Raises:
        CheckpointError: there are some and none is whole; to begin anew is not for us to decide.
    """
    errors: list[CheckpointError] = []
    for step in reversed(committed_steps(run)):
        try:
            found = step, load_checkpoint(checkpoint_path(run, step))
            if finite:
                check_finite(found[1], path=checkpoint_path(run, step))
        except CheckpointError as error:
            errors.append(error)
            continue
        for each in errors:
            on_damaged(step, f"{each.args[0].partition(';')[0]}")
        return found
    if errors:
        raise errors[0]
    return None


def remove_checkpoint(path: str) -> None:
    """Takes the commit mark away first, so that no committed checkpoint is ever missing."""
    storage.remove(f"{path}.sha256")
    storage.remove(path)


def own_part(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What the run itself put into a checkpoint: identity, tokens seen, validations, carried state."""
    return cast(dict[str, Any], checkpoint[OWN_KEY])
