"""Dropout masks worked out by hand, number by number, from a key: what the arithmetic has to give."""

import numpy as np
import torch
from torch import Tensor

DRAWS = 65536


def mixed(number: int) -> int:
    """Wellons' lowbias32."""
    number &= 0xFFFFFFFF
    number = (number ^ number >> 16) * 0x7FEB352D & 0xFFFFFFFF
    number = (number ^ number >> 15) * 0x846CA68B & 0xFFFFFFFF
    return number ^ number >> 16


def signed(number: int) -> int:
    """The lowest 16 bits as two's complement."""
    number &= 0xFFFF
    return number - DRAWS if number >= DRAWS // 2 else number


def _scale(draw: int, p: float) -> float:
    dropped = round(p * DRAWS)
    return DRAWS / (DRAWS - dropped) if draw >= dropped - DRAWS // 2 else 0.0


def mask_by_hand(key: int, num_rows: int, width: int, *, p: float) -> Tensor:
    """What each entry is multiplied by, [rows, width], float64; two neighbours share a hash."""
    found = np.empty((num_rows, width))
    for row in range(num_rows):
        for unit in range(width):
            bits = mixed(mixed(row * ((width + 1) // 2) + unit // 2 + 1) ^ key)
            found[row, unit] = _scale(signed(bits >> 16 if unit % 2 else bits), p)
    return torch.from_numpy(found)


def word_mask_by_hand(key: int, vocab_size: int, *, p: float) -> Tensor:
    """What each word's vector is multiplied by, [vocab_size], float64."""
    return torch.tensor([_scale(signed(mixed(mixed(word + 1) ^ key) >> 16), p) for word in range(vocab_size)]).double()


def lane_masks_by_hand(keys_L: Tensor, num_steps: int, width: int, *, p: float, locked: bool = False) -> Tensor:
    """What each activation is multiplied by, [time, lanes, width], float64."""
    rows = 1 if locked else num_steps
    masks = [mask_by_hand(int(key) & 0xFFFFFFFF, rows, width, p=p) for key in keys_L]
    return torch.stack(masks, dim=1).expand(num_steps, -1, -1)
