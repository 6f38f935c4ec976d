"""Held-out lines that stand in train too.

In: the tokens of each held-out split and of train, as arrays that are cut anywhere. Out: how many lines and words of a
split train holds too, and some of them. Refuses nothing.

A line is what stands between two `<eos>`, a document where documents end with one. It is compared as a model reads it:
word for word, except that `<unk>` may stand for two words. It has to hold enough words that are known, as short lines
are alike in all texts; and one of more than `LONGEST_LINE` tokens is not compared.

Held-out lines are known by 64-bit hashes, train passes by once for each `HELD_TOKENS` of them, and where two hashes are
equal the tokens are compared: so the answer is exact, and memory is bounded whatever the splits hold.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipeline.corpus.vocabulary import EOS, UNK

HELD_TOKENS = 1 << 24  # of held-out lines that are looked for at once
LONGEST_LINE = 1 << 22
COMPARED_TOKENS = 1 << 20  # at a time
FACTOR = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64
INVERSE = pow(FACTOR, -1, 1 << 64)

Ids = npt.NDArray[np.integer]
Places = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]


@dataclass(kw_only=True)
class Duplicates:
    """What train holds of a split.

    Attributes:
        num_lines: lines of the split.
        num_words: tokens of the split without its line ends.
        num_compared: of the lines, those that are compared.
        num_duplicates: of these, those that stand in train too; each counts, also where it stands in the split twice.
        num_without_unk: of these, those that hold no `<unk>`, which so are the same word for word.
        num_duplicate_words: tokens in the duplicates.
        examples: the ids of some duplicates that differ: first those without `<unk>`, then the longest.
    """

    num_lines: int = 0
    num_words: int = 0
    num_compared: int = 0
    num_duplicates: int = 0
    num_without_unk: int = 0
    num_duplicate_words: int = 0
    examples: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Lines:
    """Whole lines.

    Attributes:
        tokens: of all the lines, one after the other, each with its `<eos>`.
        starts: where each line begins, int64.
        lengths: tokens of each line without `<eos>`, int64.
    """

    tokens: Ids
    starts: Places
    lengths: Places

    def only(self, kept: Mask) -> "Lines":
        """Some of the lines."""
        return self if kept.all() else lines_of(self.tokens[np.repeat(kept, self.lengths + 1)])


def find_duplicates(
    held_out: Mapping[str, Iterable[Ids]],
    train: Callable[[], Iterable[Ids]],
    *,
    vocab_size: int,
    min_words: int,
    num_examples: int,
    hash_bits: int = 64,
) -> dict[str, Duplicates]:
    """Which held-out lines stand in train.

    Args:
        held_out: the tokens of each split, in order.
        train: begins to read the tokens of train.
        vocab_size: all ids are below it.
        min_words: tokens other than `<unk>` that a line must hold to be compared, at least 1.
        num_examples: examples of each split, at most.
        hash_bits: bits of a hash that are used; the result does not depend on them.

    Returns:
        by split.
    """
    values = np.random.default_rng(0).integers(1 << 64, size=vocab_size, dtype=np.uint64)
    found = {split: Duplicates() for split in held_out}
    for looked_for in _groups(held_out, found, min_words=min_words):
        table = _Table(looked_for, values=values, hash_bits=hash_bits)
        longest = int(table.lines.lengths.max())
        for lines in whole_lines(train(), longest=longest):
            table.mark(lines)
            if not len(table.open_rows):
                break
        start = 0
        for split, part in looked_for:
            table.tell(found[split], slice(start, start + len(part.lengths)), num_examples=num_examples)
            start += len(part.lengths)
    return found


def whole_lines(blocks: Iterable[Ids], *, longest: int) -> Iterator[Lines]:
    """The lines of a token sequence, whole wherever its blocks are cut; a last one without `<eos>` counts.

    Longer lines are passed over, so that memory is bounded by one block and the longest.
    """
    waiting: list[Ids] = []  # the line that has begun, or nothing of one that is too long
    num_waiting = 0
    for block in blocks:
        ends = np.flatnonzero(block == EOS)
        if not len(ends):
            num_waiting += len(block)
            waiting = [] if num_waiting > longest else [*waiting, block]
            continue
        first = int(ends[0]) + 1 if num_waiting > longest else 0
        last = int(ends[-1]) + 1
        lines = lines_of(np.concatenate([*waiting, block[first:last]]))
        yield lines.only(lines.lengths <= longest)
        num_waiting = len(block) - last
        waiting = [block[last:].copy()] if num_waiting <= longest else []
    if 0 < num_waiting <= longest:
        yield lines_of(np.concatenate([*waiting, [EOS]]))


def lines_of(tokens: Ids) -> Lines:
    """The lines of a sequence that ends with `<eos>` or is empty."""
    ends = np.flatnonzero(tokens == EOS)
    starts = np.concatenate([np.zeros(1, np.int64), ends + 1])[: len(ends)]
    return Lines(tokens, starts, ends - starts)


def _groups(
    held_out: Mapping[str, Iterable[Ids]], found: Mapping[str, Duplicates], *, min_words: int
) -> Iterator[list[tuple[str, Lines]]]:
    """The lines that are compared, with their split, some `HELD_TOKENS` at a time; what there is else is counted."""
    group: list[tuple[str, Lines]] = []
    num_tokens = 0
    for split, blocks in held_out.items():
        for lines in whole_lines(_counted(blocks, found[split]), longest=LONGEST_LINE):
            compared = lines.only(_num_known(lines) >= min_words)
            if not len(compared.lengths):
                continue
            found[split].num_compared += len(compared.lengths)
            group.append((split, Lines(compared.tokens.astype(np.int32), compared.starts, compared.lengths)))
            num_tokens += len(compared.tokens)
            if num_tokens >= HELD_TOKENS:
                yield group
                group, num_tokens = [], 0
    if group:
        yield group


def _counted(blocks: Iterable[Ids], found: Duplicates) -> Iterator[Ids]:
    """The blocks of a split, whose lines and words are counted as they pass."""
    last = EOS
    for block in blocks:
        num_ends = int(np.count_nonzero(block == EOS))
        found.num_lines += num_ends
        found.num_words += len(block) - num_ends
        last = int(block[-1]) if len(block) else last
        yield block
    found.num_lines += last != EOS


def _num_known(lines: Lines) -> Places:
    """Tokens of each line other than `<unk>`."""
    is_known = (lines.tokens != EOS) & (lines.tokens != UNK)
    found: Places = np.add.reduceat(is_known, lines.starts, dtype=np.int64) if len(lines.starts) else lines.lengths
    return found


class _Table:
    """Lines that are looked for, by hash.

    Attributes:
        lines: in the order of the text.
        open_rows: numbers of those that are not found yet, in the order of their hashes.
    """

    def __init__(self, parts: Iterable[tuple[str, Lines]], *, values: Hashes, hash_bits: int) -> None:
        self.lines = lines_of(np.concatenate([lines.tokens for _, lines in parts]))
        self._has_unk = _num_known(self.lines) < self.lines.lengths
        self._values, self._mask = values, np.uint64((1 << hash_bits) - 1)
        self._hashes = self._hash(self.lines)
        self._is_found = np.zeros(len(self._hashes), bool)
        self.open_rows = np.argsort(self._hashes, kind="stable")
        self._open_hashes = self._hashes[self.open_rows]

    def mark(self, lines: Lines) -> None:
        """Notes which of the lines that are looked for stand among some of train, all of which are whole."""
        if not len(lines.lengths):
            return
        hashes = self._hash(lines)
        places = np.searchsorted(self._open_hashes, hashes)
        places[places == len(self._open_hashes)] = 0
        hits = np.flatnonzero(self._open_hashes[places] == hashes)
        if not len(hits):
            return
        while len(hits):  # once, but where different lines have one hash
            distinct, first, which = np.unique(hashes[hits], return_index=True, return_inverse=True)
            chosen = hits[first]
            self._compare(lines, chosen, distinct)
            hits = hits[~_are_equal(lines, hits, lines, chosen[which])]
        still = ~self._is_found[self.open_rows]
        self.open_rows, self._open_hashes = self.open_rows[still], self._open_hashes[still]

    def tell(self, found: Duplicates, part: slice, *, num_examples: int) -> None:
        """Adds up what was found of some of the lines, all of one split."""
        rows = np.flatnonzero(self._is_found[part]) + part.start
        found.num_duplicates += len(rows)
        found.num_duplicate_words += int(self.lines.lengths[rows].sum())
        found.num_without_unk += int(np.count_nonzero(~self._has_unk[rows]))
        rows = rows[np.sort(np.unique(self._hashes[rows], return_index=True)[1])]
        for row in rows[np.lexsort((-self.lines.lengths[rows], self._has_unk[rows]))[:num_examples]]:
            start = self.lines.starts[row]
            example = self.lines.tokens[start : start + self.lines.lengths[row]].tolist()
            if example not in found.examples:
                found.examples.append(example)
        found.examples = sorted(found.examples, key=lambda line: (UNK in line, -len(line)))[:num_examples]

    def _compare(self, lines: Lines, rows: Places, hashes: Hashes) -> None:
        """Marks what is equal to given lines of train, of which each has another hash."""
        first = np.searchsorted(self._open_hashes, hashes)
        counts = np.searchsorted(self._open_hashes, hashes, side="right") - first
        number_in_group = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        mine = self.open_rows[np.repeat(first, counts) + number_in_group]
        self._is_found[mine[_are_equal(self.lines, mine, lines, np.repeat(rows, counts))]] = True

    def _hash(self, lines: Lines) -> Hashes:
        """Σ value(token) · FACTOR^place of each line, modulo 2^64: wherever the line stands."""
        powers: Hashes = np.cumprod(np.full(len(lines.tokens), FACTOR, np.uint64), dtype=np.uint64)
        sums: Hashes = np.add.reduceat(self._values[lines.tokens] * powers, lines.starts)
        powers = np.cumprod(np.full(len(lines.tokens), INVERSE, np.uint64), dtype=np.uint64)
        hashes: Hashes = (sums * powers[lines.starts]) & self._mask
        return hashes


def _are_equal(one: Lines, rows: Places, other: Lines, other_rows: Places) -> Mask:
    """Whether line `rows[i]` of one holds the tokens of line `other_rows[i]` of the other."""
    same: Mask = one.lengths[rows] == other.lengths[other_rows]
    pairs = np.flatnonzero(same)
    lengths = one.lengths[rows[pairs]]
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    for start in range(0, total, COMPARED_TOKENS):
        places = np.arange(start, min(start + COMPARED_TOKENS, total))
        which = np.searchsorted(ends, places, side="right")
        within = places - (ends - lengths)[which]
        pair = pairs[which]
        differ = one.tokens[one.starts[rows[pair]] + within] != other.tokens[other.starts[other_rows[pair]] + within]
        same[pair[differ]] = False
    return same
