"""Sections of the configuration for small models, made without conf/."""

from collections.abc import Sequence

from pipeline.config import (
    AdaptiveSoftmaxConfig,
    FullInputConfig,
    FullSoftmaxConfig,
    LSTMConfig,
    RecurrentConfig,
    RegularizationConfig,
)


def lstm_section(
    *,
    hidden_size: int,
    num_layers: int = 2,
    projection_size: int | None = None,
    last_size: int | None = None,
    weight_dropout: float = 0.0,
) -> LSTMConfig:
    """A stacked LSTM."""
    return LSTMConfig(
        kind="lstm",
        hidden_size=hidden_size,
        num_layers=num_layers,
        projection_size=projection_size,
        last_size=last_size,
        weight_dropout=weight_dropout,
    )


def regularization_section(**changes: float | None) -> RegularizationConfig:
    """None but what is given."""
    plain = {
        "locked": False,
        "input_dropout": None,
        "layer_dropout": None,
        "output_dropout": None,
        "embedding_dropout": 0.0,
        "activation": 0.0,
        "temporal": 0.0,
    }
    return RegularizationConfig.model_validate(plain | changes)


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
    last_size: int | None = None,
    weight_dropout: float = 0.0,
    dropout: float,
    tied: bool,
    cutoffs: Sequence[int],
    div_value: float,
    **regularization: float | None,
) -> RecurrentConfig:
    """A stacked LSTM with a softmax."""
    return RecurrentConfig(
        kind="recurrent",
        embedding_size=embedding_size,
        dropout=dropout,
        tied=tied,
        init_scale=0.1,
        input=FullInputConfig(kind="full"),
        recurrence_init_scale=None,
        regularization=regularization_section(**regularization),
        recurrence=lstm_section(
            hidden_size=hidden_size,
            num_layers=num_layers,
            projection_size=projection_size,
            last_size=last_size,
            weight_dropout=weight_dropout,
        ),
        softmax=softmax_section(cutoffs, div_value=div_value),
    )
