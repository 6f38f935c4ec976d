"""Windows whose lengths are drawn: most about `bptt` tokens, some about half as many.

In: what the longest lane reads in an epoch, bptt, a seed; an epoch and a window. Out: how many windows an epoch has,
which is the same in every epoch, and where each begins. All of it is arithmetic: no list of an epoch's windows is kept,
so any window of any epoch is found at once. Refuses nothing.

The windows stand in stretches of `STRETCH`. Every stretch has the same lengths, the quantiles of a normal distribution
about bptt for 95% of them and about bptt / 2 for the rest, in an order that seed, epoch and stretch draw. So every
stretch has the same sum, and the windows before it are known without counting them up. What an epoch has beyond its
last whole stretch gets lengths that the seed alone draws from these; the last of them is what is left, and stays last.

Source: Merity et al. 2018, arXiv:1708.02182, section 4.1; numbers and shortest length are those of their code,
which draws each length by itself.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from statistics import NormalDist

import numpy as np

STRETCH = 100  # windows
SHORT = 5  # of these, about half as long
DEVIATION = 5.0  # tokens
SHORTEST = 5


@lru_cache(maxsize=8)
def stretch_lengths(bptt: int) -> tuple[int, ...]:
    """The lengths of the windows of a whole stretch, in no order."""

    def about(mean: float, number: int) -> list[int]:
        drawn = NormalDist(mean, DEVIATION)
        return [max(SHORTEST, int(drawn.inv_cdf((place + 0.5) / number))) for place in range(number)]

    return (*about(bptt, STRETCH - SHORT), *about(bptt / 2, SHORT))


@dataclass(frozen=True, kw_only=True)
class DrawnWindows:
    """The windows of a lane.

    Attributes:
        lane_tokens: what the longest lane reads in an epoch.
        bptt: about which the lengths are drawn.
        seed: with epoch and stretch it draws the order of the lengths.
    """

    lane_tokens: int
    bptt: int
    seed: int

    @property
    def stretch_tokens(self) -> int:
        """What a lane reads in a whole stretch."""
        return sum(stretch_lengths(self.bptt))

    @property
    def num_windows(self) -> int:
        """Windows of an epoch."""
        return self.lane_tokens // self.stretch_tokens * STRETCH + len(_rest(self))

    def before(self, epoch: int, window: int) -> int:
        """What the longest lane has read of an epoch before a window; all of it before window `num_windows`."""
        stretch, number = divmod(window, STRETCH)
        found = stretch * self.stretch_tokens + _bounds(self, epoch, stretch)[number]
        return min(found, self.lane_tokens)  # after as many windows as a whole stretch has


@lru_cache(maxsize=64)
def _bounds(windows: DrawnWindows, epoch: int, stretch: int) -> tuple[int, ...]:
    """What a lane has read of a stretch before each of its windows, and after the last."""
    is_whole = stretch < windows.lane_tokens // windows.stretch_tokens
    lengths = stretch_lengths(windows.bptt) if is_whole else _rest(windows)
    moving, last = (lengths, ()) if is_whole else (lengths[:-1], lengths[-1:])
    shuffled = _shuffled(moving, f"seed {windows.seed}, epoch {epoch}, stretch {stretch}")
    return (0, *accumulate((*shuffled, *last)))


@lru_cache(maxsize=8)
def _rest(windows: DrawnWindows) -> tuple[int, ...]:
    """The lengths beyond the last whole stretch; the last one is what is left."""
    left, found = windows.lane_tokens % windows.stretch_tokens, []
    for length in _shuffled(stretch_lengths(windows.bptt), f"seed {windows.seed}, the rest of an epoch"):
        if left <= 0:
            break
        found.append(min(length, left))
        left -= length
    return tuple(found)


def _shuffled(lengths: Sequence[int], name: str) -> list[int]:
    """The lengths in an order that a name draws."""
    drawn = hashlib.shake_256(f"lengths of windows, {name}".encode()).digest(8 * len(lengths))
    order = np.argsort(np.frombuffer(drawn, dtype="<u8"), kind="stable")
    return [lengths[place] for place in order]
