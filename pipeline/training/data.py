"""Batches: a window, its targets for the output layer, its dropout keys; all of it arithmetic, done on the CPU.

In: a token sequence, its lane plan, the lanes of this rank. Out: tensors ready to be sent. The position is an argument,
so a loader has no state to save.

Shape suffixes: K steps, T time, L lanes of this rank, N their targets, S dropout sites.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.corpus.lanes import LanePlan
from pipeline.corpus.order import Order
from pipeline.corpus.stream import Tokens, read_windows
from pipeline.model.dropout import keys_of_steps
from pipeline.model.output_layer import Sampler, Targets

KEY_STEPS = 32  # whose dropout keys are drawn at once


class Batch(NamedTuple):
    """What one rank reads in one step.

    Attributes:
        inputs_TL: word ids, int64.
        targets: the N targets, prepared for the output layer, and what it draws for the step.
        rows_N: their places in the flattened T·L, int64; None: all are there.
        short_L: which lanes lack the last time step, bool; None: none.
        keys_SL: the lanes' dropout keys, int32.
        num_targets: targets of the global batch, over all ranks.
        starts_epoch: whether this is the first window of an epoch.
    """

    inputs_TL: Tensor
    targets: Targets
    rows_N: Tensor | None
    short_L: Tensor | None
    keys_SL: Tensor
    num_targets: int
    starts_epoch: bool


def read_batches(
    tokens: Tokens,
    plan: LanePlan,
    *,
    start: int,
    stop: int,
    lanes: Sequence[int],
    seed: int,
    prepare_targets: Callable[[NDArray[np.int64]], Targets],
    num_sites: int,
    sample: Sampler = lambda step, targets_N: (),
    num_shared_sites: int = 0,
    order: Order | None = None,
    most_at_once: int | None = None,
) -> Iterator[Batch]:
    """The batches of steps [start, stop) for the given lanes.

    Args:
        tokens, plan, lanes, order, most_at_once: as in `stream.read_windows`.
        seed: the experiment's; with step and lane it draws the dropout masks.
        prepare_targets: the output layer's.
        num_sites: places of the model where dropout stands.
        sample: what the output layer draws for a step.
        num_sites, num_shared_sites: places of the model where dropout stands, as of `lane_keys`.
    """
    draw = partial(keys_of_steps, seed=seed, lanes=lanes, num_sites=num_sites, num_shared_sites=num_shared_sites)
    keys_KSL = draw(steps=[])
    windows = read_windows(tokens, plan, start=start, stop=stop, lanes=lanes, order=order, most_at_once=most_at_once)
    for number, window in enumerate(windows):
        if number % KEY_STEPS == 0:
            steps = range(window.step, min(window.step + KEY_STEPS, stop))
            keys_KSL = draw(steps=steps)
        yield Batch(
            inputs_TL=torch.from_numpy(window.inputs_TL),
            targets=(*prepare_targets(window.targets_N), *sample(window.step, window.targets_N)),
            rows_N=None if window.rows_N is None else torch.from_numpy(window.rows_N),
            short_L=None if window.short_L is None else torch.from_numpy(window.short_L),
            keys_SL=torch.from_numpy(keys_KSL[number % KEY_STEPS]),
            num_targets=window.num_targets,
            starts_epoch=window.starts_epoch,
        )


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches where they are computed: as they are for the CPU, on their way in time for CUDA."""
    if device.type != "cuda":
        return batches
    return sent_ahead(batches, pin=Tensor.pin_memory, send=lambda tensor: tensor.to(device, non_blocking=True))


def sent_ahead(
    batches: Iterator[Batch], *, pin: Callable[[Tensor], Tensor], send: Callable[[Tensor], Tensor]
) -> Iterator[Batch]:
    """Gives a batch once the next one is prepared and sent, while the device still computes with the one before.

    The copies wait in line with the device's work, and take it some microseconds: a line of their own would not pay.

    Args:
        batches: on the CPU.
        pin: copies a tensor to memory from which the device reads by itself.
        send: begins to copy such a tensor to the device, and does not wait for it.
    """
    waiting: Batch | None = None
    for batch in batches:
        sent = _moved(_moved(batch, pin), send)
        if waiting is not None:
            yield waiting
        waiting = sent
    if waiting is not None:
        yield waiting


def _moved(batch: Batch, move: Callable[[Tensor], Tensor]) -> Batch:
    return batch._replace(
        inputs_TL=move(batch.inputs_TL),
        targets=tuple(move(each) for each in batch.targets),
        rows_N=None if batch.rows_N is None else move(batch.rows_N),
        short_L=None if batch.short_L is None else move(batch.short_L),
        keys_SL=move(batch.keys_SL),
    )


class StepLoader:
    """What Lightning iterates over: the batches from the step at hand to the run's end, as one pass.

    Lightning asks for an iterator before it restores the step from a checkpoint; a generator reads the step when its
    first batch is wanted, which is after that.

    Args:
        read: (first step) → the batches from it on.
        current_step: the optimizer steps made so far.
        total_steps: steps of the whole run.
    """

    def __init__(
        self, read: Callable[[int], Iterator[Batch]], *, current_step: Callable[[], int], total_steps: int
    ) -> None:
        self.read = read
        self.current_step = current_step
        self.total_steps = total_steps

    def __len__(self) -> int:
        return self.total_steps

    def __iter__(self) -> Iterator[Batch]:
        yield from self.read(self.current_step())

    def state_dict(self) -> dict[str, int]:
        """Nothing: Lightning takes a loader with this method for resumable, which this one is by its step."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to take up."""
