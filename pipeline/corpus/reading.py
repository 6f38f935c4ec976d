"""The one pass over the text: ranges of files → keys, counts and numbered words of their units.

In: work units. Out, in the work folder under the key of each unit: its count tables and, where they are to be kept, its
words as rows of these tables; and a receipt. Refuses: a file that changes while it is read.

A range is read once. Its bytes give the digest that the keys of its units are made of, and the words. What the work
folder has under a key is not made again.

Each block of a unit's text leaves a run: one record batch of the count tables file, distinct words in the order of
their bytes, and its words as numbers of rows there, in the smallest unsigned type. So another vocabulary needs no text:
`encoding` looks up each distinct word of a run once, and each number in a table.
"""

import secrets
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.config import CorpusConfig
from pipeline.corpus.arrays import as_arrow, as_numpy
from pipeline.corpus.blocks import read_shares
from pipeline.corpus.folder import WORK, kept_paths
from pipeline.corpus.keys import unit_key
from pipeline.corpus.phases import Kept, Phases, Several
from pipeline.corpus.readers import READERS
from pipeline.corpus.readers.reader import Tally, changed
from pipeline.corpus.receipts import sound_receipt, write_receipt
from pipeline.corpus.sources import ReadDigest, range_digest
from pipeline.corpus.text import split_words
from pipeline.corpus.units import WorkUnit, printable, readable
from pipeline.corpus.vocabulary import COUNTS_SCHEMA, EOS_SCALAR, LINE_END_SCALAR
from pipeline.corpus.word_order import sort_words
from pipeline.errors import ConfigError, CorpusError
from pipeline.masking import masked

COUNTS = "counts"  # folders of the work folder
IDS = "ids"
HELD_BYTES = 32 << 20  # of a range that is read into memory before it is looked at
POOLED_RANGES = 256  # small ones, at most, that one task reads
SAMPLE_ROWS = 1 << 13  # one word of so many is reported to the driver, which cuts the ranges of words by them


Ids = npt.NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Counted:
    """What reading a unit left in the work folder.

    Attributes:
        key: of the unit.
        has_text: whether it holds any byte of text.
        num_words: of its text, line ends included.
        num_rows: of its count tables.
        samples: some of their words.
        sha256: digest of the count tables' file.
        words_of_runs: words of each run, in order.
        ids_sha256: digest of the numbered words; None if they are not kept.
        num_replacement_chars, num_nul_bytes, num_null_rows: as in `Tally`.
    """

    key: str
    has_text: bool
    num_words: int
    num_rows: int
    samples: tuple[str, ...]
    sha256: str
    words_of_runs: tuple[int, ...]
    ids_sha256: str | None
    num_replacement_chars: int
    num_nul_bytes: int
    num_null_rows: int


@dataclass(frozen=True)
class Portion:
    """What one task reads: one range, or several that are small, each with the units that share out its documents."""

    ranges: tuple[tuple[WorkUnit, ...], ...]

    @property
    def size_bytes(self) -> int:
        """Of the ranges."""
        return sum(units[0].size_bytes for units in self.ranges)

    @property
    def unit(self) -> WorkUnit | None:
        """What is told of the only range when it fails; None of several, whose errors name their files."""
        return self.ranges[0][0] if len(self.ranges) == 1 else None

    @property
    def name(self) -> str:
        """For people."""
        first = self.ranges[0][0]
        more = f" and {len(self.ranges) - 1} more" if len(self.ranges) > 1 else ""
        return f"{printable(masked(first.path))}[{first.start}:{first.stop}]{more}"


def ids_path(data: str, key: str) -> str:
    """Where the work folder keeps the numbered words of a unit."""
    return storage.join(data, WORK, IDS, f"{key}.bin")


def ids_type(num_rows: int) -> np.dtype[np.unsignedinteger]:
    """The smallest unsigned type that numbers so many rows."""
    return np.dtype("u1" if num_rows <= 1 << 8 else "<u2" if num_rows <= 1 << 16 else "<u4")


def read_units(
    units: Sequence[WorkUnit], corpus: CorpusConfig, data: str, *, keep_ids: bool, run: Phases
) -> list[Counted]:
    """Reads every unit, of each range of a file all at once.

    Only train's words make the vocabulary. The others are counted all the same, so that damaged text is found before
    anything of an older corpus is removed, and so that no vocabulary needs their text again.

    Args:
        units: of all splits.
        corpus: how they are read.
        data: the corpus folder.
        keep_ids: whether the words stay in the work folder as numbers.
        run: runs the tasks.

    Returns:
        what each left there, in the order of the units.
    """
    places: dict[tuple[str, str, int, int], list[int]] = {}
    for place, unit in enumerate(units):
        places.setdefault((unit.format, unit.path, unit.start, unit.stop), []).append(place)
    portions = list(_pooled([tuple(units[place] for place in shared) for shared in places.values()], corpus))
    is_first = not storage.exists(storage.join(data, WORK, COUNTS))
    found = run(
        "read",
        partial(read_portion, corpus=corpus, data=data, keep_ids=keep_ids, is_first=is_first),
        portions,
        num_bytes=lambda portion: portion.size_bytes,
        num_words=lambda counted: sum(each.num_words for each in counted),
        several=Several(
            lambda portion: [Portion((units,)) for units in portion.ranges],
            lambda found: tuple(each for counted in found for each in counted),
        ),
    )
    in_order = (place for shared in places.values() for place in shared)
    by_place = dict(zip(in_order, (each for counted in found for each in counted), strict=True))
    return [by_place[place] for place in range(len(units))]


def _pooled(ranges: Sequence[tuple[WorkUnit, ...]], corpus: CorpusConfig) -> Iterator[Portion]:
    """Ranges of some `unit_bytes` together; one of unknown size stands alone."""
    pool: list[tuple[WorkUnit, ...]] = []
    pool_bytes = 0
    for units in ranges:
        size_bytes = units[0].size_bytes or corpus.unit_bytes
        if pool and (pool_bytes + size_bytes > corpus.unit_bytes or len(pool) == POOLED_RANGES):
            yield Portion(tuple(pool))
            pool, pool_bytes = [], 0
        pool.append(units)
        pool_bytes += size_bytes
    if pool:
        yield Portion(tuple(pool))


def read_portion(
    portion: Portion, *, corpus: CorpusConfig, data: str, keep_ids: bool, is_first: bool
) -> tuple[Counted, ...] | Kept[tuple[Counted, ...]]:
    """Publishes count tables, numbered words and receipts of units, unless they are there and sound.

    Args:
        portion: the units. One that cannot be read leaves the others be.
        corpus: how they are read.
        data: the corpus folder.
        keep_ids: whether to publish the numbered words.
        is_first: whether nothing was kept before: then a range that is not held in memory is read at once for its
            digest and for its words.

    Returns:
        what each unit left, in order; as `Kept` if all of it was there.

    Raises:
        CorpusError: a file is damaged, or changes while it is read.
        ConfigError: a file cannot be reached, or the work folder cannot be written to.
    """
    found: list[Counted] = []
    failed: list[CorpusError | ConfigError] = []
    num_read = 0
    for units in portion.ranges:
        try:
            counted, num_missing = _read_range(units, corpus=corpus, data=data, keep_ids=keep_ids, is_first=is_first)
        except (CorpusError, ConfigError) as error:
            span = f" (in {units[0].name})" if portion.unit is None else ""  # of the only range its phase says it
            failed.append(type(error)(f"{error}{span}"))
            continue
        found += counted
        num_read += num_missing
    if failed:
        more = f" | and {len(failed) - 1} more of {len(portion.ranges)} small files" if len(failed) > 1 else ""
        raise type(failed[0])(f"{failed[0]}{more}")
    return tuple(found) if num_read else Kept(tuple(found))


def _read_range(
    units: Sequence[WorkUnit], *, corpus: CorpusConfig, data: str, keep_ids: bool, is_first: bool
) -> tuple[list[Counted], int]:
    """What the units of a range left, and how many of them had to be read."""
    units = held(units, corpus)
    if is_first and units[0].content is None and shows_what_decides(units[0]):
        with suppress(UnseenError):
            return _read_words(units, None, corpus=corpus, data=data, keep_ids=keep_ids), len(units)
    digest = range_digest(units[0], corpus)
    keys = [unit_key(unit, corpus, digest=digest) for unit in units]
    found: dict[str, Counted] = {}
    for key in keys:
        path, receipt = kept_paths(data, COUNTS, key)
        kept = sound_receipt(receipt, Counted, key=key, artifact=path)
        if kept is not None and (kept.ids_sha256 is not None or not keep_ids):
            found[key] = kept
    missing = [unit for unit, key in zip(units, keys, strict=True) if key not in found]
    if missing:
        found |= {each.key: each for each in _read_words(missing, digest, corpus=corpus, data=data, keep_ids=keep_ids)}
    return [found[key] for key in keys], len(missing)


def held(units: Sequence[WorkUnit], corpus: CorpusConfig) -> list[WorkUnit]:
    """Units of one range with its bytes, if these are not many and all that decides their text; else as they are.

    Raises:
        CorpusError: a packed file has another size than it had; the file is damaged or gone.
    """
    first = units[0]
    with readable(first.path):
        if first.packing is not None and storage.size_bytes(first.path) != first.stop:  # it is unpacked to its end
            raise changed(first)
        content_of = READERS[first.format].content_of
        if content_of is None or first.size_bytes > HELD_BYTES:
            return list(units)
        content = b"".join(content_of(first, corpus))
    return [replace(unit, content=content) for unit in units]


def observed(units: Sequence[WorkUnit]) -> tuple[list[WorkUnit], ReadDigest]:
    """Units of one range, and what takes the digest of the range while they are read."""
    digest = ReadDigest(units[0])
    return [replace(units[0], observe=digest), *units[1:]], digest


class UnseenError(Exception):
    """A reader did not show all the bytes that decide a range's text."""


def shows_what_decides(unit: WorkUnit) -> bool:
    """Whether whoever observes the reading of a unit sees what decides its text."""
    reader = READERS[unit.format]
    return reader.stores_what_decides or reader.deciding_bytes is None


def seen_digest(digest: ReadDigest, unit: WorkUnit) -> str:
    """The digest of a range that has been read.

    Raises:
        UnseenError: the reader did not show all of it.
    """
    stored = READERS[unit.format].deciding_bytes is not None
    if not shows_what_decides(unit) or (stored and digest.num_bytes != unit.stop - unit.start):
        raise UnseenError(unit.path)
    return digest.hexdigest()


def digest_after(digest: ReadDigest, unit: WorkUnit, corpus: CorpusConfig) -> str:
    """The digest of a range that has been read, for comparison with that from before: seen, or else read once more."""
    with suppress(UnseenError):
        return seen_digest(digest, unit)
    return range_digest(unit, corpus)


def _read_words(
    units: Sequence[WorkUnit], digest: str | None, *, corpus: CorpusConfig, data: str, keep_ids: bool
) -> list[Counted]:
    """Tokenises the units of one range.

    Args:
        units: as `held` gives them.
        digest: of the range; None if it is not known yet.
        corpus, data, keep_ids: as in `read_portion`.

    Raises:
        CorpusError: the range has another digest.
        UnseenError: it was not known, and the reader did not show it.
    """
    tallies = [Tally() for _ in units]
    watched, found = observed(units)
    with ExitStack() as until_done:
        names = [f"new-{secrets.token_hex(16)}" for _ in units]
        if digest is not None:
            names = [unit_key(unit, corpus, digest=digest) for unit in units]
        writers = [until_done.enter_context(_Words(data, name, keep_ids=keep_ids)) for name in names]
        for index, block in read_shares(watched, corpus, tallies):
            writers[index].add(split_words(block, words=corpus.words, lowercase=corpus.lowercase))
        if digest is None:
            digest = seen_digest(found, units[0])
        elif units[0].content is None and digest_after(found, units[0], corpus) != digest:
            raise changed(units[0])
    keys = [unit_key(unit, corpus, digest=digest) for unit in units]
    return [writer.publish(key, tally) for writer, key, tally in zip(writers, keys, tallies, strict=True)]


class _Words:
    """The words of one unit on their way into the work folder, run by run."""

    def __init__(self, data: str, name: str, *, keep_ids: bool) -> None:
        """Writes nothing yet.

        Args:
            data: the corpus folder.
            name: of the unit's files until its key is known; best the key itself.
            keep_ids: whether to write the numbered words.
        """
        self._data, self._name, self._keep_ids = data, name, keep_ids
        self._until_done = ExitStack()
        self._num_rows = 0
        self._words_of_runs: list[int] = []
        self._samples: list[str] = []

    def __enter__(self) -> "_Words":
        counts, ids = kept_paths(self._data, COUNTS, self._name)[0], ids_path(self._data, self._name)
        self._counts = self._opened(counts)
        self._table = self._until_done.enter_context(pa.ipc.new_file(self._counts, COUNTS_SCHEMA))
        self._ids = self._opened(ids) if self._keep_ids else None
        return self

    def _opened(self, path: str) -> storage.DigestingFile:
        file: BinaryIO = self._until_done.enter_context(storage.publish(path, lasting=False))
        return storage.DigestingFile(file)

    def __exit__(self, *error: object) -> None:
        self._until_done.__exit__(*error)  # type: ignore[arg-type]

    def add(self, words: pa.Array) -> None:
        """Writes the words of the next block as a run."""
        table, ids = numbered(words)
        self._table.write_batch(table)
        if self._ids is not None:
            self._ids.write(ids.tobytes())
        # Where the sampling begins depends on what the run holds, so that small runs too are sampled evenly.
        rows = range(zlib.crc32(ids.tobytes()) % SAMPLE_ROWS, table.num_rows, SAMPLE_ROWS)
        self._samples += [table.column(0)[row].as_py() for row in rows]
        self._words_of_runs.append(len(ids))
        self._num_rows += table.num_rows

    def publish(self, key: str, tally: Tally) -> Counted:
        """Puts the files under the unit's key, once they are whole, and writes the receipt."""
        path, receipt = kept_paths(self._data, COUNTS, key)
        if key != self._name:
            storage.move(kept_paths(self._data, COUNTS, self._name)[0], path)
            if self._ids is not None:
                storage.move(ids_path(self._data, self._name), ids_path(self._data, key))
        counted = Counted(
            key,
            bool(self._words_of_runs),
            sum(self._words_of_runs),
            self._num_rows,
            tuple(self._samples),
            self._counts.sha256(),
            tuple(self._words_of_runs),
            None if self._ids is None else self._ids.sha256(),
            **asdict(tally),
        )
        write_receipt(receipt, counted)
        return counted


def numbered(words: pa.Array) -> tuple[pa.RecordBatch, Ids]:
    """The words of a block as a count table and rows of it.

    Args:
        words: as `split_words` gives them.

    Returns:
        the count table, in the order of the words' bytes, in which a line end counts as `<eos>`; and the row of each
        word, in the smallest unsigned type that numbers all rows.
    """
    coded = words.dictionary_encode()
    folded = pc.if_else(pc.equal(coded.dictionary, LINE_END_SCALAR), EOS_SCALAR, coded.dictionary)
    distinct = folded.dictionary_encode()  # a literal <eos> and a line end are one
    order = sort_words(distinct.dictionary)
    ranks = np.empty(len(order), ids_type(len(order)))
    ranks[order] = np.arange(len(order), dtype=ranks.dtype)
    rows = ranks[as_numpy(distinct.indices, np.int32)][as_numpy(coded.indices, np.int32)]
    counts = np.bincount(rows, minlength=len(order))
    arrays = [distinct.dictionary.take(as_arrow(order)), as_arrow(counts)]
    return pa.RecordBatch.from_arrays(arrays, schema=COUNTS_SCHEMA), rows
