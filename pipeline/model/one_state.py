"""Stacked cells whose state is one tensor, and those of them that torch has: GRU and Elman network.

Shape suffixes: K layers, T time, L lanes, E input width, H hidden.

Source: Cho et al. 2014, arXiv:1406.1078 (GRU); Elman 1990, doi:10.1207/s15516709cog1402_1.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from pipeline.config import StackedConfig
from pipeline.model.recurrence import LayerDropout, Recurrence, State, run_layers


class OneState(Recurrence):
    """Layers of a cell with dropout below each of them; arguments as every `Recurrence`.

    Attributes:
        cell: (input's width, hidden width) → a layer: (input_TLE, hidden_1LH) → (hidden_TLH, the last of them).
    """

    state_names = ("hidden_KLH",)
    cell: Callable[[int, int], nn.Module]

    def __init__(self, section: StackedConfig, *, input_size: int, dropout: float | LayerDropout) -> None:
        super().__init__(section, input_size=input_size, dropout=dropout)
        self.num_sites = section.num_layers
        widths = [input_size, *[section.hidden_size] * (section.num_layers - 1)]
        self.layers = nn.ModuleList(self.cell(width, section.hidden_size) for width in widths)

    def zero_state(self, num_lanes: int) -> State:
        """Zeros for `hidden_KLH`."""
        return (next(self.parameters()).new_zeros(len(self.layers), num_lanes, self.output_size),)

    def forward(
        self, input_TLE: Tensor, state: State, *, keys_SL: Tensor | None, short_L: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Reads a window, as every `Recurrence`."""
        layers = [partial(_read, layer) for layer in self.layers]
        return run_layers(layers, input_TLE, state, dropout=self.dropout, keys_SL=keys_SL, short_L=short_L)


class StackedGRU(OneState):
    """GRU layers."""

    cell = nn.GRU


class StackedElman(OneState):
    """Layers h = tanh(W x + U h')."""

    cell = nn.RNN


def _read(layer: nn.Module, input_TLE: Tensor, before: State) -> tuple[Tensor, State]:
    """One layer over a window; it takes its only state tensor bare."""
    hidden_TLH, hidden_1LH = layer(input_TLE, before[0])
    return hidden_TLH, (hidden_1LH,)
