"""Interpolated modified Kneser-Ney in plain Python, from its formulas: what the counting in parts is compared with."""

from collections import Counter
from collections.abc import Hashable, Sequence

BEGIN = "<s>"
Gram = tuple[Hashable, ...]


class KneserNey:
    """The model of a text.

    Args:
        tokens: word ids; 0 ends a line.
        order: the longest n-grams.
        resets: whether histories end with their `line` or not at all, `none`.
        vocab_size: number of words.
        zeroton: whether one word more has its share.
    """

    def __init__(self, tokens: Sequence[int], *, order: int, resets: str, vocab_size: int, zeroton: bool) -> None:
        self.order, self.resets, self.base = order, resets, 1 / (vocab_size + zeroton)
        texts = self._texts(tokens)
        raw = [
            Counter(tuple(text[end - size : end]) for text in texts for end in range(max(size, 2), len(text) + 1))
            for size in range(order + 2)
        ]
        self.counts = [Counter[Gram]() for _ in range(order + 1)]
        self.counts[order] = raw[order]
        for size in range(1, order):
            self.counts[size] = Counter(gram[1:] for gram in raw[size + 1])
            begins = Counter(tuple(text[:size]) for text in texts if len(text) >= size) if size > 1 else Counter()
            self.counts[size].update(begins)
        self.discounts = [self._discounts(each) for each in self.counts]
        self.totals, self.left = Counter[Gram](), Counter[Gram]()
        for size in range(1, order + 1):
            for gram, count in self.counts[size].items():
                self.totals[gram[:-1]] += count
                self.left[gram[:-1]] += self.discounts[size][min(count, 3)]

    def _texts(self, tokens: Sequence[int]) -> list[list[Hashable]]:
        if self.resets == "none":
            return [[0, *tokens]]
        texts: list[list[Hashable]] = [[BEGIN]]
        for token in tokens:
            texts[-1].append(token)
            if token == 0:
                texts.append([BEGIN])
        return [text for text in texts if len(text) > 1]

    @staticmethod
    def _discounts(counts: Counter[Gram]) -> list[float]:
        n = Counter(counts.values())
        if n[1] and n[2] and n[3]:
            y = n[1] / (n[1] + 2 * n[2])
            found = [0.0, *(j - (j + 1) * y * n[j + 1] / n[j] for j in (1, 2, 3))]
            if all(0 < found[j] <= j for j in (1, 2, 3)):
                return found
        return [0.0, 0.5, 1.0, 1.5]

    def history(self, before: Sequence[int]) -> Gram:
        """What of the tokens before one counts, oldest first."""
        if self.resets == "none":
            return (0, *before)[-(self.order - 1) :] if self.order > 1 else ()
        line: list[Hashable] = [BEGIN]
        for token in before:
            line = [BEGIN] if token == 0 else [*line, token]
        return tuple(line)[-(self.order - 1) :] if self.order > 1 else ()

    def probability(self, history: Gram, word: Hashable) -> float:
        """Of a word after a history; of the word that never occurs, where there is one, if it is no id."""
        found = self.base
        for size in range(1, len(history) + 2):
            context = history[len(history) - size + 1 :]
            if not self.totals[context]:
                break
            count = self.counts[size][(*context, word)]
            found = (count - self.discounts[size][min(count, 3)] + self.left[context] * found) / self.totals[context]
        return found
