"""Perplexity of a token sequence.

In: a model, a token sequence. Out: total nats and the number of targets they belong to, divided once, at the end.
What scores otherwise than a plain model (a cache, weights that go on learning, several models) is a file beside this.
Protocol: one lane from the zero state over the whole sequence, `<eos>` before the first target, dropout off, fp32.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.corpus.lanes import LanePlan
from pipeline.corpus.stream import Tokens, Window, read_windows
from pipeline.errors import CorpusError
from pipeline.model.language_model import LanguageModel
from pipeline.model.recurrence import State
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


class Read(NamedTuple):
    """What a recurrent model made of some targets that follow each other; all on its device.

    Attributes:
        hidden_NH: the vectors from which it predicted them.
        words_N: the targets, int64.
        nats_N: what they cost.
    """

    hidden_NH: Tensor
    words_N: Tensor
    nats_N: Tensor


Reader = Callable[[Tokens], Iterator[Read]]  # in the targets' order, `WINDOW_TOKENS` at a time


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


def plain_nats(model: LanguageModel, tokens: Tokens) -> Iterator[Tensor]:
    """Nats of every target of a sequence by a model whose weights stay as they are; arguments as `read_plain`."""
    return nats_of(partial(read_plain, model), tokens)


def nats_of(read: Reader, tokens: Tokens) -> Iterator[Tensor]:
    """The nats alone of what a reader gives, as a `Predictor`."""
    for found in read(tokens):
        yield found.nats_N.double()


@torch.inference_mode()
def read_plain(model: LanguageModel, tokens: Tokens) -> Iterator[Read]:
    """Reads a sequence with weights that stay as they are.

    Args:
        model: left in the mode it is in: dropout acts only where keys are given, and none are.
        tokens: the sequence.

    Yields:
        as a `Reader`.
    """
    state = model.recurrence.zero_state(1)
    for window in one_lane(tokens, bptt=WINDOW_TOKENS):
        found, state = read_window(model, window, state)
        yield found


def one_lane(tokens: Tokens, *, bptt: int) -> Iterator[Window]:
    """A whole sequence as one lane, in windows of so many tokens."""
    plan = LanePlan(num_targets=len(tokens), num_lanes=1, bptt=bptt)
    return read_windows(tokens, plan, start=0, stop=plan.num_windows, lanes=range(1))


def read_window(model: LanguageModel, window: Window, state: State) -> tuple[Read, State]:
    """What a model makes of a window, and the state after it; in the graph where gradients are kept."""
    device = model.device
    inputs_TL, words_N = (torch.from_numpy(each).to(device) for each in (window.inputs_TL, window.targets_N))
    targets = tuple(each.to(device) for each in model.softmax.prepare_targets(window.targets_N))
    short_L = None if window.short_L is None else torch.from_numpy(window.short_L).to(device)
    hidden_TLH, state = model.hidden(inputs_TL, state, short_L=short_L)
    hidden_NH = hidden_TLH.flatten(0, 1)
    if window.rows_N is not None:
        hidden_NH = hidden_NH.index_select(0, torch.from_numpy(window.rows_N).to(device))
    return Read(hidden_NH, words_N, model.softmax.nats(hidden_NH, targets)), state


def in_windows(reads: Iterable[Read]) -> Iterator[Read]:
    """The same, `WINDOW_TOKENS` at a time."""
    held: list[Read] = []
    num_held = 0
    for each in reads:
        held.append(each)
        num_held += len(each.nats_N)
        while num_held >= WINDOW_TOKENS:
            joined = _joined(held)
            yield Read(*(part[:WINDOW_TOKENS] for part in joined))
            held, num_held = [Read(*(part[WINDOW_TOKENS:] for part in joined))], num_held - WINDOW_TOKENS
    if num_held:
        yield _joined(held)


def _joined(reads: Iterable[Read]) -> Read:
    return Read(*(torch.cat(parts) for parts in zip(*reads, strict=True)))


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
