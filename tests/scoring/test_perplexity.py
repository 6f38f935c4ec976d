"""Law 8: every token scored once, sums divided once; the score is that of a plain loop over tokens."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sections import model_section
from support.sequences import Ids
from torch.nn import functional as F

from pipeline.errors import CorpusError
from pipeline.model.language_model import LanguageModel
from pipeline.scoring import perplexity
from pipeline.scoring.perplexity import PROTOCOL, Score, score_tokens, score_unigram

VOCAB = 17


def drawn_ids(num_tokens, *, seed=0):
    return Ids(np.random.default_rng(seed).integers(0, VOCAB, num_tokens))


def model_of(*, cutoffs=(4, 9), tied=False, projection_size=None, dropout=0.0):
    section = model_section(
        embedding_size=5,
        hidden_size=5,
        projection_size=projection_size,
        dropout=dropout,
        tied=tied,
        cutoffs=cutoffs,
        div_value=1.0 if tied else 2.0,
    )
    model = LanguageModel(section, vocab_size=VOCAB)
    model.draw_weights(seed=1, init_scale=0.8)
    return model.double()


def plain_nats(model, ids):
    """The gates of each layer and the probability of each word, token by token."""
    state = [[torch.zeros(1, model.recurrence.output_size).double(), torch.zeros(1, 5).double()] for _ in range(2)]
    total, word = 0.0, 0  # <eos> stands before the first
    with torch.no_grad():
        for target in ids.tolist():
            hidden = model.embedding_VE[word][None]
            for (output, cell), layer, slot in zip(state, model.recurrence.layers, state, strict=True):
                gates = F.linear(hidden, layer.weight_ih_l0, layer.bias_ih_l0)
                gates = gates + F.linear(output, layer.weight_hh_l0, layer.bias_hh_l0)
                enter, forget, candidate, leave = gates.chunk(4, dim=1)
                cell = forget.sigmoid() * cell + enter.sigmoid() * candidate.tanh()  # noqa: PLW2901
                hidden = leave.sigmoid() * cell.tanh()
                if layer.proj_size:
                    hidden = hidden @ layer.weight_hr_l0.T
                slot[:] = [hidden, cell]
            total -= float(model.softmax.log_probabilities(hidden)[0, target])
            word = target
    return total


@pytest.mark.parametrize("cutoffs", [(), (4, 9)])
@pytest.mark.parametrize("projection_size", [None, 3])
@pytest.mark.parametrize("num_tokens", [1, 2, 33])
def test_the_score_is_that_of_a_plain_loop(cutoffs, projection_size, num_tokens):
    model, tokens = model_of(cutoffs=cutoffs, projection_size=projection_size), drawn_ids(num_tokens)
    score = score_tokens(model, tokens)
    assert score.num_targets == num_tokens
    assert score.total_nats == pytest.approx(plain_nats(model, tokens.ids), rel=1e-10)


@pytest.mark.parametrize("window_tokens", [1, 2, 7, 32, 33, 34, 1000])
def test_the_score_does_not_hang_on_the_windows(monkeypatch, window_tokens):
    model, tokens = model_of(), drawn_ids(33)
    whole, seen = score_tokens(model, tokens), []
    monkeypatch.setattr(perplexity, "WINDOW_TOKENS", window_tokens)
    score = score_tokens(model, tokens, progress=seen.append)
    assert score.total_nats == pytest.approx(whole.total_nats, rel=1e-12)
    assert score.num_targets == 33
    assert seen == [window_tokens] * (33 // window_tokens) + [33 % window_tokens] * (33 % window_tokens > 0)


def test_windows_are_of_a_thousand_tokens():
    seen = []
    score_tokens(model_of(), drawn_ids(2500), progress=seen.append)
    assert seen == [1000, 1000, 500]


def test_nats_are_summed_in_double():
    """A word whose nats have no short form, 2,500 times: a float32 sum would be off in the eighth digit."""
    model = model_of(cutoffs=()).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.softmax.head_bias.copy_(torch.linspace(-1, 1, VOCAB))
        nats = float(-model.softmax.log_probabilities(torch.zeros(1, 5))[0, 3])
    assert score_tokens(model, Ids([3] * 2500)).total_nats == pytest.approx(2500 * nats, rel=1e-13)


def test_scoring_leaves_mode_generator_and_weights_and_drops_nothing():
    model, dry, tokens = model_of(dropout=0.5), model_of(dropout=0.0), drawn_ids(20)
    before, state = {name: weight.clone() for name, weight in model.state_dict().items()}, torch.get_rng_state()
    model.train()
    in_training = score_tokens(model, tokens)
    assert model.training
    model.eval()
    assert score_tokens(model, tokens) == in_training == score_tokens(dry, tokens)
    assert not model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_tokens_are_refused():
    with pytest.raises(CorpusError, match=r"^the split has 0 tokens; at least 1 is needed to score it$"):
        score_tokens(model_of(), Ids([]))


def test_a_token_that_was_not_scored_is_our_own_mistake(monkeypatch):
    real = perplexity.read_windows
    monkeypatch.setattr(perplexity, "WINDOW_TOKENS", 5)
    monkeypatch.setattr(perplexity, "read_windows", lambda *args, stop, **more: real(*args, stop=stop - 1, **more))
    with pytest.raises(AssertionError, match=r"^10 of 13 tokens were scored$"):
        score_tokens(model_of(), drawn_ids(13))


# --- one division, at the end


def test_perplexity_is_exp_of_nats_per_token():
    score = Score(total_nats=30.0, num_targets=12)
    assert score.nats_per_token == 2.5
    assert score.perplexity == math.exp(2.5)


@pytest.mark.parametrize(("nats", "expected"), [(699.9, math.exp(699.9)), (700.0, math.inf), (1e9, math.inf)])
def test_a_perplexity_beyond_numbers_is_infinite(nats, expected):
    assert Score(total_nats=3 * nats, num_targets=3).perplexity == pytest.approx(expected)


@pytest.mark.parametrize("nats", [math.nan, math.inf])
def test_a_score_that_is_no_number_does_not_look_like_one(nats):
    assert not math.isfinite(Score(total_nats=nats, num_targets=3).perplexity)


def test_the_protocol_is_named():
    assert PROTOCOL == "one lane from zero state, every token a target, <unk> and <eos> included"


# --- the unigram baseline


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.data())
def test_the_baseline_is_the_add_one_smoothed_share(counts, data):
    ids = data.draw(st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=30))
    score = score_unigram(Ids(ids), counts_V=np.array(counts, dtype=np.int64))
    plain = -sum(math.log((counts[word] + 1) / (sum(counts) + len(counts))) for word in ids)
    assert score.total_nats == pytest.approx(plain, rel=1e-9, abs=1e-9)
    assert score.num_targets == len(ids)


def test_the_baseline_reads_every_token_over_several_blocks():
    num_tokens = (2 << 20) + 3
    told = []
    score = score_unigram(Ids(np.arange(num_tokens) % 2), counts_V=np.array([6, 2]), progress=told.append)
    assert sum(told) == num_tokens
    assert len(told) > 1
    assert score.num_targets == num_tokens
    assert score.total_nats == pytest.approx(((1 << 20) + 2) * -math.log(0.7) + ((1 << 20) + 1) * -math.log(0.3))


def test_a_model_that_knows_the_shares_alone_has_the_baselines_score():
    """With zero weights only the head's bias is left."""
    counts_V = np.arange(VOCAB)[::-1].copy()
    model = model_of(cutoffs=())
    with torch.no_grad():
        model.softmax.head_weight.zero_()
        model.softmax.head_bias.copy_(torch.from_numpy(np.log(counts_V + 1.0)))
    tokens = drawn_ids(50)
    assert score_tokens(model, tokens).perplexity == pytest.approx(score_unigram(tokens, counts_V=counts_V).perplexity)
