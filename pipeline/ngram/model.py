"""An n-gram model that scores: a trie of n-grams by their endings.

In: word ids with those before them. Out: nats. An n-gram's place among those of its order is found by its key: the
place of the n-gram without its first word, times the vocabulary's size, plus that word; keys rise, and a single word's
place is its id. `<eos>` plays two parts where histories end with their line: as the first word of an n-gram it begins a
line, as the last one it ends a line.

    weights                of each order
    keys_N                 from 2 on, int64, rising
    log_probabilities_N    of the last word after the others, natural logarithm
    log_backoffs_N         but of the highest: what a history takes from a shorter one's probability

Shape suffixes: T tokens, N digits of a window.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config import NgramConfig
from pipeline.corpus.stream import EOS
from pipeline.ngram.windows import Ints, windows_of


def tensors_of(weights: Mapping[str, NDArray[np.generic]]) -> dict[str, Tensor]:
    """Weights as torch takes them; what is memory-mapped stays where it is."""
    return {name: torch.from_numpy(weights[name]) for name in weights}


def shapes_of(weights: Mapping[str, Tensor], *, order: int) -> dict[str, Tensor]:
    """Of which names, and how long, the weights of a model must be: as long as those of their order that are there.

    Args:
        weights: by name.
        order: of the model.
    """

    def like(name: str, of: str) -> tuple[str, Tensor]:
        return name, torch.empty(len(weights.get(of, ())), device="meta")

    words = "log_probabilities_1"
    longer = range(2, order + 1)
    return dict(
        [
            like(words, words),
            *(like(f"keys_{each}", f"keys_{each}") for each in longer),
            *(like(f"log_probabilities_{each}", f"keys_{each}") for each in longer),
            *(like(f"log_backoffs_{each}", f"keys_{each}" if each > 1 else words) for each in range(1, order)),
        ]
    )


class NgramModel(nn.Module):
    """Backs off from the longest n-gram that is known to shorter ones.

    Args:
        section: of the configuration.
        weights: by name, as above.
    """

    def __init__(self, section: NgramConfig, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.order, self.resets = section.order, section.resets
        for name, weight in weights.items():
            self.register_buffer(name, weight)

    @property
    def vocab_size(self) -> int:
        """Number of words."""
        return len(self.get_buffer("log_probabilities_1"))

    def nats(self, ids_T: Ints) -> Tensor:
        """Nats of tokens.

        Args:
            ids_T: the tokens, and as many before them as the order has words, as `read_with_history` gives them.

        Returns:
            float64 [T - order].
        """
        device = self.get_buffer("log_probabilities_1").device
        digits_NT = torch.from_numpy(windows_of(ids_T, order=self.order, resets=self.resets)).to(device)
        places_NT = self._places(digits_NT)
        before_NT = places_NT[:, :-1].clone()  # the history of a token ends with the one before it
        if self.resets == "line":
            before_NT[1:, digits_NT[0, :-1] == EOS + 1] = -1  # a line begins: nothing stands before it
        found = torch.zeros(len(ids_T) - self.order, dtype=torch.float64, device=device)
        for order in range(1, self.order + 1):
            if order > 1:  # so much is added to what is found by fewer words, if more are not
                found += self._values("log_backoffs", order - 1, before_NT[order - 2], missing=0.0)
            places_T = places_NT[order - 1, 1:]
            found = torch.where(places_T < 0, found, self._values("log_probabilities", order, places_T, missing=0.0))
        return -found

    def _places(self, digits_NT: Tensor) -> Tensor:
        """The place of the n-gram of each order with which a window begins, -1 where it is not known."""
        words_NT = digits_NT - 1
        places = [words_NT[0]]
        for order in range(2, self.order + 1):
            words_T, parents_T, keys = words_NT[order - 1], places[-1], self.get_buffer(f"keys_{order}")
            wanted_T = torch.where((words_T < 0) | (parents_T < 0), -1, parents_T * self.vocab_size + words_T)
            if not len(keys):
                places.append(torch.full_like(words_T, -1))
                continue
            places_T = torch.searchsorted(keys, wanted_T).clamp(max=len(keys) - 1)
            places.append(torch.where(keys[places_T] == wanted_T, places_T, -1))
        return torch.stack(places)

    def _values(self, name: str, order: int, places_T: Tensor, *, missing: float) -> Tensor:
        """Of n-grams of an order by their places, float64; `missing` of those that are not known."""
        values = self.get_buffer(f"{name}_{order}")
        if not len(values):
            return torch.full(places_T.shape, missing, dtype=torch.float64, device=places_T.device)
        return torch.where(places_T < 0, missing, values[places_T.clamp(min=0)].double())
