"""Two recurrences and an output layer that are no part of the package; importing the module adds their rows.

Shape suffixes: T time, L lanes, N tokens, E input width, H hidden, V vocabulary, G groups, M words of a group.
"""

from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import KINDS, RecurrenceConfig, SoftmaxConfig
from pipeline.errors import ConfigError
from pipeline.model.dropout import lane_dropout
from pipeline.model.output_layer import OutputLayer, Targets, at_least_fp32
from pipeline.model.recurrence import Recurrence, State
from pipeline.model.tables import OUTPUT_LAYERS, RECURRENCES


class DecayConfig(RecurrenceConfig):
    """A mean of what was read."""

    width: Annotated[int, Field(ge=1)] = 5
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.5

    @property
    def output_size(self) -> int:
        return self.width


class Decay(Recurrence):
    """One tensor of state and no dropout: a mean in which each step counts less than the next."""

    num_sites = 0
    state_names = ("mean_1LH",)

    def __init__(self, section: DecayConfig, *, input_size: int, dropout: float) -> None:
        super().__init__(section, input_size=input_size, dropout=dropout)
        self.decay = section.decay
        self.weight_HE = nn.Parameter(torch.empty(section.width, input_size))

    def zero_state(self, num_lanes: int) -> State:
        return (self.weight_HE.new_zeros(1, num_lanes, self.output_size),)

    def forward(
        self, input_TLE: Tensor, state: State, *, keys_SL: Tensor | None, short_L: Tensor | None = None
    ) -> tuple[Tensor, State]:
        (mean_1LH,), means = state, []
        before_1LH = mean_1LH
        for read_LH in torch.tanh(F.linear(input_TLE, self.weight_HE)):
            before_1LH, mean_1LH = mean_1LH, self.decay * mean_1LH + (1 - self.decay) * read_LH
            means.append(mean_1LH)
        if short_L is not None:
            mean_1LH = torch.where(short_L[None, :, None], before_1LH, mean_1LH)
        return torch.cat(means), (mean_1LH,)


class TrioConfig(RecurrenceConfig):
    """A gated sum that knows the input before and how many there were."""

    width: Annotated[int, Field(ge=1)] = 4

    @property
    def output_size(self) -> int:
        return self.width


class Trio(Recurrence):
    """Three tensors of state, of other shapes, one of them without width; two places where dropout stands."""

    num_sites = 2
    state_names = ("sum_1LH", "last_1LE", "count_1L")

    def __init__(self, section: TrioConfig, *, input_size: int, dropout: float) -> None:
        super().__init__(section, input_size=input_size, dropout=dropout)
        self.read = nn.Linear(2 * input_size, section.width)
        self.gate = nn.Linear(section.width, section.width)

    def zero_state(self, num_lanes: int) -> State:
        some = self.read.weight
        widths = (self.output_size,), (self.read.in_features // 2,), ()
        return tuple(some.new_zeros(1, num_lanes, *width) for width in widths)

    def forward(
        self, input_TLE: Tensor, state: State, *, keys_SL: Tensor | None, short_L: Tensor | None = None
    ) -> tuple[Tensor, State]:
        if keys_SL is not None:
            input_TLE = lane_dropout(input_TLE, keys_SL[0], p=self.dropout)
        hidden, before = [], state
        for input_LE in input_TLE:
            before, (sum_1LH, last_1LE, count_1L) = state, state
            read_1LH = torch.tanh(self.read(torch.cat([input_LE[None], last_1LE], dim=-1)))
            sum_1LH = sum_1LH + torch.sigmoid(self.gate(sum_1LH)) * read_1LH
            count_1L = count_1L + 1
            hidden.append(torch.tanh(sum_1LH) / (1 + 1 / count_1L[..., None]))
            state = (sum_1LH, input_LE[None], count_1L)
        if short_L is not None:
            sum_1LH, last_1LE, count_1L = (
                torch.where(short_L.view(1, -1, *[1] * (after.dim() - 2)), middle, after)
                for middle, after in zip(before, state, strict=True)
            )
            state = (sum_1LH, last_1LE, count_1L)
        hidden_TLH = torch.cat(hidden)
        if keys_SL is not None:
            hidden_TLH = lane_dropout(hidden_TLH, keys_SL[1], p=self.dropout)
        return hidden_TLH, state


class GroupedConfig(SoftmaxConfig):
    """Words in groups of one size."""

    words_per_group: Annotated[int, Field(ge=1)] = 8


class Grouped(OutputLayer):
    """P(word) = P(its group) · P(the word within its group); which they are, the CPU works out."""

    def __init__(
        self, section: GroupedConfig, *, hidden_size: int, vocab_size: int, embedding_VH: nn.Parameter | None
    ) -> None:
        super().__init__(section, hidden_size=hidden_size, vocab_size=vocab_size, embedding_VH=embedding_VH)
        if embedding_VH is not None:
            raise ConfigError("model.tied=true is not for model.softmax.kind=grouped; use model.tied=false")
        self.vocab_size, self.size = vocab_size, section.words_per_group
        num_groups = -(-vocab_size // self.size)
        self.group_weight_GH = nn.Parameter(torch.empty(num_groups, hidden_size))
        self.word_weight_GMH = nn.Parameter(torch.empty(num_groups, self.size, hidden_size))

    def prepare_targets(self, targets_N: NDArray[np.int64]) -> Targets:
        return tuple(torch.from_numpy(each) for each in np.divmod(targets_N, self.size))

    def nats(self, hidden_NH: Tensor, targets: Targets) -> Tensor:
        group_N, place_N = targets
        group_NG, word_NGM = self._parts(hidden_NH)
        rows_N = torch.arange(len(group_N), device=group_N.device)
        return -(group_NG[rows_N, group_N] + word_NGM[rows_N, group_N, place_N])

    def log_probabilities(self, hidden_NH: Tensor) -> Tensor:
        group_NG, word_NGM = self._parts(hidden_NH)
        return (group_NG[:, :, None] + word_NGM).flatten(1)[:, : self.vocab_size]

    def _parts(self, hidden_NH: Tensor) -> tuple[Tensor, Tensor]:
        group_logits_NG = at_least_fp32(F.linear(hidden_NH, self.group_weight_GH))
        word_logits_NGM = at_least_fp32(torch.einsum("nh,gmh->ngm", hidden_NH, self.word_weight_GMH))
        ids_GM = torch.arange(len(self.word_weight_GMH) * self.size, device=hidden_NH.device).view(-1, self.size)
        word_logits_NGM = word_logits_NGM.masked_fill(ids_GM >= self.vocab_size, -torch.inf)
        return group_logits_NG.log_softmax(1), word_logits_NGM.log_softmax(2)


KINDS["model.recurrence"] |= {"decay": DecayConfig, "trio": TrioConfig}
RECURRENCES |= {DecayConfig: Decay, TrioConfig: Trio}
KINDS["model.softmax"] |= {"grouped": GroupedConfig}
OUTPUT_LAYERS |= {GroupedConfig: Grouped}
