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

EOS = 0  # the input before a split's first target


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


def read_window(tokens: Tokens, plan: LanePlan, *, step: int, lanes: Sequence[int]) -> Window:
    """The window that some lanes read in one step.

    Args:
        tokens: the split.
        plan: how it is dealt to lanes.
        step: the optimizer step, from 0, over all epochs.
        lanes: their numbers, in the order in which the window has them.
    """
    window = plan.position(step)[1]
    lengths = plan.lengths(window)
    num_steps = int(lengths.max())
    inputs_TL = np.full((num_steps, len(lanes)), EOS, dtype=np.int64)
    targets_TL = np.full((num_steps, len(lanes)), EOS, dtype=np.int64)
    for column, lane in enumerate(lanes):
        start = plan.lane_start(lane) + window * plan.bptt
        length = int(lengths[lane])
        before = tokens.read(max(start - 1, 0), start + length)
        targets_TL[:length, column] = before[len(before) - length :]
        skipped = 1 if start == 0 else 0  # the first input of all is <eos>
        inputs_TL[skipped:length, column] = before[: length - skipped]
    short_L = lengths[list(lanes)] < num_steps
    rows_N = None
    if short_L.any():
        there_TL = np.ones((num_steps, len(lanes)), dtype=bool)
        there_TL[-1] = ~short_L
        rows_N = np.flatnonzero(there_TL)
    return Window(
        step=step,
        starts_epoch=window == 0,
        inputs_TL=inputs_TL,
        targets_N=targets_TL.reshape(-1) if rows_N is None else targets_TL.reshape(-1)[rows_N],
        rows_N=rows_N,
        short_L=short_L if rows_N is not None else None,
        num_targets=plan.targets_in(window),
    )


def read_windows(tokens: Tokens, plan: LanePlan, *, start: int, stop: int, lanes: Sequence[int]) -> Iterator[Window]:
    """The windows of steps [start, stop).

    Args:
        tokens: the split.
        plan: how it is dealt to lanes.
        start: the first step.
        stop: the end of the steps, exclusive.
        lanes: as in `read_window`.
    """
    for step in range(start, stop):
        yield read_window(tokens, plan, step=step, lanes=lanes)
