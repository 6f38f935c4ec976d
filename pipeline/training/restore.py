"""A trained model, back from its run folder.

In: a run folder. Out: its configuration and the model of one of its checkpoints, ready to score with; and a corpus for
it. Refuses a folder without a run, a run without the checkpoint, one that is damaged or holds weights that are not
finite, and a corpus of another vocabulary.
"""

from dataclasses import dataclass
from typing import Literal

from pipeline.config import Config, ModelConfig, NgramConfig, given
from pipeline.corpus.manifest import Manifest, check_fingerprint, read_manifest
from pipeline.errors import CheckpointError, ConfigError, CorpusError
from pipeline.masking import MASK
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


def corpus_of(trained: TrainedModel, *, run: str, data: str | None) -> tuple[str, Manifest]:
    """The folder and the manifest of a corpus whose ids stand for the words of the model.

    Args:
        trained: the model.
        run: its folder.
        data: the corpus; None: the one that it was trained on.

    Raises:
        ConfigError: the run does not tell its corpus.
        CorpusError: the corpus is missing, or of another vocabulary.
    """
    folder = given("data", data or trained.config.data)
    if data is None and MASK in folder:
        raise ConfigError(f"data={folder} of run={run} is kept without its secret; give data=FOLDER")
    manifest = read_manifest(folder)
    check_fingerprint(folder, manifest)
    if manifest.vocabulary_fingerprint != trained.vocabulary_fingerprint:
        raise CorpusError(
            f"data={folder} has vocabulary {manifest.vocabulary_fingerprint[:12]}, the run was trained with"
            f" {trained.vocabulary_fingerprint[:12]}; prepare it with corpus.vocabulary.path=VOCABULARY of the run's"
            " corpus"
        )
    return folder, manifest


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
