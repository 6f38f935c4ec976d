"""Embedding → recurrence → softmax.

In: a window of word ids, the state of its lanes, its targets split into clusters. Out: nats of each target and the next
state. Takes integers and never a vocabulary; does no input or output.

Shape suffixes: T time, L lanes, N tokens that are targets, S dropout sites, E embedding, H hidden, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.model.adaptive_softmax import AdaptiveSoftmax, TargetSplit
from pipeline.model.dropout import lane_dropout
from pipeline.model.recurrent import StackedLSTM, State


class LanguageModel(nn.Module):
    """A recurrent language model.

    Args:
        vocab_size: number of words.
        embedding_size: width of the word vectors.
        hidden_size: width of each LSTM layer's cell.
        num_layers: number of LSTM layers.
        projection_size: width of each layer's projected output; None: not projected.
        dropout: share of the non-recurrent connections dropped in a training step.
        tied: the softmax reads the embedding's rows.
        cutoffs: first word of each tail cluster of the softmax; empty for the full softmax.
        div_value: how much narrower each tail cluster is than the one before.

    Raises:
        ConfigError: cutoffs that do not lie within the vocabulary.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        embedding_size: int,
        hidden_size: int,
        num_layers: int,
        projection_size: int | None,
        dropout: float,
        tied: bool,
        cutoffs: Sequence[int],
        div_value: float,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.num_sites = num_layers + 1
        self.embedding_VE = nn.Parameter(torch.empty(vocab_size, embedding_size))
        self.recurrence = StackedLSTM(
            input_size=embedding_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            projection_size=projection_size,
            dropout=dropout,
        )
        self.softmax = AdaptiveSoftmax(
            hidden_size=self.recurrence.output_size,
            vocab_size=vocab_size,
            cutoffs=cutoffs,
            div_value=div_value,
            embedding_VH=self.embedding_VE if tied else None,
        )

    @torch.no_grad()
    def draw_weights(self, *, seed: int, init_scale: float) -> None:
        """Draws every parameter from uniform(-init_scale, init_scale), the same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.copy_(torch.empty(parameter.shape).uniform_(-init_scale, init_scale, generator=generator))

    def hidden(
        self, inputs_TL: Tensor, state: State, *, keys_SL: Tensor | None = None, short_L: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Reads a window of words.

        Args:
            inputs_TL: word ids, int64 [time, lanes].
            state: the lanes' state, as the window before left it.
            keys_SL: the lanes' dropout keys, int32 [num_sites, lanes]; None: nothing is dropped.
            short_L: which lanes lack the last time step, bool [lanes]; None: none.

        Returns:
            hidden_TLH for the softmax, and the next state.
        """
        input_TLE = F.embedding(inputs_TL, self.embedding_VE)
        hidden_TLH, state = self.recurrence(input_TLE, state, keys_SL=keys_SL, short_L=short_L)
        if keys_SL is not None:
            hidden_TLH = lane_dropout(hidden_TLH, keys_SL[-1], p=self.recurrence.dropout)
        return hidden_TLH, state

    def forward(
        self,
        inputs_TL: Tensor,
        state: State,
        targets: TargetSplit,
        *,
        keys_SL: Tensor | None = None,
        short_L: Tensor | None = None,
        rows_N: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Nats of a window's targets.

        Args:
            inputs_TL, state, keys_SL, short_L: as in `hidden`.
            targets: the split of the window's targets, time-major.
            rows_N: which of the T·L tokens are targets, int64; None: all.

        Returns:
            nats_N, not reduced, and the next state, still in the graph.
        """
        hidden_TLH, state = self.hidden(inputs_TL, state, keys_SL=keys_SL, short_L=short_L)
        hidden_NH = hidden_TLH.flatten(0, 1)
        if rows_N is not None:
            hidden_NH = hidden_NH.index_select(0, rows_N)
        return self.softmax.target_nats(hidden_NH, targets), state
