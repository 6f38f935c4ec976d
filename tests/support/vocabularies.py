"""Vocabularies of small texts, which tests make in one process and by the functions that tasks use."""

import numpy as np
import pyarrow as pa

from pipeline.corpus.arrays import as_numpy
from pipeline.corpus.reading import numbered
from pipeline.corpus.vocabulary import (
    BATCH_ROWS,
    SPECIAL,
    Vocabulary,
    rank,
    refuse_no_words,
    table_of,
    write_words,
)


def count_words(words: pa.Array) -> pa.Table:
    """The count table of words as `text.split_words` gives them."""
    return pa.Table.from_batches([numbered(words)[0]])


def cut_vocabulary(counts: pa.Table, *, size: int | None, min_count: int) -> Vocabulary:
    """The vocabulary of a training text: its most frequent words.

    Args:
        counts: count table with distinct words, as `merge_counts` gives it.
        size: the most words that the vocabulary may hold, `<eos>` and `<unk>` included: 3 or more; None for no limit.
        min_count: words that occur less often are cut, 1 or more; `<eos>` and `<unk>` never are.

    Returns:
        a vocabulary ordered by (−count, UTF-8 bytes of the word) from id 2 on; the count of `<unk>` is that of a
        literal `<unk>` plus those of the words cut.

    Raises:
        ConfigError: `min_count` cuts every word.
        CorpusError: the text holds no words.
    """
    ranked = rank(counts.sort_by("word"), size=size, min_count=min_count)
    refuse_no_words(num_kept=ranked.words.num_rows, most=ranked.most, min_count=min_count)
    return Vocabulary(
        words=pa.concat_arrays([SPECIAL, *ranked.words["word"].chunks]),
        counts=np.concatenate([[ranked.num_eos, ranked.num_unk], as_numpy(ranked.words["count"], np.int64)]),
    )


def write_vocabulary(vocabulary: Vocabulary, path: str) -> str:
    """Publishes `vocabulary.arrow`, a count table in the order of ids; returns its digest."""
    table = table_of(vocabulary.words, vocabulary.counts)
    return write_words([table], path, index_path=None, batch_rows=BATCH_ROWS).sha256
