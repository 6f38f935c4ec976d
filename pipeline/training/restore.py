"""A trained model, back from its run folder.

In: a run folder. Out: its configuration and the model of one of its checkpoints, ready to score with. Refuses a folder
without a run, a run without the checkpoint, one that is damaged or holds weights that are not finite.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import yaml
from torch import Tensor

from pipeline import storage
from pipeline.config import Config, judge
from pipeline.errors import CheckpointError, ConfigError
from pipeline.model.language_model import LanguageModel
from pipeline.training.checkpoint import (
    Checkpoint,
    all_finite,
    best_step,
    checkpoint_path,
    committed_steps,
    load_checkpoint,
    own_part,
)
from pipeline.training.parts import build_model
from pipeline.training.trainer import CONFIG_NAME
from pipeline.upgrades import upgraded_configuration

WEIGHTS_PREFIX = "model."
MEND = "restore it, or go on with the run by `python -m jobs train`, which writes it anew"


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model and where it comes from.

    Attributes:
        config: of the run.
        model: on the CPU.
        path: the checkpoint.
        step: optimizer steps that it has seen.
        vocabulary_fingerprint: of the words that its ids stand for.
        chosen: why this checkpoint, for people.
    """

    config: Config
    model: LanguageModel
    path: str
    step: int
    vocabulary_fingerprint: str
    chosen: str


def read_config(run: str) -> Config:
    """The resolved configuration of a run folder.

    Raises:
        ConfigError: the folder holds no run, or its configuration is not one of this version.
    """
    path = storage.join(run, CONFIG_NAME)
    if not storage.exists(path):
        raise ConfigError(f"run={run} holds no {CONFIG_NAME}; give the folder that `python -m jobs train` wrote")
    try:
        tree = yaml.safe_load(storage.read_bytes(path).decode())
        return judge(Config, json.dumps(upgraded_configuration(tree)))
    except (ConfigError, UnicodeDecodeError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path} is not the configuration of a run: {' '.join(str(error).split())}; {MEND}"
        ) from error


def load_trained(run: str, which: Literal["best", "last"] | int) -> TrainedModel:
    """The model of a checkpoint of a run.

    Args:
        run: the run folder.
        which: the best by validation nats, the last, or that of a step; where none was validated the best is the last.

    Raises:
        ConfigError: the folder holds no run.
        CheckpointError: it holds no committed checkpoint, or the one wanted is not there, damaged, or not finite.
    """
    config = read_config(run)
    step, checkpoint, chosen = choose_checkpoint(run, which)
    weights = weights_of(checkpoint)
    model = build_model(config.model, vocab_size=len(weights["embedding_VE"]))
    model.load_state_dict(weights)
    return TrainedModel(
        config=config,
        model=model.eval(),
        path=checkpoint_path(run, step),
        step=step,
        vocabulary_fingerprint=own_part(checkpoint)["identity"]["vocabulary"],
        chosen=chosen,
    )


def weights_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The model's part of a checkpoint, by the model's own names."""
    return {name.removeprefix(WEIGHTS_PREFIX): tensor for name, tensor in checkpoint["state_dict"].items()}


def choose_checkpoint(run: str, which: Literal["best", "last"] | int) -> tuple[int, Checkpoint, str]:
    """(step, checkpoint, why this one, for people); as `load_trained` takes it."""
    steps = committed_steps(run)
    if not steps:
        raise CheckpointError(f"run={run} holds no committed checkpoint; run `python -m jobs train` until its first")
    if isinstance(which, int) and which not in steps:
        raise CheckpointError(f"run={run} holds no checkpoint of step {which}; use one of {_listed(steps)}")
    step = which if isinstance(which, int) else steps[-1]
    checkpoint = load_checkpoint(checkpoint_path(run, step))
    chosen = "as asked for" if isinstance(which, int) else "the last"
    if which == "best":
        validations = own_part(checkpoint)["validations"]
        best = best_step(validations, steps)
        num_validated = sum(each in validations for each in steps)
        chosen = f"the best of {num_validated} validated"
        if best is None:
            chosen = f"the last, since {'no validation is finite' if num_validated else 'none is validated'}"
        elif best != step:
            step, checkpoint = best, load_checkpoint(checkpoint_path(run, best))
    if not all_finite(checkpoint["state_dict"].values()):
        others = _listed([each for each in steps if each != step])
        mend = (
            f"use another one, by checkpoint=STEP: {others}" if others else "train another run with a smaller optim.lr"
        )
        raise CheckpointError(f"{checkpoint_path(run, step)} holds weights that are not finite; {mend}")
    return step, checkpoint, chosen


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(str(step) for step in steps)
