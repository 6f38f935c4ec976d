"""A full softmax whose training compares each target with some words drawn at random, instead of with all of them.

In: hidden vectors, the targets, and what the step has drawn. Out: in training the sampled loss of each target, which
stands for its nats and is none; without draws the exact nats. All targets of a step share its draws, whose logits are
then one matrix product.

Each kind says what is drawn and what is made of it. Scores: u of a target, u_j of the words drawn, Q of each word.

Shape suffixes: N tokens, K words drawn, H hidden, V vocabulary.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import BlackOutConfig, NCEConfig, SampledSoftmaxConfig
from pipeline.model.adaptive_softmax import AdaptiveSoftmax
from pipeline.model.draws import log_uniform, log_uniform_words, powers, uniforms, words_by
from pipeline.model.output_layer import OutputLayer, Sampler, Targets, at_least_fp32


class SampledLoss(AdaptiveSoftmax):
    """What the kinds have in common: the full softmax's weights, under its names, and its exact answers."""

    loss_is_exact = False

    def __init__(
        self,
        section: SampledSoftmaxConfig | NCEConfig | BlackOutConfig,
        *,
        hidden_size: int,
        vocab_size: int,
        embedding_VH: nn.Parameter | None = None,
    ) -> None:
        super().__init__(section, hidden_size=hidden_size, vocab_size=vocab_size, embedding_VH=embedding_VH)
        self.num_samples = section.num_samples
        self.vocab_size = vocab_size
        self.clusters = OutputLayer.clusters

    def nats(self, hidden_NH: Tensor, targets: Targets) -> Tensor:
        """The sampled loss where the step's draws stand behind the targets, else the exact nats.

        Args:
            hidden_NH: as for every `OutputLayer`.
            targets: the word ids; and, as `sampler` gives them, the words drawn and ln Q of targets and of those.

        Returns:
            As for every `OutputLayer`.
        """
        targets_N, *drawn = targets
        if not drawn:
            return super().nats(hidden_NH, targets)
        words_K, log_q_N, log_q_K = drawn
        weight_VH: Tensor = self.head_weight
        bias_V: Tensor = self.head_bias
        if self.embedding_VH is not None:
            weight_VH, bias_V = self.embedding_VH, bias_V + self.head_weight.sum()  # of no rows, which takes part too
        rows_H = F.embedding(torch.cat([targets_N, words_K]), weight_VH)  # one lookup: one gradient of all words' size
        target_NH, word_KH = rows_H[: len(targets_N)], rows_H[len(targets_N) :]
        score_N = at_least_fp32(torch.einsum("nh,nh->n", hidden_NH, target_NH)) + bias_V[targets_N]
        score_NK = at_least_fp32(F.linear(hidden_NH, word_KH, bias_V[words_K]))
        is_hit_NK = targets_N[:, None] == words_K
        return self.loss(score_N, score_NK, log_q_N.to(score_N.dtype), log_q_K.to(score_N.dtype), is_hit_NK)

    def loss(self, score_N: Tensor, score_NK: Tensor, log_q_N: Tensor, log_q_K: Tensor, is_hit_NK: Tensor) -> Tensor:
        """Of each target, [tokens].

        Args:
            score_N, score_NK: logits of the targets and of the words drawn, float32 or wider.
            log_q_N, log_q_K: ln Q of both.
            is_hit_NK: which words drawn are the token's own target.
        """
        raise NotImplementedError

    def cluster_sums(self, nats_N: Tensor, targets: Targets) -> tuple[Tensor, tuple[int, ...]]:
        """As a layer with one cluster."""
        return OutputLayer.cluster_sums(self, nats_N, targets)


class SampledSoftmax(SampledLoss):
    """Cross-entropy over the target and the distinct words drawn, each logit less ln Q.

    Q of a word is the probability that it is among them, 1 - (1 - P) ** num_samples, with P log-uniform over the ranks.
    So the exponentials of the words drawn, each divided by its Q, sum to Z in the mean.

    Source: Jean et al. 2015, arXiv:1412.2007; TensorFlow's `sampled_softmax_loss` with unique draws.
    """

    def sampler(self, *, counts: Callable[[], NDArray[np.int64]], seed: int) -> Sampler:
        """Needs no counts: the ids are ranks."""
        log_q_V = np.log(-np.expm1(self.num_samples * np.log1p(-log_uniform(self.vocab_size))))

        def sample(step: int, targets_N: NDArray[np.int64]) -> Targets:
            uniforms_K = uniforms(self.num_samples, seed=seed, step=step)
            words_K = np.unique(log_uniform_words(uniforms_K, vocab_size=self.vocab_size))
            return _tensors(words_K, log_q_V[targets_N], log_q_V[words_K])

        return sample

    def loss(self, score_N: Tensor, score_NK: Tensor, log_q_N: Tensor, log_q_K: Tensor, is_hit_NK: Tensor) -> Tensor:
        """As `SampledLoss`."""
        target_N = score_N - log_q_N
        words_NK = (score_NK - log_q_K).masked_fill(is_hit_NK, -torch.inf)
        return torch.cat([target_N[:, None], words_NK], dim=1).logsumexp(1) - target_N


class SampledByCounts(SampledLoss):
    """What has in common whatever draws with replacement, in proportion to count ** alpha."""

    def __init__(
        self,
        section: NCEConfig | BlackOutConfig,
        *,
        hidden_size: int,
        vocab_size: int,
        embedding_VH: nn.Parameter | None = None,
    ) -> None:
        super().__init__(section, hidden_size=hidden_size, vocab_size=vocab_size, embedding_VH=embedding_VH)
        self.alpha = section.alpha

    def sampler(self, *, counts: Callable[[], NDArray[np.int64]], seed: int) -> Sampler:
        """The counts are those of the training text."""
        q_V = powers(counts(), alpha=self.alpha)
        log_q_V, shares_V = np.log(q_V), np.cumsum(q_V)

        def sample(step: int, targets_N: NDArray[np.int64]) -> Targets:
            words_K = words_by(uniforms(self.num_samples, seed=seed, step=step), shares_V)
            return _tensors(words_K, log_q_V[targets_N], log_q_V[words_K])

        return sample


class NCE(SampledByCounts):
    """Noise-contrastive estimation: tells the target from K words of noise; a draw that is the target is noise too.

    -ln σ(s - ln K Q) - Σ_j ln σ(ln K Q_j - s_j), where s = u - ln V is a log-probability without any normalisation:
    ln V makes logits near zero, as those of new weights are, a distribution.

    Source: Mnih & Teh 2012, arXiv:1206.6426; a constant for ln Z as Chen et al. 2015 (ICASSP) have it.
    """

    def loss(self, score_N: Tensor, score_NK: Tensor, log_q_N: Tensor, log_q_K: Tensor, is_hit_NK: Tensor) -> Tensor:
        """As `SampledLoss`."""
        shift = np.log(self.vocab_size) + np.log(score_NK.shape[1])
        noise_NK = F.softplus(score_NK - log_q_K - shift)
        return F.softplus(log_q_N + shift - score_N) + noise_NK.sum(1)


class BlackOut(SampledByCounts):
    """Discriminates the target from the words drawn by softmax over both, each word weighted by 1 / Q.

    p_i = (exp(u_i) / Q_i) / Σ over target and draws; -ln p - Σ_j ln(1 - p_j), without draws that are the target.

    Source: Ji et al. 2016, arXiv:1511.06909, section 3.
    """

    def loss(self, score_N: Tensor, score_NK: Tensor, log_q_N: Tensor, log_q_K: Tensor, is_hit_NK: Tensor) -> Tensor:
        """As `SampledLoss`."""
        words_NK = (score_NK - log_q_K).masked_fill(is_hit_NK, -torch.inf)
        log_p_NC = torch.cat([(score_N - log_q_N)[:, None], words_NK], dim=1).log_softmax(1)
        highest = -torch.finfo(log_p_NC.dtype).eps  # a probability that rounds to 1 would cost an infinite loss
        others_NK = torch.log(-torch.expm1(log_p_NC[:, 1:].clamp(max=highest)))
        return -log_p_NC[:, 0] - others_NK.sum(1)


def _tensors(words_K: NDArray[np.int64], log_q_N: NDArray[np.float64], log_q_K: NDArray[np.float64]) -> Targets:
    return tuple(torch.from_numpy(each) for each in (words_K, log_q_N, log_q_K))
