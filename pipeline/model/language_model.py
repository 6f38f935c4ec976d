"""Input layer → recurrence → output layer.

In: a window of word ids, the state of its lanes, its targets as the CPU prepared them. Out: nats of each target and the
next state. Takes integers and never a vocabulary; does no input or output.

Shape suffixes: T time, L lanes, N tokens that are targets, S dropout sites, E embedding, H hidden, V vocabulary.

Source of the penalties: Merity et al. 2017, arXiv:1708.01009.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import FullInputConfig, RecurrentConfig
from pipeline.model.dropout import lane_dropout, word_dropout
from pipeline.model.input_layer import InputLayer
from pipeline.model.output_layer import Targets, at_least_fp32
from pipeline.model.recurrence import LayerDropout, State
from pipeline.model.tables import INPUT_LAYERS, OUTPUT_LAYERS, RECURRENCES


class LanguageModel(nn.Module):
    """A recurrent language model.

    Args:
        section: of the configuration, with the values that depend on the vocabulary filled in.
        vocab_size: number of words.

    Attributes:
        embedding_VE: the words' vectors; None: there is an input layer.
        input: the input layer; None: it is that table alone.
        num_sites, num_shared_sites: how many rows of dropout keys it reads, as of `lane_keys`: those of the recurrence,
            with that of the output layer's input between the two kinds, and that of the words first of the shared ones.

    Raises:
        ConfigError: values that do not fit the vocabulary.
    """

    def __init__(self, section: RecurrentConfig, *, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        drop = self.regularization = section.regularization
        self.output_dropout = section.dropout if drop.output_dropout is None else drop.output_dropout
        below = LayerDropout(
            input=section.dropout if drop.input_dropout is None else drop.input_dropout,
            between=section.dropout if drop.layer_dropout is None else drop.layer_dropout,
            locked=drop.locked,
        )
        self.embedding_VE: nn.Parameter | None = None
        self.input: InputLayer | None = None
        if isinstance(section.input, FullInputConfig):
            self.embedding_VE = nn.Parameter(torch.empty(vocab_size, section.embedding_size))
        else:
            self.input = INPUT_LAYERS[type(section.input)](
                section.input, embedding_size=section.embedding_size, vocab_size=vocab_size
            )
        self.recurrence = RECURRENCES[type(section.recurrence)](
            section.recurrence,
            input_size=section.embedding_size,
            dropout=below if section.recurrence.layered else section.dropout,
        )
        self.num_sites = self.recurrence.num_sites + 1
        self.num_shared_sites = self.recurrence.num_shared_sites + (drop.embedding_dropout > 0)
        self.softmax = OUTPUT_LAYERS[type(section.softmax)](
            section.softmax,
            hidden_size=self.recurrence.output_size,
            vocab_size=vocab_size,
            embedding_VH=self.embedding_VE if section.tied else None,
        )
        if section.tied and self.input is not None:
            self.softmax.tie(self.input)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @torch.no_grad()
    def draw_weights(self, *, seed: int, init_scale: float, recurrence_init_scale: float | None = None) -> None:
        """Draws every parameter from uniform(-init_scale, init_scale), the same for the same seed.

        Those of the recurrence have a scale of their own where one is given.
        """
        generator = torch.Generator().manual_seed(seed)
        of_recurrence = {id(each) for each in self.recurrence.parameters()}
        for parameter in self.parameters():
            scale = (recurrence_init_scale or init_scale) if id(parameter) in of_recurrence else init_scale
            parameter.copy_(torch.empty(parameter.shape).uniform_(-scale, scale, generator=generator))

    def hidden(
        self, inputs_TL: Tensor, state: State, *, keys_SL: Tensor | None = None, short_L: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Reads a window of words.

        Args:
            inputs_TL: word ids, int64 [time, lanes].
            state: the lanes' state, as the window before left it.
            keys_SL: the lanes' dropout keys, int32 [num_sites + num_shared_sites, lanes]; None: nothing is dropped.
            short_L: which lanes lack the last time step, bool [lanes]; None: none.

        Returns:
            hidden_TLH for the softmax, and the next state.
        """
        hidden_TLH, state = self._undropped(inputs_TL, state, keys_SL=keys_SL, short_L=short_L)
        return self._output_dropped(hidden_TLH, keys_SL), state

    def hidden_and_penalty(
        self,
        inputs_TL: Tensor,
        state: State,
        *,
        keys_SL: Tensor | None,
        num_targets: int,
        num_pairs: int,
        short_L: Tensor | None = None,
        rows_N: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, State]:
        """As `hidden`, and what a training step adds to the nats of these lanes' targets.

        A penalty is a mean over the global batch. It is told as a part of a sum of nats, since that is divided by the
        global batch's targets: the sum over all ranks is the mean · `num_targets`.

        Args:
            inputs_TL, state, keys_SL, short_L: as in `hidden`.
            num_targets: of the global batch.
            num_pairs: pairs of targets of the global batch that follow each other in a lane and in the window.
            rows_N: as in `forward`.

        Returns:
            hidden_TLH for the softmax; the penalty, None if the configuration has none; and the next state.
        """
        undropped_TLH, state = self._undropped(inputs_TL, state, keys_SL=keys_SL, short_L=short_L)
        hidden_TLH = self._output_dropped(undropped_TLH, keys_SL)
        parts = []
        if weight := self.regularization.activation:
            parts.append(weight * _squares(_targets(hidden_TLH, rows_N)).sum())
        if (weight := self.regularization.temporal) and num_pairs:
            squares_TL = _squares(undropped_TLH[1:] - undropped_TLH[:-1])
            if short_L is not None:
                squares_TL = torch.cat([squares_TL[:-1], squares_TL[-1:].masked_fill(short_L, 0.0)])
            parts.append(weight * (num_targets / num_pairs) * squares_TL.sum())
        return hidden_TLH, torch.stack(parts).sum() if parts else None, state

    def nats(self, hidden_TLH: Tensor, targets: Targets, *, rows_N: Tensor | None = None) -> Tensor:
        """Nats of a window's targets, not reduced.

        Args:
            hidden_TLH: as `hidden` gives it.
            targets, rows_N: as in `forward`.
        """
        return self.softmax.nats(_targets(hidden_TLH, rows_N), targets)

    def embed(self, inputs_TL: Tensor) -> Tensor:
        """The words' vectors: [time, lanes, embedding_size]."""
        if self.embedding_VE is not None:
            return F.embedding(inputs_TL, self.embedding_VE)
        assert self.input is not None
        vectors_TLE: Tensor = self.input(inputs_TL)
        return vectors_TLE

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
        return self.nats(hidden_TLH, targets, rows_N=rows_N), state

    def _undropped(
        self, inputs_TL: Tensor, state: State, *, keys_SL: Tensor | None, short_L: Tensor | None
    ) -> tuple[Tensor, State]:
        """As `hidden`, with nothing dropped above the last layer."""
        input_TLE = self.embed(inputs_TL)
        if keys_SL is not None and (share := self.regularization.embedding_dropout):
            input_TLE = word_dropout(input_TLE, inputs_TL, keys_SL[self.num_sites], p=share)
        hidden_TLH, state = self.recurrence(input_TLE, state, keys_SL=keys_SL, short_L=short_L)
        return hidden_TLH, state

    def _output_dropped(self, hidden_TLH: Tensor, keys_SL: Tensor | None) -> Tensor:
        if keys_SL is None:
            return hidden_TLH
        keys_L = keys_SL[self.num_sites - 1]
        return lane_dropout(hidden_TLH, keys_L, p=self.output_dropout, locked=self.regularization.locked)


def _targets(hidden_TLH: Tensor, rows_N: Tensor | None) -> Tensor:
    """The hidden vectors of the tokens that are targets: [N, H]."""
    hidden_NH = hidden_TLH.flatten(0, 1)
    return hidden_NH if rows_N is None else hidden_NH.index_select(0, rows_N)


def _squares(vectors: Tensor) -> Tensor:
    """The mean square of each vector of the last dimension."""
    return at_least_fp32(vectors).square().mean(-1)


def num_words(weights: Mapping[str, Tensor]) -> int:
    """How many words a model's weights are of, by their names."""
    tables = [each for name, each in weights.items() if name == "embedding_VE" or name.startswith("input.tables.")]
    return sum(len(table) for table in tables)
