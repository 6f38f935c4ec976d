"""Evaluation: how well the model of a run, or several together, predict a split.

In: an `EvaluateConfig`. Out: the split's score beside that of the unigram baseline, and by which protocol. Refuses a
folder without a run, a corpus that is missing, damaged, of another vocabulary or without the split, and options that
the models do not know.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from pipeline.config import DynamicConfig, EvaluateConfig, StreamConfig, given
from pipeline.corpus.cache import Future, ShardCache, open_cache
from pipeline.corpus.lanes import LanePlan
from pipeline.corpus.manifest import Manifest, verify_corpus
from pipeline.corpus.order import Order, ranges_of
from pipeline.corpus.tokens import TokenSequence
from pipeline.corpus.vocabulary import Vocabulary
from pipeline.errors import ConfigError, CorpusError
from pipeline.model.language_model import LanguageModel
from pipeline.ngram.model import NgramModel
from pipeline.scoring.dynamic import Rates, dynamic_protocol, learning_rates, read_dynamic
from pipeline.scoring.mixture import fitted_weights, mixed_nats, mixture_protocol
from pipeline.scoring.neural_cache import cache_protocol, cached_nats
from pipeline.scoring.perplexity import (
    WINDOW_TOKENS,
    Predictor,
    Reader,
    Score,
    nats_of,
    predictor_of,
    protocol_of,
    read_plain,
    score,
    score_unigram,
)
from pipeline.training.parts import choose_device, open_split, settle_numerics
from pipeline.training.restore import TrainedModel, corpus_of, load_trained

Progress = Callable[[str, int, int], None]  # (what is done, tokens of it since the last call, tokens of it)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A split's scores and what they were made with.

    Attributes:
        split: its name.
        score: of the model, or of the mixture: total nats, number of targets, perplexity.
        unigram: of a baseline that knows the words' shares of the training text and nothing else.
        oov_rate: the share of the split's tokens that are <unk>.
        trained: the model, and the checkpoint that it comes from.
        mixture: the models whose probabilities were averaged, each with its weight, the run's first; empty where the
            run's model is alone.
        protocol: how it was scored, for people.
    """

    split: str
    score: Score
    unigram: Score
    oov_rate: float
    trained: TrainedModel
    mixture: tuple[tuple[TrainedModel, float], ...]
    protocol: str


def evaluate_split(config: EvaluateConfig, *, progress: Progress = lambda what, num_tokens, total: None) -> Evaluation:
    """Scores a split with the model of a run, or with a mixture.

    Args:
        config: the run, and what to score.
        progress: called after each window of each pass, but that of the baseline.

    Raises:
        ConfigError: `run` is missing or no run, or the models do not know an option.
        CorpusError: the corpus is missing or damaged, of another vocabulary, or without a split that is needed.
        CheckpointError: there is no whole checkpoint.
    """
    run = given("run", config.run)
    device = choose_device(config.accelerator)
    settle_numerics()
    trained = load_trained(run, config.checkpoint)
    which = config.checkpoint if isinstance(config.checkpoint, str) else "best"  # a step is one of `run`
    models = (trained, *(load_trained(other, which) for other in config.mix or ()))
    _check_options(config, models)
    corpus = _open_corpus(config, models)
    for each in models:
        each.model.to(device)
    predictors = []
    for number, each in enumerate(models, start=1):
        gradients = partial(progress, f"gradients of model {number} on train")
        predictors.append(_predictor(corpus, config, each.model, gradients))
    weights: tuple[float, ...] = ()
    predict = predictors[0]
    if config.mix is not None:
        weights = config.mix_weights or _fitted(corpus, config, predictors, progress)
        predict = partial(mixed_nats, predictors, weights)
    with corpus.opened(config.split, num_readers=len(models), num_passes=2) as split:
        scored = split.followed(partial(progress, f"scoring {config.split}"))
        found = score(predict, split.tokens, progress=scored)
        again = split.followed(first_step=split.plan.num_windows)
        unigram = score_unigram(split.tokens, counts_V=split.vocabulary.counts, progress=again)
    return Evaluation(
        split=config.split,
        score=found,
        unigram=unigram,
        oov_rate=corpus.manifest.splits[config.split].oov_rate,
        trained=trained,
        mixture=tuple(zip(models, weights, strict=True)) if weights else (),
        protocol=_protocol(config, models, weights),
    )


def _check_options(config: EvaluateConfig, models: Sequence[TrainedModel]) -> None:
    """Refuses options of recurrent models where there is none."""
    if any(isinstance(each.model, LanguageModel) for each in models):
        return
    none = f"run={config.run} is" if config.mix is None else f"run={config.run}, mix=[{','.join(config.mix)}] are"
    for key, value in (("neural_cache.size", config.neural_cache.size), ("dynamic.lr", config.dynamic.lr)):
        if value is not None:
            raise ConfigError(f"{key}={value:g} needs a recurrent model, and {none} none; use {key}=null")


def _protocol(config: EvaluateConfig, models: Sequence[TrainedModel], weights: Sequence[float]) -> str:
    parts, options = list(dict.fromkeys(protocol_of(each.model) for each in models)), []
    if config.dynamic.lr is not None:
        options.append(dynamic_protocol(config.dynamic))
    if config.neural_cache.size is not None:
        options.append(cache_protocol(config.neural_cache))
    if options and not all(isinstance(each.model, LanguageModel) for each in models):
        options[-1] += " (recurrent models alone)"
    parts += options
    if weights:
        parts.append(mixture_protocol(weights, fitted_on=None if config.mix_weights else config.mix_split))
    return ", ".join(parts)


# --- predictors


def _predictor(
    corpus: "_Corpus", config: EvaluateConfig, model: LanguageModel | NgramModel, progress: Callable[[int, int], None]
) -> Predictor:
    """What gives each target its nats by a model with the options, which are for recurrent models alone.

    Args:
        corpus, config, model: what scores what, and how.
        progress: of a pass over the training text, if there is one: takes the tokens of a window, and of all.
    """
    if not isinstance(model, LanguageModel):
        return predictor_of(model)
    read: Reader = partial(read_plain, model)
    if config.dynamic.lr is not None:
        read = partial(read_dynamic, model, config.dynamic, _rates(corpus, config.dynamic, model, progress))
    if config.neural_cache.size is not None:
        return partial(cached_nats, read, config.neural_cache)
    return partial(nats_of, read)


def _rates(
    corpus: "_Corpus", section: DynamicConfig, model: LanguageModel, progress: Callable[[int, int], None]
) -> Rates:
    """How dynamic evaluation moves the model's weights; arguments as of `_predictor`."""
    with corpus.opened("train", num_lanes=section.num_lanes, bptt=section.segment) as split:
        total = min(len(split.tokens), section.num_windows * section.num_lanes * section.segment)
        told = split.followed(progress, total=total)
        return learning_rates(model, section, split.tokens, progress=told)


def _fitted(
    corpus: "_Corpus", config: EvaluateConfig, predictors: Sequence[Predictor], progress: Progress
) -> tuple[float, ...]:
    """The weights that fit `mix_split` best."""
    with corpus.opened(config.mix_split, num_readers=len(predictors)) as split:
        told = split.followed(partial(progress, f"weights on {config.mix_split}"))
        return fitted_weights(predictors, split.tokens, progress=told)


# --- the corpus


@dataclass(frozen=True, kw_only=True)
class _Split:
    """A split that is read.

    Attributes:
        tokens: of it.
        plan: how they are read.
        vocabulary: of the corpus.
        cache: of a remote corpus, which has to know how far they have been read.
    """

    tokens: TokenSequence
    plan: LanePlan
    vocabulary: Vocabulary
    cache: ShardCache | None

    def followed(
        self, progress: Callable[[int, int], None] | None = None, *, first_step: int = 0, total: int | None = None
    ) -> Callable[[int], None]:
        """What is told how many tokens a pass has read since the last time, and tells the cache and the user.

        Args:
            progress: takes this number, and the tokens of the pass.
            first_step: of the pass.
            total: tokens of the pass; None: all.
        """
        num_read, step_tokens = 0, self.plan.num_lanes * self.plan.bptt

        def on_read(num_tokens: int) -> None:
            nonlocal num_read
            num_read += num_tokens
            if self.cache is not None:
                self.cache.at(first_step + num_read // step_tokens)
            if progress is not None:
                progress(num_tokens, total or len(self.tokens))

        on_read(0)
        return on_read


@dataclass(frozen=True, kw_only=True)
class _Corpus:
    """A prepared corpus, and how the shards of a remote one are kept."""

    data: str
    manifest: Manifest
    stream: StreamConfig

    @contextmanager
    def opened(
        self, split: str, *, num_lanes: int = 1, bptt: int = WINDOW_TOKENS, num_readers: int = 1, num_passes: int = 1
    ) -> Iterator[_Split]:
        """A split, after its shards are compared with the manifest.

        Args:
            split: its name.
            num_lanes, bptt: how it is read.
            num_readers: that read it at once, each all lanes.
            num_passes: how often it is read.
        """
        shards = self.manifest.shards_of(split)
        num_tokens = sum(shard.num_tokens for shard in shards)
        plan = LanePlan(num_targets=num_tokens, num_lanes=num_lanes, bptt=bptt)
        ranges = ranges_of(plan, Order(num_tokens=num_tokens), range(num_lanes))
        future = Future(shards, plan, ranges, total_steps=num_passes * plan.num_windows)
        num_at_once = num_readers * num_lanes
        with open_cache(self.data, shards, stream=self.stream, num_lanes=num_at_once, future=future) as cache:
            tokens = open_split(self.data, self.manifest, split, cache=cache, num_lanes=num_at_once)
            only = self.manifest.only(split)
            vocabulary = verify_corpus(self.data, only, digests=cache is None)  # or when fetched
            yield _Split(tokens=tokens, plan=plan, vocabulary=vocabulary, cache=cache)


def _open_corpus(config: EvaluateConfig, models: Sequence[TrainedModel]) -> _Corpus:
    """The corpus that the run was trained on, or the one that is given; shards are kept as the run has it.

    Digests of remote shards are compared always.
    """
    run = models[0].config
    data, manifest = corpus_of(models[0], run=given("run", config.run), data=config.data)
    ours = manifest.vocabulary_fingerprint
    for each, other in zip(models[1:], config.mix or (), strict=True):
        if each.vocabulary_fingerprint != ours:
            raise CorpusError(
                f"data={data} has vocabulary {ours[:12]}, mix={other} was trained with"
                f" {each.vocabulary_fingerprint[:12]}; mix runs that share a vocabulary"
            )
    _check_splits(config, data, manifest)
    update = {
        "verify": "digest",
        "order": "sequential",
        "cache_gb": config.cache_gb or run.stream.cache_gb,
        "cache_folder": config.cache_folder or run.stream.cache_folder,
    }
    return _Corpus(data=data, manifest=manifest, stream=run.stream.model_copy(update=update))


def _check_splits(config: EvaluateConfig, data: str, manifest: Manifest) -> None:
    """Refuses a corpus that lacks a split that is read, or its tokens."""
    needed = {"split": config.split}
    if config.mix is not None and config.mix_weights is None:
        needed["mix_split"] = config.mix_split
    if config.dynamic.lr is not None:
        needed[f"dynamic.lr={config.dynamic.lr:g} reads train: split"] = "train"
    for key, split in needed.items():
        if split not in manifest.splits:
            raise CorpusError(f"{key}={split} is not in data={data}; use one of {', '.join(manifest.splits)}")
        if not manifest.splits[split].num_tokens:
            raise CorpusError(f"{key}={split} has 0 tokens in data={data}; at least 1 is needed")
    if config.dynamic.lr is not None and config.dynamic.num_lanes > manifest.splits["train"].num_tokens:
        num_tokens = manifest.splits["train"].num_tokens
        raise ConfigError(
            f"dynamic.num_lanes={config.dynamic.num_lanes} is more than train has tokens, {num_tokens};"
            f" use dynamic.num_lanes={num_tokens} or fewer"
        )
