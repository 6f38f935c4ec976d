"""The ranks of a run, and what they tell each other besides gradients.

In: plain values of each rank. Out: the same answer on every rank. Each method is a collective: all ranks call it, in
the same order. A run of one process calls the same methods and waits for nobody.

It all goes over gloo and the CPU, whatever carries the gradients, so that no device ever waits for it.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import PipelineError

Value = TypeVar("Value")

PATIENCE = timedelta(days=2)  # a rank may wait for another's validation; a hang is the watchdog's


class Collectives:
    """The ranks of this run.

    Args:
        rank: of this process.
        world_size: number of ranks; above 1, torch's process group is there already.
    """

    def __init__(self, *, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if world_size > 1 else None

    @property
    def first(self) -> bool:
        """Whether this rank writes, tells and decides."""
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sums over the ranks, place by place; the same bits on every rank."""
        if self._group is None:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._group)
        return total.tolist()

    def from_first(self, value: Value) -> Value:
        """The first rank's value; what the others give is not looked at."""
        if self._group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def from_all(self, value: Value) -> list[Value]:
        """Every rank's value, by rank."""
        if self._group is None:
            return [value]
        values = [value] * self.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def agree(self, act: Callable[[], Value]) -> Value:
        """What `act` gives on this rank; if it fails on one rank with the user's error, it fails so on all.

        Raises:
            PipelineError: the first rank's, of those that had one.
        """
        value, error = None, None
        try:
            value = act()
        except PipelineError as raised:
            error = raised.with_traceback(None)
        for each in self.from_all(error):
            if each is not None:
                raise each
        return cast(Value, value)

    def lanes_of_all(self, part: Tensor) -> Tensor | None:
        """A tensor of the state for all lanes, its dimension 1, on the CPU, for the first rank; None for the others."""
        part = part.detach().cpu()
        if self._group is None:
            return part
        parts: list[Tensor] | None = [part] * self.world_size if self.first else None
        dist.gather_object(part, parts, dst=0, group=self._group)
        return None if parts is None else torch.cat(parts, dim=1)
