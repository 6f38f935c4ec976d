"""Recurrence: (input, state) → (hidden, state), a window at a time; what every kind of it has in common.

In: inputs of some lanes and the state in which the window before left them. Out: the hidden vectors and the state for
the next window. A lane that lacks the window's last token keeps the state that it had before it.

A kind is a class here below, a section of the configuration and a row of `tables.py`; docs/extending.md shows one.

Shape suffixes: K layers, T time, L lanes, S dropout sites, E input width, H hidden, W width of a state's tensor.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pipeline.config import RecurrenceConfig
from pipeline.model.dropout import lane_dropout

State = tuple[Tensor, ...]  # what is carried from window to window: any number of tensors, lanes as dimension 1
Layer = Callable[[Tensor, State], tuple[Tensor, State]]  # (input_TLE, its state [1, lanes, W]) → (hidden_TLH, state)


class Recurrence(nn.Module):
    """What stands between embedding and output layer.

    No lane may depend on another: they are dealt to any number of ranks.

    Args:
        section: of the configuration, with the keys of this kind.
        input_size: width of the inputs.
        dropout: share of the non-recurrent connections that a step drops; those to the output layer are not its own.

    Attributes:
        output_size: width of the hidden vectors.
        num_sites: how many rows of dropout keys `forward` reads, one for each place where dropout stands.
        state_names: of the state's tensors, in their order, as a checkpoint holds them.
    """

    num_sites: int
    state_names: tuple[str, ...]

    def __init__(self, section: RecurrenceConfig, *, input_size: int, dropout: float) -> None:
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
            keys_SL: the lanes' dropout keys, at least `num_sites` rows; None: nothing is dropped.
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
    dropout: float,
    keys_SL: Tensor | None,
    short_L: Tensor | None,
) -> tuple[Tensor, State]:
    """Layers one above the other, with dropout below each: the `forward` of a kind that is made of such layers.

    Args:
        layers: each reads what the one below it gives.
        input_TLE, keys_SL, short_L: as in `Recurrence.forward`; layer k drops by row k of the keys.
        state: tensors [layers, lanes, W].
        dropout: share to drop.

    Returns:
        As `Recurrence.forward`.
    """
    hidden_TLH, states = input_TLE, []
    for k, layer in enumerate(layers):
        if keys_SL is not None:
            hidden_TLH = lane_dropout(hidden_TLH, keys_SL[k], p=dropout)
        before = tuple(each_KLW[k : k + 1] for each_KLW in state)
        run = layer if short_L is None else _stopped(layer, short_L)
        hidden_TLH, after = run(hidden_TLH, before)
        states.append(after)
    return hidden_TLH, tuple(torch.cat(each) for each in zip(*states, strict=True))


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
