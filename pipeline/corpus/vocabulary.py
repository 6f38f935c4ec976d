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
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.corpus.text import LINE_END
from pipeline.corpus.word_index import ABSENT, WordIndex
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
SLICE_ROWS = 1 << 16  # of words that are Python's at a time
MAX_SHOWN = 40  # characters of a line that is refused
MAX_WORDS_BYTES = 2**31 - 1  # offsets of an Arrow string array are int32, and wrap unseen


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
        for start in range(0, self.size, SLICE_ROWS):
            part = self.words.slice(start, SLICE_ROWS)
            # No word holds LF, so joining by it is unambiguous.
            joined = LINE_END.join(part.to_pylist()).encode()
            digest.update(LINE_END.encode() + joined if start else joined)
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
        ids[pc.equal(distinct, LINE_END).to_numpy(zero_copy_only=False)] = EOS
        found: npt.NDArray[np.int32] = ids[block.indices.to_numpy()]
        return found


def count_words(words: pa.Array) -> pa.Table:
    """How often each word occurs.

    Args:
        words: `pa.string()` array as `text.split_words` gives it.

    Returns:
        the count table, in the order of first occurrence; "\\n" is counted as `<eos>`, with a literal `<eos>`.
    """
    counted = words.value_counts()
    distinct = counted.field("values")
    folded = pc.if_else(pc.equal(distinct, LINE_END), EOS_WORD, distinct)
    counts = pa.table([folded, counted.field("counts")], schema=COUNTS_SCHEMA)
    # Summing anew costs three times what counting did, and only a literal <eos> needs it.
    return _sum_counts([counts]) if pc.index(distinct, EOS_WORD).as_py() >= 0 else counts


def merge_counts(tables: Iterable[pa.Table]) -> pa.Table:
    """The sum of count tables, in the order of the words' bytes, so that the order of the tables leaves no trace.

    Takes memory for some three times the merged types, not for all the tables: they are merged whenever the new rows
    are as many as the merged ones. So a row is also summed anew only a few times on average.

    Raises:
        CorpusError: the distinct words take more than 2 GiB, so what was read is no text.
    """
    merged = COUNTS_SCHEMA.empty_table()
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(each.num_rows for each in waiting) >= max(merged.num_rows, MERGE_MIN_ROWS):
            merged, waiting = _sum_counts([merged, *waiting]), []
    return _sum_counts([merged, *waiting]).sort_by("word")


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
    others = counts.filter(pc.invert(is_special(counts["word"])))
    ranked = others.sort_by([("count", "descending"), ("word", "ascending")])
    if ranked.num_rows == 0:
        raise CorpusError("the training text holds no words, only line ends or nothing; check corpus.train")
    kept = ranked.filter(pc.greater_equal(ranked["count"], min_count)).slice(0, None if size is None else size - 2)
    if kept.num_rows == 0:
        most = ranked["count"][0].as_py()
        raise ConfigError(
            f"vocabulary.min_count={min_count} cuts every word: the most frequent occurs {most} times; use at most that"
        )
    num_cut = _total(ranked) - _total(kept)
    num_eos = _total(counts.filter(pc.equal(counts["word"], EOS_WORD)))
    num_unk = _total(counts.filter(pc.equal(counts["word"], UNK_WORD)))
    return Vocabulary(
        words=pa.concat_arrays([pa.array([EOS_WORD, UNK_WORD]), *kept["word"].chunks]),
        counts=np.concatenate([np.array([num_eos, num_unk + num_cut]), kept["count"].to_numpy()]),
    )


def is_special(words: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Which words are `<eos>` or `<unk>`."""
    return pc.is_in(words, value_set=pa.array([EOS_WORD, UNK_WORD]))


def write_counts(table: pa.Table, path: str) -> str:
    """Publishes a count table; returns its digest."""
    with storage.publish(path) as file:
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


def write_vocabulary(vocabulary: Vocabulary, path: str) -> str:
    """Publishes `vocabulary.arrow`, a count table in the order of ids; returns its digest."""
    return write_counts(pa.table([vocabulary.words, pa.array(vocabulary.counts)], schema=COUNTS_SCHEMA), path)


def read_vocabulary(path: str) -> Vocabulary:
    """Reads what `write_vocabulary` wrote.

    Raises:
        CorpusError: the file is missing, is no Arrow file, lacks a column, does not hold `<eos>`, `<unk>` and then
            distinct words, or counts a word less than 0 times.
    """
    try:
        table = pa.ipc.open_file(pa.BufferReader(storage.read_bytes(path))).read_all()
        table.validate(full=True)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise CorpusError(f"{path} is no readable vocabulary ({reason_of(error)}); {MEND}") from error
    if not table.schema.equals(COUNTS_SCHEMA):
        raise CorpusError(
            f"{path} has the columns {_columns(table.schema)}, needed {_columns(COUNTS_SCHEMA)}, none nullable; {MEND}"
        )
    words = table["word"].combine_chunks()
    if words[:2].to_pylist() != [EOS_WORD, UNK_WORD]:
        raise CorpusError(f"{path} begins with {words[:2].to_pylist()}, needed {EOS_WORD} and {UNK_WORD}; {MEND}")
    _refuse_bad_words(words, path=path, first_line=0, place="id")
    counts = table["count"].combine_chunks()
    bad = pc.index(pc.fill_null(pc.greater_equal(counts, 0), fill_value=False), value=False).as_py()
    if bad >= 0:
        raise CorpusError(f"{path}, id {bad}: found the count {counts[bad].as_py()}, needed 0 or more; {MEND}")
    return Vocabulary(words=words, counts=counts.to_numpy().copy())


def given_vocabulary(path: str, *, counts: pa.Table | None) -> Vocabulary:
    """A user's own vocabulary, whatever its order.

    Args:
        path: a `vocabulary.arrow`, or UTF-8 text with one word per line. `<eos>` and `<unk>` come first in the
            result, wherever the text holds them or not; the other words keep their order.
        counts: count table of the training text; None if it was not counted.

    Returns:
        the vocabulary with the counts of `counts`: 0 for a word that does not occur, and for `<unk>` all that is not a
        word of the vocabulary. Without `counts`, those of the file: 0 everywhere if it is text.

    Raises:
        CorpusError: the file is missing or no UTF-8; a line is empty, holds white space or a word named before.
    """
    try:
        data = storage.read_bytes(path)
    except OSError as error:
        raise CorpusError(f"vocabulary.path={path} cannot be read ({reason_of(error)}); name a file") from error
    if data.startswith(ARROW_MAGIC):
        given = read_vocabulary(path)
    else:
        words = pa.concat_arrays([pa.array([EOS_WORD, UNK_WORD]), _words_of_text(data, path=path)])
        given = Vocabulary(words=words, counts=np.zeros(len(words), dtype=np.int64))
    return given if counts is None else Vocabulary(words=given.words, counts=_counts_of(given.words, counts=counts))


def _words_of_text(data: bytes, *, path: str) -> pa.Array:
    """The words of a vocabulary in text form without `<eos>` and `<unk>`, in the order of the lines."""
    data = data.removeprefix(BOM_UTF8)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CorpusError(
            f"{path}, line {line}: found a byte that is not UTF-8; save the file as UTF-8, not compressed"
        ) from error
    lines = pc.split_pattern(pa.array([text.removesuffix("\n")]), "\n").flatten()
    _refuse_bad_words(lines, path=path, first_line=1, place="line")
    words = lines.filter(pc.invert(is_special(lines)))
    if not len(words):
        raise CorpusError(f"{path} holds no word beside {EOS_WORD} and {UNK_WORD}; put one word on each line")
    return words


def _refuse_bad_words(words: pa.Array, *, path: str, first_line: int, place: str) -> None:
    """Refuses an empty word, one with ASCII white space and one that came before, by its place."""
    ordered = words.sort()
    is_good = [
        pc.invert(pc.match_substring_regex(words, f"^$|[{ASCII_WHITE_SPACE}]")),
        pc.not_equal(ordered[1:], ordered[:-1]),
    ]
    if all(pc.all(each, skip_nulls=False, min_count=0).as_py() for each in is_good):
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


def _counts_of(words: pa.Array, *, counts: pa.Table) -> npt.NDArray[np.int64]:
    """Counts of a vocabulary's words; `<unk>` gets all the rest. int64 [len(words)]."""
    rows = pc.index_in(words, value_set=counts["word"])
    found: npt.NDArray[np.int64] = counts["count"].take(rows).fill_null(0).to_numpy().copy()
    found[UNK] += _total(counts) - found.sum()
    return found


def _sum_counts(tables: list[pa.Table]) -> pa.Table:
    """One count table with distinct words, in the order of first occurrence."""
    table = pa.concat_tables(tables)
    num_bytes = pc.sum(pc.binary_length(table["word"]), min_count=0).as_py()
    if num_bytes > MAX_WORDS_BYTES:
        raise CorpusError(
            f"the distinct words take {num_bytes} bytes, more than the {MAX_WORDS_BYTES} that can be counted at once; "
            "check that the input is text with white space between its words"
        )
    grouped = table.group_by("word", use_threads=False).aggregate([("count", "sum")])
    return pa.table([grouped["word"], grouped["count_sum"]], schema=COUNTS_SCHEMA)


def _total(counts: pa.Table) -> int:
    return int(pc.sum(counts["count"], min_count=0).as_py())


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
