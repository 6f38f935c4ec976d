"""Prepares a corpus: sources → work units → counts → vocabulary → token shards → manifest.

In: `CorpusConfig`, the corpus folder, and what runs tasks. Out: the corpus folder and its manifest.
Refuses: what `sources` refuses; a split that was asked for and came out empty; input that changes meanwhile.

    list        what to read, cut into units
    digest      what each unit holds, as a key
    count       the words of train's units, unless they were counted
    merge       count tables → ranges of words → vocabulary
    check       which shards are there already and sound
    encode      units → token shards, each with a receipt
    manifest    written last; removed before the first shard of a changed corpus is replaced

Everything that a phase leaves behind is published whole under a name or with a key that says what it was made of, and
nothing else: so a rerun, also after a kill, does what is missing, and neither workers nor their order leave a trace.
This process holds names, receipts and sums; text, counts and tokens are in tasks alone. A task's memory is bounded by
its blocks, its count table, and, where the vocabulary is made, by the vocabulary.
"""

import hashlib
import itertools
import json
import shutil
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import PurePosixPath
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import __version__, storage
from pipeline.config import CorpusConfig, VocabularyConfig, import_extensions
from pipeline.corpus.blocks import read_blocks
from pipeline.corpus.manifest import (
    VOCABULARY_NAME,
    Manifest,
    Shard,
    Split,
    read_manifest,
    remove_manifest,
    write_manifest,
)
from pipeline.corpus.packing import SUFFIXES
from pipeline.corpus.place import (
    LOCK_NAME,
    WORK,
    check_place,
    check_sources,
    held,
    receipt_name,
    shard_files,
    shard_name,
)
from pipeline.corpus.readers import READERS
from pipeline.corpus.readers.reader import Tally
from pipeline.corpus.receipts import is_whole, read_receipt, write_receipt
from pipeline.corpus.sources import cut_units, list_bystanders, list_sources, unit_digest
from pipeline.corpus.text import split_words
from pipeline.corpus.tokens import write_shard
from pipeline.corpus.units import SPLITS, Source, WorkUnit, printable
from pipeline.corpus.vocabulary import (
    COUNTS_SCHEMA,
    EOS_WORD,
    UNK_WORD,
    Vocabulary,
    count_words,
    cut_vocabulary,
    given_vocabulary,
    is_special,
    merge_counts,
    read_vocabulary,
    write_vocabulary,
)
from pipeline.errors import ConfigError, CorpusError

Item = TypeVar("Item")
Result = TypeVar("Result")

FORMAT = 1  # to be raised when the same text would give other words or other bytes
FIRST_BLOCK_BYTES = 4096
RANGE_ROWS = 1 << 19  # rows of count tables that one merge takes
NUM_NAMED_FILES = 3
SAMPLE_ROWS = 1 << 13  # one word of so many is told to the driver, which cuts the ranges by them


class RunTasks(Protocol):
    """Runs a function over items and gives (index of the item, result) in the order in which they are done."""

    def __call__(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result]]: ...  # pragma: no cover


class Progress(Protocol):
    """Who watches."""

    def phase(self, name: str, *, num_tasks: int, num_bytes: int) -> None:
        """A phase begins, with so many tasks that read so many bytes of input (0: not known)."""

    def advance(self, *, num_bytes: int, num_words: int) -> None:
        """A task of the phase is done."""

    def note(self, text: str) -> None:
        """One line about what was found."""


class NoProgress:
    """Nobody watches."""

    def phase(self, name: str, *, num_tasks: int, num_bytes: int) -> None:
        """Nothing."""

    def advance(self, *, num_bytes: int, num_words: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Digested:
    """What decides a unit's words, and whether it holds any text."""

    key: str
    has_text: bool


@dataclass(frozen=True)
class Counted:
    """A count table in the work folder: its key, words, rows, some of its words in order, and its digest."""

    key: str
    num_words: int
    num_rows: int
    samples: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class MadeVocabulary:
    """A vocabulary in the work folder, from where it is published: the key of what it was made of, and what it is."""

    key: str
    size: int
    fingerprint: str
    sha256: str


@dataclass(frozen=True)
class Job:
    """A shard to be: the unit, its key, its place, and the key that the receipt must have."""

    unit: WorkUnit
    unit_key: str
    number: int
    key: str

    @property
    def shard(self) -> str:
        """Path of the shard below the corpus folder."""
        return shard_name(self.unit.split, self.number)

    @property
    def receipt(self) -> str:
        """Path of the receipt below the corpus folder."""
        return receipt_name(self.shard)


@dataclass(frozen=True)
class Receipt:
    """A token shard: the key of what it was made of, and what it turned out to be."""

    key: str
    num_tokens: int
    size_bytes: int
    sha256: str
    num_unk: int
    num_replacement_chars: int
    num_nul_bytes: int
    num_null_rows: int


def prepare(
    corpus: CorpusConfig,
    data: str,
    *,
    run_tasks: RunTasks,
    progress: Progress | None = None,
    extensions: Sequence[str] = (),
) -> Manifest:
    """Prepares the corpus folder `data`, doing only what is not there yet.

    Args:
        corpus: what to read and what a word is.
        data: the corpus folder, local or in an object store; made if need be.
        run_tasks: runs a function over items, in any order and on any number of workers.
        progress: is told of phases and tasks.
        extensions: modules that the processes of tasks import first, since they add text formats.

    Returns:
        the manifest, as it was written or, if nothing had changed, as it was found.

    Raises:
        CorpusError: the input is missing, empty or damaged, or changes meanwhile.
        ConfigError: the vocabulary's size leaves no room for a word; the folder is not one to prepare in, or another
            process does.
    """
    sources = check_inputs(corpus, data)
    with held(data):
        return _prepare(sources, corpus, data, run=_Runner(run_tasks, progress or NoProgress(), tuple(extensions)))


def check_inputs(corpus: CorpusConfig, data: str) -> list[Source]:
    """What can be refused before anything is started or written.

    Returns:
        what the configuration names.

    Raises:
        CorpusError: the input is missing or empty.
        ConfigError: the folder is not one to prepare in.
    """
    check_given_vocabulary(corpus.vocabulary)
    check_place(data, corpus)
    sources = list_sources(corpus)
    check_sources(data, corpus, sources)
    return sources


def _prepare(sources: Sequence[Source], corpus: CorpusConfig, data: str, *, run: "_Runner") -> Manifest:
    units = _list(sources, corpus, run=run)
    digested = _digest(units, corpus, run=run)
    train_keys = [each.key for unit, each in zip(units, digested, strict=True) if unit.split == "train"]
    counted = _count(units, digested, corpus, data, run=run)
    vocabulary = _make_vocabulary(train_keys, counted, corpus, data, run=run)
    jobs = _jobs(units, digested, vocabulary)
    receipts = _sound_receipts(jobs, data, run=run)
    missing = [job for job in jobs if job not in receipts]
    if not missing:
        manifest = _manifest(jobs, receipts, vocabulary, corpus)
        if _is_published(manifest, vocabulary, data):
            _remove_stale(jobs, vocabulary, data)
            run.progress.note(f"unchanged: all {len(jobs)} shards are kept")
            return manifest
    if len(missing) < len(jobs):
        run.progress.note(f"{len(jobs) - len(missing)} of {len(jobs)} shards are kept")
    remove_manifest(data)
    _publish_vocabulary(vocabulary, data)
    receipts |= _encode(missing, vocabulary, corpus, data, run=run)
    manifest = _manifest(jobs, receipts, vocabulary, corpus)
    _check_sizes(manifest, data)
    _remove_stale(jobs, vocabulary, data)
    write_manifest(manifest, data)
    return manifest


@dataclass(frozen=True)
class _Runner:
    """Runs the tasks of a phase and tells who watches."""

    run_tasks: RunTasks
    progress: Progress
    extensions: tuple[str, ...]

    def __call__(
        self,
        name: str,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        num_bytes: Callable[[Item], int] = lambda _: 0,
        num_words: Callable[[Result], int] = lambda _: 0,
    ) -> list[Result]:
        """The results in the order of the items."""
        if not items:
            return []
        self.progress.phase(name, num_tasks=len(items), num_bytes=sum(map(num_bytes, items)))
        results: dict[int, Result] = {}
        task = partial(run_extended, function=function, extensions=self.extensions) if self.extensions else function
        for index, result in self.run_tasks(task, items):
            results[index] = result
            self.progress.advance(num_bytes=num_bytes(items[index]), num_words=num_words(result))
        return [results[index] for index in range(len(items))]


def run_extended(item: Item, *, function: Callable[[Item], Result], extensions: tuple[str, ...]) -> Result:
    """Runs a function in a process that may not have imported the extensions."""
    import_extensions(extensions)
    return function(item)


@contextmanager
def _one_core() -> Iterator[None]:
    """Keeps Arrow to one core: tasks, not their threads, are what is spread over the cores."""
    before = pa.cpu_count()
    pa.set_cpu_count(1)
    try:
        yield
    finally:
        pa.set_cpu_count(before)


def _hash(content: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _unit_bytes(unit: WorkUnit) -> int:
    return unit.size_bytes


# --- list ---


def check_given_vocabulary(vocabulary: VocabularyConfig) -> None:
    """Judges the vocabulary that the configuration names, if it names one, before any text is read.

    Raises:
        CorpusError: it is missing, a folder, or holds something else than one word in each place.
        ConfigError: the other keys of the vocabulary contradict it.
    """
    path, size, min_count = vocabulary.path, vocabulary.size, vocabulary.min_count
    if path is None:
        return
    if storage.is_folder(path) or not storage.exists(path):
        found = "a folder" if storage.is_folder(path) else "missing"
        raise CorpusError(f"corpus.vocabulary.path={path} is {found}; name a vocabulary.arrow or a text file")
    if min_count > 1:
        raise ConfigError(
            f"corpus.vocabulary.min_count={min_count} cuts no word of corpus.vocabulary.path={path}, which is taken"
            " whole; use corpus.vocabulary.min_count=1"
        )
    num_words = given_vocabulary(path, counts=None).size
    if size is not None and num_words > size:
        raise ConfigError(
            f"corpus.vocabulary.path={path} holds {num_words} words with {EOS_WORD} and {UNK_WORD}, more than"
            f" corpus.vocabulary.size={size}; use corpus.vocabulary.size=null or a shorter file"
        )


def _list(sources: Sequence[Source], corpus: CorpusConfig, *, run: _Runner) -> list[WorkUnit]:
    """The units of all splits in their order."""
    _note_bystanders(list_bystanders(sources, corpus), run=run)
    found = run("list", partial(cut_units, corpus=corpus), sources)
    units = [unit for each in found for unit in each]
    return sorted(units, key=lambda unit: SPLITS.index(unit.split))  # stable: the order of sources stays


def _note_bystanders(paths: Sequence[str], *, run: _Runner) -> None:
    if paths:
        named = ", ".join(map(printable, paths[:NUM_NAMED_FILES]))
        more = f" and {len(paths) - NUM_NAMED_FILES} more" if len(paths) > NUM_NAMED_FILES else ""
        run.progress.note(f"read as text like the rest: {named}{more}; to leave them out, name the others by a glob")


# --- digest and count ---


def _digest(units: Sequence[WorkUnit], corpus: CorpusConfig, *, run: _Runner) -> list[Digested]:
    digested = run("digest", partial(digest_unit, corpus=corpus), units, num_bytes=_unit_bytes)
    with_text = {unit.split for unit, each in zip(units, digested, strict=True) if each.has_text}
    for split in SPLITS:
        if split not in with_text and _is_asked(split, corpus):
            raise CorpusError(_empty_split(split, corpus))
    return digested


def digest_unit(unit: WorkUnit, *, corpus: CorpusConfig) -> Digested:
    """What decides a unit's words: its bytes and how they are read, and not where they lie."""
    with _one_core():
        suffix = PurePosixPath(unit.path).suffix.lower()
        rules = [corpus.words, corpus.lowercase, corpus.eos, corpus.documents, corpus.text_column]
        content = [unit_digest(unit, corpus), unit.format, suffix, unit.last, unit.low, unit.high]
        later = _later_rules(unit, corpus, suffix=suffix)
        first = next(read_blocks(unit, corpus, block_bytes=FIRST_BLOCK_BYTES), None)
        return Digested(_hash([FORMAT, *content, *rules, *([later] if later else [])]), has_text=first is not None)


def _later_rules(unit: WorkUnit, corpus: CorpusConfig, *, suffix: str) -> dict[str, object]:
    """What decides a unit's words and did not always: only where it does, so that keys of before stay."""
    rules: dict[str, object] = {}
    if unit.packing is not None and unit.packing != SUFFIXES.get(suffix):
        rules["packing"] = unit.packing
    if unit.has_mark:
        rules["has_mark"] = True
    reader = READERS[unit.format]
    if reader.documents is not None and corpus.null_rows != "refuse":
        rules["null_rows"] = corpus.null_rows
    if reader.version > 1:
        rules["version"] = reader.version
    return rules


def _is_asked(split: str, corpus: CorpusConfig) -> bool:
    fractions = {"train": 0.0, "valid": corpus.valid_fraction, "test": corpus.test_fraction}
    return getattr(corpus, split) is not None or fractions[split] > 0


def _empty_split(split: str, corpus: CorpusConfig) -> str:
    fractions = {"train": 0.0, "valid": corpus.valid_fraction, "test": corpus.test_fraction}
    if fractions[split] == 0 and not (split == "train" and sum(fractions.values()) > 0):
        rows = f" in corpus.text_column={corpus.text_column}" if corpus.null_rows == "skip" else ""
        return (
            f"corpus.{split}={', '.join(getattr(corpus, split))} holds no text{rows}; give text or corpus.{split}=null"
        )
    share = 1 - sum(fractions.values()) if split == "train" else fractions[split]
    lines = "corpus.documents=lines or " if corpus.source == "files" and corpus.documents == "files" else ""
    return f"the {split} split, a share of {share:g}, got none of train's documents; use {lines}other fractions"


def _count(
    units: Sequence[WorkUnit], digested: Sequence[Digested], corpus: CorpusConfig, data: str, *, run: _Runner
) -> list[Counted]:
    """Counts the words of every unit, once for equal ones; returns the tables of train's.

    Only these make the vocabulary. The others are read all the same, so that damaged text is found before anything of
    an older corpus is removed.
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


def count_unit(keyed: tuple[str, WorkUnit], *, corpus: CorpusConfig, data: str) -> Counted:
    """Publishes the count table of a unit under its key, then its receipt, unless they are there and sound."""
    key, unit = keyed
    path, receipt = _counts_path(data, key), _counts_receipt(data, key)
    kept = read_receipt(receipt, Counted)
    if kept is not None and kept.key == key and is_whole(path, sha256=kept.sha256):
        return kept
    with _one_core():
        blocks = read_blocks(unit, corpus)
        words = (split_words(block, words=corpus.words, lowercase=corpus.lowercase) for block in blocks)
        counts = merge_counts(map(count_words, words))
        _refuse_changed(unit, corpus, key=key)
        sha256 = _write_counts(counts, path)
        # Where the sampling begins depends on the key, so that small tables too are sampled evenly.
        rows = range(int(key[:8], 16) % SAMPLE_ROWS, counts.num_rows, SAMPLE_ROWS)
        samples = tuple(counts["word"][row].as_py() for row in rows)
        num_words = pc.sum(counts["count"], min_count=0).as_py()
        counted = Counted(key, num_words, counts.num_rows, samples, sha256)
        write_receipt(receipt, counted)
        return counted


def _refuse_changed(unit: WorkUnit, corpus: CorpusConfig, *, key: str) -> None:
    """Compares a file's unit with its key again; reading a data set once more would cost as much as preparing it."""
    if READERS[unit.format].is_file and digest_unit(unit, corpus=corpus).key != key:
        raise CorpusError(f"{unit.path} changed while it was prepared; leave it as it is and prepare again")


def _counts_path(data: str, key: str) -> str:
    return storage.join(data, WORK, "counts", f"{key}.arrow")


def _counts_receipt(data: str, key: str) -> str:
    return storage.join(data, WORK, "counts", f"{key}.json")


def _write_counts(table: pa.Table, path: str) -> str:
    """Publishes a count table; returns its digest."""
    with storage.publish(path) as file:
        sink = storage.DigestingFile(file)
        with pa.ipc.new_file(sink, COUNTS_SCHEMA) as writer:
            writer.write_table(table.combine_chunks())
    return sink.sha256()


def _read_counts(path: str) -> pa.Table:
    """A count table; on a local disk it is mapped, so that only what is looked at is read."""
    local = storage.is_local(path)
    source = pa.memory_map(storage.resolve(path)[1]) if local else pa.BufferReader(storage.read_bytes(path))
    return pa.ipc.open_file(source).read_all()


# --- merge ---


def _make_vocabulary(
    train_keys: Sequence[str], counted: Sequence[Counted], corpus: CorpusConfig, data: str, *, run: _Runner
) -> MadeVocabulary:
    """Makes the vocabulary in the work folder, unless it is there and sound.

    The corpus stays whole until it is replaced.
    """
    given = corpus.vocabulary.path
    size = corpus.vocabulary.size if given is None else None
    rules = [size, corpus.vocabulary.min_count, given and storage.sha256(given)]
    key = _hash([FORMAT, *sorted(train_keys), *rules])
    kept = read_receipt(_vocabulary_receipt(data, key), MadeVocabulary)
    if kept is not None and kept.key == key and is_whole(_vocabulary_path(data, key), sha256=kept.sha256):
        return kept
    merge = partial(merge_range, keys=tuple(train_keys), data=data, size=size)
    parts = run("merge", merge, _ranges(counted) if counted else [])
    make = partial(make_vocabulary, key=key, data=data, vocabulary=corpus.vocabulary)
    (made,) = run("vocabulary", make, [tuple(parts)])
    return made


def _vocabulary_path(data: str, key: str) -> str:
    return storage.join(data, WORK, "vocabulary", f"{key}.arrow")


def _vocabulary_receipt(data: str, key: str) -> str:
    return storage.join(data, WORK, "vocabulary", f"{key}.json")


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
    with _one_core():
        merged = merge_counts(_slice(_read_counts(_counts_path(data, key)), words) for key in keys)
        path = storage.join(data, WORK, "merged", f"{_hash([*keys, *words, size])}.arrow")
        _write_counts(most_frequent(merged, size=size), path)
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
    path, size = _vocabulary_path(data, key), vocabulary.size if vocabulary.path is None else None
    with _one_core():
        counts = COUNTS_SCHEMA.empty_table()
        for part in parts:  # no word but <unk> stands in two of them
            counts = pa.concat_tables([counts, _read_counts(part)])
            if size is not None and counts.num_rows > 2 * size:  # not each time: what is kept is sorted every time
                counts = most_frequent(counts, size=size)
        if vocabulary.path is not None:
            words = given_vocabulary(vocabulary.path, counts=counts if parts else None)
        else:
            words = cut_vocabulary(counts, size=size, min_count=vocabulary.min_count)
        write_vocabulary(words, path)
        made = MadeVocabulary(key, words.size, words.fingerprint, storage.sha256(path))
        write_receipt(_vocabulary_receipt(data, key), made)
        return made


def _publish_vocabulary(vocabulary: MadeVocabulary, data: str) -> None:
    target = storage.join(data, VOCABULARY_NAME)
    with storage.open_read(_vocabulary_path(data, vocabulary.key)) as made, storage.publish(target) as file:
        shutil.copyfileobj(made, file)


# --- check and encode ---


def _jobs(units: Sequence[WorkUnit], digested: Sequence[Digested], vocabulary: MadeVocabulary) -> list[Job]:
    """A job for each unit, numbered within its split."""
    numbers = {split: itertools.count() for split in SPLITS}
    return [
        Job(
            unit,
            each.key,
            number=next(numbers[unit.split]),
            key=_hash([each.key, vocabulary.fingerprint, vocabulary.size, unit.name]),
        )
        for unit, each in zip(units, digested, strict=True)
    ]


def _sound_receipts(jobs: Sequence[Job], data: str, *, run: _Runner) -> dict[Job, Receipt]:
    """The receipts of shards that need not be made: of the same key, and the shard is what the receipt says."""
    found = ((job, read_receipt(storage.join(data, job.receipt), Receipt)) for job in jobs)
    candidates = [(job, receipt) for job, receipt in found if receipt is not None and receipt.key == job.key]
    sound = run("check", partial(is_sound, data=data), candidates, num_bytes=lambda item: item[1].size_bytes)
    return {job: receipt for (job, receipt), good in zip(candidates, sound, strict=True) if good}


def is_sound(item: tuple[Job, Receipt], *, data: str) -> bool:
    """Whether the shard is there and has the receipt's digest."""
    job, receipt = item
    return is_whole(storage.join(data, job.shard), sha256=receipt.sha256)


def _encode(
    jobs: Sequence[Job], vocabulary: MadeVocabulary, corpus: CorpusConfig, data: str, *, run: _Runner
) -> dict[Job, Receipt]:
    encode = partial(encode_unit, vocabulary=vocabulary, corpus=corpus, data=data)
    receipts = run(
        "encode",
        encode,
        jobs,
        num_bytes=lambda job: job.unit.size_bytes,
        num_words=lambda receipt: receipt.num_tokens,
    )
    return dict(zip(jobs, receipts, strict=True))


def encode_unit(job: Job, *, vocabulary: MadeVocabulary, corpus: CorpusConfig, data: str) -> Receipt:
    """Publishes the token shard of a unit, then its receipt.

    Raises:
        CorpusError: the unit's bytes are no longer those that were counted.
    """
    with _one_core():
        words = _vocabulary(_vocabulary_path(data, vocabulary.key), vocabulary.fingerprint)
        tally = Tally()
        blocks = read_blocks(job.unit, corpus, tally)
        written = write_shard(
            storage.join(data, job.shard),
            (words.encode(split_words(block, words=corpus.words, lowercase=corpus.lowercase)) for block in blocks),
            vocabulary_fingerprint=vocabulary.fingerprint,
            vocab_size=vocabulary.size,
            source=job.unit.name,
        )
        _refuse_changed(job.unit, corpus, key=job.unit_key)
        receipt = Receipt(
            job.key, written.num_tokens, written.size_bytes, written.sha256, written.num_unk, **asdict(tally)
        )
        write_receipt(storage.join(data, job.receipt), receipt)
        return receipt


@lru_cache(maxsize=1)
def _vocabulary(path: str, fingerprint: str) -> Vocabulary:
    """The vocabulary, read once in a process."""
    found = read_vocabulary(path)
    assert found.fingerprint == fingerprint, path
    return found


# --- manifest ---


def _manifest(
    jobs: Sequence[Job],
    receipts: Mapping[Job, Receipt],
    vocabulary: MadeVocabulary,
    corpus: CorpusConfig,
) -> Manifest:
    splits = {}
    for split in SPLITS:
        made = [(job, receipts[job]) for job in jobs if job.unit.split == split]
        if made:
            splits[split] = Split(
                shards=tuple(
                    Shard(
                        name=job.shard,
                        num_tokens=receipt.num_tokens,
                        size_bytes=receipt.size_bytes,
                        sha256=receipt.sha256,
                        source=job.unit.name,
                    )
                    for job, receipt in made
                ),
                num_tokens=sum(receipt.num_tokens for _, receipt in made),
                num_unk=sum(receipt.num_unk for _, receipt in made),
                num_replacement_chars=sum(receipt.num_replacement_chars for _, receipt in made),
                num_nul_bytes=sum(receipt.num_nul_bytes for _, receipt in made),
                num_null_rows=sum(receipt.num_null_rows for _, receipt in made),
            )
    return Manifest(
        splits=splits,
        vocab_size=vocabulary.size,
        vocabulary_fingerprint=vocabulary.fingerprint,
        vocabulary_sha256=vocabulary.sha256,
        configuration=corpus.model_dump(mode="json"),
        tool_version=__version__,
    )


def _is_published(manifest: Manifest, vocabulary: MadeVocabulary, data: str) -> bool:
    """Whether the corpus folder is just what would be written."""
    words = storage.join(data, VOCABULARY_NAME)
    if not storage.exists(words) or storage.sha256(words) != vocabulary.sha256:
        return False
    try:
        return read_manifest(data) == manifest
    except CorpusError:
        return False


def _check_sizes(manifest: Manifest, data: str) -> None:
    """The last look before the manifest: every shard is there with the size of its receipt."""
    for split in manifest.splits.values():
        for shard in split.shards:
            path = storage.join(data, shard.name)
            found = storage.size_bytes(path) if storage.exists(path) else None
            if found != shard.size_bytes:
                raise CorpusError(f"{path} has {found} bytes, needed {shard.size_bytes}: who changed it? prepare again")


def _remove_stale(jobs: Sequence[Job], vocabulary: MadeVocabulary, data: str) -> None:
    """Removes what an earlier, other corpus left in the folder; what is not named as a shard is the user's own."""
    shards = [storage.join(data, job.shard) for job in jobs]
    _remove_others([path for split in SPLITS for path in shard_files(data, split)], keep=shards)
    keys = {job.unit_key for job in jobs}
    kept = [storage.join(data, job.receipt) for job in jobs]
    kept += [place(data, key) for key in keys for place in (_counts_path, _counts_receipt)]
    kept += [place(data, vocabulary.key) for place in (_vocabulary_path, _vocabulary_receipt)]
    _remove_others(storage.list_files(storage.join(data, WORK)), keep=[*kept, storage.join(data, WORK, LOCK_NAME)])


def _remove_others(paths: Sequence[str], *, keep: Sequence[str]) -> None:
    kept = {storage.resolve(path)[1] for path in keep}
    for path in paths:
        if storage.resolve(path)[1] not in kept:
            storage.remove(path)
