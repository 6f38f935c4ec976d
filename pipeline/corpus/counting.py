"""Count tables: how often each word stands in a unit.

In: work units with their keys. Out: for each key a table in the work folder, sorted by the words' bytes, and its
receipt. Refuses: a unit that changed since its key was computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow.compute as pc

from pipeline.config import CorpusConfig
from pipeline.corpus.blocks import read_blocks
from pipeline.corpus.folder import kept_paths
from pipeline.corpus.keys import Digested, refuse_changed
from pipeline.corpus.phases import Kept, Phases
from pipeline.corpus.receipts import sound_receipt, write_receipt
from pipeline.corpus.text import split_words
from pipeline.corpus.units import WorkUnit
from pipeline.corpus.vocabulary import count_words, merge_counts, write_counts

COUNTS = "counts"  # folder of the work folder
SAMPLE_ROWS = 1 << 13  # one word of so many is reported to the driver, which cuts the ranges by them


@dataclass(frozen=True)
class Counted:
    """A count table in the work folder: its key, words, rows, some of its words in order, and its digest."""

    key: str
    num_words: int
    num_rows: int
    samples: tuple[str, ...]
    sha256: str


def count_units(
    units: Sequence[WorkUnit], digested: Sequence[Digested], corpus: CorpusConfig, data: str, *, run: Phases
) -> list[Counted]:
    """Counts the words of every unit, once for equal ones.

    Only train's make the vocabulary. The others are read all the same, so that damaged text is found before anything of
    an older corpus is removed.

    Args:
        units: of all splits.
        digested: their keys.
        corpus: how they are read.
        data: the corpus folder.
        run: runs the tasks.

    Returns:
        the count tables of train's units.
    """
    distinct = {each.key: unit for unit, each in zip(units, digested, strict=True)}
    train_keys = {each.key for unit, each in zip(units, digested, strict=True) if unit.split == "train"}
    count = partial(count_unit, corpus=corpus, data=data)
    counted = run(
        "count",
        count,
        list(distinct.items()),
        num_bytes=lambda item: item[1].size_bytes,
        num_words=lambda counted: counted.num_words,
    )
    return [each for each in counted if each.key in train_keys]


def count_unit(keyed: tuple[str, WorkUnit], *, corpus: CorpusConfig, data: str) -> Counted | Kept[Counted]:
    """Publishes the count table of a unit under its key, then its receipt, unless they are there and sound.

    Args:
        keyed: the key and the unit.
        corpus: how it is read.
        data: the corpus folder.
    """
    key, unit = keyed
    path, receipt = kept_paths(data, COUNTS, key)
    kept = sound_receipt(receipt, Counted, key=key, artifact=path)
    if kept is not None:
        return Kept(kept)
    blocks = read_blocks(unit, corpus)
    words = (split_words(block, words=corpus.words, lowercase=corpus.lowercase) for block in blocks)
    counts = merge_counts(map(count_words, words))
    refuse_changed(unit, corpus, key=key)
    sha256 = write_counts(counts, path)
    # Where the sampling begins depends on the key, so that small tables too are sampled evenly.
    rows = range(int(key[:8], 16) % SAMPLE_ROWS, counts.num_rows, SAMPLE_ROWS)
    samples = tuple(counts["word"][row].as_py() for row in rows)
    num_words = pc.sum(counts["count"], min_count=0).as_py()
    counted = Counted(key, num_words, counts.num_rows, samples, sha256)
    write_receipt(receipt, counted)
    return counted
