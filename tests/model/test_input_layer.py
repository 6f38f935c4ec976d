"""The adaptive input equals the plain formula, and what is tied is the same memory."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from support.sections import model_section
from torch import nn

from pipeline.config import AdaptiveInputConfig, AdaptiveSoftmaxConfig
from pipeline.errors import ConfigError
from pipeline.model.adaptive_softmax import AdaptiveSoftmax
from pipeline.model.input_layer import AdaptiveInput
from pipeline.model.language_model import LanguageModel, num_words

V, E = 31, 8
CUTOFFS = [(1,), (7,), (5, 11), (3, 8, 20), (29, 30)]


@torch.no_grad()
def drawn(module):
    generator = torch.Generator().manual_seed(0)
    for parameter in module.double().parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def input_of(cutoffs, *, div_value=2.0):
    section = AdaptiveInputConfig(kind="adaptive", cutoffs=cutoffs, div_value=div_value)
    return drawn(AdaptiveInput(section, embedding_size=E, vocab_size=V))


def model_of(*, cutoffs=(5, 11), div_value=2.0, tied=False, softmax_cutoffs=None, dropout=0.0):
    section = model_section(
        embedding_size=E,
        hidden_size=E,
        dropout=dropout,
        tied=False,
        cutoffs=cutoffs if softmax_cutoffs is None else softmax_cutoffs,
        div_value=div_value,
    )
    adaptive = AdaptiveInputConfig(kind="adaptive", cutoffs=cutoffs, div_value=div_value)
    return drawn(LanguageModel(section.model_copy(update={"input": adaptive, "tied": tied}), vocab_size=V))


def words_of(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, V, shape))


# --- the layer alone


@pytest.mark.parametrize("div_value", [1.0, 2.0, 3.5, 100.0])
@pytest.mark.parametrize("cutoffs", CUTOFFS)
def test_a_words_vector_is_its_row_times_its_clusters_projection(cutoffs, div_value):
    layer = input_of(cutoffs, div_value=div_value)
    widths = [max(1, int(E / div_value**i)) for i in range(len(cutoffs) + 1)]
    assert [tuple(each.shape) for each in layer.projections] == [(width, E) for width in widths]
    found_VE, place = layer(torch.arange(V)[:, None])[:, 0], 0
    for i, (first, end) in enumerate(pairwise([0, *cutoffs, V])):
        assert layer.tables[i].shape == (end - first, widths[i])
        for word in range(first, end):
            expected_E = layer.tables[i][word - first] @ layer.projections[i]
            torch.testing.assert_close(found_VE[word], expected_E, rtol=1e-12, atol=1e-12)
            place += 1
    assert place == V == num_words({f"input.{name}": each for name, each in layer.state_dict().items()})


def test_gradients_are_those_of_the_formula():
    layer, words_TL = input_of((5, 11)), torch.tensor([[0, 4, 5], [10, 11, 30]])
    weights = [*layer.parameters()]

    def vectors(*weights):
        named = dict(zip(dict(layer.named_parameters()), weights, strict=True))
        return torch.func.functional_call(layer, named, (words_TL,))

    assert torch.autograd.gradcheck(vectors, weights)
    layer(words_TL).sum().backward()
    read = [sorted({*each.grad.abs().sum(1).nonzero()[:, 0].tolist()}) for each in layer.tables]
    assert read == [[0, 4], [0, 5], [0, 19]]  # and no other row


@pytest.mark.parametrize("words", [[], [0], [30]])
def test_every_parameter_has_a_gradient_whatever_the_words(words):
    layer = input_of((5, 11))
    layer(torch.tensor(words, dtype=torch.int64)[:, None]).sum().backward()
    assert all(each.grad is not None for each in layer.parameters())


def test_cutoffs_beyond_the_vocabulary_are_refused():
    with pytest.raises(
        ConfigError, match=r"^cutoff 31 is not below the vocabulary's 31 words; use model\.input\.cutoffs"
    ):
        input_of((5, 31))
    with pytest.raises(ConfigError, match=r"use model\.input\.kind=full$"):
        input_of((40,))


# --- in the model


def test_the_model_reads_it():
    model, words_TL = model_of(), words_of(4, 3)
    zero = model.recurrence.zero_state(3)
    hidden_TLH, _ = model.hidden(words_TL, zero)
    expected_TLH, _ = model.recurrence(model.input(words_TL), zero, keys_SL=None)
    assert torch.equal(hidden_TLH, expected_TLH)
    assert model.embedding_VE is None
    names = [name for name in model.state_dict() if name.startswith(("input", "embedding"))]
    assert names == [f"input.{part}.{i}" for part in ("tables", "projections") for i in range(3)]
    assert num_words(model.state_dict()) == V


@pytest.mark.parametrize("div_value", [1.0, 2.0])
def test_tied_it_shares_rows_and_tail_projections_with_the_softmax(div_value):
    """Own are the head's projection of the input, and entries of tails and biases of the softmax."""
    tied, untied = model_of(tied=True, div_value=div_value), model_of(div_value=div_value)
    rows, projections = [*tied.input.tables], [*tied.input.projections]
    softmax = tied.softmax
    assert softmax.embedding_VH is rows[0]
    assert [*map(id, softmax.tail_weights)] == [*map(id, rows[1:])]
    assert [*map(id, softmax.tail_projections)] == ([*map(id, projections[1:])] if div_value > 1 else [])
    own = [
        name
        for name, each in softmax.named_parameters()
        if all(each is not shared for shared in tied.input.parameters())
    ]
    assert own == ["head_weight", "head_bias", "tail_biases.0", "tail_biases.1"]
    assert softmax.head_weight.shape == (2, E)

    def count(model):
        return sum(each.numel() for each in model.parameters())

    shared = sum(each.numel() for each in (rows if div_value == 1 else rows + projections[1:]))
    assert count(untied) - count(tied) == shared


@pytest.mark.parametrize("cutoffs", CUTOFFS)
def test_a_tied_softmax_is_the_untied_one_of_the_same_numbers_and_gradients_add(cutoffs):
    tied, untied = model_of(tied=True, cutoffs=cutoffs), model_of(cutoffs=cutoffs)
    with torch.no_grad():
        untied.input.load_state_dict(tied.input.state_dict())
        untied.recurrence.load_state_dict(tied.recurrence.state_dict())
        own = untied.softmax
        own.head_weight.copy_(torch.cat([tied.input.tables[0], tied.softmax.head_weight]))
        own.head_bias.copy_(tied.softmax.head_bias)
        for i in range(len(cutoffs)):
            own.tail_weights[i].copy_(tied.input.tables[i + 1])
            own.tail_projections[i].copy_(tied.input.projections[i + 1])
            own.tail_biases[i].copy_(tied.softmax.tail_biases[i])
    words_TL, targets_N = words_of(6, 3), words_of(18, seed=1).numpy()
    for model in (tied, untied):
        nats_N, _ = model(words_TL, model.recurrence.zero_state(3), model.softmax.prepare_targets(targets_N))
        (nats_N * torch.arange(1.0, 19.0)).sum().backward()
    expected = [untied.input.tables[0].grad + untied.softmax.head_weight.grad[: cutoffs[0]]]
    expected += [a.grad + b.grad for a, b in zip([*untied.input.tables][1:], untied.softmax.tail_weights, strict=True)]
    found = [each.grad for each in tied.input.tables]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert torch.count_nonzero(untied.softmax.head_weight.grad[: cutoffs[0]])  # both parts have a say
    expected = [
        a.grad + b.grad for a, b in zip([*untied.input.projections][1:], untied.softmax.tail_projections, strict=True)
    ]
    torch.testing.assert_close([each.grad for each in tied.input.projections][1:], expected, rtol=1e-10, atol=1e-12)
    hidden_NH = torch.randn(5, E, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found_NV = tied.softmax.log_probabilities(hidden_NH)
    torch.testing.assert_close(found_NV, untied.softmax.log_probabilities(hidden_NH), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found_NV.exp().sum(1), torch.ones(5, dtype=torch.float64))


def test_clusters_of_other_words_are_not_shared():
    softmax = AdaptiveSoftmax(
        AdaptiveSoftmaxConfig(kind="adaptive", cutoffs=(5, 12), div_value=2.0), hidden_size=E, vocab_size=V
    )
    with pytest.raises(ConfigError, match=r"^model\.tied=true cannot share the weights"):
        softmax.tie(input_of((5, 11)))
    softmax.tie(input_of((5, 12)))


def test_what_is_tied_stays_so_when_weights_are_moved_and_loaded():
    one, other = model_of(tied=True), model_of(tied=True)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(1.0)
    other.load_state_dict(one.state_dict())
    other = other.float().double()
    assert other.softmax.tail_weights[1] is other.input.tables[2]
    assert torch.equal(other.softmax.tail_weights[1], one.input.tables[2].float().double())
    assert len(list(other.parameters())) == len({id(each) for each in other.parameters()})
    assert isinstance(other.input.tables[2], nn.Parameter)
