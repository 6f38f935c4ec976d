"""Weights of a run that was trained before: which checkpoint is meant, and a model that takes them.

In: a run folder, the best or last checkpoint or a step, or the path of one. Out: the checkpoint, or a model with its
weights. Refuses a checkpoint that is not there, damaged or not finite, and weights of other words or other shapes.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pipeline.config import Config
from pipeline.corpus.manifest import Manifest
from pipeline.errors import CheckpointError, ConfigError
from pipeline.run.checkpoint import (
    FOLDER,
    NUM_AVERAGED,
    WEIGHTS_PREFIX,
    Checkpoint,
    all_finite,
    averaged_of,
    best_step,
    check_shape,
    checkpoint_path,
    committed_steps,
    load_checkpoint,
    own_part,
    read_mark,
)
from pipeline.upgrades import upgraded_identity

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.model.language_model import LanguageModel

# how those keys of the model's section begin on which the shapes of its weights do not depend
SHAPELESS = (
    "model.dropout",
    "model.init_scale",
    "model.recurrence_init_scale",
    "model.recurrence.weight_dropout",
    "model.regularization.",
)


def weights_of(checkpoint: Checkpoint) -> "dict[str, Tensor]":
    """What a checkpoint's model is evaluated with, by the model's own names: the mean of its weights, if it has one.

    The weights of the last update, from which training goes on, stand in `state_dict` in either case.
    """
    weights = {name.removeprefix(WEIGHTS_PREFIX): tensor for name, tensor in checkpoint["state_dict"].items()}
    return weights | averaged_of(checkpoint)


def choose_checkpoint(
    run: str, which: Literal["best", "last"] | int, *, mapped: bool = False
) -> tuple[int, Checkpoint, str]:
    """(step, checkpoint, why this one, for people); as `load_trained` and `load_checkpoint` take it."""
    step, chosen = choose_step(run, which)
    checkpoint = _load(run, step, mapped=mapped)
    if num_averaged := own_part(checkpoint).get(NUM_AVERAGED, 0):
        chosen += f", the mean of {num_averaged} updates"
    if not all_finite(weights_of(checkpoint)):
        others = _listed([each for each in committed_steps(run) if each != step])
        mend = f"use that of another step: {others}" if others else "train another run with a smaller optim.lr"
        raise CheckpointError(f"{checkpoint_path(run, step)} holds weights that are not finite; {mend}")
    return step, checkpoint, chosen


def choose_step(run: str, which: Literal["best", "last"] | int) -> tuple[int, str]:
    """(step of the checkpoint that is meant, why this one, for people); no tensor is read.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    steps = committed_steps(run)
    if not steps:
        raise CheckpointError(f"run={run} holds no committed checkpoint; run `python -m jobs train` until its first")
    if isinstance(which, int) and which not in steps:
        raise CheckpointError(f"run={run} holds no checkpoint of step {which}; use one of {_listed(steps)}")
    step = which if isinstance(which, int) else steps[-1]
    chosen = "as asked for" if isinstance(which, int) else "the last"
    if which == "best":
        validations = read_mark(run, step).validations
        best = best_step(validations, steps)
        num_validated = sum(each in validations for each in steps)
        chosen = f"the best of {num_validated} validated"
        if best is None:
            chosen = f"the last, since {'no validation is finite' if num_validated else 'none is validated'}"
        else:
            step = best
    return step, chosen


def _load(run: str, step: int, *, mapped: bool) -> Checkpoint:
    path = checkpoint_path(run, step)
    checkpoint = load_checkpoint(path, mapped=mapped)
    check_shape(checkpoint, path, step=step, to_resume=False)
    return checkpoint


def origin_run(place: str) -> str:
    """The run folder of `init_from`, which is it or holds the checkpoint's file."""
    return _split(place)[0]


def origin_path(place: str) -> str:
    """The checkpoint that `init_from` means: a file, or the best of a run folder.

    Raises:
        CheckpointError: it is not there, damaged or not finite.
    """
    run, which = _split(place)
    try:
        return checkpoint_path(run, choose_checkpoint(run, which)[0])
    except CheckpointError as error:
        raise CheckpointError(f"init_from={place} has no weights to begin with: {error}") from error


def _split(place: str) -> tuple[str, Literal["best"] | int]:
    found = re.fullmatch(rf"(.+)/{FOLDER}/step-(\d+)\.ckpt", place)
    return (found[1], int(found[2])) if found else (place.rstrip("/"), "best")


def check_origin(config: Config, manifest: Manifest, *, identity: Mapping[str, str]) -> None:
    """Refuses weights that a new run cannot begin with, before anything is written.

    Args:
        config: of the run, with `init_from`.
        manifest: of its corpus.
        identity: of the run.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged or not finite.
        ConfigError: it is of other words, or its weights have other shapes.
    """
    from pipeline.training.footprint import shapes_of

    model = shapes_of(config.model, vocab_size=manifest.vocab_size)
    _fitting_weights(model, origin_path(str(config.init_from)), identity=identity)


def load_origin(model: "LanguageModel", path: str, *, identity: Mapping[str, str]) -> None:
    """Gives a model the weights of a checkpoint.

    Args:
        model: of the run that begins.
        path: the checkpoint's, as `origin_path` gives it.
        identity: of that run.

    Raises:
        ConfigError: the checkpoint is of other words, or its weights have other shapes.
    """
    model.load_state_dict(_fitting_weights(model, path, identity=identity))


def _fitting_weights(model: "LanguageModel", path: str, *, identity: Mapping[str, str]) -> "dict[str, Tensor]":
    """The weights of a checkpoint, once it is known that a model can take them; only its shapes are read."""
    checkpoint = load_checkpoint(path)
    found = upgraded_identity(own_part(checkpoint)["identity"], needed=identity)
    if found["vocabulary"] != identity["vocabulary"]:
        raise ConfigError(
            f"init_from={path} has vocabulary {found['vocabulary'][:12]} and data={identity['vocabulary'][:12]};"
            " prepare the corpus with corpus.vocabulary.path=VOCABULARY of the other run's corpus"
        )
    weights = weights_of(checkpoint)
    shapes = [
        {name: getattr(each, "shape", None) for name, each in some.items()} for some in (weights, model.state_dict())
    ]
    if shapes[0] != shapes[1]:
        keys = [key for key in identity if key.startswith("model.") and not key.startswith(SHAPELESS)]
        differing = [key for key in keys if found.get(key) != identity[key]]
        named = ", ".join(f"{key} was {found.get(key)} and is {identity[key]}" for key in differing)
        raise ConfigError(f"init_from={path} has weights of other shapes: {named}; set it back, or use init_from=null")
    return weights


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(str(step) for step in steps)
