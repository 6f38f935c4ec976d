"""Words that a step draws at random, as arithmetic: a function of (seed, step), the same on every rank.

In: seed, step, and from which distribution. Out: word ids, on the CPU. No generator is involved.

Shape suffixes: K draws, V vocabulary.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.model.dropout import keys_of_steps

PURPOSE = 0x647261772077  # what the seed is mixed with, so that no dropout mask has the bits of a draw


def uniforms(num_draws: int, *, seed: int, step: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) with 53 bits: float64 [draws]."""
    halves = keys_of_steps(seed=seed ^ PURPOSE, steps=[step], lanes=range(num_draws), num_sites=2)[0]
    high_K, low_K = halves.view(np.uint32).astype(np.float64)
    uniforms_K: NDArray[np.float64] = high_K * 2.0**-32 + np.floor(low_K * 2.0**-11) * 2.0**-53
    return uniforms_K


def log_uniform_words(uniforms_K: NDArray[np.float64], *, vocab_size: int) -> NDArray[np.int64]:
    """Word ids by their ranks, as `log_uniform` has them: int64 [draws]."""
    words_K: NDArray[np.int64] = np.exp(uniforms_K * np.log(vocab_size + 1.0)).astype(np.int64) - 1
    return words_K.clip(max=vocab_size - 1)  # exp may round up


def log_uniform(vocab_size: int) -> NDArray[np.float64]:
    """Probability of each word where the logarithm of its rank is uniform, as about in text: float64 [vocab_size]."""
    ranks_V = np.arange(1, vocab_size + 1)
    shares_V: NDArray[np.float64] = np.log1p(1 / ranks_V) / np.log(vocab_size + 1.0)
    return shares_V


def words_by(uniforms_K: NDArray[np.float64], shares_V: NDArray[np.float64]) -> NDArray[np.int64]:
    """Word ids by any distribution, `shares_V` being its running sums: int64 [draws]."""
    words_K: NDArray[np.int64] = np.searchsorted(shares_V, uniforms_K * shares_V[-1], side="right").astype(np.int64)
    return words_K.clip(max=len(shares_V) - 1)


def powers(counts_V: NDArray[np.int64], *, alpha: float) -> NDArray[np.float64]:
    """Probability of each word in proportion to count ** alpha; a word never seen counts as seen once."""
    weights_V: NDArray[np.float64] = counts_V.clip(min=1).astype(np.float64) ** alpha
    return weights_V / float(weights_V.sum())
