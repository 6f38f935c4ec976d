"""A trained model, back from its run folder.

In: a run folder. Out: its configuration and the model of one of its checkpoints, ready to score with. Refuses a folder
without a run, a run without the checkpoint, one that is damaged or holds weights that are not finite.
"""

from dataclasses import dataclass
from typing import Literal

from pipeline.config import Config, ModelConfig, NgramConfig
from pipeline.errors import CheckpointError
from pipeline.model.language_model import LanguageModel, num_words
from pipeline.ngram.model import NgramModel, shapes_of
from pipeline.run.checkpoint import Checkpoint, check_weights, checkpoint_path, model_kind, own_part
from pipeline.run.folder import read_config
from pipeline.training.origin import choose_checkpoint, weights_of
from pipeline.training.parts import build_model


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
    model: LanguageModel | NgramModel
    path: str
    step: int
    vocabulary_fingerprint: str
    chosen: str


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
    step, checkpoint, chosen = choose_checkpoint(run, which, mapped=isinstance(config.model, NgramConfig))
    model = _model(config.model, checkpoint, path=checkpoint_path(run, step))
    return TrainedModel(
        config=config,
        model=model.eval(),
        path=checkpoint_path(run, step),
        step=step,
        vocabulary_fingerprint=own_part(checkpoint)["identity"]["vocabulary"],
        chosen=chosen,
    )


def _model(section: ModelConfig, checkpoint: Checkpoint, *, path: str) -> LanguageModel | NgramModel:
    """The model that a section describes, with the weights of a checkpoint."""
    if (kind := model_kind(checkpoint)) != section.kind:
        raise CheckpointError(f"{path} is of model.kind={kind}, and the run's configuration says {section.kind}")
    weights = weights_of(checkpoint)
    if isinstance(section, NgramConfig):
        check_weights(checkpoint, shapes_of(weights, order=section.order), path=path)
        return NgramModel(section, weights)
    model = build_model(section, vocab_size=num_words(weights))
    check_weights(checkpoint, model.state_dict(), path=path)
    model.load_state_dict(weights)
    return model
