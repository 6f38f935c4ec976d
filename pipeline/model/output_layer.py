"""Output layer: hidden vectors and targets → nats; what every kind of it has in common.

In: hidden vectors, and the targets as the CPU has prepared them. Out: nats for each target, or all log-probabilities.
What a kind can work out from the word ids alone, it does on the CPU before the batch is sent, so that a step never
waits for the device.

A kind is a class here below, a section of the configuration and a row of `tables.py`; docs/extending.md shows one.

Shape suffixes: N tokens, H hidden, V vocabulary.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config import SoftmaxConfig
from pipeline.errors import ConfigError
from pipeline.model.input_layer import InputLayer

Targets = tuple[Tensor, ...]  # what a kind's `prepare_targets` gives and its `nats` takes
Sampler = Callable[[int, NDArray[np.int64]], Targets]  # (step, targets_N) → what the step draws, as CPU tensors


class OutputLayer(nn.Module):
    """Log-probabilities of words.

    Args:
        section: of the configuration, with the keys of this kind.
        hidden_size: width of the hidden vectors.
        vocab_size: number of words; their ids follow their frequency, 0 being the most frequent.
        embedding_VH: tied weights, shared with the embedding, to be read instead of own ones; None: not tied.

    Attributes:
        clusters: the parts of the vocabulary whose nats are told apart, by name; a kind without such parts has one.
        loss_is_exact: whether training computes the nats of its targets too; the loss of a kind that draws words stands
            for them, and is told as such.
    """

    clusters: tuple[str, ...] = ("all",)
    loss_is_exact = True

    def __init__(
        self, section: SoftmaxConfig, *, hidden_size: int, vocab_size: int, embedding_VH: nn.Parameter | None
    ) -> None:
        super().__init__()
        self.embedding_VH = embedding_VH

    def tie(self, layer: InputLayer) -> None:
        """Shares the weights of an input layer that is no single table, where a kind can.

        Raises:
            ConfigError: it cannot, as here.
        """
        raise ConfigError(
            f"model.tied=true cannot share the weights of this model.input.kind with {type(self).__name__}; use"
            " model.input.kind=full or model.tied=false"
        )

    def prepare_targets(self, targets_N: NDArray[np.int64]) -> Targets:
        """What `nats` needs to know of the targets, as CPU tensors; reads no parameter, and runs on the CPU."""
        raise NotImplementedError

    def sampler(self, *, counts: Callable[[], NDArray[np.int64]], seed: int) -> Sampler:
        """What training draws for its loss; here nothing.

        Args:
            counts: gives how often each word is in the training text, int64 [vocab_size]; read by who needs them.
            seed: of the run.

        Returns:
            (step, targets_N) → what is put behind the targets as `prepare_targets` gives them, for `nats`: a function
            of seed and step, and of the targets of this rank. It is called beside the training, as that is.
        """
        return lambda step, targets_N: ()

    def nats(self, hidden_NH: Tensor, targets: Targets) -> Tensor:
        """Negative log-probability of each target word; of a kind that draws, its loss where the draws are there.

        Every parameter takes part, whatever the targets are: one without gradient holds up DDP.

        Args:
            hidden_NH: outputs of the recurrence, floating point, [tokens, hidden_size].
            targets: of `prepare_targets`, in training with those of `sampler` behind, on the same device.

        Returns:
            [tokens], in nats, float32 or the wider type of `hidden_NH`, not reduced: the caller divides the sum by
            the global token count.
        """
        raise NotImplementedError

    def cluster_sums(self, nats_N: Tensor, targets: Targets) -> tuple[Tensor, tuple[int, ...]]:
        """What the targets of each cluster cost, and how many they are; the device is not waited for.

        Args:
            nats_N: of `nats`.
            targets: that these are of.

        Returns:
            The sum of nats of each of `clusters`, [clusters], on the device; and the numbers of targets.
        """
        return nats_N.sum()[None], (nats_N.shape[0],)

    def log_probabilities(self, hidden_NH: Tensor) -> Tensor:
        """Log-probability of every word: [tokens, vocab_size], float32 or wider; each row sums to 1 in probability."""
        raise NotImplementedError


def at_least_fp32(logits: Tensor) -> Tensor:
    """Autocast hands out bf16 logits; the softmax over them is taken in fp32."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
