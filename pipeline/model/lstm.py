"""Stacked LSTM.

Shape suffixes: K layers, T time, L lanes, E input width, H hidden, P output width (the projection's, else H).

Source: Zaremba et al. 2014, arXiv:1409.2329 (dropout); Sak et al. 2014, arXiv:1402.1128 (projection).
"""

from torch import Tensor, nn

from pipeline.config import LSTMConfig
from pipeline.model.recurrence import Recurrence, State, run_layers


class StackedLSTM(Recurrence):
    """LSTM layers with dropout below each of them; arguments as every `Recurrence`."""

    state_names = ("hidden_KLP", "cell_KLH")

    def __init__(self, section: LSTMConfig, *, input_size: int, dropout: float) -> None:
        super().__init__(section, input_size=input_size, dropout=dropout)
        self.num_sites = section.num_layers
        self.hidden_size = section.hidden_size
        widths = [input_size, *[self.output_size] * (section.num_layers - 1)]
        self.layers = nn.ModuleList(
            nn.LSTM(width, section.hidden_size, proj_size=section.projection_size or 0) for width in widths
        )

    def zero_state(self, num_lanes: int) -> State:
        """Zeros for `hidden_KLP` and `cell_KLH`."""
        some, num_layers = next(self.parameters()), len(self.layers)
        return tuple(some.new_zeros(num_layers, num_lanes, width) for width in (self.output_size, self.hidden_size))

    def forward(
        self, input_TLE: Tensor, state: State, *, keys_SL: Tensor | None, short_L: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Reads a window, as every `Recurrence`."""
        return run_layers(list(self.layers), input_TLE, state, dropout=self.dropout, keys_SL=keys_SL, short_L=short_L)
