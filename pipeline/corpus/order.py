"""In which order an epoch reads the stored tokens: as they lie, or in blocks whose order is drawn anew for each epoch.

In: the number of tokens, the size of a block, a seed; an epoch, lanes, windows. Out: which stored tokens they read. All
of it is arithmetic: no list of blocks is kept, so an order of any length costs nothing, and any step of it is found at
once. Refuses nothing.

The places of an epoch are numbered 0 to N-1 in the order in which they are read; lanes and windows are dealt over
places. With blocks of K tokens, place j·K + i holds the stored token P(j)·K + i, where P is a permutation of the N//K
whole blocks. What is left over, fewer than K tokens, stays last. Without blocks, place i holds stored token i.

P is a Feistel network over a rectangle a × b that just holds the blocks: a block's number is a pair (left, right),
and each round adds a hash of one half to the other. What falls outside the blocks is sent through again until it falls
inside (cycle walking). Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains", sections 3 and 4.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.lanes import LanePlan

NUM_ROUNDS = 10  # as many as NIST SP 800-38G takes for small domains
Range = tuple[int, int]  # [start, stop)
Lanes = Sequence[int] | NDArray[np.int64]  # their numbers

_Ints = NDArray[np.int64]
_Words = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of the tokens of a split, for every epoch.

    Attributes:
        num_tokens: of the split, N.
        block_tokens: of a block, K; None: every epoch reads the tokens as they lie.
        seed: with the epoch it draws the order of the blocks.
    """

    num_tokens: int
    block_tokens: int | None = None
    seed: int = 0

    @property
    def num_blocks(self) -> int:
        """Whole blocks, those that change places."""
        return 0 if self.block_tokens is None else self.num_tokens // self.block_tokens

    def stored(self, epoch: int, start: int, stop: int) -> list[Range]:
        """What the places [start, stop) of an epoch hold: ranges of the stored tokens, in the order of the places."""
        return self.stored_of_each(epoch, np.array([start]), np.array([stop]))[0]

    def stored_of_each(self, epoch: int, starts: _Ints, stops: _Ints) -> list[list[Range]]:
        """As `stored`, for many ranges of places at once."""
        owners, begins, ends = self._moved(epoch, starts, stops)
        found: list[list[Range]] = [[] for _ in range(len(starts))]
        for owner, begin, end in zip(owners.tolist(), begins.tolist(), ends.tolist(), strict=True):
            found[owner].append((begin, end))
        return found

    def _moved(self, epoch: int, starts: _Ints, stops: _Ints) -> tuple[_Ints, _Ints, _Ints]:
        """Ranges cut at the blocks' bounds and moved: the number of the range that each is of, its start, its stop."""
        if self.num_blocks < 2:
            there = np.flatnonzero(stops > starts)
            return there, starts[there], stops[there]
        assert self.block_tokens is not None
        size = self.block_tokens
        firsts, num_pieces = starts // size, np.where(stops > starts, (stops - 1) // size - starts // size + 1, 0)
        owners = np.repeat(np.arange(len(starts)), num_pieces)
        within = np.arange(len(owners)) - (np.cumsum(num_pieces) - num_pieces)[owners]
        blocks = firsts[owners] + within
        begins = np.maximum(blocks * size, starts[owners])
        ends = np.minimum((blocks + 1) * size, stops[owners])
        moves = (self._permuted(epoch, blocks) - blocks) * size
        return owners, begins + moves, ends + moves

    def _permuted(self, epoch: int, blocks: _Ints) -> _Ints:
        """Where whole blocks go; what is left over after them stays."""
        moved = blocks.copy()
        walking = np.flatnonzero(blocks < self.num_blocks)
        keys = _round_keys(self.seed, epoch)
        while len(walking):
            moved[walking] = _shuffled(moved[walking], self.num_blocks, keys)
            walking = walking[moved[walking] >= self.num_blocks]
        return moved


def stored_ranges(
    plan: LanePlan, order: Order, *, lanes: Lanes, epoch: int, window_start: int, window_stop: int
) -> list[list[Range]]:
    """Which stored tokens some lanes read in the windows [window_start, window_stop) of an epoch.

    The input of a lane's first target is among them, unless it is the epoch's first, which is `<eos>`.

    Args:
        plan: how places are dealt to lanes.
        order: of the split's tokens.
        lanes: their numbers.
        epoch: from 0.
        window_start: the first window.
        window_stop: the end of the windows, exclusive, at most `plan.num_windows`.

    Returns:
        for each lane its ranges, in the order in which it reads them; none where it has no target left.
    """
    assert order.num_tokens == plan.num_targets, f"an order of {order.num_tokens} tokens for {plan.num_targets} targets"
    starts, stops = lane_places(plan, lanes=lanes, epoch=epoch, window_start=window_start, window_stop=window_stop)
    return order.stored_of_each(epoch, np.where(stops > starts, np.maximum(starts - 1, 0), stops), stops)


def ranges_of(plan: LanePlan, order: Order, lanes: Lanes) -> Callable[[int, int, int], list[list[Range]]]:
    """`stored_ranges` of some lanes as a function of (epoch, window_start, window_stop)."""

    def ranges(epoch: int, window_start: int, window_stop: int) -> list[list[Range]]:
        return stored_ranges(plan, order, lanes=lanes, epoch=epoch, window_start=window_start, window_stop=window_stop)

    return ranges


def lane_places(
    plan: LanePlan, *, lanes: Lanes, epoch: int, window_start: int, window_stop: int
) -> tuple[_Ints, _Ints]:
    """The places of the targets of some lanes in an epoch's windows [window_start, window_stop): starts and stops."""
    numbers = np.asarray(lanes, dtype=np.int64)
    begins = numbers * plan.num_targets // plan.num_lanes
    ends = (numbers + 1) * plan.num_targets // plan.num_lanes
    starts, stops = (begins + plan.before(epoch, window) for window in (window_start, window_stop))
    return np.minimum(starts, ends), np.minimum(stops, ends)


@lru_cache(maxsize=8)
def _round_keys(seed: int, epoch: int) -> tuple[np.uint64, ...]:
    drawn = hashlib.shake_256(f"order of blocks, seed {seed}, epoch {epoch}".encode()).digest(8 * NUM_ROUNDS)
    return tuple(np.uint64(each) for each in np.frombuffer(drawn, dtype="<u8"))


def _shuffled(numbers: _Ints, num_blocks: int, keys: Sequence[np.uint64]) -> _Ints:
    """One pass through the network: a bijection of the rectangle that holds [0, num_blocks)."""
    width = isqrt(num_blocks - 1) + 1
    sizes = (np.uint64(width), np.uint64(-(-num_blocks // width)))  # of the halves
    halves = [numbers.astype(np.uint64) % sizes[0], numbers.astype(np.uint64) // sizes[0]]
    for number in range(NUM_ROUNDS):
        changed, size = number % 2, sizes[number % 2]
        halves[changed] = (halves[changed] + _hashed(halves[1 - changed] ^ keys[number]) % size) % size
    return (halves[1] * sizes[0] + halves[0]).astype(np.int64)


def _hashed(words: _Words) -> _Words:
    """A bijection of 64-bit words in which every bit depends on every other: the last steps of SplitMix64."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
