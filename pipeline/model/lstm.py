"""Stacked LSTM.

Shape suffixes: K layers, T time, L lanes, S dropout sites, E input width, H hidden, P output width (the projection's,
else H), G gates' rows.

Source: Zaremba et al. 2014, arXiv:1409.2329 (dropout); Sak et al. 2014, arXiv:1402.1128 (projection); Merity et al.
2018, arXiv:1708.02182 (dropped weights, a last layer of its own width).
"""

from torch import Tensor, nn
from torch.func import functional_call

from pipeline.config import LSTMConfig
from pipeline.model.dropout import weight_dropout
from pipeline.model.recurrence import Layer, LayerDropout, Recurrence, State, run_layers

STATE_NAMES = ("hidden_KLP", "cell_KLH")
LAST_NAMES = ("last_hidden_1LP", "last_cell_1LH")  # of a last layer that has a width of its own


class StackedLSTM(Recurrence):
    """LSTM layers with dropout below each of them; arguments as every `Recurrence`."""

    state_names: tuple[str, ...] = STATE_NAMES

    def __init__(self, section: LSTMConfig, *, input_size: int, dropout: float | LayerDropout) -> None:
        super().__init__(section, input_size=input_size, dropout=dropout)
        self.num_sites = section.num_layers
        self.weight_dropout = section.weight_dropout
        self.num_shared_sites = section.num_layers if self.weight_dropout else 0
        self.sizes = [(section.num_layers, section.hidden_size)]  # (how many layers, the width of their cells)
        if section.last_size is not None:
            self.state_names = STATE_NAMES + LAST_NAMES
            self.sizes = [(section.num_layers - 1, section.hidden_size), (1, section.last_size)]
        self.projection_size = section.projection_size or 0
        self.layers = nn.ModuleList()
        for num_layers, size in self.sizes:
            for _ in range(num_layers):
                self.layers.append(nn.LSTM(input_size, size, proj_size=self.projection_size))
                input_size = self.projection_size or size

    def zero_state(self, num_lanes: int) -> State:
        """Zeros for each of `state_names`."""
        some = next(self.parameters())
        return tuple(
            some.new_zeros(num_layers, num_lanes, width)
            for num_layers, size in self.sizes
            for width in (self.projection_size or size, size)
        )

    def forward(
        self, input_TLE: Tensor, state: State, *, keys_SL: Tensor | None, short_L: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Reads a window, as every `Recurrence`."""
        return run_layers(
            self._dropped(keys_SL),
            input_TLE,
            state,
            dropout=self.dropout,
            keys_SL=keys_SL,
            short_L=short_L,
            num_tensors=len(STATE_NAMES),
        )

    def _dropped(self, keys_SL: Tensor | None) -> list[Layer]:
        """The layers, without a share of their recurrent weights where there are keys."""
        if keys_SL is None or not self.weight_dropout:
            return list(self.layers)
        shared_KL = keys_SL[-len(self.layers) :]
        return [
            _with(layer, weight_dropout(layer.get_parameter("weight_hh_l0"), keys_L, p=self.weight_dropout))
            for layer, keys_L in zip(self.layers, shared_KL, strict=True)
        ]


def _with(layer: nn.Module, weight_GP: Tensor) -> Layer:
    """The layer with other recurrent weights; its own keep their name and their place, and get the gradient."""

    def run(input_TLE: Tensor, before: State) -> tuple[Tensor, State]:
        hidden_TLP, after = functional_call(layer, {"weight_hh_l0": weight_GP}, (input_TLE, before))
        return hidden_TLP, after

    return run
