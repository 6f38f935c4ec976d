"""The ids of words, as the tasks that encode a corpus look them up.

In: a vocabulary in the work folder, then arrays of words. Out: ids. Refuses nothing.

The vocabulary and its index, if it has one, are mapped where the corpus folder lies on a disk of this machine. A
vocabulary of one record batch stays mapped; of a larger one, a batch is mapped while words are looked for in it, so
that a process holds no more than one, however large the vocabulary. From an object store both are read into memory.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.corpus.arrays import as_arrow, as_flags
from pipeline.corpus.folder import kept_paths
from pipeline.corpus.merging import VOCABULARY, MadeVocabulary, index_path
from pipeline.corpus.vocabulary import EOS, LINE_END_SCALAR, UNK, open_mapped
from pipeline.corpus.word_index import ABSENT, WordIndex, hash_words


class WordIds:
    """Ids of a vocabulary's words."""

    def __init__(self, vocabulary: str, *, index: str | None) -> None:
        """Opens the files.

        Args:
            vocabulary: path of a `vocabulary.arrow`.
            index: path of its index; None: indexes are made in memory where they are needed, and kept.
        """
        self._paths = vocabulary, index
        self._kept = _kept_indexes(vocabulary, index)

    def find(self, words: pa.Array) -> npt.NDArray[np.int32]:
        """Ids of words.

        Args:
            words: `pa.string()` array, best of distinct words; "\\n" is `<eos>`; a word that is not in the vocabulary
                is `<unk>`.

        Returns:
            int32 [len(words)].
        """
        ids = self._kept[0].find(words) if len(self._kept) == 1 else self._find_in_batches(words)
        ids[ids == ABSENT] = UNK
        ids[as_flags(pc.equal(words, LINE_END_SCALAR))] = EOS
        return ids

    def _find_in_batches(self, words: pa.Array) -> npt.NDArray[np.int32]:
        """Looks for each word in one record batch after the other until it is found."""
        ids = np.full(len(words), ABSENT, dtype=np.int32)
        hashes = hash_words(words)
        asked = np.argsort(hashes)
        first_id = 0
        for index in self._kept or _indexes(*self._paths):
            rows = index.find_hashed(words.take(as_arrow(asked)), hashes[asked])
            found = rows != ABSENT
            ids[asked[found]] = first_id + rows[found]
            asked = asked[~found]
            first_id += len(index.words)
            if not len(asked):
                break
        return ids


@lru_cache(maxsize=1)
def word_ids(made: MadeVocabulary, data: str) -> WordIds:
    """What gives the ids of a vocabulary's words; made once in a process.

    Args:
        made: the vocabulary.
        data: the corpus folder.
    """
    index = index_path(data, made.key) if made.index_sha256 is not None else None
    return WordIds(kept_paths(data, VOCABULARY, made.key)[0], index=index)


def _kept_indexes(vocabulary: str, index: str | None) -> Sequence[WordIndex]:
    """The indexes of all record batches, if a process is to keep them."""
    if index is not None and storage.is_local(vocabulary) and open_mapped(vocabulary).num_record_batches > 1:
        return ()
    return tuple(_indexes(vocabulary, index))


def _indexes(vocabulary: str, index: str | None) -> Iterator[WordIndex]:
    """The indexes of all record batches."""
    words = _batches(vocabulary)
    yield from map(WordIndex, (batch.column("word") for batch in words), *([_batches(index)] if index else []))


def _batches(path: str) -> Iterator[pa.RecordBatch]:
    """The record batches of a file. On a local disk each is mapped anew, and given back when it is let go."""
    reader = open_mapped(path)
    for number in range(reader.num_record_batches):
        yield (open_mapped(path) if storage.is_local(path) else reader).get_batch(number)
