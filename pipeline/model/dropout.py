"""Dropout as arithmetic: a mask is a function of (seed, step, lane, site), whatever ran before and on how many ranks.

In: activations, word vectors or weights, and one key for each lane. Out: the same with a share of them dropped. No
generator is involved, so none has to be saved, and a lane draws the same mask on any device. What all lanes drop alike,
words and weights, is drawn with a lane's number that stands for all of them, so every rank draws the same.

Shape suffixes: K steps, S sites of a network where dropout stands, L lanes, T time, E embedding, H hidden, G rows of a
weight.

Source: Gal and Ghahramani 2016, arXiv:1512.05287 (locked masks, words); Merity et al. 2018, arXiv:1708.02182 (weights).
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DRAWS = 1 << 16  # a draw is 16 bits wide, so the share dropped is a multiple of 1/65536
ALL_LANES = (1 << 64) - 1  # stands for all lanes; none has this number


def lane_keys(
    *, seed: int, step: int, lanes: Sequence[int], num_sites: int, num_shared_sites: int = 0
) -> NDArray[np.int32]:
    """The dropout key of each lane at each site in a step, a hash of the four numbers: int32 [sites, lanes].

    Args:
        seed: of the run.
        step: from 0.
        lanes: their numbers.
        num_sites: places in the network at which each lane drops something of its own: the first rows.
        num_shared_sites: places at which all lanes drop the same, and have the same key: the rows below.
    """
    steps = [step]
    keys_KSL = keys_of_steps(
        seed=seed, steps=steps, lanes=lanes, num_sites=num_sites, num_shared_sites=num_shared_sites
    )
    keys_SL: NDArray[np.int32] = keys_KSL[0]
    return keys_SL


def keys_of_steps(
    *, seed: int, steps: Sequence[int], lanes: Sequence[int], num_sites: int, num_shared_sites: int = 0
) -> NDArray[np.int32]:
    """As `lane_keys`, of many steps at once, which takes little more time than one: int32 [steps, sites, lanes]."""
    own_KSL = _keys(seed=seed, steps=steps, lanes=lanes, num_sites=num_sites)
    shared_KS1 = _keys(seed=seed, steps=steps, lanes=[ALL_LANES], num_sites=num_shared_sites)
    return np.concatenate([own_KSL, shared_KS1.repeat(len(lanes), axis=2)], axis=1)


def _keys(*, seed: int, steps: Sequence[int], lanes: Sequence[int], num_sites: int) -> NDArray[np.int32]:
    steps_K11 = np.asarray(steps, dtype=np.uint64)[:, None, None]
    sites_1S1 = np.arange(num_sites, dtype=np.uint64)[None, :, None]
    lanes_11L = np.asarray(lanes, dtype=np.uint64)[None, None, :]
    key = np.zeros((1, 1, 1), dtype=np.uint64)
    for part in (np.full((1, 1, 1), seed, dtype=np.uint64), steps_K11, lanes_11L, sites_1S1):
        key = _mix64(key ^ _mix64(part + np.uint64(1)))
    return (key >> np.uint64(32)).astype(np.uint32).view(np.int32)


def lane_dropout(input_TLH: Tensor, keys_L: Tensor, *, p: float, locked: bool = False) -> Tensor:
    """Zeroes a share `p` of the activations of each lane and scales the rest up, so that the mean stays.

    Args:
        input_TLH: activations, floating point [time, lanes, width].
        keys_L: each lane's key at this site, int32 [lanes].
        p: share to drop, in [0, 1); rounded to a multiple of 1/65536 below 1.
        locked: whether the first time step's mask is that of all.

    Returns:
        the type and shape of the input.
    """
    dropped = _dropped(p)
    if dropped == 0:
        return input_TLH
    num_steps, _, width = input_TLH.shape
    places_TH = _places(1 if locked else num_steps, (width + 1) // 2, input_TLH.device)
    bits = _mix32(places_TH[:, None, :] ^ keys_L[None, :, None])
    draws_TLH = bits.view(torch.int16)[:, :, :width]
    return _scaled(input_TLH, draws_TLH, dropped=dropped)


def word_dropout(input_TLE: Tensor, words_TL: Tensor, keys_L: Tensor, *, p: float) -> Tensor:
    """Zeroes the vectors of a share `p` of the vocabulary's words, wherever these stand, and scales the rest up.

    Args:
        input_TLE: the words' vectors, floating point.
        words_TL: their ids, int64.
        keys_L: the lanes' key, which is the same for all, int32.
        p: as of `lane_dropout`.

    Returns:
        the type and shape of the input.
    """
    dropped = _dropped(p)
    if dropped == 0:
        return input_TLE
    draws_TL = _mix32(_mix32(words_TL.int() + 1) ^ keys_L) >> 16
    return _scaled(input_TLE, draws_TL[:, :, None], dropped=dropped)


def weight_dropout(weight_GH: Tensor, keys_L: Tensor, *, p: float) -> Tensor:
    """Zeroes a share `p` of a weight's entries and scales the rest up.

    Args:
        weight_GH: floating point.
        keys_L: the lanes' key, which is the same for all, int32; one lane at least.
        p: as of `lane_dropout`.

    Returns:
        the type and shape of the weight.
    """
    return lane_dropout(weight_GH[:, None], keys_L[:1], p=p)[:, 0]


def _dropped(p: float) -> int:
    """How many of the `DRAWS` equally likely draws drop."""
    return min(round(p * DRAWS), DRAWS - 1)


def _scaled(input: Tensor, draws: Tensor, *, dropped: int) -> Tensor:
    """The input where a draw, from -DRAWS/2 on, is not among the lowest, scaled up; zero elsewhere."""
    return input * (draws >= dropped - DRAWS // 2) * (DRAWS / (DRAWS - dropped))


@lru_cache(maxsize=64)  # windows may differ in length from step to step
def _places(num_steps: int, width: int, device: torch.device) -> Tensor:
    """A well-spread number for each place (time, unit) of a lane; the same in every step."""
    places = torch.arange(num_steps * width, dtype=torch.int32, device=device).reshape(num_steps, width)
    return _mix32(places + 1)


def _mix32(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers in which every bit hangs on every other (Wellons, `lowbias32`)."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * (0x846CA68B - (1 << 32))
    return x ^ ((x >> 16) & 0xFFFF)


def _mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64-bit integers in which every bit hangs on every other (Steele et al., SplitMix64)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
