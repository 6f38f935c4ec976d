"""Sections of the configuration for small models, made without conf/."""

from collections.abc import Sequence

from pipeline.config import (
    AdaptiveSoftmaxConfig,
    FullSoftmaxConfig,
    LSTMConfig,
    RecurrentConfig,
)


def lstm_section(*, hidden_size: int, num_layers: int = 2, projection_size: int | None = None) -> LSTMConfig:
    """A stacked LSTM."""
    return LSTMConfig(kind="lstm", hidden_size=hidden_size, num_layers=num_layers, projection_size=projection_size)


def softmax_section(cutoffs: Sequence[int], *, div_value: float) -> AdaptiveSoftmaxConfig | FullSoftmaxConfig:
    """An adaptive softmax; the full one where there are no cutoffs."""
    if not cutoffs:
        return FullSoftmaxConfig(kind="full")
    return AdaptiveSoftmaxConfig(kind="adaptive", cutoffs=tuple(cutoffs), div_value=div_value)


def model_section(
    *,
    embedding_size: int,
    hidden_size: int,
    num_layers: int = 2,
    projection_size: int | None = None,
    dropout: float,
    tied: bool,
    cutoffs: Sequence[int],
    div_value: float,
) -> RecurrentConfig:
    """A stacked LSTM with a softmax."""
    return RecurrentConfig(
        embedding_size=embedding_size,
        dropout=dropout,
        tied=tied,
        init_scale=0.1,
        recurrence=lstm_section(hidden_size=hidden_size, num_layers=num_layers, projection_size=projection_size),
        softmax=softmax_section(cutoffs, div_value=div_value),
    )
