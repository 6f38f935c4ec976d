"""Smoothing: adjusted counts → probabilities, by interpolated modified Kneser-Ney.

In: a `Counted`, and the adjusted counts of single words. Out: the weights of an `NgramModel`, as arrays.

    contexts       a part's n-grams → the place of each one's context, and sums of their counts by context
    sums           contexts of a part → the sum of the counts of what follows each, and its backoff
    probabilities  a part's n-grams → p(w|h) = (a(hw) - D(a(hw))) / Σ a(h·) + γ(h) p(w|h')

with h' = h without its first word and γ(h) = Σ_j D_j N_j(h) / Σ a(h·), where N_j(h) words follow h with count j, and 3
stands for 3 or more. Below single words each word has the same probability.

An n-gram's context is all but its last word, its parent all but its first. The context of hw is found by that of its
parent: it is the parent's context with the n-gram's first word before it.

Source: Chen & Goodman 1998, TR-10-98, section 3.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from pipeline import storage
from pipeline.corpus.phases import Phases
from pipeline.ngram.counting import TALLIED, Counted, load, remove, save
from pipeline.ngram.discounts import Discounts, discounts_of
from pipeline.ngram.windows import Ints

Floats = NDArray[np.float64]
MOST_DISCOUNTED = 3  # larger counts are treated alike


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """What the tasks are given.

    Attributes:
        counted: the n-grams.
        discounts: of each order, from 1 on.
    """

    counted: Counted
    discounts: tuple[Discounts, ...]

    def taken(self, order: int) -> Floats:
        """What an order's counts of 0, 1, 2, and 3 or more lose."""
        return np.array(self.discounts[order - 1].taken)


def smooth(
    counted: Counted, adjusted_V: Ints, phases: Phases, *, zeroton: bool
) -> tuple[dict[str, NDArray[np.generic]], tuple[Discounts, ...]]:
    """Gives every n-gram its probability and every context its backoff.

    Args:
        counted: the n-grams of two words or more.
        adjusted_V: the adjusted count of each single word.
        phases: runs the tasks.
        zeroton: whether one word more, which never occurs, has its share of the probability.

    Returns:
        the weights by name, memory-mapped, and the discounts of each order.
    """
    words = np.bincount(np.minimum(adjusted_V, TALLIED), minlength=TALLIED + 1)
    tallies = [words, *(counted.tally(order) for order in range(2, counted.order + 1))]
    smoothing = Smoothing(counted=counted, discounts=tuple(discounts_of(each.tolist()) for each in tallies))
    parts = range(len(counted.parts))
    longer = range(2, counted.order + 1)
    if longer:
        phases("contexts", partial(_contexts, smoothing), parts)
        of_words = [(1, 0, counted.vocab_size)]
        items = of_words + [
            (order, *each) for order in longer[:-1] for each in pairwise(counted.starts[order - 2]) if each[0] < each[1]
        ]
        phases("sums", partial(_sums, smoothing), items)
        _remove(counted, "following", longer)
    save(_word_probabilities(smoothing, adjusted_V, zeroton=zeroton), counted.work, "words")
    if longer:
        phases("probabilities", partial(_probabilities, smoothing), parts)
        for name in ("contexts", "counts"):
            _remove(counted, name, longer)
    return _gathered(counted), smoothing.discounts


def _remove(counted: Counted, name: str, orders: range) -> None:
    for order in orders:
        for part in range(len(counted.parts)):
            remove(counted.work, name, order, part)


def _word_probabilities(smoothing: Smoothing, adjusted_V: Ints, *, zeroton: bool) -> Floats:
    taken_V = smoothing.taken(1)[np.minimum(adjusted_V, MOST_DISCOUNTED)]
    left = taken_V.sum() / (len(adjusted_V) + zeroton)
    found: Floats = (adjusted_V - taken_V + left) / adjusted_V.sum()
    return found


def _contexts(smoothing: Smoothing, part: int) -> None:
    """Writes the place of the context of each of a part's n-grams, and what follows each context within the part."""
    counted = smoothing.counted
    before = np.empty(0, dtype=np.int64)
    for order in range(2, counted.order + 1):
        parents, words = np.divmod(load(counted.work, "keys", order, part), counted.vocab_size)
        counts = load(counted.work, "counts", order, part)
        # of two words the context is the first
        contexts = words
        if order > 2:
            contexts = counted.places(order - 1, before[parents] * counted.vocab_size + words)
        save(contexts, counted.work, "contexts", order, part)
        places, which = np.unique(contexts, return_inverse=True)
        sums = [np.bincount(which, weights=counts, minlength=len(places)).astype(np.int64)]
        discounted = np.minimum(counts, MOST_DISCOUNTED)
        sums += [np.bincount(which[discounted == each], minlength=len(places)) for each in (1, 2, 3)]
        save(np.stack([places, *sums]), counted.work, "following", order, part)
        before = contexts


def _sums(smoothing: Smoothing, item: tuple[int, int, int]) -> None:
    """Writes, for contexts of an order, the sum of the counts of what follows them, and their backoffs."""
    order, start, stop = item
    counted = smoothing.counted
    sums = np.zeros((4, stop - start), dtype=np.int64)
    for part in range(len(counted.parts)):
        following = load(counted.work, "following", order + 1, part)
        first, last = np.searchsorted(following[0], [start, stop])
        sums[:, following[0, first:last] - start] += following[1:, first:last]
    total, *numbers = sums
    lost = smoothing.taken(order + 1)[1:] @ np.stack(numbers)
    backoffs = np.divide(lost, total, out=np.ones(stop - start), where=total > 0)
    save(np.stack([total.astype(np.float64), backoffs]), counted.work, "sums", order, start)


def _probabilities(smoothing: Smoothing, part: int) -> None:
    """Writes the probabilities of a part's n-grams."""
    counted = smoothing.counted
    lower = np.array(load(counted.work, "words"))
    for order in range(2, counted.order + 1):
        parents = load(counted.work, "keys", order, part) // counted.vocab_size
        counts = load(counted.work, "counts", order, part)
        total, backoffs = _sums_at(counted, order - 1, load(counted.work, "contexts", order, part))
        taken = smoothing.taken(order)[np.minimum(counts, MOST_DISCOUNTED)]
        lower = (counts - taken) / total + backoffs * lower[parents]
        save(np.log(lower).astype(np.float32), counted.work, "probabilities", order, part)


def _sums_at(counted: Counted, order: int, places: Ints) -> Floats:
    """Sums and backoffs of contexts of an order by their places, two rows."""
    wanted, which = np.unique(places, return_inverse=True)
    found = np.empty((2, len(wanted)))
    for start, stop, sums in _all_sums(counted, order):
        first, last = np.searchsorted(wanted, [start, stop])
        found[:, first:last] = sums[:, wanted[first:last] - start]
    return found[:, which]


def _all_sums(counted: Counted, order: int) -> Iterator[tuple[int, int, Floats]]:
    ranges = pairwise((0, counted.vocab_size) if order == 1 else counted.starts[order - 2])
    for start, stop in ranges:
        if start < stop:
            yield start, stop, load(counted.work, "sums", order, start)  # type: ignore[misc]  # of float64


def _gathered(counted: Counted) -> dict[str, NDArray[np.generic]]:
    """The arrays of all parts, each order's in one, on disk."""
    found: dict[str, NDArray[np.generic]] = {}

    def new(name: str, size: int, kind: type[np.generic]) -> NDArray[np.generic]:
        path = storage.resolve(storage.join(counted.work, f"{name}.npy"))[1]
        found[name] = open_memmap(path, mode="w+", dtype=kind, shape=(size,))
        return found[name]

    new("log_probabilities_1", counted.vocab_size, np.float32)[:] = np.log(load(counted.work, "words"))
    for order in range(1, counted.order):
        backoffs = new(f"log_backoffs_{order}", counted.size(order), np.float32)
        for start, stop, sums in _all_sums(counted, order):
            with np.errstate(divide="ignore"):  # nothing is left to what was not seen
                backoffs[start:stop] = np.log(sums[1])
    for order in range(2, counted.order + 1):
        keys = new(f"keys_{order}", counted.size(order), np.int64)
        probabilities = new(f"log_probabilities_{order}", counted.size(order), np.float32)
        for part, (start, stop) in enumerate(pairwise(counted.starts[order - 2])):
            own, added = counted.keys(order, part)
            keys[start:stop] = own + added
            probabilities[start:stop] = load(counted.work, "probabilities", order, part)
            remove(counted.work, "probabilities", order, part)
            remove(counted.work, "keys", order, part)
    return found
