"""Which lane reads which tokens, and which rank holds which lane: pure arithmetic.

In: the number of targets of a split, lanes and bptt. Out: bounds, lengths and counts, for any step, without reading
anything. Refuses more lanes than targets, more ranks than lanes and, where equal shares are asked for, a world size
that does not divide the lanes.

The targets of a split form one sequence of N. Lane b of B owns targets [b·N//B, (b+1)·N//B) of it, so the lanes'
lengths differ by one at most, and every window of an epoch but the last is full. An epoch has ceil(ceil(N/B)/bptt)
windows. With `window_seed` the lengths of the windows are drawn instead (`drawn_windows.py`): every epoch has as many
of them as any other, and only in its last one does a lane lack a token.

Rank r of W holds lanes [r·B//W, (r+1)·B//W), so the ranks' shares differ by one lane at most. A run begins with equal
shares; uneven ones are those of an elastic group that has lost a node.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.drawn_windows import DrawnWindows, stretch_lengths
from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LanePlan:
    """The tiling of a split into lanes and windows.

    Attributes:
        num_targets: targets of the split, N.
        num_lanes: rows of the global batch, B, whatever the number of ranks.
        bptt: tokens that a lane reads in one step.
        window_seed: draws how many tokens that is in each step, about `bptt` of them; None: just `bptt`.

    Raises:
        ConfigError: there are more lanes than targets.
    """

    num_targets: int
    num_lanes: int
    bptt: int
    window_seed: int | None = None

    def __post_init__(self) -> None:
        if self.num_lanes > self.num_targets:
            raise ConfigError(
                f"stream.num_lanes={self.num_lanes} is more than the corpus has targets, {self.num_targets};"
                f" use stream.num_lanes={max(1, self.num_targets // max(1, self.bptt))} or a larger corpus"
            )

    @cached_property
    def _drawn(self) -> DrawnWindows | None:
        if self.window_seed is None:
            return None
        return DrawnWindows(lane_tokens=self.lane_tokens, bptt=self.bptt, seed=self.window_seed)

    @property
    def lane_tokens(self) -> int:
        """Targets of the longest lane in an epoch."""
        return -(-self.num_targets // self.num_lanes)

    @property
    def num_windows(self) -> int:
        """Windows of an epoch, which are its steps."""
        return -(-self.lane_tokens // self.bptt) if self._drawn is None else self._drawn.num_windows

    @property
    def longest_window(self) -> int:
        """The most tokens that a lane reads in one step."""
        return self.bptt if self._drawn is None else max(stretch_lengths(self.bptt))

    def position(self, step: int) -> tuple[int, int]:
        """(epoch, window) that a step reads, both from 0."""
        return divmod(step, self.num_windows)

    def before(self, epoch: int, window: int) -> int:
        """Targets of the longest lane in an epoch's windows before one of them, which may be that after the last."""
        if self._drawn is not None:
            return self._drawn.before(epoch, window)
        return min(window * self.bptt, self.lane_tokens)

    def lane_start(self, lane: int) -> int:
        """First target of a lane; lane `num_lanes` starts where the sequence ends."""
        return lane * self.num_targets // self.num_lanes

    def lengths(self, step: int) -> NDArray[np.int64]:
        """Targets of each lane in a step: int64 [num_lanes], all alike but in the last window of an epoch."""
        starts = np.arange(self.num_lanes + 1, dtype=np.int64) * self.num_targets // self.num_lanes
        before, after = self._bounds(step)
        left: NDArray[np.int64] = np.diff(starts) - before
        return left.clip(0, after - before)

    def lane_ranges(self, step: int) -> list[tuple[int, int]]:
        """[start, stop) of the split's targets that each lane reads in a step; empty if the lane has none left."""
        before, _ = self._bounds(step)
        starts = [self.lane_start(lane) + before for lane in range(self.num_lanes)]
        return [(start, start + length) for start, length in zip(starts, self.lengths(step).tolist(), strict=True)]

    def targets_in(self, step: int) -> int:
        """Targets of the global batch in a step."""
        before, after = self._bounds(step)
        return min(after * self.num_lanes, self.num_targets) - before * self.num_lanes

    def tokens_seen(self, step: int) -> int:
        """Targets of all steps before `step`, over all epochs."""
        epoch, _ = self.position(step)
        return epoch * self.num_targets + self._bounds(step)[0] * self.num_lanes

    def share_of_bptt(self, step: int) -> float:
        """How long a step's window is, as a share of `bptt`; 1 where lengths are not drawn, for a short one too."""
        before, after = self._bounds(step)
        return 1.0 if self._drawn is None else (after - before) / self.bptt

    def _bounds(self, step: int) -> tuple[int, int]:
        """What the longest lane has read of its epoch before a step and after it."""
        epoch, window = self.position(step)
        return self.before(epoch, window), self.before(epoch, window + 1)


def rank_lanes(num_lanes: int, *, world_size: int, rank: int) -> range:
    """The lanes that a rank holds: [r·B//W, (r+1)·B//W), one at least.

    Args:
        num_lanes: rows of the global batch, B.
        world_size: ranks, W; it need not divide the lanes.
        rank: r, from 0.

    Raises:
        ConfigError: there are more ranks than lanes.
    """
    if world_size > num_lanes:
        raise ConfigError(
            f"world_size={world_size} leaves ranks without a lane, as stream.num_lanes={num_lanes};"
            f" use world_size={num_lanes} or fewer, or stream.num_lanes={world_size} or more"
        )
    return range(rank * num_lanes // world_size, (rank + 1) * num_lanes // world_size)


def check_world_size(num_lanes: int, world_size: int, *, name: str) -> None:
    """Refuses a world size that cannot deal equal shares of the lanes.

    Args:
        num_lanes: rows of the global batch.
        world_size: ranks that are asked for.
        name: the configuration's key for it.

    Raises:
        ConfigError: the world size does not divide the lanes; names the nearest ones that do.
    """
    if num_lanes % world_size:
        dividing = [each for each in range(1, num_lanes + 1) if num_lanes % each == 0]
        below = [each for each in dividing if each < world_size][-1:]
        above = [each for each in dividing if each > world_size][:1]  # none beyond the lanes
        nearest = " or ".join(str(each) for each in (*below, *above))
        raise ConfigError(f"{name}={world_size} does not divide stream.num_lanes={num_lanes}; use {name}={nearest}")
