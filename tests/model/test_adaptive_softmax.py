"""The adaptive softmax equals the plain formula and torch's own, in values and in gradients."""

import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sections import softmax_section
from torch import nn
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.model.adaptive_softmax import AdaptiveSoftmax, split_targets

HIDDEN = 12
VOCAB = 31
# uneven clusters; the last two have a tail of one word, at the end and in the middle
CUTOFFS = [(), (1,), (7,), (5, 11), (3, 8, 20), (29, 30), (4, 5, 20)]
DIV_VALUES = [1.0, 2.0, 3.5]


def softmax_of(cutoffs, *, div_value=2.0, tied=False, seed=0, dtype=torch.float64, hidden_size=HIDDEN):
    """A softmax with drawn weights, and the embedding if it is tied."""
    generator = torch.Generator().manual_seed(seed)
    embedding_VH = nn.Parameter(torch.empty(VOCAB, hidden_size)) if tied else None
    softmax = AdaptiveSoftmax(
        softmax_section(cutoffs, div_value=div_value),
        hidden_size=hidden_size,
        vocab_size=VOCAB,
        embedding_VH=embedding_VH,
    )
    with torch.no_grad():
        for parameter in softmax.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return softmax.to(dtype)


def hidden_of(num_tokens, *, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, HIDDEN, generator=generator).to(dtype).requires_grad_()


def targets_of(num_tokens, *, seed=2):
    return np.random.default_rng(seed).integers(0, VOCAB, num_tokens)


def plain_log_probabilities(softmax, hidden_NH, *, hidden_size=HIDDEN):
    """Section 3 of the paper word by word: log P(head entry) + log P(word within its cluster)."""
    edges = [*softmax.cutoffs, VOCAB]
    tied = softmax.embedding_VH is not None
    head_CH = torch.cat([softmax.embedding_VH[: edges[0]], softmax.head_weight]) if tied else softmax.head_weight
    assert head_CH.shape == (edges[0] + len(edges) - 1, hidden_size)
    head_NC = (hidden_NH @ head_CH.T + softmax.head_bias).log_softmax(1)
    columns = [head_NC[:, word] for word in range(edges[0])]
    for i, (first, end) in enumerate(pairwise(edges)):
        projected = hidden_NH
        if not tied and softmax.tail_projections:
            projected = hidden_NH @ softmax.tail_projections[i].T
        tail_CH = softmax.embedding_VH[first:end] if tied else softmax.tail_weights[i]
        tail_NC = (projected @ tail_CH.T + softmax.tail_biases[i]).log_softmax(1)
        columns += [head_NC[:, edges[0] + i] + tail_NC[:, word - first] for word in range(first, end)]
    return torch.stack(columns, dim=1)


def gradients(nats_N, softmax, hidden_NH):
    """Of a weighted sum, so that a gradient that belongs to another token shows."""
    weights_N = torch.arange(1, len(nats_N) + 1, dtype=nats_N.dtype)
    names, parameters = zip(*softmax.named_parameters(), strict=True)
    found = torch.autograd.grad((nats_N * weights_N).sum(), [hidden_NH, *parameters], allow_unused=True)
    return dict(zip(["hidden", *names], found, strict=True))


def assert_same_gradients(ours, theirs):
    for name, gradient in ours.items():
        assert gradient is not None, name
        other = theirs[name] if theirs[name] is not None else torch.zeros_like(gradient)
        torch.testing.assert_close(gradient, other, msg=lambda text, name=name: f"{name}: {text}")


# --- the split


@settings(deadline=None)
@given(st.lists(st.integers(0, VOCAB - 1), max_size=40), st.sets(st.integers(1, VOCAB - 1), max_size=5).map(sorted))
def test_the_split_deals_each_target_to_its_cluster(targets, cutoffs):
    split = split_targets(np.array(targets, dtype=np.int64), cutoffs=cutoffs)
    edges = [*cutoffs, VOCAB]
    head, rows, tails = [], [[] for _ in cutoffs], [[] for _ in cutoffs]
    for n, word in enumerate(targets):
        cluster = max((i for i, first in enumerate(cutoffs) if word >= first), default=None)
        head.append(word if cluster is None else edges[0] + cluster)
        if cluster is not None:
            rows[cluster].append(n)
            tails[cluster].append(word - cutoffs[cluster])
    assert split[0].tolist() == head
    assert [each.tolist() for each in split[1::2]] == rows
    assert [each.tolist() for each in split[2::2]] == tails
    assert {each.dtype for each in split} == {torch.int64}


def test_nats_are_summed_by_the_cluster_of_their_target():
    targets_N = np.array([0, 5, 1, 8, 5, 2])
    nats_N = torch.tensor([1.0, 10.0, 2.0, 100.0, 20.0, float("nan")])
    softmax = AdaptiveSoftmax(softmax_section([3, 7, 9], div_value=2.0), hidden_size=4, vocab_size=12)
    nats_C, num_targets = softmax.cluster_sums(nats_N, softmax.prepare_targets(targets_N))
    assert softmax.clusters == ("head", "tail-1", "tail-2", "tail-3")
    assert num_targets == (3, 2, 1, 0)
    assert nats_C[1:].tolist() == [30.0, 100.0, 0.0]
    assert nats_C[0].isnan()


# --- law 4


@pytest.mark.parametrize("cutoffs", CUTOFFS)
@pytest.mark.parametrize("div_value", DIV_VALUES)
def test_probabilities_sum_to_one_and_are_the_plain_ones(cutoffs, div_value):
    softmax = softmax_of(cutoffs, div_value=div_value)
    hidden_NH = hidden_of(9)
    found_NV = softmax.log_probabilities(hidden_NH)
    assert found_NV.shape == (9, VOCAB)
    torch.testing.assert_close(found_NV.exp().sum(1), torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(found_NV, plain_log_probabilities(softmax, hidden_NH))


@pytest.mark.parametrize("cutoffs", CUTOFFS)
@pytest.mark.parametrize(("div_value", "tied"), [(1.0, False), (2.0, False), (3.5, False), (1.0, True)])
@pytest.mark.parametrize("num_tokens", [1, 40])
def test_nats_and_gradients_equal_the_plain_formula(cutoffs, div_value, tied, num_tokens):
    softmax = softmax_of(cutoffs, div_value=div_value, tied=tied)
    hidden_NH = hidden_of(num_tokens)
    targets_N = targets_of(num_tokens)
    nats_N = softmax.nats(hidden_NH, split_targets(targets_N, cutoffs=cutoffs))
    plain_N = -plain_log_probabilities(softmax, hidden_NH)[range(num_tokens), targets_N]
    assert nats_N.dtype == torch.float64
    torch.testing.assert_close(nats_N, plain_N)
    assert_same_gradients(gradients(nats_N, softmax, hidden_NH), gradients(plain_N, softmax, hidden_NH))


@pytest.mark.parametrize("tied", [False, True])
def test_every_word_as_a_target_costs_its_negative_log_probability(tied):
    softmax = softmax_of((3, 8, 20), div_value=1.0, tied=tied)
    hidden_NH = hidden_of(1).expand(VOCAB, HIDDEN)
    nats_N = softmax.nats(hidden_NH, split_targets(np.arange(VOCAB), cutoffs=(3, 8, 20)))
    torch.testing.assert_close(nats_N, -softmax.log_probabilities(hidden_NH[:1])[0])


@pytest.mark.parametrize("cutoffs", [each for each in CUTOFFS if each])
@pytest.mark.parametrize("div_value", [1.0, 2.0])
def test_nats_and_gradients_equal_torchs_adaptive_softmax(cutoffs, div_value):
    softmax = softmax_of(cutoffs, div_value=div_value)
    hidden_NH = hidden_of(50)
    targets_N = targets_of(50)
    theirs = nn.AdaptiveLogSoftmaxWithLoss(
        HIDDEN, VOCAB, list(cutoffs), div_value=div_value, head_bias=True, dtype=torch.float64
    )
    with torch.no_grad():
        theirs.head.weight.copy_(softmax.head_weight)
        theirs.head.bias.copy_(softmax.head_bias)
        for i, (projection, words) in enumerate(theirs.tail):
            softmax.tail_biases[i].zero_()  # torch has none
            words.weight.copy_(softmax.tail_weights[i])
            # at div_value 1 we have no projection, torch always has
            projection.weight.copy_(softmax.tail_projections[i] if div_value > 1 else torch.eye(HIDDEN))
    nats_N = softmax.nats(hidden_NH, split_targets(targets_N, cutoffs=cutoffs))
    log_probabilities_N = theirs(hidden_NH, torch.from_numpy(targets_N)).output
    torch.testing.assert_close(nats_N, -log_probabilities_N)
    torch.testing.assert_close(softmax.log_probabilities(hidden_NH), theirs.log_prob(hidden_NH))

    ours = gradients(nats_N, softmax, hidden_NH)
    other = gradients(-log_probabilities_N, theirs, hidden_NH)
    names = {"hidden": "hidden", "head_weight": "head.weight", "head_bias": "head.bias"}
    for i in range(len(cutoffs)):
        names[f"tail_weights.{i}"] = f"tail.{i}.1.weight"
        if div_value > 1:
            names[f"tail_projections.{i}"] = f"tail.{i}.0.weight"
    assert_same_gradients({name: ours[name] for name in names}, {name: other[names[name]] for name in names})


@pytest.mark.parametrize(("div_value", "tied"), [(1.0, False), (2.0, False), (1.0, True)])
@pytest.mark.parametrize("targets", [[0, 2, 1], [3, 30], [9, 9], []])
def test_a_cluster_without_targets_has_zero_gradients_and_not_none(div_value, tied, targets):
    cutoffs = (3, 8, 20)
    softmax = softmax_of(cutoffs, div_value=div_value, tied=tied)
    hidden_NH = hidden_of(len(targets))
    split = split_targets(np.array(targets, dtype=np.int64), cutoffs=cutoffs)
    softmax.nats(hidden_NH, split).sum().backward()
    assert all(parameter.grad is not None for parameter in softmax.parameters())
    for i in range(len(cutoffs)):
        is_empty = not len(split[1 + 2 * i])
        assert (softmax.tail_biases[i].grad == 0).all() == is_empty
        if not tied:
            assert (softmax.tail_weights[i].grad == 0).all() == is_empty
        if not tied and div_value > 1:
            assert (softmax.tail_projections[i].grad == 0).all() == is_empty


@pytest.mark.parametrize("tied", [False, True])
def test_the_full_softmax_is_a_linear_layer_and_a_cross_entropy(tied):
    softmax = softmax_of((), div_value=1.0, tied=tied)
    hidden_NH = hidden_of(20)
    targets_N = targets_of(20)
    nats_N = softmax.nats(hidden_NH, split_targets(targets_N, cutoffs=()))
    weight_VH = softmax.embedding_VH if tied else softmax.head_weight
    plain_N = F.cross_entropy(
        F.linear(hidden_NH, weight_VH, softmax.head_bias), torch.from_numpy(targets_N), reduction="none"
    )
    torch.testing.assert_close(nats_N, plain_N)
    assert_same_gradients(gradients(nats_N, softmax, hidden_NH), gradients(plain_N, softmax, hidden_NH))


@pytest.mark.parametrize(("div_value", "tied"), [(2.0, False), (1.0, True)])
def test_gradients_by_finite_differences(div_value, tied):
    softmax = softmax_of((4, 20), div_value=div_value, tied=tied)
    split = split_targets(np.array([0, 3, 4, 25, 30, 19]), cutoffs=(4, 20))
    hidden_NH = hidden_of(6)
    parameters = [parameter for name, parameter in softmax.named_parameters() if "bias" in name or "proj" in name]
    assert torch.autograd.gradcheck(
        lambda hidden, *_: softmax.nats(hidden, split), (hidden_NH, *parameters), fast_mode=True
    )


# --- types


@pytest.mark.parametrize(
    ("cutoffs", "div_value", "tied"), [((), 1.0, False), ((5, 11), 2.0, False), ((5, 11), 1.0, True)]
)
def test_under_bf16_autocast_nats_are_float32_and_close(cutoffs, div_value, tied):
    softmax = softmax_of(cutoffs, div_value=div_value, tied=tied, dtype=torch.float32)
    hidden_NH = hidden_of(60, dtype=torch.float32)
    split = split_targets(targets_of(60), cutoffs=cutoffs)
    exact_N = softmax.nats(hidden_NH, split)
    exact_NV = softmax.log_probabilities(hidden_NH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nats_N = softmax.nats(hidden_NH, split)
        found_NV = softmax.log_probabilities(hidden_NH)
    assert (exact_N.dtype, nats_N.dtype, found_NV.dtype) == (torch.float32,) * 3
    assert not torch.equal(nats_N, exact_N)  # it did run in bf16
    torch.testing.assert_close(nats_N, exact_N, atol=0.15, rtol=0.02)
    torch.testing.assert_close(found_NV.exp().sum(1), torch.ones(60))  # the softmax itself is not rounded to bf16
    torch.testing.assert_close(found_NV, exact_NV, atol=0.15, rtol=0.02)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_nats_are_float32_or_wider(dtype, expected):
    softmax = softmax_of((5, 11), dtype=dtype)
    hidden_NH = hidden_of(7, dtype=dtype)
    assert softmax.nats(hidden_NH, split_targets(targets_of(7), cutoffs=(5, 11))).dtype == expected
    assert softmax.log_probabilities(hidden_NH).dtype == expected


# --- shapes and refusals


@pytest.mark.parametrize(
    ("hidden_size", "div_value", "widths"),
    [
        (12, 1.0, [12, 12, 12]),
        (12, 2.0, [6, 3, 1]),
        (12, 4.0, [3, 1, 1]),
        (13, 1.5, [8, 5, 3]),
        (200, 4.0, [50, 12, 3]),
    ],
)
def test_widths_of_the_tail_clusters(hidden_size, div_value, widths):
    cutoffs = (3, 8, 20)
    sizes = [5, 12, 11]
    softmax = softmax_of(cutoffs, div_value=div_value, hidden_size=hidden_size)
    assert softmax.head_weight.shape == (3 + 3, hidden_size)
    assert softmax.head_bias.shape == (3 + 3,)
    assert [tuple(each.shape) for each in softmax.tail_weights] == list(zip(sizes, widths, strict=True))
    assert [tuple(each.shape) for each in softmax.tail_biases] == [(size,) for size in sizes]
    projections = [(width, hidden_size) for width in widths] if div_value > 1 else []
    assert [tuple(each.shape) for each in softmax.tail_projections] == projections


def test_tied_weights_have_rows_of_their_own_for_the_clusters_only():
    softmax = softmax_of((3, 8, 20), div_value=1.0, tied=True)
    own = {name: tuple(parameter.shape) for name, parameter in softmax.named_parameters()}
    assert own == {
        "embedding_VH": (VOCAB, HIDDEN),
        "head_weight": (3, HIDDEN),
        "head_bias": (6,),
        "tail_biases.0": (5,),
        "tail_biases.1": (12,),
        "tail_biases.2": (11,),
    }


@pytest.mark.parametrize(
    ("cutoffs", "vocab_size", "mend"),
    [
        ((5, 10, 20), 20, "model.softmax.cutoffs=[5,10]"),
        ((5, 10, 20), 10, "model.softmax.cutoffs=[5]"),
        ((5, 10, 20), 5, "model.softmax.kind=full"),
        ((20,), 19, "model.softmax.kind=full"),
    ],
)
def test_cutoffs_beyond_the_vocabulary_are_refused(cutoffs, vocab_size, mend):
    message = f"cutoff {cutoffs[-1]} is not below the vocabulary's {vocab_size} words; use {mend}"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        AdaptiveSoftmax(softmax_section(cutoffs, div_value=2.0), hidden_size=4, vocab_size=vocab_size)


def test_a_last_cluster_of_one_word_is_allowed():
    softmax = AdaptiveSoftmax(softmax_section((5, 20), div_value=2.0), hidden_size=4, vocab_size=21)
    assert softmax.tail_weights[1].shape == (1, 1)


def test_tied_and_narrowed_is_our_own_mistake():
    with pytest.raises(AssertionError, match=r"^tied clusters share rows of full width$"):
        softmax_of((5,), div_value=2.0, tied=True)


def test_other_numbers_of_hidden_vectors_and_targets_are_refused():
    softmax = softmax_of((5,))
    with pytest.raises(ValueError, match=r"^3 hidden vectors for 4 targets$"):
        softmax.nats(hidden_of(3), split_targets(targets_of(4), cutoffs=(5,)))
