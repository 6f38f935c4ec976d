"""Evaluation: how well the model of a run predicts a split.

In: an `EvaluateConfig`. Out: the split's score beside that of the unigram baseline. Refuses a folder without a run, and
a corpus that is missing, damaged, of another vocabulary or without the split.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from pipeline.config import EvaluateConfig, given
from pipeline.corpus.cache import Future, ShardCache, open_cache
from pipeline.corpus.lanes import LanePlan
from pipeline.corpus.manifest import Manifest, verify_corpus
from pipeline.corpus.order import Order, ranges_of
from pipeline.scoring.perplexity import WINDOW_TOKENS, Score, score_tokens, score_unigram
from pipeline.training.parts import choose_device, open_split, settle_numerics
from pipeline.training.restore import TrainedModel, corpus_of, load_trained

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
    data, manifest = corpus_of(trained, run=run, data=config.data)
    with _cache(data, manifest, config, trained) as cache:
        tokens = open_split(data, manifest, config.split, cache=cache)
        vocabulary = verify_corpus(data, manifest.only(config.split), digests=cache is None)  # or when fetched

        on_read = _followed_by(cache, first_step=0)

        def on_scored(num_tokens: int) -> None:
            on_read(num_tokens)
            progress(num_tokens, len(tokens))

        score = score_tokens(trained.model.to(device), tokens, progress=on_scored)
        on_read = _followed_by(cache, first_step=-(-len(tokens) // WINDOW_TOKENS))
        unigram = score_unigram(tokens, counts_V=vocabulary.counts, progress=on_read)
    return Evaluation(
        split=config.split,
        score=score,
        unigram=unigram,
        oov_rate=manifest.splits[config.split].oov_rate,
        trained=trained,
    )


def _followed_by(cache: ShardCache | None, *, first_step: int) -> Callable[[int], None]:
    """What tells a cache how far a pass over the split has come, by how many tokens were read since the last call.

    Args:
        cache: of a remote corpus.
        first_step: of the pass.
    """
    num_read = 0

    def on_read(num_tokens: int) -> None:
        nonlocal num_read
        num_read += num_tokens
        if cache is not None:
            cache.at(first_step + num_read // WINDOW_TOKENS)

    on_read(0)
    return on_read


def _cache(
    data: str, manifest: Manifest, config: EvaluateConfig, trained: TrainedModel
) -> AbstractContextManager[ShardCache | None]:
    """This machine's cache of a remote corpus: as the run has it, or as is given; digests are compared always."""
    stream = trained.config.stream
    stream = stream.model_copy(
        update={
            "verify": "digest",
            "order": "sequential",
            "cache_gb": config.cache_gb or stream.cache_gb,
            "cache_folder": config.cache_folder or stream.cache_folder,
        }
    )
    shards, future = manifest.shards_of(config.split), None
    if num_tokens := sum(shard.num_tokens for shard in shards):
        plan = LanePlan(num_targets=num_tokens, num_lanes=1, bptt=WINDOW_TOKENS)
        ranges = ranges_of(plan, Order(num_tokens=num_tokens), [0])
        future = Future(shards, plan, ranges, total_steps=2 * plan.num_windows)  # read twice
    return open_cache(data, shards, stream=stream, num_lanes=1, future=future)
