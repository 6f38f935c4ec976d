"""Evaluation: how well the model of a run predicts a split.

In: an `EvaluateConfig`. Out: the split's score beside that of the unigram baseline. Refuses a folder without a run, and
a corpus that is missing, damaged, of another vocabulary or without the split.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.config import EvaluateConfig, given
from pipeline.corpus.manifest import check_fingerprint, read_manifest, verify_corpus
from pipeline.errors import ConfigError, CorpusError
from pipeline.masking import MASK
from pipeline.scoring.perplexity import Score, score_tokens, score_unigram
from pipeline.training.parts import choose_device, open_split, settle_numerics
from pipeline.training.restore import TrainedModel, load_trained

Progress = Callable[[int, int], None]  # (targets scored since the last call, targets of the split)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A split's scores and what they were made with.

    Attributes:
        split: its name.
        score: of the model: total nats, number of targets, perplexity.
        unigram: of a baseline that knows the words' shares of the training text and nothing else.
        oov_rate: the share of the split's tokens that are <unk>.
        trained: the model, and the checkpoint that it comes from.
    """

    split: str
    score: Score
    unigram: Score
    oov_rate: float
    trained: TrainedModel


def evaluate_split(config: EvaluateConfig, *, progress: Progress = lambda scored, total: None) -> Evaluation:
    """Scores a split with the model of a run.

    Args:
        config: the run, and what to score.
        progress: called after each window.

    Raises:
        ConfigError: `run` is missing or no run.
        CorpusError: the corpus is missing or damaged, of another vocabulary, or without the split.
        CheckpointError: there is no whole checkpoint.
    """
    run = given("run", config.run)
    device = choose_device(config.accelerator)
    settle_numerics()
    trained = load_trained(run, config.checkpoint)
    data = given("data", config.data or trained.config.data)
    if config.data is None and MASK in data:
        raise ConfigError(f"data={data} of run={run} is kept without its secret; give data=FOLDER")
    manifest = read_manifest(data)
    check_fingerprint(data, manifest)
    if manifest.vocabulary_fingerprint != trained.vocabulary_fingerprint:
        raise CorpusError(
            f"data={data} has vocabulary {manifest.vocabulary_fingerprint[:12]}, the run was trained with"
            f" {trained.vocabulary_fingerprint[:12]}; prepare it with corpus.vocabulary.path=VOCABULARY of the run's"
            " corpus"
        )
    tokens = open_split(data, manifest, config.split)
    vocabulary = verify_corpus(data, manifest.only(config.split), digests=True)
    model = trained.model.to(device)
    return Evaluation(
        split=config.split,
        score=score_tokens(model, tokens, progress=lambda scored: progress(scored, len(tokens))),
        unigram=score_unigram(tokens, counts_V=vocabulary.counts),
        oov_rate=manifest.splits[config.split].oov_rate,
        trained=trained,
    )
