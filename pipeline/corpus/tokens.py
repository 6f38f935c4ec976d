"""Token shards: ids → Arrow files, and the files → one long sequence.

In: arrays of ids, cut anywhere. Out: an Arrow IPC *file* with one non-null column `token`, uncompressed, so that memory
mapping copies nothing; and a reader of all the shards of a split as one sequence of tokens.
Refuses: a shard that is truncated, has another token count than its manifest says or belongs to another vocabulary. A
flipped bit is found by `manifest.verify_corpus` only, since Arrow keeps no checksums.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import storage
from pipeline.corpus.cache import ShardCache
from pipeline.corpus.manifest import VOCABULARY_NAME, Manifest, Shard
from pipeline.corpus.vocabulary import MEND, UNK, UNK_WORD, Vocabulary
from pipeline.errors import CorpusError, reason_of

BATCH_TOKENS = 1 << 20
MAX_UINT16_VOCAB = 1 << 16
COUNTED_TOKENS = 1 << 22  # at least, at a time
MOST_OPEN = 512  # shards of a split at once, so that a process stays far below what a system allows of maps and files

Ids = npt.NDArray[np.integer]
_OpenShard = tuple[list[Ids], list[int]]  # the record batches, on the memory map; where each begins, and the last ends


@dataclass(frozen=True)
class WrittenShard:
    """What a written shard turned out to be."""

    num_tokens: int
    size_bytes: int
    sha256: str
    num_unk: int


def token_type(vocab_size: int) -> pa.DataType:
    """Arrow type of a token: uint16 if and only if every id fits into it, else int32."""
    return pa.uint16() if vocab_size <= MAX_UINT16_VOCAB else pa.int32()


def write_shard(
    path: str, ids: Iterable[Ids], *, vocabulary_fingerprint: str, vocab_size: int, source: str
) -> WrittenShard:
    """Publishes a token shard.

    Its bytes are a function of the sequence of tokens and of the keyword arguments, not of how `ids` is cut: every
    record batch but the last holds 2^20 tokens. Takes memory for one batch and one array of `ids`.

    Args:
        path: where the shard appears, whole or not at all.
        ids: arrays of word ids, integers in [0, vocab_size); none at all make an empty shard.
        vocabulary_fingerprint: goes into the schema's metadata.
        vocab_size: decides the type of the column.
        source: the range of the input that the shard holds; goes into the schema's metadata.

    Returns:
        the receipt; the digest is taken while writing.
    """
    schema = _schema(vocab_size=vocab_size, vocabulary_fingerprint=vocabulary_fingerprint, source=source)
    num_tokens = num_unk = 0
    with storage.publish(path, shared=True) as file:
        sink = storage.DigestingFile(file)
        with pa.ipc.new_file(sink, schema) as writer:
            for tokens in _rechunk(ids, vocab_size=vocab_size):
                column = pa.Array.from_buffers(schema.field(0).type, len(tokens), [None, pa.py_buffer(tokens)])
                writer.write_batch(pa.record_batch([column], schema=schema))
                num_tokens += len(tokens)
                num_unk += int(np.count_nonzero(tokens == UNK))
    return WrittenShard(num_tokens, size_bytes=sink.tell(), sha256=sink.sha256(), num_unk=num_unk)


def _schema(*, vocab_size: int, vocabulary_fingerprint: str, source: str) -> pa.Schema:
    return pa.schema(
        [pa.field("token", token_type(vocab_size), nullable=False)],
        metadata={"vocabulary_fingerprint": vocabulary_fingerprint, "source": source},
    )


def _rechunk(ids: Iterable[Ids], *, vocab_size: int) -> Iterator[Ids]:
    """The same tokens in the shard's type, 2^20 at a time and at last the rest; each array is valid until the next."""
    buffer = np.empty(BATCH_TOKENS, dtype=token_type(vocab_size).to_pandas_dtype())
    filled = 0
    for array in ids:
        assert not len(array) or (array.min() >= 0 and array.max() < vocab_size), "an id beyond the vocabulary"
        start = 0
        while start < len(array):
            stop = min(start + BATCH_TOKENS - filled, len(array))
            buffer[filled : filled + stop - start] = array[start:stop]
            filled += stop - start
            start = stop
            if filled == BATCH_TOKENS:
                yield buffer
                filled = 0
    if filled:
        yield buffer[:filled]


def is_token_shard(path: str) -> bool:
    """Whether a file says of itself that it is a token shard."""
    try:
        with storage.open_read(path) as file, pa.ipc.open_file(file) as reader:
            schema = reader.schema
    except (OSError, pa.ArrowException):
        return False
    return schema.names == ["token"] and b"vocabulary_fingerprint" in (schema.metadata or {})


def check_counts(data: str, manifest: Manifest, vocabulary: Vocabulary) -> list[str]:
    """Counts every token, and compares with what the manifest and the vocabulary count.

    Args:
        data: the corpus folder.
        manifest: its manifest.
        vocabulary: its vocabulary.

    Returns:
        one line for each count that differs: of `<unk>` in a split, or of the words in train.

    Raises:
        CorpusError: a shard is missing, truncated or not the manifest's.
    """
    problems = []
    for name, split in manifest.splits.items():
        counts = _count(data, split.shards, vocabulary)
        if counts[UNK] != split.num_unk:
            problems.append(f"{name}: found {UNK_WORD} {counts[UNK]} times, the manifest counts {split.num_unk}")
        if name == "train" and (counts != vocabulary.counts).any():
            first = int(np.flatnonzero(counts != vocabulary.counts)[0])
            found = f"found {vocabulary.words[first].as_py()} {counts[first]} times"
            problems.append(f"{name}: {found}, {VOCABULARY_NAME} counts {vocabulary.counts[first]}")
    return problems


def _count(data: str, shards: Sequence[Shard], vocabulary: Vocabulary) -> npt.NDArray[np.int64]:
    """How often each id stands in shards: int64 [vocab_size]."""
    counts = np.zeros(vocabulary.size, dtype=np.int64)
    waiting: list[npt.NDArray[np.int64]] = []
    for index, shard in enumerate(shards, 1):
        tokens = TokenSequence(
            data, shards=[shard], vocabulary_fingerprint=vocabulary.fingerprint, vocab_size=vocabulary.size
        ).read(0, shard.num_tokens)
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocabulary.size:
            raise CorpusError(f"token shard {shard.name} holds an id beyond {vocabulary.size} words; {MEND}")
        waiting.append(tokens)
        if index == len(shards) or sum(map(len, waiting)) >= COUNTED_TOKENS:  # each count looks at the whole vocabulary
            counts += np.bincount(np.concatenate(waiting), minlength=vocabulary.size)
            waiting = []
    return counts


class TokenSequence:
    """All shards of a split as one sequence of tokens.

    Local shards are memory-mapped where they lie, others from this machine's cache, or without one read into memory;
    each when it is first read from. The ones that were read from last stay open.
    """

    def __init__(
        self,
        data: str,
        *,
        shards: Sequence[Shard],
        vocabulary_fingerprint: str,
        vocab_size: int,
        cache: ShardCache | None = None,
        most_open: int = MOST_OPEN,
    ) -> None:
        """Takes what the manifest says; opens nothing yet.

        Args:
            data: the corpus folder.
            shards: the shards of the split, in order.
            vocabulary_fingerprint: what each shard's metadata must carry.
            vocab_size: decides the type that each shard must have.
            cache: of a remote corpus; a shard beyond whose end is read makes room there.
            most_open: shards at once.
        """
        self._data = data
        self._shards = tuple(shards)
        self._fingerprint = vocabulary_fingerprint
        self._type = token_type(vocab_size)
        self._starts = list(accumulate((shard.num_tokens for shard in self._shards), initial=0))
        self._opened: dict[int, _OpenShard] = {}  # the one that was read from last at the end
        self._cache, self._most_open = cache, most_open
        if cache is not None:
            cache.on_release(self.close)

    def __len__(self) -> int:
        """Number of tokens."""
        return self._starts[-1]

    def close(self) -> None:
        """Lets go of all shards; the next read opens those that it needs."""
        self._opened.clear()

    def end(self) -> None:
        """Lets go of all shards, for good: a cache no longer knows of it."""
        self.close()
        if self._cache is not None:
            self._cache.off_release(self.close)

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Tokens [start, stop) of the sequence, across every joint, as a copy: int64 [stop - start].

        Raises:
            CorpusError: a shard is missing, truncated or not the manifest's.
            ConfigError: a remote shard cannot be fetched or kept.
        """
        assert 0 <= start <= stop <= len(self), f"[{start}, {stop}) is not within [0, {len(self)})"
        found, filled = np.empty(stop - start, dtype=np.int64), 0
        for index, first, last in _parts(self._starts, start, stop):
            self._copy(index, first, last, found[filled : filled + last - first])
            filled += last - first
            if self._cache is not None and filled < len(found):  # where it ends, the next read begins with its last
                self._opened.pop(index, None)
                self._cache.leave(self._shards[index])
        return found

    def _copy(self, index: int, first: int, last: int, out: npt.NDArray[np.int64]) -> None:
        """Copies tokens of one shard; a function of its own, so that no view is left of a shard that is let go of."""
        batches, starts = self._open(index)
        filled = 0
        for number, begin, end in _parts(starts, first, last):
            out[filled : filled + end - begin] = batches[number][begin:end]
            filled += end - begin

    def _open(self, index: int) -> _OpenShard:
        found = self._opened.pop(index, None) or _open_shard(
            self._data, self._shards[index], fingerprint=self._fingerprint, type_=self._type, cache=self._cache
        )
        self._opened[index] = found
        for stale in list(self._opened)[: -self._most_open]:
            self._opened.pop(stale, None)
        return found


def _parts(starts: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """The pieces of a sequence that make up [start, stop) of it: the number of each, and the range within it.

    Those that hold nothing are left out.

    Args:
        starts: where each piece begins, and the last ends.
        start: the first place.
        stop: the end of the range, exclusive.
    """
    index = bisect_right(starts, start) - 1
    while start < stop:
        end = min(stop, starts[index + 1])
        if start < end:
            yield index, start - starts[index], end - starts[index]
        start, index = end, index + 1


def _open_shard(
    data: str, shard: Shard, *, fingerprint: str, type_: pa.DataType, cache: ShardCache | None
) -> _OpenShard:
    """Opens a shard and compares it with the manifest."""
    path = storage.join(data, shard.name)
    try:
        schema, batches = _read_batches(path if cache is None else cache.open(shard))
    except (OSError, pa.ArrowException) as error:
        raise CorpusError(f"token shard {path} cannot be read ({reason_of(error)}); {MEND}") from error
    expected = pa.field("token", type_, nullable=False)
    if not (len(schema) == 1 and schema.field(0).equals(expected)):
        raise CorpusError(f"token shard {path} holds {_fields(schema)}, needed {_fields([expected])}; {MEND}")
    found = (schema.metadata or {}).get(b"vocabulary_fingerprint", b"none").decode(errors="backslashreplace")
    if found != fingerprint:
        raise CorpusError(f"token shard {path} has vocabulary fingerprint {found!r}, needed {fingerprint!r}; {MEND}")
    if any(batch.column(0).null_count for batch in batches):
        raise CorpusError(f"token shard {path} holds nulls, needed none; {MEND}")
    dtype = type_.to_pandas_dtype()  # numpy's; `to_numpy` would load pandas, which takes 0.2 s
    views: list[Ids] = [np.from_dlpack(batch.column(0)).view(dtype) for batch in batches]
    starts = list(accumulate(map(len, views), initial=0))
    if starts[-1] != shard.num_tokens:
        raise CorpusError(f"token shard {path} holds {starts[-1]} tokens, needed {shard.num_tokens}; {MEND}")
    return views, starts


def _read_batches(place: str | pa.Buffer) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    """Schema and record batches of an Arrow file: of its memory map if it lies on this machine.

    The batches keep the map; the file itself is closed, as a process may have few of them open.
    """
    if isinstance(place, str) and storage.is_local(place):
        source = pa.memory_map(storage.resolve(place)[1])
    else:
        source = pa.BufferReader(storage.read_bytes(place) if isinstance(place, str) else place)
    with source, pa.ipc.open_file(source) as reader:
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate()  # whether the buffers are as long as the header says
        return reader.schema, batches


def _fields(schema: Iterable[pa.Field]) -> str:
    return ", ".join(str(field) for field in schema) or "no column"
