"""Ranked words of ranges → all words by rank, as a stream.

In: count tables in files, one for each range of words, each ordered by (−count, bytes of the word); the ranges follow
one another in the order of bytes. Out: the words of all of them in that same order, table after table. Refuses nothing.

Words that occur equally often stand in the order of bytes already, range after range: they are copied, however many
they are. Of high counts there are many with few words each: they are gathered in a table of bounded size and sorted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.corpus.arrays import as_arrow, as_numpy
from pipeline.corpus.vocabulary import read_counts

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """How many words occur how often.

    Attributes:
        counts: occurrences, descending.
        num_words: that occur so often, of the same length.
    """

    counts: Numbers
    num_words: Numbers

    @property
    def num_all(self) -> int:
        """All words."""
        return int(self.num_words.sum())

    def occurrences(self, num_words: int) -> int:
        """Of so many of the most frequent words."""
        within = np.diff(np.minimum(np.cumsum(self.num_words), num_words), prepend=0)
        return int((self.counts * within).sum())


def spectrum_of(paths: Sequence[str]) -> Spectrum:
    """The spectrum of ranked count tables."""
    counts = num_words = np.zeros(0, dtype=np.int64)
    for path in paths:
        values, rows = np.unique(_counts(read_counts(path)), return_counts=True)
        counts, places = np.unique(np.concatenate([counts, values]), return_inverse=True)
        sums = np.zeros(len(counts), dtype=np.int64)
        np.add.at(sums, places, np.concatenate([num_words, rows]))
        num_words = sums
    return Spectrum(counts[::-1], num_words[::-1])


def by_rank(paths: Sequence[str], spectrum: Spectrum, *, num_words: int, band_rows: int) -> Iterator[pa.Table]:
    """The first words of all tables by (−count, bytes of the word).

    Args:
        paths: of the count tables on this machine, in the order of their ranges.
        spectrum: of the tables.
        num_words: to give.
        band_rows: words that may be sorted at once.
    """
    starts = [0] * len(paths)
    left = num_words
    for lowest, num_counts in _bands(spectrum, band_rows=band_rows):
        band = _next_words(paths, starts, lowest=lowest)
        for table in band if num_counts == 1 else [_sorted(pa.concat_tables(band))]:
            yield table.slice(0, left)
            left -= min(left, table.num_rows)
            if left == 0:
                return


def _bands(spectrum: Spectrum, *, band_rows: int) -> Iterator[tuple[int, int]]:
    """Cuts the counts into bands that hold no more words than may be sorted, or one count alone.

    Yields:
        the lowest count of a band, and how many counts it has.
    """
    num_words = num_counts = 0
    lowest = 0
    for count, more in zip(spectrum.counts.tolist(), spectrum.num_words.tolist(), strict=True):
        if num_counts and num_words + more > band_rows:
            yield lowest, num_counts
            num_words = num_counts = 0
        lowest, num_words, num_counts = count, num_words + more, num_counts + 1
    if num_counts:
        yield lowest, num_counts


def _next_words(paths: Sequence[str], starts: list[int], *, lowest: int) -> Iterator[pa.Table]:
    """Of each table the words from `starts` on that occur at least so often; moves `starts` behind them.

    They are copied, so that no file stays mapped: there can be more than a process may have.
    """
    for number, path in enumerate(paths):
        table = read_counts(path)
        counts = _counts(table)
        start = starts[number]
        starts[number] = len(counts) - int(np.searchsorted(counts[::-1], lowest))
        if starts[number] > start:
            yield table.take(as_arrow(np.arange(start, starts[number])))


def _counts(table: pa.Table) -> Numbers:
    return as_numpy(table["count"], np.int64)


def _sorted(table: pa.Table) -> pa.Table:
    """By count; those that occur equally often stay in their order."""
    return table.take(as_arrow(np.argsort(-_counts(table), kind="stable")))
