"""Recurrence: (input, state) → (hidden, state), a window at a time; what every kind of it has in common.

In: inputs of some lanes and the state in which the window before left them. Out: the hidden vectors and the state for
the next window. A lane that lacks the window's last token keeps the state that it had before it.

A kind is a class here below, a section of the configuration and a row of `tables.py`; docs/extending.md shows one.

Shape suffixes: K layers, T time, L lanes, S dropout sites, E input width, H hidden, W width of a state's tensor.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.config import RecurrenceConfig
from pipeline.model.dropout import lane_dropout

State = tuple[Tensor, ...]  # what is carried from window to window: any number of tensors, lanes as dimension 1
Layer = Callable[[Tensor, State], tuple[Tensor, State]]  # (input_TLE, its state [1, lanes, W]) → (hidden_TLH, state)


class LayerDropout(NamedTuple):
    """What is dropped below layers that stand one above the other.

    Attributes:
        input: share of the lowest layer's inputs.
        between: share of the others' inputs.
        locked: whether a lane drops the same at all time steps of a window.
    """

    input: float
    between: float
    locked: bool = False


class Recurrence(nn.Module):
    """What stands between embedding and output layer.

    No lane may depend on another: they are dealt to any number of ranks.

    Args:
        section: of the configuration, with the keys of this kind.
        input_size: width of the inputs.
        dropout: share of the non-recurrent connections that a step drops; those to the output layer are not its own.
            A `LayerDropout` if the section is `layered`.

    Attributes:
        output_size: width of the hidden vectors.
        num_sites: how many rows of dropout keys `forward` reads, one for each place where dropout stands.
        num_shared_sites: how many rows it reads in which all lanes have the same key, for what all of them share.
        state_names: of the state's tensors, in their order, as a checkpoint holds them.
    """

    num_sites: int
    num_shared_sites: int = 0
    state_names: tuple[str, ...]

    def __init__(self, section: RecurrenceConfig, *, input_size: int, dropout: float | LayerDropout) -> None:
        super().__init__()
        self.output_size = section.output_size
        self.dropout = dropout

    def zero_state(self, num_lanes: int) -> State:
        """The state at a text's start, on the parameters' device and in their type."""
        raise NotImplementedError

    def forward(
        self, input_TLE: Tensor, state: State, *, keys_SL: Tensor | None, short_L: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Reads a window.

        Args:
            input_TLE: [time, lanes, input_size].
            state: of the same lanes.
            keys_SL: the lanes' dropout keys: the first `num_sites` rows are its own, and the last `num_shared_sites`;
                others may stand between them. None: nothing is dropped.
            short_L: which lanes lack the last time step, bool [lanes]; None: none.

        Returns:
            hidden_TLH, and the state after each lane's last token. The hidden vector of a lacking token means nothing.
        """
        raise NotImplementedError


def run_layers(
    layers: Sequence[Layer],
    input_TLE: Tensor,
    state: State,
    *,
    dropout: float | LayerDropout,
    keys_SL: Tensor | None,
    short_L: Tensor | None,
    num_tensors: int | None = None,
) -> tuple[Tensor, State]:
    """Layers one above the other, with dropout below each: the `forward` of a kind that is made of such layers.

    Args:
        layers: each reads what the one below it gives.
        input_TLE, keys_SL, short_L: as in `Recurrence.forward`; layer k drops by row k of the keys.
        state: tensors [layers, lanes, W]; of layers that differ in width, those of some layers and then the next ones'.
        dropout: share to drop.
        num_tensors: of a layer's state; None: as many as the whole state has, since all layers have one width.

    Returns:
        As `Recurrence.forward`.
    """
    drop = dropout if isinstance(dropout, LayerDropout) else LayerDropout(dropout, dropout)
    groups = [state] if num_tensors is None else [state[i : i + num_tensors] for i in range(0, len(state), num_tensors)]
    befores = [tuple(each[k : k + 1] for each in group) for group in groups for k in range(len(group[0]))]
    hidden_TLH, afters = input_TLE, []
    for k, (layer, before) in enumerate(zip(layers, befores, strict=True)):
        if keys_SL is not None:
            share = drop.between if k else drop.input
            hidden_TLH = lane_dropout(hidden_TLH, keys_SL[k], p=share, locked=drop.locked)
        run = layer if short_L is None else _stopped(layer, short_L)
        hidden_TLH, after = run(hidden_TLH, before)
        afters.append(after)
    left = iter(afters)
    joined = [zip(*islice(left, len(group[0])), strict=True) for group in groups]
    return hidden_TLH, tuple(torch.cat(each) for group in joined for each in group)


def _stopped(layer: Layer, short_L: Tensor) -> Layer:
    """The layer over a window whose last time step some lanes lack: their state stops a step earlier."""

    def run(input_TLE: Tensor, before: State) -> tuple[Tensor, State]:
        most_TLH, middle = layer(input_TLE[:-1], before) if len(input_TLE) > 1 else (None, before)
        last_1LH, after = layer(input_TLE[-1:], middle)
        hidden_TLH = last_1LH if most_TLH is None else torch.cat([most_TLH, last_1LH])
        stops_1L1 = short_L[None, :, None]
        return hidden_TLH, tuple(torch.where(stops_1L1, *each) for each in zip(middle, after, strict=True))

    return run


def last_steps(read_TLE: Tensor, num_steps: int, *, short_L: Tensor | None) -> Tensor:
    """The last time steps of each lane: the state of a kind that reads them again.

    Args:
        read_TLE: the state before and the window's inputs after it, more than `num_steps`.
        num_steps: to keep.
        short_L: as in `Recurrence.forward`; such a lane's are those before its last.
    """
    stop = len(read_TLE)
    last_TLE = read_TLE[stop - num_steps :]
    if short_L is None:
        return last_TLE
    return torch.where(short_L[None, :, None], read_TLE[stop - num_steps - 1 : stop - 1], last_TLE)
