"""Stacked minLSTM: its gates read the input alone, so that a window's time steps are computed at once.

    f, i = σ(W x); h = f / (f + i) · h' + i / (f + i) · g(W x); g(x) = x + 0.5 if x ≥ 0, else σ(x)

Shape suffixes: K layers, T time, L lanes, E input width, H hidden.

Source: Feng et al. 2024, arXiv:2410.01201, section 3.2 and appendix B.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import MinLSTMConfig
from pipeline.model.output_layer import at_least_fp32
from pipeline.model.recurrence import Recurrence, State, run_layers

SCAN_STEPS = 64  # rounding grows with the sum of a scan's logarithms, which may be long where there is no backward pass


class StackedMinLSTM(Recurrence):
    """minLSTM layers with dropout below each of them; arguments as every `Recurrence`."""

    state_names = ("hidden_KLH",)

    def __init__(self, section: MinLSTMConfig, *, input_size: int, dropout: float) -> None:
        super().__init__(section, input_size=input_size, dropout=dropout)
        self.num_sites = section.num_layers
        widths = [input_size, *[section.hidden_size] * (section.num_layers - 1)]
        self.layers = nn.ModuleList(nn.Linear(width, 3 * section.hidden_size) for width in widths)

    def zero_state(self, num_lanes: int) -> State:
        """Zeros for `hidden_KLH`."""
        return (next(self.parameters()).new_zeros(len(self.layers), num_lanes, self.output_size),)

    def forward(
        self, input_TLE: Tensor, state: State, *, keys_SL: Tensor | None, short_L: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Reads a window, as every `Recurrence`."""
        layers = [partial(_read, layer) for layer in self.layers]
        return run_layers(layers, input_TLE, state, dropout=self.dropout, keys_SL=keys_SL, short_L=short_L)


def _read(layer: nn.Module, input_TLE: Tensor, before: State) -> tuple[Tensor, State]:
    """One layer over a window."""
    forget_TLH, take_TLH, candidate_TLH = at_least_fp32(layer(input_TLE)).chunk(3, dim=-1)
    ratio_TLH = F.logsigmoid(forget_TLH) - F.logsigmoid(take_TLH)
    log_new_TLH = F.logsigmoid(-ratio_TLH) + log_positive(candidate_TLH)
    hidden_TLH = scan(F.logsigmoid(ratio_TLH), log_new_TLH, before[0])
    return hidden_TLH, (hidden_TLH[-1:],)


def log_positive(x: Tensor) -> Tensor:
    """log g(x), where g(x) = x + 0.5 if x ≥ 0, else σ(x)."""
    return torch.where(x >= 0, (x.relu() + 0.5).log(), F.logsigmoid(x))


def scan(log_keep_TLH: Tensor, log_new_TLH: Tensor, hidden_1LH: Tensor) -> Tensor:
    """h = keep · h' + new for each time step, all of them positive, computed from their logarithms.

    Args:
        log_keep_TLH, log_new_TLH: float32 or wider.
        hidden_1LH: h' of the first step, at least 0.

    Returns:
        hidden_TLH.
    """
    found = []
    for start in range(0, len(log_keep_TLH), SCAN_STEPS):
        keep_TLH, new_TLH = (each[start : start + SCAN_STEPS] for each in (log_keep_TLH, log_new_TLH))
        log_before_1LH = hidden_1LH.clamp(min=torch.finfo(hidden_1LH.dtype).tiny).log()  # -inf has no gradient
        kept_TLH = F.pad(keep_TLH.cumsum(0), (0, 0, 0, 0, 1, 0))
        hidden_TLH = (kept_TLH + torch.cat([log_before_1LH, new_TLH]).sub(kept_TLH).logcumsumexp(0)).exp()[1:]
        hidden_1LH = hidden_TLH[-1:]
        found.append(hidden_TLH)
    return torch.cat(found)
