"""Dropout as arithmetic: a mask is a function of (seed, step, lane, site), whatever ran before and on how many ranks.

In: activations and one key for each lane. Out: activations. No generator is involved, so none has to be saved, and a
lane draws the same mask on any device.

Shape suffixes: K steps, S sites of a network where dropout stands, L lanes, T time, H hidden.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DRAWS = 1 << 16  # a draw is 16 bits wide, so the share dropped is a multiple of 1/65536


def lane_keys(*, seed: int, step: int, lanes: Sequence[int], num_sites: int) -> NDArray[np.int32]:
    """The dropout key of each lane at each site in a step, a hash of the four numbers: int32 [sites, lanes].

    Args:
        seed: of the run.
        step: from 0.
        lanes: their numbers.
        num_sites: places in the network at which something is dropped.
    """
    keys_SL: NDArray[np.int32] = keys_of_steps(seed=seed, steps=[step], lanes=lanes, num_sites=num_sites)[0]
    return keys_SL


def keys_of_steps(*, seed: int, steps: Sequence[int], lanes: Sequence[int], num_sites: int) -> NDArray[np.int32]:
    """As `lane_keys`, of many steps at once, which takes little more time than one: int32 [steps, sites, lanes]."""
    steps_K11 = np.asarray(steps, dtype=np.uint64)[:, None, None]
    sites_1S1 = np.arange(num_sites, dtype=np.uint64)[None, :, None]
    lanes_11L = np.asarray(lanes, dtype=np.uint64)[None, None, :]
    key = np.zeros((1, 1, 1), dtype=np.uint64)
    for part in (np.full((1, 1, 1), seed, dtype=np.uint64), steps_K11, lanes_11L, sites_1S1):
        key = _mix64(key ^ _mix64(part + np.uint64(1)))
    return (key >> np.uint64(32)).astype(np.uint32).view(np.int32)


def lane_dropout(input_TLH: Tensor, keys_L: Tensor, *, p: float) -> Tensor:
    """Zeroes a share `p` of the activations of each lane and scales the rest up, so that the mean stays.

    Args:
        input_TLH: activations, floating point [time, lanes, width].
        keys_L: each lane's key at this site, int32 [lanes].
        p: share to drop, in [0, 1); rounded to a multiple of 1/65536 below 1.

    Returns:
        the type and shape of the input.
    """
    dropped = min(round(p * DRAWS), DRAWS - 1)
    if dropped == 0:
        return input_TLH
    num_steps, _, width = input_TLH.shape
    places_TH = _places(num_steps, (width + 1) // 2, input_TLH.device)
    bits = _mix32(places_TH[:, None, :] ^ keys_L[None, :, None])
    draws_TLH = bits.view(torch.int16)[:, :, :width]
    keep_TLH = draws_TLH >= dropped - DRAWS // 2
    return input_TLH * keep_TLH * (DRAWS / (DRAWS - dropped))


@lru_cache(maxsize=8)
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
