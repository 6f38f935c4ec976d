"""Input layer: word ids → the recurrence's input; the kinds that are more than one table of vectors.

In: word ids. Out: vectors. `model.input.kind=full` has no class here: it is a table that the model itself holds, under
the name that checkpoints know.

Shape suffixes: T time, L lanes, E embedding, W width of a cluster's vectors, V words of a cluster.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import AdaptiveInputConfig, InputConfig


class InputLayer(nn.Module):
    """What stands below the recurrence.

    Args:
        section: of the configuration, with the keys of this kind.
        embedding_size: width of what it gives.
        vocab_size: number of words; their ids follow their frequency, 0 being the most frequent.

    Attributes:
        tables: a row for each word, in the order of the ids; there may be several tables, of any widths.
    """

    tables: nn.ParameterList

    def __init__(self, section: InputConfig, *, embedding_size: int, vocab_size: int) -> None:
        super().__init__()

    def forward(self, inputs_TL: Tensor) -> Tensor:
        """The words' vectors: [time, lanes, embedding_size]. The device is not waited for."""
        raise NotImplementedError


class AdaptiveInput(InputLayer):
    """Vectors whose width follows the words' frequency, each projected to full width without a bias.

    Words below the first cutoff have `embedding_size`, those of cluster i a width of `embedding_size / div_value ** i`.

    Source: Baevski & Auli 2019, arXiv:1809.10853, section 3.
    """

    def __init__(self, section: AdaptiveInputConfig, *, embedding_size: int, vocab_size: int) -> None:
        super().__init__(section, embedding_size=embedding_size, vocab_size=vocab_size)
        assert section.cutoffs is not None, "cutoffs that nobody has fitted to the vocabulary"
        section.check_vocabulary(vocab_size)
        self.edges = (0, *section.cutoffs, vocab_size)
        self.tables, self.projections = nn.ParameterList(), nn.ParameterList()
        for i, (first, end) in enumerate(pairwise(self.edges)):
            width = max(1, int(embedding_size / section.div_value**i))
            self.tables.append(nn.Parameter(torch.empty(end - first, width)))
            self.projections.append(nn.Parameter(torch.empty(width, embedding_size)))

    def forward(self, inputs_TL: Tensor) -> Tensor:
        """As `InputLayer`: each vector stands at its cluster's place among zeros, so all are projected at once."""
        parts = []
        for table_VW, (first, end) in zip(self.tables, pairwise(self.edges), strict=True):
            is_here_TL = (inputs_TL >= first) & (inputs_TL < end)
            rows_TLW = F.embedding((inputs_TL - first).clamp(0, end - first - 1), table_VW)
            parts.append(rows_TLW * is_here_TL[..., None])
        return torch.cat(parts, dim=-1) @ torch.cat([*self.projections])
