"""The mixture: probabilities are averaged, sum to 1, and EM finds the best weights."""

import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sequences import Ids
from support.small_models import VOCAB, small_ids, small_model

from pipeline.errors import CheckpointError, CorpusError
from pipeline.scoring import perplexity
from pipeline.scoring.mixture import em_weights, fitted_weights, mixed_nats, mixture_protocol
from pipeline.scoring.perplexity import plain_nats, predictor_of, score


def drawn_nats(num_models, num_tokens, *, seed=0, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.rand(num_models, num_tokens, generator=generator, dtype=torch.float64)


def likelihood(nats_KN, weights):
    """Mean log-likelihood of a token."""
    return float((torch.tensor(weights, dtype=torch.float64) @ torch.exp(-nats_KN)).log().mean())


def giving(*nats):
    """A predictor that gives these, `WINDOW_TOKENS` at a time."""
    return lambda tokens: iter(torch.split(torch.tensor(nats, dtype=torch.float64), perplexity.WINDOW_TOKENS))


def test_probabilities_are_averaged_a_token_at_a_time(monkeypatch):
    monkeypatch.setattr(perplexity, "WINDOW_TOKENS", 5)
    models, tokens = [small_model(seed=1), small_model(seed=2).float(), small_model(seed=3, cutoffs=())], small_ids(13)
    each = [torch.cat(list(plain_nats(model, tokens))) for model in models]
    weights = (0.5, 0.2, 0.3)
    found = list(mixed_nats([predictor_of(model) for model in models], weights, tokens))
    assert [len(part) for part in found] == [5, 5, 3]
    expected = -torch.log(sum(weight * torch.exp(-nats) for weight, nats in zip(weights, each, strict=True)))
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-12, atol=0)


def test_it_sums_to_one():
    predictors, before = [predictor_of(small_model(seed=seed)) for seed in (1, 2)], small_ids(6).ids
    nats = [torch.cat(list(mixed_nats(predictors, (0.3, 0.7), Ids([*before, word]))))[-1] for word in range(VOCAB)]
    assert sum(math.exp(-each) for each in nats) == pytest.approx(1, abs=1e-12)


def test_all_the_weight_on_one_is_that_one():
    model, tokens = small_model(), small_ids(20)
    others = [giving(*[math.inf] * 20), predictor_of(model)]
    mixed = score(partial(mixed_nats, others, (0.0, 1.0)), tokens)
    assert mixed.total_nats == pytest.approx(score(predictor_of(model), tokens).total_nats, rel=1e-14)


def test_nats_far_from_each_other_keep_their_digits():
    found = torch.cat(list(mixed_nats([giving(2000.0, 1.0), giving(1.0, 5000.0)], (0.5, 0.5), Ids([1, 1]))))
    torch.testing.assert_close(found, torch.full((2,), 1 + math.log(2), dtype=torch.float64), rtol=1e-14, atol=0)


# --- weights


@pytest.mark.parametrize("seed", range(4))
def test_em_finds_what_a_grid_finds(seed):
    nats_KN = drawn_nats(3, 200, seed=seed, spread=4.0)
    *_, weights_K = em_weights(nats_KN)
    assert float(weights_K.sum()) == pytest.approx(1, abs=1e-12) and (weights_K >= 0).all()
    steps = [i / 50 for i in range(51)]
    grid = {(a, b): likelihood(nats_KN, [a, b, 1 - a - b]) for a in steps for b in steps if a + b <= 1 + 1e-12}
    best = max(grid, key=grid.__getitem__)
    assert likelihood(nats_KN, weights_K.tolist()) >= grid[best]
    assert weights_K[0] == pytest.approx(best[0], abs=0.05) and weights_K[1] == pytest.approx(best[1], abs=0.05)


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 5), st.integers(1, 40), st.floats(0.1, 300), st.integers(0, 99))
def test_each_step_is_better_and_the_last_is_the_best_there_is(num_models, num_tokens, spread, seed):
    nats_KN = drawn_nats(num_models, num_tokens, seed=seed, spread=spread)
    nats_KN -= nats_KN.amin(0)
    weights = list(em_weights(nats_KN))
    assert weights[0].tolist() == [1 / num_models] * num_models
    found = [likelihood(nats_KN, each.tolist()) for each in weights]
    assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(found))
    shares_KN = torch.exp(-nats_KN)
    gains_K = (shares_KN / (weights[-1] @ shares_KN)).mean(1)  # the gradient: no other weights win more than this
    assert gains_K.max() <= 1 + 1e-8
    for one in range(num_models):  # the corners among them
        assert likelihood(nats_KN, torch.eye(num_models)[one].tolist()) <= found[-1] + 1e-8


def test_a_model_that_is_worse_everywhere_gets_nothing():
    nats_KN = drawn_nats(1, 100)
    *_, weights_K = em_weights(torch.cat([nats_KN, nats_KN + 0.5]))
    assert weights_K[0] == pytest.approx(1, abs=1e-6)


def test_models_that_are_the_same_share_evenly():
    assert [each.tolist() for each in em_weights(drawn_nats(1, 50).expand(4, -1))] == [[0.25] * 4]


def test_nats_beyond_the_range_of_exp_are_fitted():
    *_, weights_K = em_weights(torch.tensor([[2000.0, 2001.0], [2001.0, 2000.0]], dtype=torch.float64))
    assert weights_K.tolist() == pytest.approx([0.5, 0.5])


def test_weights_are_those_of_all_windows(monkeypatch):
    models, tokens = [predictor_of(small_model(seed=seed)) for seed in (1, 2, 3)], small_ids(50)
    whole = fitted_weights(models, tokens)
    *_, expected = em_weights(torch.stack([torch.cat(list(predict(tokens))) for predict in models]))
    assert whole == tuple(expected.tolist())
    monkeypatch.setattr(perplexity, "WINDOW_TOKENS", 7)
    told = []
    assert fitted_weights(models, tokens, progress=told.append) == pytest.approx(whole, rel=1e-9)
    assert told == [7] * 7 + [1]
    mixed = score(partial(mixed_nats, models, whole), tokens)
    assert mixed.total_nats < min(score(predict, tokens).total_nats for predict in models)


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(CorpusError, match=r"^the split to fit weights on has 0 tokens; use another split or give"):
        fitted_weights([giving()] * 2, Ids([]))
    for ruined in (math.nan, math.inf):
        with pytest.raises(CheckpointError, match=r"^model 2 of the mixture gives nats that are not finite; leave it"):
            fitted_weights([giving(1.0, 2.0), giving(1.0, ruined)], Ids([3, 4]))


def test_its_protocol():
    fitted = mixture_protocol((0.25, 2 / 3, 0.083333), fitted_on="valid")
    assert fitted == "mixture of 3 models, weights 0.2500 0.6667 0.0833 by EM on valid"
    assert mixture_protocol((0.5, 0.5), fitted_on=None) == "mixture of 2 models, weights 0.5000 0.5000 as given"
