"""Draws are a function of (seed, step), and are of the distribution that they claim to be of."""

import numpy as np
import pytest
import torch

from pipeline.model.draws import log_uniform, log_uniform_words, powers, uniforms, words_by
from pipeline.model.dropout import keys_of_steps

V = 50
GOLDEN = [0.7834962881648475, 0.9844617663629003, 0.9210213389613142]


def shares_of(words_K):
    return np.bincount(words_K, minlength=V) / len(words_K)


def assert_drawn_by(words_K, expected_V):
    """Each word's share lies within five standard errors."""
    assert words_K.dtype == np.int64
    assert np.all(np.abs(shares_of(words_K) - expected_V) <= 5 * np.sqrt(expected_V / len(words_K)))


def test_they_are_arithmetic_and_these_very_numbers():
    found_K = uniforms(3, seed=1, step=2)
    assert found_K.tolist() == GOLDEN
    assert uniforms(2, seed=1, step=2).tolist() == GOLDEN[:2]  # a draw does not depend on how many there are


def test_they_are_uniform_in_all_their_bits():
    found_K = uniforms(100_000, seed=3, step=9)
    assert 0 <= found_K.min() < 1e-4
    assert 1 - 1e-4 < found_K.max() < 1
    assert abs(found_K.mean() - 0.5) < 5 * (1 / 12 / 1e5) ** 0.5
    last_bits = (found_K * 2.0**53).astype(np.uint64) % 2
    assert abs(last_bits.mean() - 0.5) < 5 * 0.5 / 1e5**0.5
    assert abs(np.corrcoef(found_K[1:], found_K[:-1])[0, 1]) < 5 / 1e5**0.5


def test_another_seed_or_step_draws_others_and_no_dropout_mask_has_their_bits():
    one = uniforms(1000, seed=3, step=9)
    for other in (uniforms(1000, seed=4, step=9), uniforms(1000, seed=3, step=10), uniforms(1000, seed=9, step=3)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / 1000**0.5
    masks = keys_of_steps(seed=3, steps=[9], lanes=range(1000), num_sites=2)[0].view(np.uint32)
    assert not np.isin((one * 2.0**32).astype(np.uint32), masks).any()


def test_no_generator_is_moved():
    before, before_torch = np.random.get_state()[1].copy(), torch.get_rng_state()
    uniforms(9, seed=1, step=1)
    assert (np.random.get_state()[1] == before).all()
    assert torch.equal(torch.get_rng_state(), before_torch)


def test_log_uniform_words():
    expected_V = log_uniform(V)
    assert expected_V.sum() == pytest.approx(1)
    assert expected_V[[0, 1, 49]] == pytest.approx(np.log([2, 3 / 2, 51 / 50]) / np.log(51))
    assert_drawn_by(log_uniform_words(uniforms(200_000, seed=1, step=1), vocab_size=V), expected_V)
    assert log_uniform_words(np.array([0.0, 1 - 2.0**-53]), vocab_size=V).tolist() == [0, V - 1]
    assert log_uniform_words(np.array([1.0]), vocab_size=V).tolist() == [V - 1]  # as rounding may have it


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_words_by_their_counts(alpha):
    counts_V = np.arange(V, 0, -1) ** 2
    expected_V = powers(counts_V, alpha=alpha)
    assert expected_V == pytest.approx(counts_V**alpha / (counts_V**alpha).sum())
    assert_drawn_by(words_by(uniforms(200_000, seed=1, step=1), np.cumsum(expected_V)), expected_V)
    assert words_by(np.array([0.0, 1 - 2.0**-53, 1.0]), np.cumsum(expected_V)).tolist() == [0, V - 1, V - 1]


def test_a_word_that_was_never_seen_can_be_drawn():
    assert powers(np.array([6, 0, 2]), alpha=1.0) == pytest.approx([6 / 9, 1 / 9, 2 / 9])
