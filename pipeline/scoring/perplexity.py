"""Perplexity of a token sequence.

In: a model, a token sequence. Out: total nats and the number of targets they belong to, divided once, at the end.
Protocol: one lane from the zero state over the whole sequence, `<eos>` before the first target, dropout off, fp32.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.corpus.lanes import LanePlan
from pipeline.corpus.stream import Tokens, read_windows
from pipeline.errors import CorpusError
from pipeline.model.language_model import LanguageModel
from pipeline.ngram.model import NgramModel
from pipeline.ngram.windows import read_with_history

PROTOCOL = "one lane from zero state, every token a target, <unk> and <eos> included"
NGRAM_PROTOCOLS = {
    "line": "histories begin with their line, every token a target, <unk> and <eos> included",
    "none": "one history from the first <eos>, every token a target, <unk> and <eos> included",
}
WINDOW_TOKENS = 1000  # bounds memory; the score does not depend on it

# a token sequence → nats of its targets in their order, float64, `WINDOW_TOKENS` at a time, on any device
Predictor = Callable[[Tokens], Iterator[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a sequence costs a model: nats in total, and over how many targets."""

    total_nats: float
    num_targets: int

    @property
    def nats_per_token(self) -> float:
        """Mean nats of a target."""
        return self.total_nats / self.num_targets

    @property
    def perplexity(self) -> float:
        """exp of the nats per token; infinite where that has no number."""
        return math.inf if self.nats_per_token >= 700 else math.exp(self.nats_per_token)


def finite(value: float) -> float | None:
    """The value, or None where it is not a finite number, which JSON cannot hold."""
    return value if math.isfinite(value) else None


def shown_number(value: float, *, digits: int = 2) -> str:
    """For people."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "not finite"


def predictor_of(model: LanguageModel | NgramModel) -> Predictor:
    """What gives each target its nats by a model as it is."""
    return partial(ngram_nats, model) if isinstance(model, NgramModel) else partial(plain_nats, model)


def protocol_of(model: LanguageModel | NgramModel) -> str:
    """What a score by the model means, for people."""
    return PROTOCOL if isinstance(model, LanguageModel) else NGRAM_PROTOCOLS[model.resets]


def score_tokens(
    model: LanguageModel | NgramModel, tokens: Tokens, *, progress: Callable[[int], None] = lambda num_tokens: None
) -> Score:
    """Scores every token of a sequence once, by the protocol above; arguments as `predictor_of` and `score`."""
    return score(predictor_of(model), tokens, progress=progress)


def score(predict: Predictor, tokens: Tokens, *, progress: Callable[[int], None] = lambda num_tokens: None) -> Score:
    """Scores every token of a sequence once.

    Args:
        predict: gives each target its nats.
        tokens: the sequence, not empty.
        progress: called with the number of tokens of each window scored.

    Raises:
        CorpusError: the sequence is empty.
    """
    if not len(tokens):
        raise CorpusError("the split has 0 tokens; at least 1 is needed to score it")
    total_nats: Tensor | float = 0.0
    num_targets = 0
    for nats_N in predict(tokens):
        total_nats = nats_N.sum() + total_nats
        num_targets += len(nats_N)
        progress(len(nats_N))
    assert num_targets == len(tokens), f"{num_targets} of {len(tokens)} tokens were scored"
    return Score(total_nats=float(total_nats), num_targets=num_targets)


@torch.inference_mode()
def plain_nats(model: LanguageModel, tokens: Tokens) -> Iterator[Tensor]:
    """Nats of every target of a sequence by a model whose weights stay as they are.

    Args:
        model: left in the mode it is in: dropout acts only where keys are given, and none are.
        tokens: the sequence.

    Yields:
        as a `Predictor`.
    """
    device = model.embedding_VE.device
    plan = LanePlan(num_targets=len(tokens), num_lanes=1, bptt=WINDOW_TOKENS)
    state = model.recurrence.zero_state(1)
    for window in read_windows(tokens, plan, start=0, stop=plan.num_windows, lanes=range(1)):
        targets = tuple(each.to(device) for each in model.softmax.prepare_targets(window.targets_N))
        nats_N, state = model(torch.from_numpy(window.inputs_TL).to(device), state, targets)
        yield nats_N.double()


@torch.inference_mode()
def ngram_nats(model: NgramModel, tokens: Tokens) -> Iterator[Tensor]:
    """Nats of every target of a sequence by an n-gram model.

    Args:
        model: gives each target the history that its kind of resets allows.
        tokens: the sequence.

    Yields:
        as a `Predictor`.
    """
    before = read_with_history(tokens, 0, 0, num_before=model.order)
    for start in range(0, len(tokens), WINDOW_TOKENS):
        ids_T = np.concatenate([before, tokens.read(start, min(start + WINDOW_TOKENS, len(tokens)))])
        before = ids_T[-model.order :]
        yield model.nats(ids_T)


def score_unigram(
    tokens: Tokens, *, counts_V: NDArray[np.int64], progress: Callable[[int], None] = lambda num_tokens: None
) -> Score:
    """The baseline: each word's share of the training text, add-one smoothed over the vocabulary.

    Args:
        tokens: the sequence.
        counts_V: training count of each id, int64 [vocab_size].
        progress: called with the number of tokens of each block scored.
    """
    nats_V = np.log(counts_V.sum() + len(counts_V)) - np.log(counts_V + 1.0)
    total_nats, block_tokens = 0.0, 1 << 20
    for start in range(0, len(tokens), block_tokens):
        block_N = tokens.read(start, min(start + block_tokens, len(tokens)))
        total_nats += float(nats_V[block_N].sum())
        progress(len(block_N))
    return Score(total_nats=total_nats, num_targets=len(tokens))
