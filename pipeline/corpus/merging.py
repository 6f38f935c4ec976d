"""Count tables → ranges of words → the vocabulary.

In: the count tables of train's units. Out: the vocabulary in the work folder, from where it is published; the corpus
folder stays whole until then. Memory of a task is bounded by a range of words, or by the vocabulary. Refuses: what
`vocabulary` refuses of a vocabulary that is given or too small.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.config import VocabularyConfig
from pipeline.corpus.folder import WORK, kept_paths
from pipeline.corpus.keys import FORMAT, hashed
from pipeline.corpus.phases import Phases
from pipeline.corpus.reading import COUNTS, Counted
from pipeline.corpus.receipts import sound_receipt, write_receipt
from pipeline.corpus.vocabulary import (
    COUNTS_SCHEMA,
    UNK_WORD,
    cut_vocabulary,
    given_vocabulary,
    is_special,
    merge_counts,
    read_counts,
    write_counts,
    write_vocabulary,
)

VOCABULARY = "vocabulary"  # folder of the work folder
RANGE_ROWS = 1 << 19  # rows of count tables that one merge takes


@dataclass(frozen=True)
class MadeVocabulary:
    """A vocabulary in the work folder, from where it is published: the key of what it was made of, and what it is."""

    key: str
    size: int
    fingerprint: str
    sha256: str


def merge_vocabulary(
    counted: Sequence[Counted], vocabulary: VocabularyConfig, data: str, *, run: Phases
) -> MadeVocabulary:
    """Makes the vocabulary in the work folder, unless it is there and sound.

    Args:
        counted: the count tables of train's units; one that stands here twice counts twice.
        vocabulary: which words get an id.
        data: the corpus folder.
        run: runs the tasks.
    """
    train_keys = [each.key for each in counted]
    given = vocabulary.path
    size = vocabulary.size if given is None else None
    key = hashed([FORMAT, *sorted(train_keys), size, vocabulary.min_count, given and storage.sha256(given)])
    path, receipt = kept_paths(data, VOCABULARY, key)
    kept = sound_receipt(receipt, MadeVocabulary, key=key, artifact=path)
    if kept is not None:
        return kept
    merge = partial(merge_range, keys=tuple(train_keys), data=data, size=size)
    parts = run("merge", merge, _ranges(counted) if counted else [])
    make = partial(make_vocabulary, key=key, data=data, vocabulary=vocabulary)
    (made,) = run("vocabulary", make, [tuple(parts)])
    return made


def _ranges(counted: Sequence[Counted]) -> list[tuple[str, str | None]]:
    """Cuts all words into ranges [first, next) of about `RANGE_ROWS` rows; None has no end."""
    num_ranges = 1 + sum(each.num_rows for each in counted) // RANGE_ROWS
    samples = sorted(word for each in counted for word in each.samples)
    cuts = sorted({samples[len(samples) * index // num_ranges] for index in range(1, num_ranges) if samples} - {""})
    return list(zip(["", *cuts], [*cuts, None], strict=True))


def merge_range(words: tuple[str, str | None], *, keys: Sequence[str], data: str, size: int | None) -> str:
    """Publishes the sum of count tables over a range of words.

    Args:
        words: the range [first, next).
        keys: those of the count tables; one that stands here twice counts twice.
        data: the corpus folder.
        size: of the vocabulary; words that so many others of the range exceed are counted as `<unk>`.

    Returns:
        the path, in the work folder.
    """
    tables = (read_counts(kept_paths(data, COUNTS, key)[0]) for key in keys)
    merged = merge_counts(
        _slice(pa.Table.from_batches([run]), words) for table in tables for run in table.to_batches()
    )
    path = storage.join(data, WORK, "merged", f"{hashed([*keys, *words, size])}.arrow")
    write_counts(most_frequent(merged, size=size), path)
    return path


def _slice(table: pa.Table, words: tuple[str, str | None]) -> pa.Table:
    """The rows of a sorted count table whose words lie in a range."""
    column = table["word"]

    def place(word: str) -> int:
        return bisect_left(range(table.num_rows), word.encode(), key=lambda row: column[row].as_py().encode())

    start = place(words[0])
    return table.slice(start) if words[1] is None else table.slice(start, place(words[1]) - start)


def most_frequent(counts: pa.Table, *, size: int | None) -> pa.Table:
    """A count table without the words that `size` others exceed: these are counted as `<unk>`. None keeps all.

    Args:
        counts: distinct words in the order of their bytes, so that of two that are as frequent the first is kept;
            `<unk>` may stand anywhere, and more than once.
        size: words that are kept beside `<eos>` and `<unk>`.
    """
    if size is None or counts.num_rows <= size:
        return counts
    numbers = counts["count"].to_numpy()
    others = np.flatnonzero(~is_special(counts["word"]).to_numpy())
    cut = others[np.argsort(-numbers[others], kind="stable")[size:]]
    kept = pc.not_equal(counts["word"], UNK_WORD).to_numpy()
    kept[cut] = False
    rest = pa.table([[UNK_WORD], [numbers.sum() - numbers[kept].sum()]], schema=COUNTS_SCHEMA)
    return pa.concat_tables([counts.filter(pa.array(kept)), rest])


def make_vocabulary(parts: Sequence[str], *, key: str, data: str, vocabulary: VocabularyConfig) -> MadeVocabulary:
    """Publishes the vocabulary in the work folder, then its receipt.

    Args:
        parts: count tables of ranges that follow one another; none if there is no training text.
        key: of what it is made of.
        data: the corpus folder.
        vocabulary: which words get an id.
    """
    size = vocabulary.size if vocabulary.path is None else None
    counts = COUNTS_SCHEMA.empty_table()
    for part in parts:  # no word but <unk> stands in two of them
        counts = pa.concat_tables([counts, read_counts(part)])
        if size is not None and counts.num_rows > 2 * size:  # not each time: what is kept is sorted every time
            counts = most_frequent(counts, size=size)
    if vocabulary.path is not None:
        words = given_vocabulary(vocabulary.path, counts=counts if parts else None)
    else:
        words = cut_vocabulary(counts, size=size, min_count=vocabulary.min_count)
    path, receipt = kept_paths(data, VOCABULARY, key)
    sha256 = write_vocabulary(words, path)
    made = MadeVocabulary(key, words.size, words.fingerprint, sha256)
    write_receipt(receipt, made)
    return made
