"""Mixture: several models whose probabilities are averaged, with shares that fit some text best.

In: predictors, a token sequence. Out: nats of p = Σ_k w_k p_k for each target; or the weights w, by EM. The log of the
likelihood is concave in the weights, so what EM comes to is the best there is. Refuses text without tokens, and models
whose nats are not finite.

Shape suffixes: K models, N targets.

Source: Jelinek and Mercer 1980, "Interpolated estimation of Markov source parameters from sparse data".
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pipeline.corpus.stream import Tokens
from pipeline.errors import CheckpointError, CorpusError
from pipeline.scoring.perplexity import Predictor

NEAR_NATS = 1e-8  # a token, above those of the best weights: where EM ends


def mixed_nats(predictors: Sequence[Predictor], weights: Sequence[float], tokens: Tokens) -> Iterator[Tensor]:
    """Nats of every target of a sequence by a mixture.

    Args:
        predictors: the models.
        weights: a share for each, which sum to 1.
        tokens: the sequence.

    Yields:
        as a `Predictor`.
    """
    log_weights_K1 = torch.tensor(weights, dtype=torch.float64).log()[:, None]
    for nats_KN in _nats_of_each(predictors, tokens):
        yield -torch.logsumexp(log_weights_K1 - nats_KN, dim=0)


def fitted_weights(
    predictors: Sequence[Predictor], tokens: Tokens, *, progress: Callable[[int], None] = lambda num_tokens: None
) -> tuple[float, ...]:
    """The shares with which a mixture predicts a sequence best.

    Args:
        predictors: the models.
        tokens: the sequence; 8 bytes for each token and model are kept of it.
        progress: called with the number of tokens of each window read.

    Raises:
        CorpusError: the sequence is empty.
        CheckpointError: a model gives one of its tokens nats that are not finite.
    """
    if not len(tokens):
        raise CorpusError("the split to fit weights on has 0 tokens; use another split or give the weights")
    parts = []
    for nats_KN in _nats_of_each(predictors, tokens):
        parts.append(nats_KN)
        progress(nats_KN.shape[1])
    nats_KN = torch.cat(parts, dim=1)
    if ruined := [number for number, nats_N in enumerate(nats_KN, start=1) if not nats_N.isfinite().all()]:
        raise CheckpointError(f"model {ruined[0]} of the mixture gives nats that are not finite; leave it out")
    *_, weights_K = em_weights(nats_KN)
    return tuple(weights_K.tolist())


def em_weights(nats_KN: Tensor) -> Iterator[Tensor]:
    """Equal weights and then, by EM, ever better ones, until no weights are better by `NEAR_NATS`.

    A step multiplies each weight by the mean of p_k / p over the tokens, its gain. The gains are the gradient of the
    mean log-likelihood, which is concave, so the highest gain less 1 bounds what is left to win.

    Args:
        nats_KN: of each model, float64, finite.
    """
    shares_KN = torch.exp(nats_KN.amin(0) - nats_KN)  # probabilities, as shares of the best model's
    weights_K = torch.full((len(nats_KN),), 1 / len(nats_KN), dtype=torch.float64)
    yield weights_K
    while (gains_K := (shares_KN / (weights_K @ shares_KN)).mean(1)).max() - 1 > NEAR_NATS:
        weights_K = weights_K * gains_K
        weights_K /= weights_K.sum()  # rounding alone
        yield weights_K


def mixture_protocol(weights: Sequence[float], *, fitted_on: str | None) -> str:
    """What a protocol says of it.

    Args:
        weights: of the models.
        fitted_on: the split; None: they were given.
    """
    how = "as given" if fitted_on is None else f"by EM on {fitted_on}"
    return f"mixture of {len(weights)} models, weights {' '.join(f'{each:.4f}' for each in weights)} {how}"


def _nats_of_each(predictors: Sequence[Predictor], tokens: Tokens) -> Iterator[Tensor]:
    for parts_N in zip(*(predict(tokens) for predict in predictors), strict=True):
        yield torch.stack([each_N.cpu() for each_N in parts_N])
