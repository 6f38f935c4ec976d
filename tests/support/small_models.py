"""Small language models in double, with drawn weights, and ids for them to read."""

from collections.abc import Sequence

import numpy as np
import torch

from pipeline.model.language_model import LanguageModel
from support.sections import model_section
from support.sequences import Ids

VOCAB = 17


def small_model(
    *, cutoffs: Sequence[int] = (4, 9), tied: bool = False, dropout: float = 0.0, seed: int = 1
) -> LanguageModel:
    """A stacked LSTM of 2 x 5, in evaluation mode."""
    section = model_section(
        embedding_size=5,
        hidden_size=5,
        dropout=dropout,
        tied=tied,
        cutoffs=cutoffs,
        div_value=1.0 if tied else 2.0,
    )
    model = LanguageModel(section, vocab_size=VOCAB)
    model.draw_weights(seed=seed, init_scale=0.8)
    return model.double().eval()


def small_ids(num_tokens: int, *, seed: int = 0) -> Ids:
    """Ids drawn evenly."""
    return Ids(np.random.default_rng(seed).integers(0, VOCAB, num_tokens))


def nats_by_words(model: LanguageModel, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden vectors [tokens, H] and log-probabilities [tokens, VOCAB], word by word."""
    state, word, hidden, log_probabilities = model.recurrence.zero_state(1), 0, [], []
    with torch.no_grad():
        for target in ids:
            hidden_11H, state = model.hidden(torch.tensor([[word]]), state)
            hidden.append(hidden_11H[0, 0])
            log_probabilities.append(model.softmax.log_probabilities(hidden_11H[0])[0])
            word = int(target)
    return torch.stack(hidden), torch.stack(log_probabilities)
