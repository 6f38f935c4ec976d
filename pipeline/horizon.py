"""The horizon of a run: how far back its model hears.

In: a `HorizonConfig`. Out: for each run, gradient norms by distance and perplexity by context. Refuses a folder without
a run, a corpus that is missing, damaged, of another vocabulary or without the split, and a split that is too short for
what is asked.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pipeline.config import HorizonConfig
from pipeline.corpus.manifest import verify_corpus
from pipeline.corpus.tokens import TokenSequence
from pipeline.errors import ConfigError
from pipeline.model.language_model import LanguageModel
from pipeline.reporting.reported import named
from pipeline.scoring.horizon import (
    gradient_norms,
    nats_from_zero,
    score_after,
    score_in_place,
    spread_places,
    words_before,
)
from pipeline.scoring.perplexity import Score, plain_nats
from pipeline.training.parts import choose_device, open_split, settle_numerics
from pipeline.training.restore import TrainedModel, corpus_of, load_trained

HEARD = 0.01  # of the nearest word's gradient
Progress = Callable[[str, int, int], None]  # (name of the run, words read since the last call, words to read for it)


@dataclass(frozen=True, kw_only=True)
class Horizon:
    """How far back the model of a run hears.

    Attributes:
        name: of the run, as short as tells it from the others.
        trained: the model, and the checkpoint that it comes from.
        norms: of the gradient of a target's nats by the input vector, from the word just before the target on; the
            mean over the targets.
        by_context: score of the targets by how many words the model was given before each.
        whole: score of the same targets where it was given all of the split before each.
    """

    name: str
    trained: TrainedModel
    norms: tuple[float, ...]
    by_context: dict[int, Score]
    whole: Score

    @property
    def shares(self) -> list[float]:
        """Each norm over that of the nearest word; zeros where that has none."""
        return [norm / self.norms[0] if self.norms[0] else 0.0 for norm in self.norms]

    @property
    def heard(self) -> int | None:
        """The furthest distance whose share is at least `HEARD`; None: there is none."""
        return max((distance for distance, share in enumerate(self.shares) if share >= HEARD), default=None)


def protocol(config: HorizonConfig) -> str:
    """How the numbers are made, for people."""
    return (
        f"{config.targets:,} targets, spread evenly over {config.split}, the same for all; the gradient is that of a"
        " target's nats by the input vector of each word before it, read from zero state"
        f" {words_before(config.distances)} words before the target; a context is read from zero state; `all` is one"
        " lane from zero state over the whole split; dropout off"
    )


def find_horizons(config: HorizonConfig, *, progress: Progress = lambda name, read, total: None) -> list[Horizon]:
    """Looks how far back the models of some runs hear.

    Args:
        config: the runs, and how to look.
        progress: called after each batch of targets.

    Raises:
        ConfigError: `run` is missing, named twice or no run, or the split is too short.
        CorpusError: a corpus is missing or damaged, of another vocabulary, or without the split.
        CheckpointError: there is no whole checkpoint.
    """
    if config.run is None:
        raise ConfigError("run=null is not given; use run=FOLDER, or run=[FOLDER,FOLDER]")
    device = choose_device(config.accelerator)
    settle_numerics()
    opened = [(name, *_open(config, place)) for name, place in named("run", config.run).items()]
    return [
        _find(config, name, trained, model.to(device), tokens, progress=partial(progress, name))
        for name, trained, model, tokens in opened
    ]


def _open(config: HorizonConfig, run: str) -> tuple[TrainedModel, LanguageModel, TokenSequence]:
    """The model of a run and the split, after all that may be refused."""
    trained = load_trained(run, config.checkpoint)
    if not isinstance(trained.model, LanguageModel):
        raise ConfigError(
            f"run={run} has model.kind={trained.config.model.kind}, which has no input vectors and so no gradient;"
            " give runs of model.kind=recurrent"
        )
    data, manifest = corpus_of(trained, run=run, data=config.data)
    tokens = open_split(data, manifest, config.split)
    _check_length(config, len(tokens))
    verify_corpus(data, manifest.only(config.split), digests=True)
    return trained, trained.model, tokens


def _find(
    config: HorizonConfig,
    name: str,
    trained: TrainedModel,
    model: LanguageModel,
    tokens: TokenSequence,
    *,
    progress: Callable[[int, int], None],
) -> Horizon:
    places_P = spread_places(len(tokens), num_targets=config.targets, num_before=max(_needs(config).values()))
    num_given = words_before(config.distances) + sum(config.contexts)
    told = partial(_told, progress, total=config.targets * num_given + int(places_P[-1]) + 1)
    norms = gradient_norms(model, tokens, places_P, distances=config.distances, progress=told)
    read = partial(nats_from_zero, model)
    by_context = {
        num_words: score_after(read, tokens, places_P, num_words=num_words, progress=told)
        for num_words in config.contexts
    }
    whole = score_in_place(partial(plain_nats, model), tokens, places_P, progress=told)
    return Horizon(name=name, trained=trained, norms=tuple(norms.tolist()), by_context=by_context, whole=whole)


def _told(progress: Callable[[int, int], None], num_words: int, *, total: int) -> None:
    progress(num_words, total)


def _needs(config: HorizonConfig) -> dict[str, int]:
    """How many words each key needs before the first target."""
    most = config.contexts[-1]
    return {f"distances={config.distances}": words_before(config.distances), f"a context of {most}": most}


def _check_length(config: HorizonConfig, num_tokens: int) -> None:
    """Refuses a split that has too few tokens behind the first words, which are no targets."""
    num_before, key = max((num, key) for key, num in _needs(config).items())
    if (left := max(num_tokens - num_before, 0)) < config.targets:
        mend = f"use targets={left}" if left else "ask for less of it"
        raise ConfigError(
            f"targets={config.targets} do not fit: split={config.split} has {num_tokens} tokens, and {key} takes the"
            f" first {num_before}; {mend}"
        )
