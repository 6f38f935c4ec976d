"""Adaptive softmax over words in order of frequency, and the full softmax as its case without tails.

In: hidden vectors and the targets already split into clusters. Out: nats for each target, or all log-probabilities.
Refuses cutoffs that do not fit the vocabulary. Nothing is searched on the device: which target falls into which
cluster is computed beforehand on the CPU (`split_targets`), so a step never waits.

Words [0, cutoffs[0]) stand in the head beside one entry for each tail cluster; tail cluster i holds the words
[cutoffs[i], cutoffs[i+1]) and, where `div_value` narrows it, reads the hidden vector through a projection.

Shape suffixes: N tokens, n tokens of one cluster, H hidden, V vocabulary, C classes of the head or words of a cluster.

Source: Grave et al. 2017, arXiv:1609.04309, sections 3 and 4.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import AdaptiveSoftmaxConfig, FullSoftmaxConfig
from pipeline.model.input_layer import AdaptiveInput, InputLayer
from pipeline.model.output_layer import OutputLayer, Targets, at_least_fp32


def split_targets(targets_N: NDArray[np.int64], *, cutoffs: Sequence[int]) -> Targets:
    """Deals target words to the clusters, on the CPU.

    Args:
        targets_N: word ids, int64 [tokens].
        cutoffs: first word of each tail cluster, rising; empty for the full softmax.

    Returns:
        CPU tensors, int64. First each target's class in the head, [tokens]: the word itself, or its cluster's entry.
        Then two for each tail cluster: which of the tokens fall into it, rising, and their words' places within it;
        empty ones where none does.
    """
    if not cutoffs:
        return (torch.from_numpy(targets_N),)
    head_N = np.minimum(targets_N, cutoffs[0])
    rows_n = np.flatnonzero(targets_N >= cutoffs[0])
    words_n = targets_N[rows_n]
    parts = [head_N]
    for first, end in pairwise(cutoffs):  # what is left belongs to this cluster or to a later one
        is_later_n = words_n >= end
        parts += [rows_n[~is_later_n], words_n[~is_later_n] - first]
        rows_n, words_n = rows_n[is_later_n], words_n[is_later_n]
        head_N[rows_n] += 1
    parts += [rows_n, words_n - cutoffs[-1]]
    return tuple(torch.from_numpy(each) for each in parts)


class AdaptiveSoftmax(OutputLayer):
    """Log-probabilities of words, at a cost that follows their frequency.

    Tail cluster i is `hidden_size / div_value ** (i + 1)` wide; at `div_value` 1, which tied weights need, it has no
    projection.

    Args:
        section, hidden_size, vocab_size, embedding_VH: as of every `OutputLayer`; the section's cutoffs are given.

    Raises:
        ConfigError: cutoffs that do not lie within the vocabulary.
    """

    def __init__(
        self,
        section: AdaptiveSoftmaxConfig | FullSoftmaxConfig,
        *,
        hidden_size: int,
        vocab_size: int,
        embedding_VH: nn.Parameter | None = None,
    ) -> None:
        super().__init__(section, hidden_size=hidden_size, vocab_size=vocab_size, embedding_VH=embedding_VH)
        cutoffs, div_value = section.cutoffs, section.div_value
        assert cutoffs is not None, "cutoffs that nobody has fitted to the vocabulary"
        if isinstance(section, AdaptiveSoftmaxConfig):
            section.check_vocabulary(vocab_size)
        assert embedding_VH is None or div_value == 1, "tied clusters share rows of full width"
        self.cutoffs = tuple(cutoffs)
        self.edges = (*cutoffs, vocab_size)
        self.clusters = ("head", *(f"tail-{i + 1}" for i in range(len(cutoffs))))
        head_words = self.edges[0]
        num_tails = len(self.cutoffs)
        own_rows = num_tails if embedding_VH is not None else head_words + num_tails
        self.head_weight = nn.Parameter(torch.empty(own_rows, hidden_size))
        self.head_bias = nn.Parameter(torch.empty(head_words + num_tails))
        self.tail_projections = nn.ParameterList()
        self.tail_weights = nn.ParameterList()
        self.tail_biases = nn.ParameterList()
        for i, (first, end) in enumerate(pairwise(self.edges)):
            self.tail_biases.append(nn.Parameter(torch.empty(end - first)))
            if embedding_VH is not None:
                continue
            width = max(1, int(hidden_size / div_value ** (i + 1)))
            self.tail_weights.append(nn.Parameter(torch.empty(end - first, width)))
            if div_value > 1:
                self.tail_projections.append(nn.Parameter(torch.empty(width, hidden_size)))

    def tie(self, layer: InputLayer) -> None:
        """Shares the words' rows and the tails' projections of an adaptive input with the same clusters.

        The head's rows are read without the input's projection of them. Own stay the entries of the tail clusters, and
        the biases.

        Source: Baevski & Auli 2019, section 3.
        """
        if not isinstance(layer, AdaptiveInput) or layer.edges != (0, *self.edges):
            super().tie(layer)
            return
        self.embedding_VH = layer.tables[0]
        self.head_weight = nn.Parameter(torch.empty(len(self.cutoffs), self.embedding_VH.shape[1]))
        self.tail_weights = nn.ParameterList(layer.tables[1:])
        if self.tail_projections:
            self.tail_projections = nn.ParameterList(layer.projections[1:])

    def prepare_targets(self, targets_N: NDArray[np.int64]) -> Targets:
        """The targets, split into the clusters."""
        return split_targets(targets_N, cutoffs=self.cutoffs)

    def nats(self, hidden_NH: Tensor, targets: Targets) -> Tensor:
        """Negative log-probability of each target word.

        A tail word costs its cluster's entry in the head plus its own within the cluster. A cluster without targets
        takes part with zero rows, so that its parameters have zero gradients and not none.

        Args:
            hidden_NH: outputs of the recurrence, floating point, [tokens, hidden_size].
            targets: the split of the tokens' targets, on the same device.

        Returns:
            [tokens], in nats, float32 or the wider type of `hidden_NH`, not reduced: the caller divides the sum by
            the global token count.

        Raises:
            ValueError: the two token dimensions differ; names both.
        """
        head_N, *tails = targets
        if hidden_NH.shape[0] != head_N.shape[0]:
            raise ValueError(f"{hidden_NH.shape[0]} hidden vectors for {head_N.shape[0]} targets")
        nats_N = F.cross_entropy(self._head_logits(hidden_NH), head_N, reduction="none")
        for i, (rows_n, tail_n) in enumerate(zip(tails[::2], tails[1::2], strict=True)):
            logits_nC = self._tail_logits(i, hidden_NH.index_select(0, rows_n))
            nats_N = nats_N.index_add(0, rows_n, F.cross_entropy(logits_nC, tail_n, reduction="none"))
        return nats_N

    def cluster_sums(self, nats_N: Tensor, targets: Targets) -> tuple[Tensor, tuple[int, ...]]:
        """As `OutputLayer` has it; the numbers of targets are known from their split on the CPU."""
        rows = targets[1::2]  # of each tail cluster
        tail_nats = [nats_N.index_select(0, rows_n).sum() for rows_n in rows]
        head_nats = nats_N.sum() if not rows else nats_N.index_fill(0, torch.cat(rows), 0.0).sum()
        num_tail = [rows_n.shape[0] for rows_n in rows]
        return torch.stack([head_nats, *tail_nats]), (nats_N.shape[0] - sum(num_tail), *num_tail)

    def log_probabilities(self, hidden_NH: Tensor) -> Tensor:
        """Log-probability of every word: [tokens, vocab_size], float32 or wider; each row sums to 1 in probability."""
        head_NC = F.log_softmax(self._head_logits(hidden_NH), dim=1)
        head_words = self.edges[0]
        parts = [head_NC[:, :head_words]]
        for i in range(len(self.cutoffs)):
            tail_NC = F.log_softmax(self._tail_logits(i, hidden_NH), dim=1)
            parts.append(tail_NC + head_NC[:, head_words + i, None])
        return torch.cat(parts, dim=1)

    def _head_logits(self, hidden_NH: Tensor) -> Tensor:
        weight_CH: Tensor = self.head_weight
        if self.embedding_VH is not None:
            weight_CH = torch.cat([self.embedding_VH[: self.edges[0]], weight_CH])
        return at_least_fp32(F.linear(hidden_NH, weight_CH, self.head_bias))

    def _tail_logits(self, i: int, hidden_nH: Tensor) -> Tensor:
        if not self.tail_weights:
            assert self.embedding_VH is not None
            weight_CH = self.embedding_VH[self.edges[i] : self.edges[i + 1]]
            return at_least_fp32(F.linear(hidden_nH, weight_CH, self.tail_biases[i]))
        if self.tail_projections:
            hidden_nH = F.linear(hidden_nH, self.tail_projections[i])
        return at_least_fp32(F.linear(hidden_nH, self.tail_weights[i], self.tail_biases[i]))
