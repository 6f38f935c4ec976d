"""Checkpoints: written whole, refused unless whole.

In: Lightning's dictionary. Out: `checkpoints/step-<n>.ckpt` and, as the mark that it is committed, `step-<n>.json`,
which also says what need be known of it without reading a tensor. Earlier versions wrote `step-<n>.ckpt.sha256`, with
the digest alone; that is read too. Refuses, by name, a file that does not match its digest, one that is no checkpoint
of a run, and a checkpoint of another run. Files of other names in the folder are the user's.
"""

import json
import math
import pickle
import re
import struct
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

from pipeline import storage
from pipeline.errors import CheckpointError, ConfigError, PipelineError
from pipeline.upgrades import upgraded_identity

if TYPE_CHECKING:
    from torch import Tensor

OWN_KEY = "wordlanes"  # where our part of a checkpoint stands
WEIGHTS_PREFIX = "model."  # of their names in a checkpoint
AVERAGED, NUM_AVERAGED = "averaged", "num_averaged"  # in our part: means of weights, by the model's names; of updates
FOLDER = "checkpoints"
NAME = r"step-(0|[1-9][0-9]*)\.ckpt"
MARK_NAME = r"step-(0|[1-9][0-9]*)\.(?:json|ckpt\.sha256)"
Checkpoint = dict[str, Any]
# what torch.load raises for bytes that are no archive of tensors and plain values, by where it notices
UNLOADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    EOFError,
    struct.error,
)

# what a checkpoint of a run holds, and of which kind: by path of keys
SHAPE: dict[tuple[str, ...], type | tuple[type, ...]] = {
    ("state_dict",): dict,
    ("global_step",): int,
    (OWN_KEY,): dict,
    (OWN_KEY, "identity"): dict,
    (OWN_KEY, "identity", "vocabulary"): str,
    (OWN_KEY, "validations"): dict,
}
# a weight that each model of a kind has, by the kind's name in the identity; a checkpoint that names none is recurrent
WEIGHTS = {"recurrent": "embedding_VE", "ngram": "log_probabilities_1"}
# and what it takes to go on from it
SHAPE_TO_RESUME: dict[tuple[str, ...], type | tuple[type, ...]] = SHAPE | {
    ("epoch",): int,
    ("pytorch-lightning_version",): str,
    ("callbacks",): dict,
    ("loops",): dict,
    ("loops", "fit_loop"): dict,
    ("loops", "fit_loop", "epoch_loop.batch_progress"): dict,
    ("optimizer_states",): list,
    ("lr_schedulers",): list,
    (OWN_KEY, "interval_nats"): (int, float),
    (OWN_KEY, "interval_targets"): int,
    (OWN_KEY, "loss_history"): list,
    (OWN_KEY, "skipped"): list,
}


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What is known of a committed checkpoint.

    Attributes:
        step: updates that it has seen.
        sha256, size_bytes: of its file; 0 bytes: not known.
        identity: what the run computes, by key.
        validations: nats per token of each validation so far, by step.
        tokens_seen: by these updates.
        world_size: ranks that trained it; None: not known.
    """

    step: int
    sha256: str
    size_bytes: int
    identity: dict[str, str]
    validations: dict[int, float]
    tokens_seen: int
    world_size: int | None


def checkpoint_path(run: str, step: int) -> str:
    """Where the checkpoint of a step stands in a run folder."""
    return storage.join(run, FOLDER, f"step-{step}.ckpt")


def mark_path(path: str) -> str:
    """Where the mark of a checkpoint stands: that of an earlier version where it has one, and no other."""
    mark, before = _own_mark(path), f"{path}.sha256"
    return before if storage.exists(before) and not storage.exists(mark) else mark


def _own_mark(path: str) -> str:
    return f"{path.removesuffix('.ckpt')}.json"


def committed_steps(run: str) -> list[int]:
    """The steps of which the run folder holds a committed checkpoint, rising."""
    return _steps(run, MARK_NAME)


def uncommitted_steps(run: str) -> list[int]:
    """The steps of which it holds a checkpoint without a mark, rising."""
    return sorted({*_steps(run, NAME)} - {*committed_steps(run)})


def _steps(run: str, name: str) -> list[int]:
    folder = storage.join(run, FOLDER)
    found = [re.search(rf"/{FOLDER}/{name}$", path) for path in storage.list_files(folder)]
    return sorted({int(match[1]) for match in found if match})


def remove_uncommitted(run: str) -> None:
    """Removes the files of a checkpoint whose writing was cut short, as by a kill."""
    for step in uncommitted_steps(run):
        storage.remove(checkpoint_path(run, step))
    for path in storage.list_files(storage.join(run, FOLDER)):
        if re.search(rf"/{FOLDER}/({NAME}|{MARK_NAME})\.tmp$", path):
            storage.remove(path)


def save_checkpoint(checkpoint: Mapping[str, Any], path: str, *, world_size: int | None = None) -> int:
    """Writes a checkpoint whole, then its mark, which commits it; returns its size in bytes.

    Args:
        checkpoint: of a run.
        path: as `checkpoint_path` gives it.
        world_size: ranks that trained it.
    """
    import torch

    with storage.publish(path) as file:
        digesting = storage.DigestingFile(file)
        torch.save(dict(checkpoint), cast(Any, digesting))
    mark = _mark_of(checkpoint, sha256=digesting.sha256(), size_bytes=digesting.tell(), world_size=world_size)
    storage.publish_bytes(_own_mark(path), json.dumps(asdict(mark)).encode() + b"\n")
    return mark.size_bytes


def _mark_of(checkpoint: Mapping[str, Any], *, sha256: str, size_bytes: int, world_size: int | None) -> Mark:
    own = checkpoint.get(OWN_KEY, {})
    return Mark(
        step=checkpoint.get("global_step", 0),
        sha256=sha256,
        size_bytes=size_bytes,
        identity=dict(own.get("identity", {})),
        validations=dict(own.get("validations", {})),
        tokens_seen=own.get("tokens_seen", 0),
        world_size=world_size,
    )


def read_mark(run: str, step: int, *, finite: bool = False) -> Mark:
    """The mark of a committed checkpoint. Of one of an earlier version the checkpoint itself is read.

    Args:
        run: the run folder.
        step: of the checkpoint.
        finite: refuses one of an earlier version whose weights are not finite; today such a one is not saved.

    Raises:
        CheckpointError: it is no mark, the checkpoint has another size than it says, or one that has to be read is
            damaged.
    """
    path = checkpoint_path(run, step)
    if not (mark := mark_path(path)).endswith(".json"):
        checkpoint = load_checkpoint(path)
        check_shape(checkpoint, path, step=step, to_resume=False)
        if finite:
            check_finite(checkpoint, path=path)
        return _mark_of(checkpoint, sha256=_digest(mark), size_bytes=0, world_size=None)
    if not storage.exists(path):
        raise CheckpointError(f"{path} does not exist; remove {mark} to go on from the checkpoint before")
    try:
        found = json.loads(storage.read_bytes(mark))
        validations = {int(each): float(nats) for each, nats in found["validations"].items()}
        whole = Mark(**found | {"validations": validations})
        if not (whole.step == step and re.fullmatch("[0-9a-f]{64}", whole.sha256) and isinstance(whole.identity, dict)):
            raise ValueError(f"of step {whole.step}")
        size_bytes = storage.size_bytes(path)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{mark} is no mark of a checkpoint that is there ({error}); {_mend(path)}") from error
    if size_bytes != whole.size_bytes:
        raise CheckpointError(f"{path} is damaged: found {size_bytes} bytes, needed {whole.size_bytes}; {_mend(path)}")
    return whole


def _digest(mark: str) -> str:
    """The digest that a mark holds, of this version or an earlier one; no digest where it is damaged."""
    content = storage.read_bytes(mark).decode(errors="replace")
    if mark.endswith(".json"):
        found = re.search(r'"sha256": "([0-9a-f]{64})"', content)
        return found[1] if found else content[:100]
    return content.strip()


def load_checkpoint(path: str, *, mapped: bool = False) -> Checkpoint:
    """Reads a checkpoint to the CPU, after its digest is known to match. Nothing in it is run.

    Args:
        path: of its file.
        mapped: whether tensors may stay where they lie on a local disk, memory-mapped, so that they take no memory.

    Raises:
        CheckpointError: it is missing, its bytes are not those that were written, or they are no tensors and plain
            values.
    """
    import torch

    mark = mark_path(path)
    try:
        if not storage.exists(path) or not storage.exists(mark):
            missing, there = (mark, path) if storage.exists(path) else (path, mark)
            raise CheckpointError(f"{missing} does not exist; remove {there} to go on from the checkpoint before")
        needed = _digest(mark)
        if (found := storage.sha256(path)) != needed:
            raise CheckpointError(
                f"{path} is damaged: found sha256 {found} of {storage.size_bytes(path)} bytes, needed {needed};"
                f" {_mend(path)}"
            )
        with storage.open_read(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on archives of another kind, which are refused
            source = storage.resolve(path)[1] if mapped and storage.is_local(path) else file
            mmap = isinstance(source, str)
            loaded = torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror or error}); mend it, or {_mend(path)}"
        ) from error
    except UNLOADABLE as error:
        raise CheckpointError(
            f"{path} is no checkpoint: torch cannot load it as tensors and plain values ({type(error).__name__});"
            f" {_mend(path)}"
        ) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} is no checkpoint: found {type(loaded).__name__}, needed dict; {_mend(path)}")
    return loaded


def check_shape(checkpoint: Checkpoint, path: str, *, step: int, to_resume: bool) -> None:
    """Compares what a checkpoint holds with what one of a run holds.

    Args:
        checkpoint: as it was loaded.
        path: of its file.
        step: in the file's name.
        to_resume: whether training is to go on from it; else its weights are enough.

    Raises:
        CheckpointError: it lacks something, or is of another step than its name says.
    """
    shape = SHAPE | {("state_dict", f"{WEIGHTS_PREFIX}{_first_weights(checkpoint)}"): object}
    if to_resume:
        shape |= SHAPE_TO_RESUME | {(OWN_KEY, name): object for name in _state_names(checkpoint)}
    for keys, kind in shape.items():
        found: Any = checkpoint
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if found is None or not isinstance(found, kind):
            there = "nothing" if found is None else type(found).__name__
            raise CheckpointError(
                f"{path} is no checkpoint of a run of this pipeline: found {there} at {'.'.join(keys)}; {_mend(path)}"
            )
    if checkpoint["global_step"] != step:
        raise CheckpointError(f"{path} is of step {checkpoint['global_step']}, not of {step}; {_mend(path)}")


def _first_weights(checkpoint: Checkpoint) -> str:
    """Of the tensors that every model of its kind has, one by its name: of a recurrent one those of its first words."""
    weights, tables = checkpoint.get("state_dict"), "input.tables.0"
    if isinstance(weights, dict) and f"{WEIGHTS_PREFIX}{tables}" in weights:
        return tables
    return WEIGHTS[model_kind(checkpoint)]


def model_kind(checkpoint: Checkpoint) -> str:
    """Of which kind its model is, one of `WEIGHTS`."""
    own = checkpoint.get(OWN_KEY)
    identity = own.get("identity") if isinstance(own, dict) else None
    found = str(identity.get("model.kind")).strip('"') if isinstance(identity, dict) else ""
    return found if found in WEIGHTS else "recurrent"


def _state_names(checkpoint: Checkpoint) -> list[str]:
    """Names of the carried state's tensors; a checkpoint that names none is of a version that knew an LSTM alone."""
    own = checkpoint.get(OWN_KEY)
    found = own.get("state_names") if isinstance(own, dict) else None
    return found if isinstance(found, list) else ["hidden_KLP", "cell_KLH"]


def check_weights(checkpoint: Checkpoint, weights: Mapping[str, Any], *, path: str) -> None:
    """Compares the weights of a checkpoint with those of the model of its configuration, by name and shape.

    Args:
        checkpoint: whose shape was checked.
        weights: the model's own, by the model's names.
        path: of the checkpoint's file.

    Raises:
        CheckpointError: names the first that is missing, not known or of another shape.
    """
    there = checkpoint["state_dict"]
    averaged = {f"{WEIGHTS_PREFIX}{name}": tensor for name, tensor in averaged_of(checkpoint).items()}
    needed = {f"{WEIGHTS_PREFIX}{name}": tuple(tensor.shape) for name, tensor in weights.items()}
    for part in (there, there | averaged):
        found = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in part.items()}
        for name in [*needed, *(name for name in found if name not in needed)]:
            if found.get(name) != needed.get(name):
                raise CheckpointError(
                    f"{path} does not fit the model: {name} is {found.get(name)}, needed {needed.get(name)};"
                    f" {_mend(path)}"
                )


def averaged_of(checkpoint: Checkpoint) -> "dict[str, Tensor]":
    """The means of its weights that a checkpoint holds, by the model's names; empty where nothing is averaged."""
    found: dict[str, Tensor] = own_part(checkpoint).get(AVERAGED, {})
    return found


def _mend(path: str) -> str:
    return f"remove it and {mark_path(path)} to go on from the checkpoint before"


def looks_whole(run: str, step: int, *, size_bytes: int | None) -> bool:
    """Whether a committed checkpoint seems to be whole, without reading it.

    Args:
        run: the run folder.
        step: of the checkpoint.
        size_bytes: of one of an earlier version, whose mark does not say it; None: nobody knows.
    """
    path = checkpoint_path(run, step)
    mark = mark_path(path)
    try:
        if mark.endswith(".json"):
            return read_mark(run, step).step == step
        found = storage.size_bytes(path)
        return found == (size_bytes or found) > 0 and re.fullmatch("[0-9a-f]{64}", _digest(mark)) is not None
    except (OSError, PipelineError):
        return False


def newest_mark(run: str, *, finite: bool, saved: Collection[int]) -> Mark | None:
    """The mark of the newest checkpoint that seems whole; None if there is no checkpoint at all.

    Args:
        run: the run folder.
        finite: passes those of earlier versions over whose weights are not finite.
        saved: steps whose checkpoints were committed, as far as it is known.

    Raises:
        CheckpointError: there are some and none seems whole, or those that were committed have lost their marks; to
            begin anew is not for us to decide.
    """
    errors = []
    for step in reversed(committed_steps(run)):
        try:
            return read_mark(run, step, finite=finite)
        except CheckpointError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    _refuse_lost_marks(run, saved)
    return None


def all_finite(found: object) -> bool:
    """Whether every number of the tensors in a value is finite; reads them all, and waits for their device."""
    return all(bool(each.isfinite().all()) for each in _tensors(found))


def check_finite(found: object, *, path: str) -> None:
    """Refuses a checkpoint, or a part of one, with a tensor that is not finite: nothing can be made of it.

    Raises:
        CheckpointError: names the checkpoint.
    """
    if not all_finite(found):
        raise CheckpointError(f"{path} holds weights that are not finite; {_mend(path)}")


def _tensors(value: object) -> "Iterator[Tensor]":
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)


def check_identity(found: Mapping[str, str], needed: Mapping[str, str], *, path: str) -> None:
    """Compares what a checkpoint was trained with and what is configured now.

    Args:
        found: the identity that the checkpoint was stamped with.
        needed: that of the run as it is configured.
        path: of the checkpoint.

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
    run: str,
    *,
    finite: bool,
    saved: Collection[int] = (),
    on_damaged: Callable[[int, str], None] = lambda step, why: None,
) -> tuple[int, Checkpoint] | None:
    """The newest checkpoint that is whole, with its step; None if there is no checkpoint at all.

    Args:
        run: the run folder.
        finite: passes those over, too, whose weights are not finite, which earlier versions saved.
        saved: steps whose checkpoints were committed, as far as it is known.
        on_damaged: told of each that is passed over: the step that is gone on from, and what is wrong.

    Raises:
        CheckpointError: there are some and none is whole, or those that were committed have lost their marks; to begin
            anew is not for us to decide.
    """
    errors: list[CheckpointError] = []
    for step in reversed(committed_steps(run)):
        path = checkpoint_path(run, step)
        try:
            found = load_checkpoint(path)
            check_shape(found, path, step=step, to_resume=True)
            if finite:
                check_finite(found, path=path)
        except CheckpointError as error:
            errors.append(error)
            continue
        for each in errors:
            on_damaged(step, f"{each.args[0].partition(';')[0]}")
        return step, found
    if errors:
        raise errors[0]
    _refuse_lost_marks(run, saved)
    return None


def _refuse_lost_marks(run: str, saved: Collection[int]) -> None:
    unmarked = [checkpoint_path(run, step) for step in uncommitted_steps(run) if step in saved]
    if unmarked:
        raise CheckpointError(
            f"{mark_path(unmarked[-1])} is missing, without which its checkpoint does not count; restore it, or remove"
            f" {unmarked[-1]} to begin anew"
        )


def remove_checkpoint(path: str) -> None:
    """Takes the commit mark away first, so that no committed checkpoint is ever missing."""
    storage.remove(_own_mark(path))
    storage.remove(f"{path}.sha256")
    storage.remove(path)


def own_part(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What the run itself put into a checkpoint: identity, tokens seen, validations, carried state."""
    return cast(dict[str, Any], checkpoint[OWN_KEY])
