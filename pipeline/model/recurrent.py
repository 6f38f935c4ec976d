"""Recurrence: (input, state) → (hidden, state), a window at a time.

In: inputs of some lanes and the state in which the window before left them. Out: the hidden vectors and the state for
the next window. A lane that lacks the window's last token keeps the state that it had before it.

Shape suffixes: K layers, T time, L lanes, E input width, H hidden, P output width (the projection's, else H).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.model.dropout import lane_dropout


class State(NamedTuple):
    """What a recurrence carries from window to window: [layers, lanes, P] and [layers, lanes, H]."""

    hidden_KLP: Tensor
    cell_KLH: Tensor

    def detached(self) -> "State":
        """The same values, cut off from the window's graph (truncated BPTT)."""
        return State(self.hidden_KLP.detach(), self.cell_KLH.detach())


class StackedLSTM(nn.Module):
    """LSTM layers with dropout below each of them.

    Args:
        input_size: width of the inputs.
        hidden_size: width of each layer's cell.
        num_layers: number of layers.
        projection_size: width to which each layer's hidden vector is projected, below `hidden_size`; None: not at all.
        dropout: share of the non-recurrent connections that a step drops.

    Source: Zaremba et al. 2014, arXiv:1409.2329 (dropout); Sak et al. 2014, arXiv:1402.1128 (projection).
    """

    def __init__(
        self, *, input_size: int, hidden_size: int, num_layers: int, projection_size: int | None, dropout: float
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.output_size = projection_size or hidden_size
        self.dropout = dropout
        widths = [input_size, *[self.output_size] * (num_layers - 1)]
        self.layers = nn.ModuleList(nn.LSTM(width, hidden_size, proj_size=projection_size or 0) for width in widths)

    def zero_state(self, num_lanes: int) -> State:
        """The state at a text's start, on the parameters' device and in their type."""
        some = next(self.parameters())
        return State(
            some.new_zeros(len(self.layers), num_lanes, self.output_size),
            some.new_zeros(len(self.layers), num_lanes, self.hidden_size),
        )

    def forward(
        self, input_TLE: Tensor, state: State, *, keys_SL: Tensor | None, short_L: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Reads a window.

        Args:
            input_TLE: [time, lanes, input_size].
            state: of the same lanes.
            keys_SL: the lanes' dropout keys, at least one row for each layer; None: nothing is dropped.
            short_L: which lanes lack the last time step, bool [lanes]; None: none.

        Returns:
            hidden_TLP, and the state after each lane's last token. The hidden vector of a lacking token means nothing.
        """
        hidden_TLP = input_TLE
        hidden_states, cell_states = [], []
        for k, layer in enumerate(self.layers):
            if keys_SL is not None:
                hidden_TLP = lane_dropout(hidden_TLP, keys_SL[k], p=self.dropout)
            before = (state.hidden_KLP[k : k + 1], state.cell_KLH[k : k + 1])
            if short_L is None:
                hidden_TLP, (hidden_1LP, cell_1LH) = layer(hidden_TLP, before)
            else:
                hidden_TLP, (hidden_1LP, cell_1LH) = _run_short(layer, hidden_TLP, before, short_L)
            hidden_states.append(hidden_1LP)
            cell_states.append(cell_1LH)
        return hidden_TLP, State(torch.cat(hidden_states), torch.cat(cell_states))


def _run_short(
    layer: nn.Module, input_TLE: Tensor, before: tuple[Tensor, Tensor], short_L: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One layer over a window whose last time step some lanes lack: their state stops a step earlier."""
    most_TLP, middle = layer(input_TLE[:-1], before) if len(input_TLE) > 1 else (input_TLE.new_zeros(0), before)
    last_1LP, after = layer(input_TLE[-1:], middle)
    hidden_TLP = torch.cat([most_TLP, last_1LP]) if len(input_TLE) > 1 else last_1LP
    stops_1L1 = short_L[None, :, None]
    return hidden_TLP, (torch.where(stops_1L1, middle[0], after[0]), torch.where(stops_1L1, middle[1], after[1]))
