"""Feed-forward network over the last words: what an n-gram model reads, as vectors.

    h = tanh(W [x_{t-C+1} … x_t]), with `direct` + D [x_{t-C+1} … x_t]

The paper's direct connections lead to the output words, each with weights of its own to every place of the context.
Here they lead to the hidden vector, which the output layer reads: a matrix of that kind whose rank is the hidden
vector's width, whatever the output layer is.

Shape suffixes: C context, T time, L lanes, E input width, H hidden.

Source: Bengio et al. 2003, JMLR 3:1137, section 2.
"""

import torch
from torch import Tensor, nn

from pipeline.config import WindowConfig
from pipeline.model.dropout import lane_dropout
from pipeline.model.recurrence import Recurrence, State, last_steps


class FeedForward(Recurrence):
    """One hidden layer with dropout below it; arguments as every `Recurrence`. Its state is what it reads again."""

    num_sites = 1
    state_names = ("inputs_CLE",)

    def __init__(self, section: WindowConfig, *, input_size: int, dropout: float) -> None:
        super().__init__(section, input_size=input_size, dropout=dropout)
        self.share = dropout
        self.context_size, self.input_size = section.context_size, input_size
        width = section.context_size * input_size
        self.hidden = nn.Linear(width, section.hidden_size)
        self.direct = nn.Linear(width, section.hidden_size, bias=False) if section.direct else None

    def zero_state(self, num_lanes: int) -> State:
        """Zeros for `inputs_CLE`, of which there are one fewer than the context has words."""
        return (self.hidden.weight.new_zeros(self.context_size - 1, num_lanes, self.input_size),)

    def forward(
        self, input_TLE: Tensor, state: State, *, keys_SL: Tensor | None, short_L: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Reads a window, as every `Recurrence`."""
        num_steps = len(input_TLE)
        if keys_SL is not None:
            input_TLE = lane_dropout(input_TLE, keys_SL[0], p=self.share)
        inputs_CLE = torch.cat([state[0], input_TLE])
        context_TLX = torch.cat([inputs_CLE[c : c + num_steps] for c in range(self.context_size)], dim=-1)
        hidden_TLH = torch.tanh(self.hidden(context_TLX))
        if self.direct is not None:
            hidden_TLH = hidden_TLH + self.direct(context_TLX)
        return hidden_TLH, (last_steps(inputs_CLE, self.context_size - 1, short_L=short_L),)
