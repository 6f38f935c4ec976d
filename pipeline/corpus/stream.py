"""Windows of a split, from any step on.

In: a token sequence, its lane plan, a step and the lanes wanted. Out: the window that these lanes read in that step, as
numpy arrays. It is a function of its arguments alone: no position is kept, so there is none to save.

Shape suffixes: T time of the window, L lanes held here, N tokens of them that are targets.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.lanes import LanePlan
from pipeline.corpus.order import Order, lane_places, stored_ranges

EOS = 0  # the input before a split's first target
GROUP_BYTES = 8 << 20  # of ids that are read together: more gains nothing, and leaves the processor's cache
GROUP_WINDOWS = 64
ID_BYTES = 8


class Tokens(Protocol):
    """A token sequence."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """The ids of tokens [start, stop)."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """What some lanes read in one step.

    Attributes:
        step: the optimizer step that reads it, from 0.
        starts_epoch: whether it is the first window of an epoch.
        inputs_TL: the word before each target, int64; where a lane lacks its last token, `<eos>`.
        targets_N: the targets that are there, time-major, int64.
        rows_N: their places in the flattened T·L; None if all are there.
        short_L: which lanes lack the last time step, bool; None if none does.
        num_targets: targets of the global batch, over all lanes.
    """

    step: int
    starts_epoch: bool
    inputs_TL: NDArray[np.int64]
    targets_N: NDArray[np.int64]
    rows_N: NDArray[np.int64] | None
    short_L: NDArray[np.bool_] | None
    num_targets: int


def read_window(
    tokens: Tokens, plan: LanePlan, *, step: int, lanes: Sequence[int], order: Order | None = None
) -> Window:
    """The window that some lanes read in one step.

    Args:
        tokens, plan, lanes, order: as in `read_windows`.
        step: the optimizer step, from 0, over all epochs.
    """
    (window,) = read_windows(tokens, plan, start=step, stop=step + 1, lanes=lanes, order=order)
    return window


def windows_at_once(plan: LanePlan, *, num_lanes: int) -> int:
    """How many windows of so many lanes are read together at most: so far ahead of a step is read.

    As many as make `GROUP_BYTES`, one at least, `GROUP_WINDOWS` at most.
    """
    return max(1, min(GROUP_WINDOWS, GROUP_BYTES // (plan.longest_window * num_lanes * ID_BYTES)))


def read_windows(
    tokens: Tokens,
    plan: LanePlan,
    *,
    start: int,
    stop: int,
    lanes: Sequence[int],
    order: Order | None = None,
    most_at_once: int | None = None,
) -> Iterator[Window]:
    """The windows of steps [start, stop).

    Neighbouring windows are read together, so that a lane is looked up once for all of them: first one window, then
    twice as many each time, up to `windows_at_once`. Nothing is read beyond the last step.

    Args:
        tokens: the split.
        plan: how it is dealt to lanes.
        start: the first step.
        stop: the end of the steps, exclusive.
        lanes: their numbers, in the order in which the window has them.
        order: in which an epoch reads the split; None: as it lies.
        most_at_once: windows that are read together; None: `windows_at_once`.
    """
    order = order or Order(num_tokens=plan.num_targets)
    numbers = np.asarray(lanes, dtype=np.int64)
    most = most_at_once or windows_at_once(plan, num_lanes=len(numbers))
    step, size = start, 1
    while step < stop:
        epoch, window = plan.position(step)
        num_windows = min(size, stop - step, plan.num_windows - window)
        ids_TL = _read_group(tokens, plan, order, epoch=epoch, window=window, num_windows=num_windows, lanes=numbers)
        for number in range(num_windows):
            first, stop_row = (
                plan.before(epoch, window + each) - plan.before(epoch, window) for each in (number, number + 1)
            )
            yield _window(plan, ids_TL[first : stop_row + 1], step=step + number, lanes=numbers)
        step, size = step + num_windows, min(2 * size, most)


def _read_group(
    tokens: Tokens, plan: LanePlan, order: Order, *, epoch: int, window: int, num_windows: int, lanes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The first input of each lane and below it the targets of some windows, each of which is the next one's input."""
    height = plan.before(epoch, window + num_windows) - plan.before(epoch, window)
    ranges = stored_ranges(plan, order, lanes=lanes, epoch=epoch, window_start=window, window_stop=window + num_windows)
    # what a short lane lacks stays as it is: it is no target, and `_window` puts `<eos>` where it would be an input
    ids_LT = np.empty((len(lanes), height + 1), dtype=np.int64)
    for lane, ids_T, of_lane in zip(lanes.tolist(), ids_LT, ranges, strict=True):
        filled = 0
        if lane == window == 0:
            ids_T[0], filled = EOS, 1  # the epoch's first input
        for begin, end in of_lane:
            ids_T[filled : filled + end - begin] = tokens.read(begin, end)
            filled += end - begin
    return np.ascontiguousarray(ids_LT.T)


def _window(plan: LanePlan, ids_TL: NDArray[np.int64], *, step: int, lanes: NDArray[np.int64]) -> Window:
    """One window of a group; it shares no number with the next."""
    inputs_TL, targets_N, rows_N, short_L = ids_TL[:-1], ids_TL[1:].flatten(), None, None
    epoch, window = plan.position(step)
    is_last = window == plan.num_windows - 1
    if is_last and (is_short_L := _lengths(plan, epoch=epoch, window=window, lanes=lanes) < len(inputs_TL)).any():
        short_L = is_short_L
        inputs_TL[-1, short_L] = EOS  # a lane's last target is nobody's input
        there_TL = np.ones(inputs_TL.shape, dtype=bool)
        there_TL[-1] = ~short_L
        rows_N = np.flatnonzero(there_TL)
        targets_N = targets_N[rows_N]
    return Window(
        step=step,
        starts_epoch=window == 0,
        inputs_TL=inputs_TL,
        targets_N=targets_N,
        rows_N=rows_N,
        short_L=short_L,
        num_targets=plan.targets_in(step),
    )


def _lengths(plan: LanePlan, *, epoch: int, window: int, lanes: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many targets each lane has in a window."""
    starts, stops = lane_places(plan, lanes=lanes, epoch=epoch, window_start=window, window_stop=window + 1)
    return stops - starts
