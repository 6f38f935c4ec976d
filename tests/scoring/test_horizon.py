"""How far back a model hears: equal to plain loops, zero where a model cannot hear, and the same each time.

Shape suffixes: T time, L lanes, E input width.
"""

import numpy as np
import pytest
import torch
from support.sections import model_section
from support.sequences import Ids
from torch import nn
from torch.nn import functional as F

from pipeline.model.language_model import LanguageModel
from pipeline.scoring import horizon
from pipeline.scoring.horizon import (
    gradient_norms,
    nats_from_zero,
    score_after,
    score_in_place,
    spread_places,
    words_before,
)
from pipeline.scoring.perplexity import plain_nats, score_tokens

VOCAB = 17
DISTANCES = 4
CUTOFFS = [(), (4, 9)]


class LastWords(nn.Module):
    """A recurrence whose hidden vector is the sum of the last three inputs; the state is the two before."""

    def zero_state(self, num_lanes):
        return (torch.zeros(2, num_lanes, 5, dtype=torch.float64),)

    def forward(self, input_TLE, state, *, keys_SL, short_L=None):
        read = torch.cat([state[0], input_TLE])
        return torch.tanh(read[2:] + 2 * read[1:-1] + 3 * read[:-2]), (read[-2:],)


def tokens_of(num_tokens, *, seed=0):
    return Ids(np.random.default_rng(seed).integers(0, VOCAB, num_tokens))


def model_of(*, cutoffs=(4, 9)):
    section = model_section(
        embedding_size=5, hidden_size=5, dropout=0.5, tied=False, cutoffs=cutoffs, div_value=2.0 if cutoffs else 1.0
    )
    model = LanguageModel(section, vocab_size=VOCAB)
    model.draw_weights(seed=1, init_scale=0.8)
    return model.double()


def hidden_after(model, vectors):
    """The model's top hidden vector after some input vectors, one step at a time from zero state."""
    state = model.recurrence.zero_state(1)
    for vector_E in vectors:
        hidden_TLH, state = model.recurrence(vector_E[None, None], state, keys_SL=None)
    return hidden_TLH[0]


def plain_nats_of(model, ids, place, *, num_words):
    """Nats of one target after so many words, each of them a leaf of its own, and these leaves."""
    leaves = [model.embedding_VE[word].detach().requires_grad_() for word in ids[place - num_words : place]]
    return -model.softmax.log_probabilities(hidden_after(model, leaves))[0, ids[place]], leaves


# --- the places


def test_places_are_spread_evenly_and_have_enough_before_them():
    assert spread_places(110, num_targets=5, num_before=10).tolist() == [10, 30, 50, 70, 90]
    assert spread_places(13, num_targets=3, num_before=10).tolist() == [10, 11, 12]
    found = spread_places(1_000_003, num_targets=1000, num_before=200)
    assert found[0] == 200 and found[-1] < 1_000_003
    assert {*np.diff(found).tolist()} == {999, 1000}


# --- the gradient


@pytest.mark.parametrize("cutoffs", CUTOFFS)
def test_the_norms_are_those_of_a_plain_autograd_loop(cutoffs):
    model, tokens = model_of(cutoffs=cutoffs), tokens_of(60)
    places_P = spread_places(60, num_targets=7, num_before=words_before(DISTANCES))
    found_D = gradient_norms(model, tokens, places_P, distances=DISTANCES)
    assert all(parameter.grad is None for parameter in model.parameters())
    expected_D = np.zeros(DISTANCES + 1)
    for place in places_P.tolist():
        nats, leaves = plain_nats_of(model, tokens.ids, place, num_words=words_before(DISTANCES))
        nats.backward()
        expected_D += [float(each.grad.square().sum().sqrt()) for each in leaves[::-1][: DISTANCES + 1]]
    np.testing.assert_allclose(found_D, expected_D / 7, rtol=1e-10)


def test_a_model_that_reads_three_words_hears_two_steps_back_and_nothing_further():
    model = model_of()
    model.recurrence = LastWords()
    places_P = spread_places(60, num_targets=9, num_before=words_before(DISTANCES))
    norms_D = gradient_norms(model, tokens_of(60), places_P, distances=DISTANCES)
    assert (norms_D[:3] > 0).all() and not norms_D[3:].any()
    # the three inputs are added before the tanh, so their gradients are in proportion
    np.testing.assert_allclose(norms_D[:3] / norms_D[0], [1, 2, 3], rtol=1e-12)


@pytest.mark.parametrize("lanes", [1, 2, 7, 1000])
def test_no_number_depends_on_how_many_targets_are_read_at_once(monkeypatch, lanes):
    model, tokens, told = model_of(), tokens_of(60), []
    places_P = spread_places(60, num_targets=9, num_before=words_before(DISTANCES))
    norms_D = gradient_norms(model, tokens, places_P, distances=DISTANCES)
    score = score_after(lambda *batch: nats_from_zero(model, *batch), tokens, places_P, num_words=3)
    monkeypatch.setattr(horizon, "LANES_AT_ONCE", lanes)
    found_D = gradient_norms(model, tokens, places_P, distances=DISTANCES, progress=told.append)
    np.testing.assert_allclose(found_D, norms_D, rtol=1e-10)
    assert sum(told) == 9 * words_before(DISTANCES)
    found = score_after(lambda *batch: nats_from_zero(model, *batch), tokens, places_P, num_words=3)
    assert found.total_nats == pytest.approx(score.total_nats, rel=1e-12)


def test_the_same_is_found_each_time_to_the_bit():
    model, tokens = model_of(), tokens_of(60)
    places_P = spread_places(60, num_targets=9, num_before=words_before(DISTANCES))
    once, again = (gradient_norms(model, tokens, places_P, distances=DISTANCES).tolist() for _ in range(2))
    assert once == again


# --- perplexity by context


@pytest.mark.parametrize("cutoffs", CUTOFFS)
@pytest.mark.parametrize("num_words", [1, 2, 5])
def test_a_score_after_some_words_is_that_of_a_plain_loop(cutoffs, num_words):
    model, tokens = model_of(cutoffs=cutoffs), tokens_of(40)
    places_P = spread_places(40, num_targets=8, num_before=5)
    expected = [float(plain_nats_of(model, tokens.ids, place, num_words=num_words)[0].detach()) for place in places_P]
    found = score_after(lambda *batch: nats_from_zero(model, *batch), tokens, places_P, num_words=num_words)
    assert found.num_targets == 8
    assert found.total_nats == pytest.approx(sum(expected), rel=1e-10)


def test_what_reads_three_words_gains_nothing_from_more():
    model, tokens = model_of(), tokens_of(60)
    model.recurrence = LastWords()
    places_P = spread_places(60, num_targets=9, num_before=10)
    nats = [
        score_after(lambda *batch: nats_from_zero(model, *batch), tokens, places_P, num_words=num_words).total_nats
        for num_words in (1, 2, 3, 4, 10)
    ]
    assert len({*np.round(nats[:3], 6)}) == 3
    assert nats[2] == pytest.approx(nats[3], rel=1e-12) == pytest.approx(nats[4], rel=1e-12)


def test_the_score_in_place_is_the_one_of_the_whole_sequence(monkeypatch):
    monkeypatch.setattr("pipeline.scoring.perplexity.WINDOW_TOKENS", 7)
    model, tokens, told = model_of(), tokens_of(40), []
    every = np.arange(40)

    def predict(ids):
        return plain_nats(model, ids)

    found = score_in_place(predict, tokens, every)
    assert found.total_nats == pytest.approx(score_tokens(model, tokens).total_nats, rel=1e-12)
    places_P = np.array([5, 6, 7, 13, 21])  # the last begins a window
    leaves = [0, *tokens.ids]  # <eos>, and each word
    expected = 0.0
    for place in places_P.tolist():
        hidden_LH = hidden_after(
            model, [F.embedding(torch.tensor(word), model.embedding_VE) for word in leaves[: place + 1]]
        )
        expected -= float(model.softmax.log_probabilities(hidden_LH)[0, tokens.ids[place]].detach())
    found = score_in_place(predict, tokens, places_P, progress=told.append)
    assert (found.num_targets, sum(told)) == (5, 28)  # nothing behind the last window that is needed
    assert found.total_nats == pytest.approx(expected, rel=1e-10)
