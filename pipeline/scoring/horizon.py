"""How far back a model hears: what its loss makes of a word by how far back it stands, and what context gains it.

In: a model, a token sequence, and the places of some targets in it. Out: gradient norms by distance; scores of these
targets by how many words the model was given before them. A target is a lane of its own, read from zero state, so that
many are read at once. No target has fewer words before it than are asked for: the caller takes its places from
`spread_places`.

A distance is a number of steps back: 0 is the word just before the target.

Shape suffixes: T time, L lanes, each with one target after its last input, E input width, D distances, P places.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.corpus.stream import Tokens
from pipeline.model.language_model import LanguageModel
from pipeline.scoring.perplexity import Predictor, Score

LANES_AT_ONCE = 100  # bounds memory; no number depends on it but for rounding

Places = NDArray[np.int64]
Progress = Callable[[int], None]  # takes the number of words read since the last call
# (inputs_TL, targets_L) → nats of each lane's target, given these inputs and nothing before them
Reader = Callable[[NDArray[np.int64], NDArray[np.int64]], Tensor]


def words_before(distances: int) -> int:
    """How many words are read for the gradients by distance: behind the furthest, twice as many give it a state."""
    return 3 * distances + 1


def spread_places(num_tokens: int, *, num_targets: int, num_before: int) -> Places:
    """Places of targets, spread evenly over a sequence, the same in every run.

    Args:
        num_tokens: of the sequence.
        num_targets: how many; at most as many as there are.
        num_before: words that each has before it, at least.
    """
    num_there = num_tokens - num_before
    assert 0 < num_targets <= num_there, f"{num_targets} of {num_there} places"
    places_P: Places = num_before + np.arange(num_targets, dtype=np.int64) * num_there // num_targets
    return places_P


def gradient_norms(
    model: LanguageModel, tokens: Tokens, places_P: Places, *, distances: int, progress: Progress = lambda words: None
) -> NDArray[np.float64]:
    """The norm of a target's nats' gradient by the input vector at each distance, as the mean over the targets.

    Args:
        model: left in the mode it is in: dropout acts only where keys are given, and none are.
        tokens: the sequence.
        places_P: of the targets, each with `words_before` words before it.
        distances: the furthest, D.
        progress: called after each batch of targets.

    Returns:
        float64 [distances + 1], from distance 0 on.
    """
    sums_D = np.zeros(distances + 1)
    for inputs_TL, targets_L in _batches(tokens, places_P, num_words=words_before(distances)):
        with torch.no_grad():
            input_TLE = model.embed(_on(model, inputs_TL))
        input_TLE.requires_grad_()
        with torch.backends.cudnn.flags(enabled=False):  # its LSTM has a gradient in training mode alone
            nats_L = _last_nats(model, input_TLE, targets_L)
            (gradient_TLE,) = torch.autograd.grad(nats_L.sum(), input_TLE)  # no lane depends on another
        norms_DL = gradient_TLE[-1 - distances :].flip(0).double().norm(dim=2)
        sums_D += norms_DL.sum(1).cpu().numpy()
        progress(inputs_TL.size)
    return sums_D / len(places_P)


@torch.inference_mode()
def nats_from_zero(model: LanguageModel, inputs_TL: NDArray[np.int64], targets_L: NDArray[np.int64]) -> Tensor:
    """Nats of each lane's target by a model that reads its inputs from zero state; a `Reader`, once it has a model."""
    return _last_nats(model, model.embed(_on(model, inputs_TL)), targets_L)


def score_after(
    read: Reader, tokens: Tokens, places_P: Places, *, num_words: int, progress: Progress = lambda words: None
) -> Score:
    """Scores some targets, each given so many words before it and nothing else.

    Args:
        read: what predicts them.
        tokens: the sequence.
        places_P: of the targets, each with so many words before it.
        num_words: the context, at least 1.
        progress: called after each batch of targets.
    """
    total_nats = 0.0
    for inputs_TL, targets_L in _batches(tokens, places_P, num_words=num_words):
        total_nats += float(read(inputs_TL, targets_L).double().sum())
        progress(inputs_TL.size)
    return Score(total_nats=total_nats, num_targets=len(places_P))


def score_in_place(
    predict: Predictor, tokens: Tokens, places_P: Places, *, progress: Progress = lambda words: None
) -> Score:
    """Scores the same targets, each given all of the sequence before it; arguments as `score_after`.

    The sequence is read up to the last of them.
    """
    total_nats, start = 0.0, 0
    for nats_N in predict(tokens):
        stop = start + len(nats_N)
        here_P = places_P[(start <= places_P) & (places_P < stop)] - start
        total_nats += float(nats_N.cpu()[torch.from_numpy(here_P)].sum())
        progress(len(nats_N))
        start = stop
        if start > places_P.max():
            break
    return Score(total_nats=total_nats, num_targets=len(places_P))


def _batches(
    tokens: Tokens, places_P: Places, *, num_words: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(inputs_TL, targets_L) of some targets at a time: so many words before each, and itself."""
    for first in range(0, len(places_P), LANES_AT_ONCE):
        places = places_P[first : first + LANES_AT_ONCE].tolist()
        ids_TL = np.stack([tokens.read(place - num_words, place + 1) for place in places], axis=1)
        yield ids_TL[:-1], ids_TL[-1]


def _last_nats(model: LanguageModel, input_TLE: Tensor, targets_L: NDArray[np.int64]) -> Tensor:
    """Nats of the target after each lane's last input, read from zero state."""
    state = model.recurrence.zero_state(input_TLE.shape[1])
    hidden_TLH, _ = model.recurrence(input_TLE, state, keys_SL=None)
    targets = tuple(each.to(input_TLE.device) for each in model.softmax.prepare_targets(targets_L))
    return model.softmax.nats(hidden_TLH[-1], targets)


def _on(model: LanguageModel, ids: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(ids).to(model.device)
