"""Stacked minLSTM: its gates read the input alone, so that a window's time steps are computed at once.

    f, i = σ(W x); h = f / (f + i) · h' + i / (f + i) · g(W x); g(x) = x + 0.5 if x ≥ 0, else σ(x)

Shape suffixes: T time, L lanes, E input width, H hidden.

Source: Feng et al. 2024, arXiv:2410.01201, section 3.2 and appendix B.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.one_state import OneState
from pipeline.model.output_layer import at_least_fp32

SCAN_STEPS = 64  # rounding grows with the sum of a scan's logarithms, which may be long where there is no backward pass


class MinLSTM(nn.Module):
    """A layer; arguments as of torch's GRU."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.gates = nn.Linear(input_size, 3 * hidden_size)

    def forward(self, input_TLE: Tensor, hidden_1LH: Tensor) -> tuple[Tensor, Tensor]:
        """The hidden vectors of a window, and the last of them."""
        forget_TLH, take_TLH, new_TLH = at_least_fp32(self.gates(input_TLE)).chunk(3, dim=-1)
        ratio_TLH = F.logsigmoid(forget_TLH) - F.logsigmoid(take_TLH)
        hidden_TLH = scan(F.logsigmoid(ratio_TLH), F.logsigmoid(-ratio_TLH) + log_positive(new_TLH), hidden_1LH)
        return hidden_TLH, hidden_TLH[-1:]


class StackedMinLSTM(OneState):
    """minLSTM layers."""

    cell = MinLSTM


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
