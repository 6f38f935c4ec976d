"""Embedding → recurrence → output layer.

In: a window of word ids, the state of its lanes, its targets as the CPU prepared them. Out: nats of each target and the
next state. Takes integers and never a vocabulary; does no input or output.

Shape suffixes: T time, L lanes, N tokens that are targets, S dropout sites, E embedding, H hidden, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import RecurrentConfig
from pipeline.model.dropout import lane_dropout
from pipeline.model.output_layer import Targets
from pipeline.model.recurrence import State
from pipeline.model.tables import OUTPUT_LAYERS, RECURRENCES


class LanguageModel(nn.Module):
    """A recurrent language model.

    Args:
        section: of the configuration, with the values that depend on the vocabulary filled in.
        vocab_size: number of words.

    Raises:
        ConfigError: values that do not fit the vocabulary.
    """

    def __init__(self, section: RecurrentConfig, *, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.dropout = section.dropout
        self.embedding_VE = nn.Parameter(torch.empty(vocab_size, section.embedding_size))
        self.recurrence = RECURRENCES[type(section.recurrence)](
            section.recurrence, input_size=section.embedding_size, dropout=section.dropout
        )
        self.num_sites = self.recurrence.num_sites + 1
        self.softmax = OUTPUT_LAYERS[type(section.softmax)](
            section.softmax,
            hidden_size=self.recurrence.output_size,
            vocab_size=vocab_size,
            embedding_VH=self.embedding_VE if section.tied else None,
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
            hidden_TLH = lane_dropout(hidden_TLH, keys_SL[-1], p=self.dropout)
        return hidden_TLH, state

    def forward(
        self,
        inputs_TL: Tensor,
        state: State,
        targets: Targets,
        *,
        keys_SL: Tensor | None = None,
        short_L: Tensor | None = None,
        rows_N: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Nats of a window's targets.

        Args:
            inputs_TL, state, keys_SL, short_L: as in `hidden`.
            targets: the window's, time-major, as `softmax.prepare_targets` gives them.
            rows_N: which of the T·L tokens are targets, int64; None: all.

        Returns:
            nats_N, not reduced, and the next state, still in the graph.
        """
        hidden_TLH, state = self.hidden(inputs_TL, state, keys_SL=keys_SL, short_L=short_L)
        hidden_NH = hidden_TLH.flatten(0, 1)
        if rows_N is not None:
            hidden_NH = hidden_NH.index_select(0, rows_N)
        return self.softmax.nats(hidden_NH, targets), state
