"""Which class computes what a section of the configuration describes: a row for each kind in `config.KINDS`."""

from pipeline.config import (
    AdaptiveSoftmaxConfig,
    FullSoftmaxConfig,
    LSTMConfig,
    RecurrenceConfig,
    SoftmaxConfig,
)
from pipeline.model.adaptive_softmax import AdaptiveSoftmax
from pipeline.model.lstm import StackedLSTM
from pipeline.model.output_layer import OutputLayer
from pipeline.model.recurrence import Recurrence

RECURRENCES: dict[type[RecurrenceConfig], type[Recurrence]] = {
    LSTMConfig: StackedLSTM,
}
OUTPUT_LAYERS: dict[type[SoftmaxConfig], type[OutputLayer]] = {
    AdaptiveSoftmaxConfig: AdaptiveSoftmax,
    FullSoftmaxConfig: AdaptiveSoftmax,  # without tails
}
