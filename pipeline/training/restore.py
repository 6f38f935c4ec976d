"""A trained model, back from its run folder.

In: a run folder. Out: its configuration and the model of its best or last checkpoint, ready to score with. Refuses a
folder without a run, a run without a checkpoint, a damaged one.
"""

import json
from dataclasses import dataclass
from typing import Literal

import yaml

from pipeline import storage
from pipeline.config import Config, judge
from pipeline.errors import CheckpointError, ConfigError
from pipeline.model.language_model import LanguageModel
from pipeline.training.checkpoint import best_step, checkpoint_path, committed_steps, load_checkpoint, own_part
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


def load_trained(run: str, which: Literal["best", "last"]) -> TrainedModel:
    """The best checkpoint by validation nats, or the last; the last too where none was validated.

    Raises:
        ConfigError: the folder holds no run.
        CheckpointError: it holds no committed checkpoint, or the one wanted is damaged.
    """
    config = read_config(run)
    steps = committed_steps(run)
    if not steps:
        raise CheckpointError(f"run={run} holds no committed checkpoint; run `python -m jobs train` until its first")
    step = steps[-1]
    checkpoint = load_checkpoint(checkpoint_path(run, step))
    validations = own_part(checkpoint)["validations"]
    chosen = "the last"
    if which == "best":
        best = best_step(validations, steps)
        num_validated = sum(each in validations for each in steps)
        chosen = "the last, since none is validated" if best is None else f"the best of {num_validated} validated"
        if best is not None and best != step:
            step = best
            checkpoint = load_checkpoint(checkpoint_path(run, step))
    weights = {name.removeprefix(WEIGHTS_PREFIX): tensor for name, tensor in checkpoint["state_dict"].items()}
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
