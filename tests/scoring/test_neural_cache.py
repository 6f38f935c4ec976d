"""The neural cache: its score is that of a plain loop, and it sums to 1 over the words at every place."""

import math
from functools import partial

import pytest
import torch
from support.sequences import Ids
from support.small_models import VOCAB, nats_by_words, small_ids, small_model

from pipeline.config import NeuralCacheConfig
from pipeline.scoring import neural_cache, perplexity
from pipeline.scoring.neural_cache import cache_protocol, cached_nats
from pipeline.scoring.perplexity import plain_nats, read_plain, score


def section(size=4, weight=0.3, sharpness=2.0):
    return NeuralCacheConfig(size=size, weight=weight, sharpness=sharpness)


def cached(model, ids, cache):
    return torch.cat(list(cached_nats(partial(read_plain, model), cache, Ids(ids))))


def loop(model, ids, cache):
    """Word by word, with the cache as a list."""
    hidden, log_probabilities = nats_by_words(model, ids)
    found = []
    for place, word in enumerate(ids):
        plain = math.exp(log_probabilities[place, word])
        held = range(max(0, place - cache.size), place)
        if not held:
            found.append(-math.log(plain))
            continue
        shares = [math.exp(cache.sharpness * float(hidden[place] @ hidden[each])) for each in held]
        copied = sum(share for share, each in zip(shares, held, strict=True) if ids[each] == word) / sum(shares)
        found.append(-math.log((1 - cache.weight) * plain + cache.weight * copied))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 7, 30, 500])
@pytest.mark.parametrize("cutoffs", [(), (4, 9)])
def test_it_is_that_of_a_plain_loop(size, cutoffs, monkeypatch):
    monkeypatch.setattr(perplexity, "WINDOW_TOKENS", 11)
    monkeypatch.setattr(neural_cache, "BLOCK_TOKENS", 4)
    model, ids = small_model(cutoffs=cutoffs), small_ids(37).ids
    torch.testing.assert_close(cached(model, ids, section(size)), loop(model, ids, section(size)), rtol=1e-10, atol=0)


@pytest.mark.parametrize("place", [0, 1, 3, 4, 5, 12])
def test_it_sums_to_one_at_every_place(place):
    model, ids = small_model(), small_ids(13).ids
    nats = [cached(model, [*ids[:place], word], section())[-1] for word in range(VOCAB)]
    assert sum(math.exp(-each) for each in nats) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("window_tokens", "block_tokens"), [(1, 1), (7, 3), (8, 8), (33, 5), (1000, 100)])
def test_it_does_not_depend_on_windows_and_blocks(monkeypatch, window_tokens, block_tokens):
    model, ids = small_model(), small_ids(33).ids
    whole = cached(model, ids, section(6))
    monkeypatch.setattr(perplexity, "WINDOW_TOKENS", window_tokens)
    monkeypatch.setattr(neural_cache, "BLOCK_TOKENS", block_tokens)
    parts = list(cached_nats(partial(read_plain, model), section(6), Ids(ids)))
    assert [len(part) for part in parts[:-1]] == [window_tokens] * (len(parts) - 1)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=0)


def test_a_weight_of_zero_is_the_plain_model():
    model, ids = small_model(), small_ids(33).ids
    assert torch.equal(cached(model, ids, section(weight=0.0)), torch.cat(list(plain_nats(model, Ids(ids)))))


def test_a_word_sees_the_words_before_it_alone():
    """What follows changes no score, and neither does what lies further back than the cache, but through the state."""
    model, ids = small_model(), small_ids(40).ids
    other = ids.copy()
    other[25:] = (ids[25:] + 1) % VOCAB
    assert torch.equal(cached(model, ids, section())[:25], cached(model, other, section())[:25])


def test_a_sharpness_of_zero_counts_the_words_alone():
    model, ids = small_model(), [3, 5, 3, 3, 7, 3]
    plain = torch.cat(list(plain_nats(model, Ids(ids))))
    found = cached(model, ids, section(size=4, weight=0.5, sharpness=0.0))
    counted = [None, 0, 1 / 2, 2 / 3, 0, 2 / 4]  # of the four words before; the first place has none
    mixed = [float((-plain[at]).exp()) / 2 + (counted[at] or 0) / 2 for at in range(1, 6)]
    torch.testing.assert_close((-found[1:]).exp(), torch.tensor(mixed, dtype=torch.float64), rtol=1e-12, atol=0)
    assert found[0] == plain[0]


def test_it_repeats_what_it_has_read():
    """Text that a model has not learnt, over and over."""
    model, tokens = small_model(), Ids(list(range(2, 12)) * 20)
    plain = score(partial(plain_nats, model), tokens)
    with_cache = score(partial(cached_nats, partial(read_plain, model), section(100, 0.5, 1.0)), tokens)
    assert with_cache.perplexity < plain.perplexity / 1.5


def test_it_works_on_float32_and_with_sharp_scores():
    model, ids = small_model().float(), small_ids(60).ids
    model.embedding_VE.data.mul_(100)
    found = cached(model, ids, section(50, 0.5, 1e4))
    assert found.dtype == torch.float64 and found.isfinite().all()


def test_its_protocol():
    assert cache_protocol(section(500, 0.1, 1.0)) == "neural cache of 500, weight 0.1, sharpness 1"
