"""Count tables → ranges of words → the vocabulary.

In: the count tables of train's units; each holds runs, which are record batches of distinct words in the order of their
bytes. Out: the vocabulary in the work folder, from where it is published; the corpus folder stays whole until then.
Refuses: what `vocabulary` refuses of a vocabulary that is given or too small.

    partition     some count tables → files of their sums, cut at the ends of the ranges; each table is read once
    merge         one range of all these files → its words, ranked
    vocabulary    the ranked words of all ranges → one stream by rank

All words are cut into ranges that hold about as many rows. A task holds a bounded number of rows, whatever the corpus:
a range that turns out too large is cut further by the task that merges it. The driver and each task that merges hold
a number of mostly four bytes for each file and range. There are about as many of both as `RANGE_ROWS` goes into the
rows of all tables, so this grows as the square of the rows: 100 MB for 2.6 billion.
"""

import shutil
import tempfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.config import VocabularyConfig
from pipeline.corpus.arrays import as_arrow, as_numpy
from pipeline.corpus.folder import WORK, kept_paths
from pipeline.corpus.keys import FORMAT, hashed
from pipeline.corpus.phases import Phases
from pipeline.corpus.ranking import by_rank, spectrum_of
from pipeline.corpus.reading import COUNTS, Counted
from pipeline.corpus.receipts import is_whole, sound_receipt, write_receipt
from pipeline.corpus.vocabulary import (
    BATCH_ROWS,
    COUNTS_SCHEMA,
    SPECIAL,
    UNK,
    given_vocabulary,
    merge_counts,
    rank,
    read_counts,
    refuse_no_words,
    table_of,
    write_counts,
    write_words,
)

VOCABULARY = "vocabulary"  # folder of the work folder
MERGED = "merged"  # folder of the work folder: what lies there is of use to one preparation only
RANGE_ROWS = 1 << 19  # rows of count tables that one task takes
RANGE_BYTES = 16 << 20  # and their bytes
GROUP_TABLES = 256  # count tables that one task takes, since each must be opened
ROW_BYTES = 12  # of a row beside its word
SORTED_ROWS = 1 << 19  # words that the vocabulary's task sorts at once
INDEXED_WORDS = 1 << 17  # of a smaller vocabulary, a process makes an index as quickly as it reads one


@dataclass(frozen=True)
class MadeVocabulary:
    """A vocabulary in the work folder, from where it is published: the key of what it was made of, and what it is.

    Attributes:
        key: of what it was made of.
        size: number of words, `<eos>` and `<unk>` included.
        fingerprint: of the words.
        sha256: of the file.
        index_sha256: of the index beside it; None if it has none, since it is small.
    """

    key: str
    size: int
    fingerprint: str
    sha256: str
    index_sha256: str | None


@dataclass(frozen=True, eq=False)
class CutFile:
    """Sums of some count tables, cut at the ends of the ranges.

    Attributes:
        path: of the file, in which an Arrow IPC stream for each range follows the other.
        ends: where each ends, in bytes, [ranges]; one that holds no words has no bytes. Of the smallest type that
            holds them.
    """

    path: str
    ends: npt.NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Piece:
    """The words of one range in a `CutFile`: bytes [start, stop) of it."""

    path: str
    start: int
    stop: int


@dataclass(frozen=True)
class Limits:
    """What the task of the vocabulary may hold.

    Attributes:
        sorted_rows: words that are sorted at once.
        batch_rows: words of a record batch of the vocabulary.
        indexed_words: a vocabulary of more gets an index.
    """

    sorted_rows: int
    batch_rows: int
    indexed_words: int


@dataclass(frozen=True)
class Part:
    """The words of a range, ranked: a count table without `<eos>` and `<unk>`, and the other fields of `Ranked`."""

    path: str
    num_eos: int
    num_unk: int
    most: int


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
    given_sha256 = None if given is None else storage.sha256(given)
    key = hashed([FORMAT, *sorted(train_keys), size, vocabulary.min_count, given_sha256])
    path, receipt = kept_paths(data, VOCABULARY, key)
    kept = sound_receipt(receipt, MadeVocabulary, key=key, artifact=path)
    if kept is not None and _is_index_whole(kept, data):
        return kept
    cuts = _cuts(counted)
    partition = partial(partition_tables, cuts=cuts, data=data, max_bytes=RANGE_BYTES)
    files = list(chain.from_iterable(run("partition", partition, _groups(counted))))
    merge = partial(
        merge_range, files=files, data=data, size=size, min_count=vocabulary.min_count, max_bytes=RANGE_BYTES
    )
    parts = chain.from_iterable(run("merge", merge, _ranges_with_words(files)))
    limits = Limits(sorted_rows=SORTED_ROWS, batch_rows=BATCH_ROWS, indexed_words=INDEXED_WORDS)
    make = partial(make_vocabulary, key=key, data=data, vocabulary=vocabulary, given_sha256=given_sha256, limits=limits)
    (made,) = run("vocabulary", make, [tuple(parts) if counted else None])
    return made


def index_path(data: str, key: str) -> str:
    """Where the index of a vocabulary lies, if it has one.

    Args:
        data: the corpus folder.
        key: of the vocabulary.
    """
    return storage.join(data, WORK, VOCABULARY, f"{key}.index.arrow")


def _is_index_whole(made: MadeVocabulary, data: str) -> bool:
    return made.index_sha256 is None or is_whole(index_path(data, made.key), sha256=made.index_sha256)


def _cuts(counted: Sequence[Counted]) -> tuple[str, ...]:
    """Where the ranges of words end, so that each has about `RANGE_ROWS` rows of the tables."""
    num_ranges = 1 + sum(each.num_rows for each in counted) // RANGE_ROWS
    samples = sorted(word for each in counted for word in each.samples)  # UTF-8 keeps the order of code points
    cuts = {samples[len(samples) * index // num_ranges] for index in range(1, num_ranges) if samples} - {""}
    return tuple(sorted(cuts))


def _groups(counted: Sequence[Counted]) -> list[tuple[tuple[str, int], ...]]:
    """The count tables in groups of about `RANGE_ROWS` rows: the key of each, and how often it counts."""
    times = Counter(each.key for each in counted)
    groups: list[list[tuple[str, int]]] = []
    room = 0
    for each in {each.key: each for each in counted}.values():
        if room <= 0 or len(groups[-1]) == GROUP_TABLES:
            groups.append([])
            room = RANGE_ROWS
        groups[-1].append((each.key, times[each.key]))
        room -= each.num_rows
    return [tuple(group) for group in groups]


def _ranges_with_words(files: Sequence[CutFile]) -> list[int]:
    """The numbers of the ranges of which some file holds words."""
    with_words = [np.flatnonzero(np.diff(each.ends, prepend=each.ends.dtype.type(0))) for each in files]
    return sorted(set(chain.from_iterable(numbers.tolist() for numbers in with_words)))


def _pieces(files: Sequence[CutFile], number: int) -> list[Piece]:
    """Where the words of a range stand."""
    pieces = (Piece(each.path, int(each.ends[number - 1]) if number else 0, int(each.ends[number])) for each in files)
    return [piece for piece in pieces if piece.start < piece.stop]


# --- partition


def partition_tables(
    group: Sequence[tuple[str, int]], *, cuts: Sequence[str], data: str, max_bytes: int
) -> list[CutFile]:
    """Publishes the sums of count tables, cut into ranges.

    Args:
        group: the tables' keys, and how often each counts.
        cuts: words at which a range ends and the next begins.
        data: the corpus folder.
        max_bytes: that are summed at once; a run that is larger is only cut.
    """
    name = hashed([*group, *cuts])
    files: list[CutFile] = []
    for runs in _gathered(_runs(group, data), max_bytes=max_bytes):
        path = storage.join(data, WORK, MERGED, f"{name}-{len(files)}.cut")
        files.append(_publish_cut(_sum(runs), cuts, path))
    return files


def _runs(group: Sequence[tuple[str, int]], data: str) -> Iterator[pa.Table]:
    """The runs of count tables, each read into memory once."""
    for key, times in group:
        with storage.open_read(kept_paths(data, COUNTS, key)[0]) as file:
            reader = pa.ipc.open_file(file)
            for number in range(reader.num_record_batches):
                run = pa.Table.from_batches([reader.get_batch(number)])
                yield run if times == 1 else table_of(run["word"].chunk(0), as_numpy(run["count"], np.int64) * times)


def _gathered(tables: Iterable[pa.Table], *, max_bytes: int) -> Iterator[list[pa.Table]]:
    """Consecutive tables of so many bytes, or a single one that has more."""
    waiting: list[pa.Table] = []
    num_bytes = 0
    for table in tables:
        if waiting and num_bytes + table.nbytes > max_bytes:
            yield waiting
            waiting, num_bytes = [], 0
        waiting.append(table)
        num_bytes += table.nbytes
    if waiting:
        yield waiting


def _sum(runs: Sequence[pa.Table]) -> pa.Table:
    """The sum of runs, as one run."""
    return runs[0] if len(runs) == 1 else merge_counts(runs)


def _publish_cut(run: pa.Table, cuts: Sequence[str], path: str) -> CutFile:
    words = run["word"].combine_chunks()
    places = [*(_place(words, cut) for cut in cuts), run.num_rows]
    ends: list[int] = []
    with storage.publish(path, lasting=False) as file:
        for start, stop in pairwise([0, *places]):
            if start < stop:
                with pa.ipc.new_stream(file, COUNTS_SCHEMA) as writer:
                    writer.write_table(run.slice(start, stop - start))
            ends.append(file.tell())
    return CutFile(path, np.array(ends, np.min_scalar_type(ends[-1])))


def _place(words: pa.Array, word: str) -> int:
    """The number of the first of a run's words that is not before this one."""
    return bisect_left(range(len(words)), word.encode(), key=lambda row: words[row].as_py().encode())


# --- merge


def merge_range(
    number: int, *, files: Sequence[CutFile], data: str, size: int | None, min_count: int, max_bytes: int
) -> list[Part]:
    """`merge_pieces` of a range.

    Args:
        number: of the range.
        files: in which its words stand among others.
        data, size, min_count, max_bytes: as there.
    """
    return merge_pieces(_pieces(files, number), data=data, size=size, min_count=min_count, max_bytes=max_bytes)


def merge_pieces(pieces: Sequence[Piece], *, data: str, size: int | None, min_count: int, max_bytes: int) -> list[Part]:
    """Publishes the ranked sums of a range of words.

    Args:
        pieces: where its words stand.
        data: the corpus folder.
        size: of the vocabulary; words that as many others of the range exceed are counted as `<unk>`.
        min_count: words that occur less often are counted as `<unk>` too.
        max_bytes: that are summed at once: pieces of more are cut into ranges that hold no more than this, and one row
            for each piece.

    Returns:
        the parts of the range, in the order of their words.
    """
    name = hashed([*((piece.path, piece.start, piece.stop) for piece in pieces), size, min_count, max_bytes])
    parts: list[Part] = []
    with tempfile.TemporaryDirectory() as folder:
        for few in _divided(pieces, folder, max_bytes=max_bytes):
            ranked = rank(_sum([_read(piece) for piece in few]), size=size, min_count=min_count)
            path = storage.join(data, WORK, MERGED, f"{name}-{len(parts)}.arrow")
            write_counts(ranked.words, path)
            parts.append(Part(path, ranked.num_eos, ranked.num_unk, ranked.most))
    return parts


def _divided(pieces: Sequence[Piece], folder: str, *, max_bytes: int) -> Iterator[Sequence[Piece]]:
    """The pieces, a further range at a time if they are too large together: then each is read and cut into a folder."""
    cuts = _further_cuts(pieces, max_bytes=max_bytes)
    if not cuts:
        yield pieces
        return
    files = [_publish_cut(_read(piece), cuts, storage.join(folder, str(number))) for number, piece in enumerate(pieces)]
    for number in _ranges_with_words(files):
        yield _pieces(files, number)


def _further_cuts(pieces: Sequence[Piece], *, max_bytes: int) -> list[str]:
    """Words at which to cut pieces that are too large together; none if they are not.

    Of each piece, a word in every `stride` bytes is looked at. Between two of them are less bytes than that, so that
    what lies between two cuts is known to half of `max_bytes` from the samples, and the rest of the pieces adds no
    more than the other half.
    """
    if sum(piece.stop - piece.start for piece in pieces) <= max_bytes:
        return []
    stride = max(1, max_bytes // (2 * len(pieces)))
    samples = pa.concat_arrays([_samples(_read(piece), stride=stride) for piece in pieces])
    ordered = samples.sort()
    return sorted({ordered[row].as_py() for row in range(len(pieces), len(ordered), len(pieces))} - {""})


def _samples(run: pa.Table, *, stride: int) -> pa.Array:
    """The words of a run at every so many bytes."""
    words = run["word"].combine_chunks()
    ends = np.cumsum(as_numpy(pc.binary_length(words), np.int64) + ROW_BYTES)
    rows = np.unique(np.searchsorted(ends, np.arange(stride, ends[-1] + 1, stride)))
    return words.take(as_arrow(rows))


def _read(piece: Piece) -> pa.Table:
    return pa.ipc.open_stream(storage.read_range(piece.path, piece.start, piece.stop)).read_all()


# --- vocabulary


def make_vocabulary(
    parts: Sequence[Part] | None,
    *,
    key: str,
    data: str,
    vocabulary: VocabularyConfig,
    given_sha256: str | None,
    limits: Limits,
) -> MadeVocabulary:
    """Publishes the vocabulary in the work folder, with an index if it is large, then its receipt.

    Args:
        parts: ranked words of ranges that follow one another; None if there is no training text.
        key: of what it is made of.
        data: the corpus folder.
        vocabulary: which words get an id.
        given_sha256: digest of the vocabulary that is given, of which the key was made; None if none is given.
        limits: of its memory.

    Raises:
        CorpusError: the vocabulary that is given has changed since; it is damaged, or there are no words.
        ConfigError: `min_count` cuts every word.
    """
    path, receipt = kept_paths(data, VOCABULARY, key)
    with _on_this_machine([part.path for part in parts or ()]) as paths:
        if vocabulary.path is not None:
            counts = None if parts is None else chain([_special(parts)], map(read_counts, paths))
            given = given_vocabulary(vocabulary.path, counts=counts, sha256=given_sha256)
            size, tables = given.size, iter([table_of(given.words, given.counts)])
        else:
            size, tables = _rank_all(parts or (), paths, vocabulary, sorted_rows=limits.sorted_rows)
        index = index_path(data, key) if size > limits.indexed_words else None
        written = write_words(tables, path, index_path=index, batch_rows=limits.batch_rows)
    made = MadeVocabulary(key, size, written.fingerprint, written.sha256, written.index_sha256)
    write_receipt(receipt, made)
    return made


@contextmanager
def _on_this_machine(paths: Sequence[str]) -> Iterator[list[str]]:
    """The same files where they can be mapped; from an object store each is fetched once, to the temporary folder."""
    if all(map(storage.is_local, paths)):
        yield list(paths)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield [_fetch(path, storage.join(folder, str(number))) for number, path in enumerate(paths)]


def _fetch(path: str, target: str) -> str:
    with storage.open_read(path) as source, storage.publish(target, lasting=False) as file:
        shutil.copyfileobj(source, file)
    return target


def _special(parts: Sequence[Part]) -> pa.Table:
    """Count table of `<eos>` and `<unk>`."""
    counts = [sum(part.num_eos for part in parts), sum(part.num_unk for part in parts)]
    return table_of(SPECIAL, np.array(counts, dtype=np.int64))


def _rank_all(
    parts: Sequence[Part], paths: Sequence[str], vocabulary: VocabularyConfig, *, sorted_rows: int
) -> tuple[int, Iterator[pa.Table]]:
    """The size of the vocabulary, and its words and counts in the order of ids.

    Args:
        parts: of the training text.
        paths: of their tables on this machine.
        vocabulary: how many words get an id.
        sorted_rows: words that may be sorted at once.
    """
    spectrum = spectrum_of(paths)
    num_words = spectrum.num_all if vocabulary.size is None else min(spectrum.num_all, vocabulary.size - 2)
    most = max((part.most for part in parts), default=0)
    refuse_no_words(num_kept=num_words, most=most, min_count=vocabulary.min_count)
    ranked = by_rank(paths, spectrum, num_words=num_words, band_rows=sorted_rows)
    special = as_numpy(_special(parts)["count"], np.int64).copy()
    special[UNK] += spectrum.occurrences(spectrum.num_all) - spectrum.occurrences(num_words)
    return num_words + 2, chain([table_of(SPECIAL, special)], ranked)
