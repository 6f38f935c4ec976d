"""Windows: each token with the words before it, packed so that equal endings lie next to each other when sorted.

In: token ids. Out: for each token N digits (the word itself, the word before it, and so on), and these digits in as few
int64 columns as hold them. A digit is a word's id + 1; 0 stands for nothing: what lies before the text, and, where
histories end with their line, before the `<eos>` that begins it.

Shape suffixes: N digits of a window (the order), C columns of packed digits, T tokens.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.stream import EOS, Tokens

Resets = Literal["line", "none"]
Ints = NDArray[np.int64]
NOTHING = -1  # stands before the text, where a token would
COLUMN_BITS = 63


def read_with_history(tokens: Tokens, start: int, stop: int, *, num_before: int) -> Ints:
    """Tokens [start, stop) and so many before them; before the first token stands `<eos>`, and before that nothing."""
    first = max(start - num_before, 0)
    missing = num_before - (start - first)
    head = np.full(missing, NOTHING, dtype=np.int64)
    head[-1:] = EOS
    return np.concatenate([head, tokens.read(first, stop)])


def windows_of(ids_T: Ints, *, order: int, resets: Resets) -> Ints:
    """The windows of tokens: of all but the first `order` - 1, which are history alone.

    Args:
        ids_T: as `read_with_history` gives them.
        order: digits of a window.
        resets: `line`: no history reaches beyond the `<eos>` before its line.

    Returns:
        int64 [N, T - N + 1], the word itself in the first row.
    """
    num_windows = len(ids_T) - order + 1
    digits_NT = np.stack([ids_T[order - 1 - back :][:num_windows] + 1 for back in range(order)])
    if resets == "line":
        ended_T = np.zeros(num_windows, dtype=bool)
        for back in range(2, order):
            ended_T |= digits_NT[back - 1] == EOS + 1
            digits_NT[back, ended_T] = 0
    return digits_NT


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How the digits of a window share columns: the first digit is the highest of the first column."""

    order: int
    vocab_size: int

    @property
    def _bits(self) -> int:
        return self.vocab_size.bit_length()

    @property
    def _digits_in_column(self) -> int:
        return COLUMN_BITS // self._bits

    @property
    def pair_shift(self) -> int:
        """Bits of the first column below its first two digits (below its only one if N is 1)."""
        return self._bits * (min(self.order, self._digits_in_column) - min(self.order, 2))

    def pack(self, digits_NT: Ints) -> Ints:
        """int64 [C, T]; sorted by columns, windows are sorted by digits."""
        columns = []
        for first in range(0, self.order, self._digits_in_column):
            column_T = np.zeros(digits_NT.shape[1], dtype=np.int64)
            for digits_T in digits_NT[first : first + self._digits_in_column]:
                column_T = column_T << self._bits | digits_T
            columns.append(column_T)
        return np.stack(columns)

    def unpack(self, columns_CT: Ints) -> Ints:
        """int64 [N, T]: the inverse of `pack`."""
        digits: list[Ints] = []
        for number, column_T in enumerate(columns_CT):
            held = min(self._digits_in_column, self.order - number * self._digits_in_column)
            digits += [column_T >> self._bits * (held - 1 - place) & (1 << self._bits) - 1 for place in range(held)]
        return np.stack(digits)


def summed(columns_CT: Ints, counts_T: Ints) -> tuple[Ints, Ints]:
    """Packed windows in their order, each once, with the sum of its counts."""
    by_key = np.lexsort(columns_CT[::-1])
    columns_CT, counts_T = columns_CT[:, by_key], counts_T[by_key]
    is_new_T = np.ones(len(counts_T), dtype=bool)
    is_new_T[1:] = (columns_CT[:, 1:] != columns_CT[:, :-1]).any(axis=0)
    starts = np.flatnonzero(is_new_T)
    return columns_CT[:, starts], np.add.reduceat(counts_T, starts) if len(starts) else counts_T
