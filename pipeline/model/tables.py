"""Which class computes what a section of the configuration describes: a row for each kind in `config.KINDS`."""

from pipeline.config import (
    AdaptiveInputConfig,
    AdaptiveSoftmaxConfig,
    BlackOutConfig,
    ElmanConfig,
    FullSoftmaxConfig,
    GRUConfig,
    InputConfig,
    LSTMConfig,
    MinLSTMConfig,
    NCEConfig,
    RecurrenceConfig,
    SampledSoftmaxConfig,
    SoftmaxConfig,
    TransformerConfig,
    WindowConfig,
)
from pipeline.model.adaptive_softmax import AdaptiveSoftmax
from pipeline.model.input_layer import AdaptiveInput, InputLayer
from pipeline.model.lstm import StackedLSTM
from pipeline.model.minlstm import StackedMinLSTM
from pipeline.model.one_state import StackedElman, StackedGRU
from pipeline.model.output_layer import OutputLayer
from pipeline.model.recurrence import Recurrence
from pipeline.model.sampled_losses import NCE, BlackOut, SampledSoftmax
from pipeline.model.transformer import Transformer
from pipeline.model.window import FeedForward

INPUT_LAYERS: dict[type[InputConfig], type[InputLayer]] = {  # without `full`, a table that the model itself holds
    AdaptiveInputConfig: AdaptiveInput,
}
RECURRENCES: dict[type[RecurrenceConfig], type[Recurrence]] = {
    LSTMConfig: StackedLSTM,
    GRUConfig: StackedGRU,
    ElmanConfig: StackedElman,
    MinLSTMConfig: StackedMinLSTM,
    WindowConfig: FeedForward,
    TransformerConfig: Transformer,
}
OUTPUT_LAYERS: dict[type[SoftmaxConfig], type[OutputLayer]] = {
    AdaptiveSoftmaxConfig: AdaptiveSoftmax,
    FullSoftmaxConfig: AdaptiveSoftmax,  # without tails
    SampledSoftmaxConfig: SampledSoftmax,
    NCEConfig: NCE,
    BlackOutConfig: BlackOut,
}
