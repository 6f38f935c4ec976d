"""Neural cache: words that were read lately, with hidden vectors like the one at hand, become more probable.

In: hidden vectors, words and nats in the text's order, as a reader gives them. Out: nats of the same words by
(1 - λ) p(w) + λ Σ_i 1[w_i = w] softmax_i(θ h_t · h_i), where i runs over the `size` words before the word at hand and
h_i is the vector from which w_i was predicted. The cache is used as far as it is filled; the first word has p alone.
So it sums to 1 over the words at every place.

Shape suffixes: N words, n words of a block, H hidden, C words of the block and of the cache before it.

Source: Grave et al. 2017, arXiv:1612.04426, section 3.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.config import NeuralCacheConfig
from pipeline.corpus.stream import Tokens
from pipeline.scoring.perplexity import Read, Reader

BLOCK_TOKENS = 100  # that are compared with the cache at once; the score does not depend on it


def cached_nats(read: Reader, section: NeuralCacheConfig, tokens: Tokens) -> Iterator[Tensor]:
    """Nats of every target of a sequence by a model with a cache.

    Args:
        read: the model.
        section: of the configuration; its size is given.
        tokens: the sequence.

    Yields:
        as a `Predictor`; memory is that of `size` hidden vectors and of `size` + `BLOCK_TOKENS` numbers for each word
        of a block.
    """
    before = None
    for found in read(tokens):
        nats = []
        for parts in zip(*(torch.split(part, BLOCK_TOKENS) for part in found), strict=True):
            nats_n, before = _block(Read(*parts), before, section)
            nats.append(nats_n)
        yield torch.cat(nats)


def cache_protocol(section: NeuralCacheConfig) -> str:
    """What a protocol says of it."""
    return f"neural cache of {section.size}, weight {section.weight:g}, sharpness {section.sharpness:g}"


def _block(block: Read, before: Read | None, section: NeuralCacheConfig) -> tuple[Tensor, Read]:
    """Nats of some words by model and cache, float64, and what the cache holds after them."""
    assert section.size is not None
    block = Read(block.hidden_NH.double(), block.words_N, block.nats_N.double())
    held = block if before is None else Read(*(torch.cat(parts) for parts in zip(before, block, strict=True)))
    place_C = torch.arange(len(held.words_N), device=held.words_N.device)
    place_n1 = place_C[-len(block.words_N) :, None]
    is_seen_nC = (place_C < place_n1) & (place_C >= place_n1 - section.size)
    scores_nC = section.sharpness * (block.hidden_NH @ held.hidden_NH.T)
    scores_nC = scores_nC.masked_fill(~is_seen_nC, -math.inf)
    is_other_nC = held.words_N != block.words_N[:, None]
    cache_n = scores_nC.masked_fill(is_other_nC, -math.inf).logsumexp(1) - scores_nC.logsumexp(1)
    weight = torch.tensor(section.weight, dtype=torch.float64, device=cache_n.device)
    mixed_n = torch.logaddexp(torch.log1p(-weight) - block.nats_N, weight.log() + cache_n)
    nats_n = torch.where(is_seen_nC.any(1), -mixed_n, block.nats_N)
    return nats_n, Read(*(part[-section.size :] for part in held))
