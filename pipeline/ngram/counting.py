"""Counting: token shards → the n-grams of all orders with their adjusted counts, in parts of bounded size.

In: the tokens of a split. Out: a `Counted`, whose arrays lie in a work folder that every task sees.

    count    a range of tokens → its windows, sorted, each once with its count
    merge    a range of keys of all these → the n-grams of each order within it

A part holds all n-grams whose last two words lie within a range, so those of two words or more lie in one part, and
single words, the only ones that parts share, are added up. n-grams stand in the order of their endings: the last word
first, then the one before it. So an n-gram is known by its *parent*, the place of the n-gram without its first word,
and that word: key = parent · V + word; all keys of an order rise. A word's place is its id.

The adjusted count of an n-gram below the highest order is the number of different words before it; where nothing can
stand before it, as before a line's begin, it is how often it occurs.

Shape suffixes: N digits of a window, C columns, T windows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.corpus.manifest import Shard
from pipeline.corpus.phases import Phases
from pipeline.corpus.tokens import TokenSequence
from pipeline.ngram.windows import Ints, Packing, Resets, read_with_history, summed, windows_of

RANGE_TOKENS = 1 << 20  # that one task counts
PART_WINDOWS = 1 << 20  # of all ranges, that one task merges: about, since one pair of words is never cut
SAMPLED = 1 << 8  # of so many windows one decides where parts end
TALLIED = 5  # adjusted counts 0 to 4 are tallied one by one


@dataclass(frozen=True, kw_only=True)
class Text:
    """What is counted, and how.

    Attributes:
        data: the corpus folder.
        shards: of the split.
        vocabulary_fingerprint, vocab_size: of the corpus.
        order: the longest n-grams.
        resets: where histories end.
        work: the folder for what tasks hand on; a local one, which all of them see.
    """

    data: str
    shards: tuple[Shard, ...]
    vocabulary_fingerprint: str
    vocab_size: int
    order: int
    resets: Resets
    work: str

    def open(self) -> TokenSequence:
        """The tokens."""
        return TokenSequence(
            self.data,
            shards=self.shards,
            vocabulary_fingerprint=self.vocabulary_fingerprint,
            vocab_size=self.vocab_size,
        )

    @property
    def packing(self) -> Packing:
        """Of its windows."""
        return Packing(order=self.order, vocab_size=self.vocab_size)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one part turned out to hold.

    Attributes:
        sizes: n-grams of each order, from 2 on.
        tallies: of each order from 2 on, how many n-grams have the adjusted counts 0 to 4.
    """

    sizes: tuple[int, ...]
    tallies: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Counted:
    """All n-grams of a text: where their arrays lie.

    Attributes:
        work: the folder.
        order: the longest n-grams.
        vocab_size: number of words.
        parts: in the order of their keys.
    """

    work: str
    order: int
    vocab_size: int
    parts: tuple[Part, ...]

    @cached_property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """Of each order from 2 on, the place of each part's first n-gram, and at last the number of them all."""
        sizes = ([part.sizes[order - 2] for part in self.parts] for order in range(2, self.order + 1))
        return tuple(tuple(accumulate(each, initial=0)) for each in sizes)

    def start(self, order: int, part: int) -> int:
        """The place of a part's first n-gram of an order; single words are in no part."""
        return 0 if order == 1 else self.starts[order - 2][part]

    def size(self, order: int) -> int:
        """How many n-grams of an order there are."""
        return self.vocab_size if order == 1 else self.starts[order - 2][-1]

    def keys(self, order: int, part: int) -> tuple[Ints, int]:
        """The keys of a part's n-grams, memory-mapped, without a number that is to be added to each of them."""
        return load(self.work, "keys", order, part), self.start(order - 1, part) * self.vocab_size

    def tally(self, order: int) -> Ints:
        """How many n-grams of an order, from 2 on, have the adjusted counts 0 to 4."""
        found: Ints = np.array([part.tallies[order - 2] for part in self.parts], dtype=np.int64).sum(axis=0)
        return found

    def places(self, order: int, keys: Ints) -> Ints:
        """The places of n-grams of an order, which are there, by their keys.

        One part's keys are looked at after the other, so that the memory does not depend on how many there are.
        """
        if order == 1:
            return keys
        wanted, which = np.unique(keys, return_inverse=True)
        found = np.full(len(wanted), -1, dtype=np.int64)
        for part in range(len(self.parts)):
            own, added = self.keys(order, part)
            if len(own):
                first, last = np.searchsorted(wanted, [own[0] + added, own[-1] + added + 1])
                places = np.searchsorted(own, wanted[first:last] - added)
                is_there = own[places] == wanted[first:last] - added
                found[first:last][is_there] = places[is_there] + self.start(order, part)
        assert (found >= 0).all(), f"{(found < 0).sum()} contexts of order {order} are no n-grams"
        return found[which]


def save(array: NDArray[np.generic], work: str, *name: object) -> None:
    """Leaves an array for other tasks; of two trials of a task, which write the same, the last one's stays."""
    with storage.publish(_path(work, *name), lasting=False) as file:
        np.save(file, array)


def load(work: str, *name: object) -> Ints:
    """An array that a task left, memory-mapped."""
    found: Ints = np.load(_path(work, *name), mmap_mode="r")
    return found


def remove(work: str, *name: object) -> None:
    """Removes an array of which nothing more is needed."""
    storage.remove(_path(work, *name))


def _path(work: str, *name: object) -> str:
    return storage.join(work, f"{'-'.join(map(str, name))}.npy")


def count_text(text: Text, phases: Phases) -> tuple[Counted, Ints]:
    """Counts a text.

    Args:
        text: not empty.
        phases: runs the tasks.

    Returns:
        its n-grams, and the adjusted count of each single word, int64 [vocab_size].
    """
    num_tokens = sum(shard.num_tokens for shard in text.shards)
    ranges = [
        (number, start, min(start + RANGE_TOKENS, num_tokens))
        for number, start in enumerate(range(0, num_tokens, RANGE_TOKENS))
    ]
    samples = phases("count", partial(_count, text), ranges, num_words=lambda _: RANGE_TOKENS)
    ends = _part_ends(samples)
    bounds = [(number, *each) for number, each in enumerate(zip([0, *ends], [*ends, None], strict=True))]
    merged = phases("merge", partial(_merge, text, num_ranges=len(ranges)), bounds)
    for number, *_ in ranges:
        remove(text.work, "windows", number)
    adjusted = np.zeros(text.vocab_size, dtype=np.int64)
    for number in range(len(merged)):
        words, counts = load(text.work, "words", number)
        adjusted[words] += counts
    return Counted(work=text.work, order=text.order, vocab_size=text.vocab_size, parts=tuple(merged)), adjusted


def _part_ends(samples: Iterable[Ints]) -> list[int]:
    """The pairs of last words with which parts begin, but for the first one, so that parts are about as large."""
    sampled = np.sort(np.concatenate(list(samples)))
    ends: list[int] = np.unique(sampled[PART_WINDOWS // SAMPLED :: max(PART_WINDOWS // SAMPLED, 1)]).tolist()
    return [end for end in ends if end > 0]


def _count(text: Text, item: tuple[int, int, int]) -> Ints:
    """Writes the windows of a range, and returns the last two words of some of them."""
    number, start, stop = item
    ids_T = read_with_history(text.open(), start, stop, num_before=text.order - 1)
    columns_CT = text.packing.pack(windows_of(ids_T, order=text.order, resets=text.resets))
    columns_CT, counts_T = summed(columns_CT, np.ones(stop - start, dtype=np.int64))
    save(np.vstack([columns_CT, counts_T]), text.work, "windows", number)
    sampled: Ints = columns_CT[0, ::SAMPLED] >> text.packing.pair_shift
    return sampled


def _merge(text: Text, item: tuple[int, int, int | None], *, num_ranges: int) -> Part:
    """Writes the n-grams of a part."""
    number, low, high = item
    found = [_within(text, each, low, high) for each in range(num_ranges)]
    *columns, counts_T = np.concatenate(found, axis=1)
    columns_CT, counts_T = summed(np.stack(columns), counts_T)
    digits_NT = text.packing.unpack(columns_CT)
    del found, columns, columns_CT
    differs_T = np.zeros(len(counts_T), dtype=bool)  # from the window before, in the digits so far
    differs_T[:1] = True
    parents_T = np.zeros(len(counts_T), dtype=np.int64)
    sizes, tallies = [], []
    for order in range(1, text.order + 1):
        differs_T[1:] |= digits_NT[order - 1, 1:] != digits_NT[order - 1, :-1]
        is_there_T = digits_NT[order - 1] > 0
        begins_T = differs_T & is_there_T
        places_T = np.cumsum(begins_T) - 1
        keys = digits_NT[order - 1, begins_T] - 1 + text.vocab_size * parents_T[begins_T]
        adjusted = _adjusted(order, digits_NT, counts_T, differs_T, places_T, num_ngrams=len(keys))
        if order == 1:
            save(np.stack([keys, adjusted]), text.work, "words", number)
            parents_T = digits_NT[0] - 1
            continue
        save(keys, text.work, "keys", order, number)
        save(adjusted, text.work, "counts", order, number)
        sizes.append(len(keys))
        tallies.append(tuple(np.bincount(np.minimum(adjusted, TALLIED), minlength=TALLIED + 1)[:TALLIED].tolist()))
        parents_T = places_T
    return Part(sizes=tuple(sizes), tallies=tuple(tallies))


def _within(text: Text, number: int, low: int, high: int | None) -> Ints:
    """The windows of a range whose last two words lie in [low, high), with their counts below them."""
    windows = load(text.work, "windows", number)
    ends = [low << text.packing.pair_shift, *([] if high is None else [high << text.packing.pair_shift])]
    first, last = [*np.searchsorted(windows[0], ends).tolist(), windows.shape[1]][:2]
    return np.array(windows[:, first:last])


def _adjusted(
    order: int, digits_NT: Ints, counts_T: Ints, differs_T: NDArray[np.bool_], places_T: Ints, *, num_ngrams: int
) -> Ints:
    """The adjusted counts of a part's n-grams of an order.

    Args:
        order: of the n-grams.
        digits_NT: the windows, sorted, each once.
        counts_T: of them.
        differs_T: whether a window differs from the one before in its first `order` digits.
        places_T: which n-gram each window ends with, where it has so many words.
        num_ngrams: of the order.
    """
    is_there_T = digits_NT[order - 1] > 0
    if order == len(digits_NT):
        highest: Ints = counts_T[is_there_T]
        return highest
    goes_on_T = digits_NT[order] > 0
    is_longer_T = goes_on_T & differs_T
    is_longer_T[1:] |= goes_on_T[1:] & (digits_NT[order, 1:] != digits_NT[order, :-1])
    num_before = np.bincount(places_T[is_longer_T], minlength=num_ngrams)
    begins_T = is_there_T & ~goes_on_T
    # sums of float64 are exact up to 2^53
    num_begins = np.bincount(places_T[begins_T], weights=counts_T[begins_T], minlength=num_ngrams)
    return num_before + num_begins.astype(np.int64)
