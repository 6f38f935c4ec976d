"""Dynamic evaluation: the weights go on learning from each segment of the text once it is scored.

In: a trained model, training text, a token sequence. Out: hidden vectors, words and nats, as every reader gives them.
One lane from the zero state; a segment is scored, and then each weight θ moves by λ R (θ0 - θ) - η g / (M + ε):

    θ0  the trained weight
    g   the gradient of the segment's mean nats
    M   the root of g's mean square over windows of training text, with lanes as in training
    R   M / the mean, over the tensors of weights, of their mean M; at most 1 / λ

The model itself is θ0 and stays as it is: what learns is a copy, made anew for each sequence.

Source: Krause et al. 2018, arXiv:1709.07432, section 4 (RMS with a global prior).
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.config import DynamicConfig
from pipeline.corpus.lanes import LanePlan
from pipeline.corpus.stream import Tokens, read_windows
from pipeline.model.language_model import LanguageModel
from pipeline.scoring.perplexity import Read, in_windows, one_lane, read_window


class Rates(NamedTuple):
    """How the weights move, a tensor for each of the model's parameters.

    Attributes:
        pull: share of the way back to the trained weight, λ R.
        push: what the gradient is multiplied by, η / (M + ε).
    """

    pull: list[Tensor]
    push: list[Tensor]


def learning_rates(
    model: LanguageModel,
    section: DynamicConfig,
    train: Tokens,
    *,
    progress: Callable[[int], None] = lambda num_tokens: None,
) -> Rates:
    """The rates of each weight, by how large its gradient is in training.

    Args:
        model: the trained one.
        section: of the configuration; its learning rate is given.
        train: the training text, at least a token for each lane.
        progress: called with the number of tokens of each window read.
    """
    assert section.lr is not None
    lr = section.lr
    roots = _gradient_roots(model, section, train, progress=progress)
    mean = torch.stack([root.mean() for root in roots]).mean()
    return Rates(
        pull=[(section.decay * root / mean).clamp(max=1) for root in roots],
        push=[lr / (root + section.epsilon) for root in roots],
    )


def read_dynamic(model: LanguageModel, section: DynamicConfig, rates: Rates, tokens: Tokens) -> Iterator[Read]:
    """Reads a sequence with weights that learn from it.

    Args:
        model: the trained one, which is left as it is.
        section: of the configuration.
        rates: of `learning_rates`.
        tokens: the sequence.

    Yields:
        as a `Reader`.
    """
    return in_windows(_read_segments(model, section, rates, tokens))


def dynamic_protocol(section: DynamicConfig) -> str:
    """What a protocol says of it."""
    return (
        f"dynamic evaluation in segments of {section.segment}, lr {section.lr:g}, decay {section.decay:g}, epsilon"
        f" {section.epsilon:g}, gradients over {section.num_windows} windows of {section.num_lanes} lanes at most"
    )


def _read_segments(model: LanguageModel, section: DynamicConfig, rates: Rates, tokens: Tokens) -> Iterator[Read]:
    learner = _copy(model)
    state = learner.recurrence.zero_state(1)
    for window in one_lane(tokens, bptt=section.segment):
        found, state = read_window(learner, window, state)
        _update(learner, model, rates, _gradients(learner, found))
        state = tuple(each.detach() for each in state)
        yield Read(*(part.detach() for part in found))


@torch.no_grad()
def _update(learner: LanguageModel, trained: LanguageModel, rates: Rates, gradients: Sequence[Tensor]) -> None:
    weights = zip(learner.parameters(), trained.parameters(), rates.pull, rates.push, gradients, strict=True)
    for weight, origin, pull, push, gradient in weights:
        weight.lerp_(origin, pull).addcmul_(gradient, push, value=-1)


def _gradient_roots(
    model: LanguageModel, section: DynamicConfig, train: Tokens, *, progress: Callable[[int], None]
) -> list[Tensor]:
    """M of each parameter; arguments as of `learning_rates`."""
    learner, lanes = _copy(model), range(section.num_lanes)
    plan = LanePlan(num_targets=len(train), num_lanes=section.num_lanes, bptt=section.segment)
    num_windows = min(section.num_windows, plan.num_windows)
    state = learner.recurrence.zero_state(section.num_lanes)
    squares = [torch.zeros_like(each) for each in learner.parameters()]
    for window in read_windows(train, plan, start=0, stop=num_windows, lanes=lanes):
        found, state = read_window(learner, window, state)
        for square, gradient in zip(squares, _gradients(learner, found), strict=True):
            square.addcmul_(gradient, gradient)
        state = tuple(each.detach() for each in state)
        progress(len(found.nats_N))
    return [(square / num_windows).sqrt() for square in squares]


def _gradients(learner: LanguageModel, found: Read) -> tuple[Tensor, ...]:
    """Of the mean nats, for each parameter."""
    return torch.autograd.grad(found.nats_N.mean(), list(learner.parameters()))


def _copy(model: LanguageModel) -> LanguageModel:
    """One that can learn: cuDNN's LSTM has no backward pass in evaluation mode. Nothing is dropped without keys."""
    return copy.deepcopy(model).train()
