"""Sampled losses by their own properties: formulas, expectations in closed form, and exact answers without draws."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.config import AdaptiveInputConfig, BlackOutConfig, FullSoftmaxConfig, NCEConfig, SampledSoftmaxConfig
from pipeline.errors import ConfigError
from pipeline.model.adaptive_softmax import AdaptiveSoftmax
from pipeline.model.draws import log_uniform, powers
from pipeline.model.input_layer import AdaptiveInput
from pipeline.model.sampled_losses import NCE, BlackOut, SampledSoftmax

V, H, N, K = 50, 4, 6, 12
ALPHA = 0.5
COUNTS_V = 10_000 // np.arange(1, V + 1)
TARGETS_N = np.array([0, 3, 3, 17, 49, 0])
STEPS = 3000
KINDS = ["sampled", "nce", "blackout"]


def layer_of(kind, *, num_samples=K, tied=False, dtype=torch.float64, scale=1.0):
    """With drawn weights."""
    make, section = {
        "sampled": (SampledSoftmax, SampledSoftmaxConfig(kind=kind, num_samples=num_samples)),
        "nce": (NCE, partial(NCEConfig, kind=kind, num_samples=num_samples)),
        "blackout": (BlackOut, partial(BlackOutConfig, kind=kind, num_samples=num_samples)),
    }[kind]
    section = section(alpha=ALPHA) if callable(section) else section
    embedding_VH = nn.Parameter(torch.empty(V, H)) if tied else None
    layer = make(section, hidden_size=H, vocab_size=V, embedding_VH=embedding_VH)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return layer.to(dtype)


def hidden_of(*, num_tokens=N, dtype=torch.float64):
    return torch.randn(num_tokens, H, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


def sampler_of(layer, *, seed=7):
    return layer.sampler(counts=lambda: COUNTS_V, seed=seed)


def loss_of(layer, hidden_NH, *, step=0, targets_N=TARGETS_N, seed=7):
    targets = (*layer.prepare_targets(targets_N), *sampler_of(layer, seed=seed)(step, targets_N))
    return layer.nats(hidden_NH, targets)


def scores_of(layer, hidden_NH):
    """The logits of all words, float64."""
    weight_VH = layer.head_weight if layer.embedding_VH is None else layer.embedding_VH
    return (hidden_NH @ weight_VH.T + layer.head_bias).detach().numpy()


def mean_and_error(values):
    """Over the first axis, with its standard error."""
    return np.mean(values, axis=0), np.std(values, axis=0) / len(values) ** 0.5


def losses_of(layer, hidden_NH, *, steps=STEPS):
    with torch.no_grad():
        sample, prepared = sampler_of(layer), layer.prepare_targets(TARGETS_N)
        return np.array([layer.nats(hidden_NH, (*prepared, *sample(step, TARGETS_N))).numpy() for step in range(steps)])


# --- the formulas, word by word


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def expected_sampled(u_V, target, words_K, q_V):
    weights = [np.exp(u_V[word]) / q_V[word] for word in words_K if word != target]
    own = np.exp(u_V[target]) / q_V[target]
    return -np.log(own / (own + sum(weights)))


def expected_nce(u_V, target, words_K, q_V):
    s_V, odds_V = u_V - np.log(V), np.log(K * q_V)
    noise = sum(np.log(sigmoid(odds_V[word] - s_V[word])) for word in words_K)
    return -np.log(sigmoid(s_V[target] - odds_V[target])) - noise


def expected_blackout(u_V, target, words_K, q_V):
    weights = [np.exp(u_V[word]) / q_V[word] for word in words_K if word != target]
    own = np.exp(u_V[target]) / q_V[target]
    z = own + sum(weights)
    return -np.log(own / z) - sum(np.log(1 - each / z) for each in weights)


FORMULAS = {"sampled": expected_sampled, "nce": expected_nce, "blackout": expected_blackout}


def q_of(kind, *, num_samples=K):
    if kind == "sampled":
        return 1 - (1 - log_uniform(V)) ** num_samples
    return powers(COUNTS_V, alpha=ALPHA)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_formula(kind, tied):
    layer, hidden_NH = layer_of(kind, tied=tied), hidden_of()
    num_hits = 0
    for step in range(20):
        words_K = sampler_of(layer)(step, TARGETS_N)[0].tolist()
        num_hits += sum(words_K.count(target) for target in TARGETS_N)
        expected = [
            FORMULAS[kind](u_V, target, words_K, q_of(kind))
            for u_V, target in zip(scores_of(layer, hidden_NH), TARGETS_N, strict=True)
        ]
        assert loss_of(layer, hidden_NH, step=step).tolist() == pytest.approx(expected, rel=1e-10)
    assert num_hits > 20, "the formulas must be compared where a draw is the target"


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_formula(kind):
    layer, hidden_NH = layer_of(kind), hidden_of(num_tokens=3)
    prepared = (*layer.prepare_targets(TARGETS_N[:3]), *sampler_of(layer)(0, TARGETS_N[:3]))
    names = [*dict(layer.named_parameters())]

    def loss(hidden, *weights):
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (hidden, prepared), {})

    layer.forward = layer.nats
    assert torch.autograd.gradcheck(loss, (hidden_NH, *layer.parameters()))


# --- expectations


def test_distinct_words_are_among_the_draws_as_often_as_expected():
    sample, seen_V = sampler_of(layer_of("sampled")), np.zeros(V)
    for step in range(STEPS):
        words_K, log_q_N, log_q_K = sample(step, TARGETS_N)
        words_K = words_K.numpy()
        assert len({*words_K.tolist()}) == len(words_K) <= K
        seen_V[words_K] += 1
    q_V = q_of("sampled")
    assert log_q_N.exp().tolist() == pytest.approx(q_V[TARGETS_N])
    assert log_q_K.exp().tolist() == pytest.approx(q_V[words_K])
    assert np.all(np.abs(seen_V / STEPS - q_V) <= 5 * np.sqrt(q_V * (1 - q_V) / STEPS))


@pytest.mark.parametrize("num_samples", [12, 100])
def test_the_weighted_words_sum_to_z_in_the_mean(num_samples):
    layer, hidden_NH = layer_of("sampled", num_samples=num_samples), hidden_of()
    weights_NV, sample = np.exp(scores_of(layer, hidden_NH)), sampler_of(layer)
    found = []
    for step in range(STEPS):
        words_K, _, log_q_K = (each.numpy() for each in sample(step, TARGETS_N))
        found.append((weights_NV[:, words_K] / np.exp(log_q_K)).sum(1))
    mean_N, error_N = mean_and_error(found)
    assert np.all(np.abs(mean_N - weights_NV.sum(1)) <= 5 * error_N)
    assert np.all(5 * error_N < 0.2 * weights_NV.sum(1)), "too few draws tell nothing"


def test_the_gap_to_the_full_loss_shrinks_with_the_draws():
    hidden_NH = hidden_of()
    full_N = layer_of("sampled").nats(hidden_NH, (torch.from_numpy(TARGETS_N),)).detach().numpy()
    gaps = []
    for num_samples in (5, 20, 80, 320, 1280):
        mean_N = losses_of(layer_of("sampled", num_samples=num_samples), hidden_NH, steps=800).mean(0)
        gaps.append(np.abs(mean_N - full_N).mean())
    assert all(more < 0.8 * fewer for fewer, more in pairwise(gaps)), gaps
    assert gaps[0] > 0.3
    assert gaps[-1] < 0.01


def test_nce_in_the_mean_is_its_expectation_in_closed_form():
    layer, hidden_NH, q_V = layer_of("nce"), hidden_of(), q_of("nce")
    s_NV, odds_V = scores_of(layer, hidden_NH) - np.log(V), np.log(K * q_of("nce"))
    own_N = -np.log(sigmoid(s_NV - odds_V))[range(N), TARGETS_N]
    expected_N = own_N - K * (q_V * np.log(sigmoid(odds_V - s_NV))).sum(1)
    mean_N, error_N = mean_and_error(losses_of(layer, hidden_NH))
    assert np.all(np.abs(mean_N - expected_N) <= 5 * error_N)
    assert np.all(5 * error_N < 0.1 * expected_N), "too few draws tell nothing"


def test_nce_of_new_weights_takes_them_for_a_distribution():
    """ln V stands for ln Z: of logits that are all zero each word has the probability 1 / V."""
    layer = layer_of("nce", scale=0.0)
    q = powers(COUNTS_V, alpha=ALPHA)[3]
    words_K, log_q = torch.tensor([3] * K), torch.tensor([np.log(q)])
    (found,) = layer.nats(hidden_of(num_tokens=1), (torch.tensor([3]), words_K, log_q, log_q.expand(K))).tolist()
    p_of_text = 1 / V / (1 / V + K * q)
    assert found == pytest.approx(-np.log(p_of_text) - K * np.log(1 - p_of_text))


# --- hits


@pytest.mark.parametrize(("kind", "counts"), [("sampled", False), ("nce", True), ("blackout", False)])
def test_a_draw_that_is_the_target_counts_for_nce_alone(kind, counts):
    layer, hidden_NH = layer_of(kind), hidden_of(num_tokens=1)
    log_q_V = torch.from_numpy(np.log(q_of(kind)))
    words = torch.tensor([1, 5, 9, 9])

    def loss(hits):
        words_K = torch.cat([words, torch.tensor([3] * hits, dtype=torch.int64)])
        nats_N = layer.nats(hidden_NH, (torch.tensor([3]), words_K, log_q_V[[3]], log_q_V[words_K]))
        return nats_N.item()

    assert (loss(0) != pytest.approx(loss(2), rel=1e-12)) == counts


@pytest.mark.parametrize("kind", ["sampled", "blackout"])
def test_where_all_draws_are_the_target_the_loss_is_zero(kind):
    layer = layer_of(kind)
    log_q = torch.tensor([-1.0])
    targets = (torch.tensor([3]), torch.tensor([3, 3]), log_q, log_q.expand(2))
    nats_N = layer.nats(hidden_of(num_tokens=1), targets)
    assert nats_N.tolist() == [0.0]
    nats_N.sum().backward()
    assert all(each.grad.isfinite().all() for each in layer.parameters())


def test_blackout_stays_finite_where_a_wrong_word_has_all_the_probability():
    layer = layer_of("blackout", dtype=torch.float32, scale=0.0)
    with torch.no_grad():
        layer.head_bias[5] = 60.0
    log_q = torch.zeros(1, dtype=torch.float64)
    targets = (torch.tensor([3]), torch.tensor([5]), log_q, log_q)
    nats_N = layer.nats(hidden_of(num_tokens=1, dtype=torch.float32), targets)
    nats_N.sum().backward()
    assert 60 < nats_N.item() < 90
    assert layer.head_bias.grad.isfinite().all()
    assert layer.head_bias.grad[3] < -0.9 and layer.head_bias.grad[5] > 0.9


# --- without draws: exact, and a full softmax's weights


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_without_draws_it_is_the_full_softmax_of_the_same_weights(kind, tied):
    layer, hidden_NH = layer_of(kind, tied=tied), hidden_of()
    embedding_VH = nn.Parameter(torch.empty(V, H)) if tied else None
    full = AdaptiveSoftmax(FullSoftmaxConfig(kind="full"), hidden_size=H, vocab_size=V, embedding_VH=embedding_VH)
    full.double().load_state_dict(layer.state_dict())
    targets = layer.prepare_targets(TARGETS_N)
    nats_N = layer.nats(hidden_NH, targets)
    assert torch.equal(nats_N, full.nats(hidden_NH, full.prepare_targets(TARGETS_N)))
    log_p_NV = layer.log_probabilities(hidden_NH)
    assert torch.equal(log_p_NV, full.log_probabilities(hidden_NH))
    torch.testing.assert_close(log_p_NV.exp().sum(1), torch.ones(N, dtype=torch.float64))
    assert (layer.clusters, full.loss_is_exact, layer.loss_is_exact) == (("all",), True, False)


# --- what is drawn


@pytest.mark.parametrize("kind", KINDS)
def test_all_ranks_draw_the_same_words_and_another_step_others(kind):
    layer = layer_of(kind)
    whole = sampler_of(layer)(5, TARGETS_N)
    parts = [sampler_of(layer)(5, some) for some in (TARGETS_N[:2], TARGETS_N[2:], TARGETS_N[:0])]
    for words_K, _, log_q_K in parts:
        assert torch.equal(words_K, whole[0])
        assert torch.equal(log_q_K, whole[2])
    assert torch.equal(torch.cat([log_q_N for _, log_q_N, _ in parts]), whole[1])
    for other in (sampler_of(layer)(6, TARGETS_N), sampler_of(layer, seed=8)(5, TARGETS_N)):
        assert other[0].tolist() != whole[0].tolist()


def test_only_a_kind_that_draws_by_counts_reads_them():
    def unread():
        raise AssertionError("read")

    layer_of("sampled").sampler(counts=unread, seed=1)
    for kind in ("nce", "blackout"):
        with pytest.raises(AssertionError, match="read"):
            layer_of(kind).sampler(counts=unread, seed=1)
    full = AdaptiveSoftmax(FullSoftmaxConfig(kind="full"), hidden_size=H, vocab_size=V)
    assert full.sampler(counts=unread, seed=1)(0, TARGETS_N) == ()


# --- gradients


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_moves_the_words_drawn_and_the_targets_alone(kind):
    layer = layer_of(kind)
    loss_of(layer, hidden_of()).sum().backward()
    words = {*sampler_of(layer)(0, TARGETS_N)[0].tolist(), *TARGETS_N.tolist()}
    assert {*layer.head_weight.grad.abs().sum(1).nonzero()[:, 0].tolist()} == words
    assert {*layer.head_bias.grad.nonzero()[:, 0].tolist()} == words
    assert len(words) < V


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("num_tokens", [0, N])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_gradient(kind, num_tokens, tied):
    layer = layer_of(kind, tied=tied)
    loss_of(layer, hidden_of(num_tokens=num_tokens), targets_N=TARGETS_N[:num_tokens]).sum().backward()
    assert all(each.grad is not None for each in layer.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_of_bf16_logits_the_loss_is_float32_and_about_the_same(kind):
    layer, hidden_NH = layer_of(kind, dtype=torch.float32), hidden_of(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found_N = loss_of(layer, hidden_NH)
    assert found_N.dtype == torch.float32
    torch.testing.assert_close(found_N, loss_of(layer, hidden_NH), rtol=0.03, atol=0.05)


def test_an_adaptive_inputs_clusters_are_not_tied_to_it():
    layer = AdaptiveInput(
        AdaptiveInputConfig(kind="adaptive", cutoffs=(5,), div_value=2.0), embedding_size=H, vocab_size=V
    )
    with pytest.raises(ConfigError, match=r"cannot share the weights of this model\.input\.kind with NCE; use"):
        layer_of("nce").tie(layer)
