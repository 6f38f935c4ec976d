"""Which words a model knows, and their ids: count, merge, cut, encode.

In: words as `text.split_words` gives them, or a vocabulary file. Out: a `Vocabulary`, in which a word's id is its
frequency rank: `<eos>` = 0, `<unk>` = 1, then by (−count, UTF-8 bytes of the word).
Refuses: a text without words, a size without room for a word, a vocabulary file that is damaged, empty or names a word
twice.

Counts are exact: nothing is pruned before the last merge. A count table has the columns word (string) and count
(int64).
"""

import hashlib
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.corpus.arrays import as_arrow, as_flags, as_numpy, strings
from pipeline.corpus.text import LINE_END
from pipeline.corpus.word_index import ABSENT, INDEX_SCHEMA, WordIndex, sorted_hashes, surely_distinct
from pipeline.errors import ConfigError, CorpusError, reason_of

EOS = 0
UNK = 1
EOS_WORD = "<eos>"
UNK_WORD = "<unk>"

COUNTS_SCHEMA = pa.schema(
    [pa.field("word", pa.string(), nullable=False), pa.field("count", pa.int64(), nullable=False)],
)
MEND = "run `python -m jobs prepare` again"
ARROW_MAGIC = b"ARROW1"
ASCII_WHITE_SPACE = " \t\n\v\f\r"
MERGE_MIN_ROWS = 1 << 20
SLICE_ROWS = 1 << 16  # of words that are joined at a time
BATCH_ROWS = 1 << 20  # words of a record batch of vocabulary.arrow, so that it can be written and read in parts
MAX_SHOWN = 40  # characters of a line that is refused
MAX_WORDS_BYTES = 2**31 - 1  # offsets of an Arrow string array are int32, and wrap unseen
NO_COUNT = as_arrow(np.array([-1]))[0]
EOS_SCALAR, UNK_SCALAR, LINE_END_SCALAR = strings(EOS_WORD, UNK_WORD, LINE_END)
SPECIAL = strings(EOS_WORD, UNK_WORD)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The words of a model in the order of their ids.

    Attributes:
        words: `pa.string()` array, [vocab_size]; distinct, without ASCII white space; `<eos>` and `<unk>` first.
        counts: occurrences in the training text, int64 [vocab_size], read-only; that of `<unk>` includes the words cut.
    """

    words: pa.Array
    counts: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        self.counts.setflags(write=False)

    @property
    def size(self) -> int:
        """Number of words, `<eos>` and `<unk>` included."""
        return len(self.words)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the words in order (not of their counts), as 64 hexadecimal digits."""
        digest = hashlib.sha256()
        _add_words(digest, self.words, is_first=True)
        return digest.hexdigest()

    @cached_property
    def _index(self) -> WordIndex:
        return WordIndex(self.words)

    def encode(self, words: pa.Array) -> npt.NDArray[np.int32]:
        """Ids of words.

        Args:
            words: `pa.string()` array; "\\n" is `<eos>`; a word that is not in the vocabulary is `<unk>`.

        Returns:
            int32 [len(words)].
        """
        block = words.dictionary_encode()
        distinct = block.dictionary
        ids = self._index.find(distinct)
        ids[ids == ABSENT] = UNK
        ids[as_flags(pc.equal(distinct, LINE_END_SCALAR))] = EOS
        found: npt.NDArray[np.int32] = ids[as_numpy(block.indices, np.int64)]
        return found


def merge_counts(tables: Iterable[pa.Table]) -> pa.Table:
    """The sum of count tables, in the order of the words' bytes, so that the order of the tables leaves no trace.

    Takes memory for some three times the merged types, not for all the tables: they are merged whenever the new rows
    are as many as the merged ones. So a row is also summed anew only a few times on average.

    Raises:
        CorpusError: the distinct words take more than 2 GiB, so what was read is no text.
    """
    merged = table_of(strings(), np.zeros(0, dtype=np.int64))
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(each.num_rows for each in waiting) >= max(merged.num_rows, MERGE_MIN_ROWS):
            merged, waiting = _sum_counts([merged, *waiting]), []
    return _sum_counts([merged, *waiting]).sort_by("word")


@dataclass(frozen=True)
class Ranked:
    """Some words by their rank.

    Attributes:
        words: count table ordered by (−count, bytes of the word), without `<eos>` and `<unk>`.
        num_eos: occurrences of `<eos>`.
        num_unk: of `<unk>` and of the words that were cut.
        most: of the most frequent word, cut or not; 0 if there is none.
    """

    words: pa.Table
    num_eos: int
    num_unk: int
    most: int


def rank(counts: pa.Table, *, size: int | None, min_count: int) -> Ranked:
    """Ranks words, without those that no vocabulary of the size can hold whatever other words there are.

    Args:
        counts: distinct words in the order of their bytes, so that of two that are as frequent the first comes first.
        size: of the vocabulary, `<eos>` and `<unk>` included; None for no limit.
        min_count: words that occur less often are cut.
    """
    numbers = as_numpy(counts["count"], np.int64)
    others = np.flatnonzero(~as_flags(pc.is_in(counts["word"], value_set=SPECIAL)))
    others = others[np.argsort(-numbers[others], kind="stable")]
    most = int(numbers[others[0]]) if len(others) else 0
    kept = others[numbers[others] >= min_count][: None if size is None else size - 2]
    num_eos = int(numbers[as_flags(pc.equal(counts["word"], EOS_SCALAR))].sum())
    num_unk = int(numbers.sum()) - num_eos - int(numbers[kept].sum())
    return Ranked(counts.take(as_arrow(kept)), num_eos, num_unk, most)


def refuse_no_words(*, num_kept: int, most: int, min_count: int) -> None:
    """Refuses a vocabulary without a word beside `<eos>` and `<unk>`.

    Args:
        num_kept: its other words.
        most: occurrences of the most frequent word; 0 if there is none.
        min_count: words that occur less often were cut.
    """
    if most == 0:
        raise CorpusError("the training text holds no words, only line ends or nothing; check corpus.train")
    if num_kept == 0:
        raise ConfigError(
            f"vocabulary.min_count={min_count} cuts every word: the most frequent occurs {most} times; use at most that"
        )


def table_of(words: pa.Array, counts: npt.NDArray[np.int64]) -> pa.Table:
    """A count table."""
    return pa.Table.from_arrays([words, as_arrow(counts)], schema=COUNTS_SCHEMA)


def write_counts(table: pa.Table, path: str) -> str:
    """Publishes a count table in the work folder; returns its digest."""
    with storage.publish(path, lasting=False) as file:
        sink = storage.DigestingFile(file)
        with pa.ipc.new_file(sink, COUNTS_SCHEMA) as writer:
            writer.write_table(table.combine_chunks())
    return sink.sha256()


def read_counts(path: str) -> pa.Table:
    """A count table; on a local disk it is mapped, so that only what is looked at is read."""
    return open_mapped(path).read_all()


def open_mapped(path: str) -> pa.ipc.RecordBatchFileReader:
    """An Arrow IPC file: mapped where it lies on this machine, else read into memory."""
    local = storage.is_local(path)
    return pa.ipc.open_file(
        pa.memory_map(storage.resolve(path)[1]) if local else pa.BufferReader(storage.read_bytes(path))
    )


@dataclass(frozen=True)
class WrittenWords:
    """A vocabulary in a file: its size and fingerprint, its digest, and that of its index if there is one."""

    size: int
    fingerprint: str
    sha256: str
    index_sha256: str | None


def write_words(tables: Iterable[pa.Table], path: str, *, index_path: str | None, batch_rows: int) -> WrittenWords:
    """Publishes `vocabulary.arrow` in the work folder from a stream, and an index of each of its record batches.

    Args:
        tables: count tables that follow one another in the order of ids, in pieces of any size.
        path: of the vocabulary.
        index_path: of the index; None for none.
        batch_rows: words of a record batch.
    """
    size, digest = 0, hashlib.sha256()
    with ExitStack() as files:
        sinks = [
            storage.DigestingFile(files.enter_context(storage.publish(each, lasting=False)))
            for each in (path, index_path)
            if each
        ]
        writers = [
            files.enter_context(pa.ipc.new_file(sink, schema))
            for sink, schema in zip(sinks, (COUNTS_SCHEMA, INDEX_SCHEMA), strict=False)
        ]
        for table in _batches(tables, batch_rows=batch_rows):
            words = table["word"].combine_chunks()
            _add_words(digest, words, is_first=size == 0)
            writers[0].write_table(table)
            for writer in writers[1:]:
                writer.write_batch(sorted_hashes(words))
            size += table.num_rows
    digests = [sink.sha256() for sink in sinks]
    return WrittenWords(size, digest.hexdigest(), digests[0], digests[1] if index_path else None)


def _batches(tables: Iterable[pa.Table], *, batch_rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of one chunk: of so many rows, or of less where a chunk cannot hold their bytes."""
    waiting: list[pa.Table] = []
    num_rows = num_bytes = 0
    for table in tables:
        start = 0
        while start < table.num_rows:
            part = table.slice(start, min(batch_rows - num_rows, SLICE_ROWS))
            part_bytes = words_bytes(part)
            if waiting and (num_rows == batch_rows or num_bytes + part_bytes > MAX_WORDS_BYTES):
                yield pa.concat_tables(waiting).combine_chunks()
                waiting, num_rows, num_bytes = [], 0, 0
                continue
            waiting.append(part)
            start += part.num_rows
            num_rows += part.num_rows
            num_bytes += part_bytes
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def words_bytes(counts: pa.Table) -> int:
    """Bytes of the words of a count table."""
    return int(pc.sum(pc.binary_length(counts["word"]), min_count=0).as_py())


def _add_words(digest: "hashlib._Hash", words: pa.Array, *, is_first: bool) -> None:
    """Goes on with the digest of words in order. No word holds LF, so joining them by it is unambiguous."""
    for start in range(0, len(words), SLICE_ROWS):
        part = words.slice(start, SLICE_ROWS)
        whole = pa.ListArray.from_arrays(as_arrow(np.array([0, len(part)], dtype=np.int32)), part)
        if start or not is_first:
            digest.update(LINE_END.encode())
        digest.update(pc.binary_join(whole, LINE_END_SCALAR)[0].as_buffer())


def read_vocabulary(path: str) -> Vocabulary:
    """Reads a `vocabulary.arrow`, as `write_words` writes it.

    Raises:
        CorpusError: the file is missing, is no Arrow file, lacks a column, does not hold `<eos>`, `<unk>` and then
            distinct words, or counts a word less than 0 times.
    """
    try:
        data = storage.read_bytes(path)
    except OSError as error:
        raise CorpusError(f"{path} is no readable vocabulary ({reason_of(error)}); {MEND}") from error
    return _parsed(data, path=path)


def _parsed(data: bytes, *, path: str) -> Vocabulary:
    """`read_vocabulary` of a file's content."""
    try:
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        table.validate(full=True)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise CorpusError(f"{path} is no readable vocabulary ({reason_of(error)}); {MEND}") from error
    if not table.schema.equals(COUNTS_SCHEMA):
        raise CorpusError(
            f"{path} has the columns {_columns(table.schema)}, needed {_columns(COUNTS_SCHEMA)}, none nullable; {MEND}"
        )
    num_bytes = words_bytes(table)
    if num_bytes > MAX_WORDS_BYTES:
        raise CorpusError(
            f"the words of {path} take {num_bytes} bytes, more than the {MAX_WORDS_BYTES} that a model can have; use a"
            " smaller vocabulary.size"
        )
    words = table["word"].combine_chunks()
    if words[:2].to_pylist() != [EOS_WORD, UNK_WORD]:
        raise CorpusError(f"{path} begins with {words[:2].to_pylist()}, needed {EOS_WORD} and {UNK_WORD}; {MEND}")
    _refuse_bad_words(words, path=path, first_line=0, place="id")
    counts = table["count"].combine_chunks()
    bad = np.flatnonzero(as_numpy(counts.fill_null(NO_COUNT), np.int64) < 0)
    if len(bad):
        found = counts[int(bad[0])].as_py()
        raise CorpusError(f"{path}, id {bad[0]}: found the count {found}, needed 0 or more; {MEND}")
    return Vocabulary(words=words, counts=as_numpy(counts, np.int64).copy())


def given_vocabulary(path: str, *, counts: Iterable[pa.Table] | None, sha256: str | None = None) -> Vocabulary:
    """A user's own vocabulary, whatever its order.

    Args:
        path: a `vocabulary.arrow`, or UTF-8 text with one word per line. `<eos>` and `<unk>` come first in the
            result, wherever the text holds them or not; the other words keep their order.
        counts: count tables of the training text, no word in two of them; None if it was not counted.
        sha256: digest that the file must have; None for any.

    Returns:
        the vocabulary with the counts of `counts`: 0 for a word that does not occur, and for `<unk>` all that is not a
        word of the vocabulary. Without `counts`, those of the file: 0 everywhere if it is text.

    Raises:
        CorpusError: the file is missing, of another digest or no UTF-8; a line is empty, holds white space or a word
            named before; the words take more than 2 GiB.
    """
    try:
        data = storage.read_bytes(path)
    except OSError as error:
        raise CorpusError(f"vocabulary.path={path} cannot be read ({reason_of(error)}); name a file") from error
    if sha256 not in (None, hashlib.sha256(data).hexdigest()):
        raise CorpusError(f"vocabulary.path={path} changed while it was prepared; leave it as it is and prepare again")
    if data.startswith(ARROW_MAGIC):
        given = _parsed(data, path=path)
    else:
        words = pa.concat_arrays([SPECIAL, _words_of_text(data, path=path)])
        given = Vocabulary(words=words, counts=np.zeros(len(words), dtype=np.int64))
    return given if counts is None else Vocabulary(words=given.words, counts=_counts_of(given.words, tables=counts))


def _words_of_text(data: bytes, *, path: str) -> pa.Array:
    """The words of a vocabulary in text form without `<eos>` and `<unk>`, in the order of the lines."""
    data = data.removeprefix(BOM_UTF8)
    if len(data) > MAX_WORDS_BYTES:
        raise CorpusError(
            f"{path} has {len(data)} bytes, more than the {MAX_WORDS_BYTES} that a model's words can take; use fewer"
        )
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CorpusError(
            f"{path}, line {line}: found a byte that is not UTF-8; save the file as UTF-8, not compressed"
        ) from error
    ends = as_arrow(np.array([0, len(data) - data.endswith(b"\n")], dtype=np.int32))
    whole = pa.StringArray.from_buffers(1, ends.buffers()[1], pa.py_buffer(data))
    lines = pc.split_pattern(whole, LINE_END).flatten()
    _refuse_bad_words(lines, path=path, first_line=1, place="line")
    words = lines.filter(pc.invert(pc.is_in(lines, value_set=SPECIAL)))
    if not len(words):
        raise CorpusError(f"{path} holds no word beside {EOS_WORD} and {UNK_WORD}; put one word on each line")
    return words


def _refuse_bad_words(words: pa.Array, *, path: str, first_line: int, place: str) -> None:
    """Refuses an empty word, one with ASCII white space and one that came before, by its place."""
    is_bad = pc.match_substring_regex(words, f"^$|[{ASCII_WHITE_SPACE}]")
    if pc.any(is_bad, skip_nulls=False, min_count=0).as_py() is False and surely_distinct(words):
        return
    seen: dict[str, int] = {}
    for at, word in enumerate(words.to_pylist(), first_line):
        if not word or any(space in word for space in ASCII_WHITE_SPACE):
            found = word if word is None or len(word) <= MAX_SHOWN else f"{word[:MAX_SHOWN]}..."
            raise CorpusError(
                f"{path}, {place} {at}: found {found!r}, needed one word without white space; {_mend_of(word or '')}"
            )
        if seen.setdefault(word, at) != at:
            raise CorpusError(f"{path}, {place} {at}: found {word!r} again, as in {place} {seen[word]}; remove one")


def _mend_of(line: str) -> str:
    """What to do about a line that holds more than a word, or none."""
    if "\r" in line:
        return "save the file with LF line ends, not CR LF"
    if re.search(r"\S\s+[-+]?\d[\d.,eE+-]*$|^\s*\d+\s+\S", line):
        return "leave out the column of counts"
    return "mend it"


def _counts_of(words: pa.Array, *, tables: Iterable[pa.Table]) -> npt.NDArray[np.int64]:
    """Counts of a vocabulary's words; `<unk>` gets all the rest. int64 [len(words)]."""
    index, total = WordIndex(words), 0
    found = np.zeros(len(words), dtype=np.int64)
    for table in tables:
        counts = as_numpy(table["count"], np.int64)
        rows = index.find(table["word"].combine_chunks())
        found[rows[rows != ABSENT]] += counts[rows != ABSENT]
        total += int(counts.sum())
    found[UNK] += total - found.sum()
    return found


def _sum_counts(tables: list[pa.Table]) -> pa.Table:
    """One count table with distinct words, in the order of first occurrence."""
    table = pa.concat_tables(tables)
    num_bytes = words_bytes(table)
    if num_bytes > MAX_WORDS_BYTES:
        raise CorpusError(
            f"the distinct words take {num_bytes} bytes, more than the {MAX_WORDS_BYTES} that can be counted at once; "
            "check that the input is text with white space between its words"
        )
    words = table["word"].combine_chunks().dictionary_encode()
    sums = np.zeros(len(words.dictionary), dtype=np.int64)
    np.add.at(sums, as_numpy(words.indices, np.int64), as_numpy(table["count"], np.int64))
    return table_of(words.dictionary, sums)


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
