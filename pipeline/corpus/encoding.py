"""Token shards: which there are to be, which of them are there, and how one is made.

In: work units with what reading them left, and the vocabulary. Out: token shards, each of one unit or of several that
share it, and their receipts. Refuses: a unit whose words were not kept and whose text changed since it was counted.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.config import CorpusConfig
from pipeline.corpus.arrays import as_numpy
from pipeline.corpus.blocks import read_blocks
from pipeline.corpus.folder import kept_paths, receipt_name, shard_name
from pipeline.corpus.keys import hashed, unit_key
from pipeline.corpus.merging import MadeVocabulary
from pipeline.corpus.phases import Phases
from pipeline.corpus.readers.reader import changed
from pipeline.corpus.reading import COUNTS, Counted, digest_after, held, ids_path, ids_type, observed
from pipeline.corpus.receipts import is_whole, read_receipt, write_receipt
from pipeline.corpus.text import split_words
from pipeline.corpus.tokens import Ids, WrittenShard, write_shard
from pipeline.corpus.units import SPLITS, WorkUnit
from pipeline.corpus.word_ids import WordIds, word_ids

READ_WORDS = 1 << 20  # of the numbered ones, at a time


class KeptIdsError(Exception):
    """What is kept of a unit's words is not what its receipt says; its text is there to be read again.

    Attributes:
        key: of the unit.
    """

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


@dataclass(frozen=True)
class Part:
    """A unit within a shard, and what reading it left in the work folder."""

    unit: WorkUnit
    counted: Counted


@dataclass(frozen=True)
class PlannedShard:
    """A token shard that the corpus is to have: its parts, its name, and the key of what it is made of."""

    split: str
    parts: tuple[Part, ...]
    name: str  # path below the corpus folder
    key: str

    @property
    def receipt(self) -> str:
        """Path of its receipt below the corpus folder."""
        return receipt_name(self.name)

    @property
    def source(self) -> str:
        """The range of the input that it holds, for people."""
        first, last = self.parts[0].unit.name, self.parts[-1].unit.name
        return first if len(self.parts) == 1 else f"{first} to {last}, {len(self.parts)} parts"

    @property
    def size_bytes(self) -> int:
        """Of the input, 0 if not known."""
        return sum(part.unit.size_bytes for part in self.parts)

    @property
    def num_words(self) -> int:
        """Of its text, which are its tokens."""
        return sum(part.counted.num_words for part in self.parts)

    @property
    def unit(self) -> WorkUnit | None:
        """What is told of the only part when it fails; None of several, whose errors name their files."""
        return self.parts[0].unit if len(self.parts) == 1 else None


@dataclass(frozen=True)
class ShardReceipt:
    """A token shard: the key of what it was made of, and what it turned out to be."""

    key: str
    num_tokens: int
    size_bytes: int
    sha256: str
    num_unk: int
    num_replacement_chars: int
    num_nul_bytes: int
    num_null_rows: int


def plan_shards(
    units: Sequence[WorkUnit], counted: Sequence[Counted], vocabulary: MadeVocabulary, *, shard_tokens: int | None
) -> list[PlannedShard]:
    """The shards of all splits, numbered within each.

    Args:
        units: of all splits, in their order.
        counted: what reading them left.
        vocabulary: that they are encoded by.
        shard_tokens: units share a shard until it has so many tokens; None: one for each unit.
    """
    planned = []
    for split in SPLITS:
        parts = [Part(unit, each) for unit, each in zip(units, counted, strict=True) if unit.split == split]
        for number, shared in enumerate(_shared(parts, shard_tokens)):
            made_of = [[part.counted.key, part.unit.name] for part in shared]
            # one unit has the key that it had before shards could be shared
            content = made_of if len(made_of) > 1 else made_of[0][:1]
            name = [] if len(made_of) > 1 else made_of[0][1:]
            key = hashed([*content, vocabulary.fingerprint, vocabulary.size, *name])
            planned.append(PlannedShard(split, tuple(shared), shard_name(split, number), key))
    return planned


def _shared(parts: Sequence[Part], shard_tokens: int | None) -> Iterator[list[Part]]:
    """Parts that follow one another, until they have so many tokens."""
    shared: list[Part] = []
    num_tokens = 0
    for part in parts:
        shared.append(part)
        num_tokens += part.counted.num_words
        if shard_tokens is None or num_tokens >= shard_tokens:
            yield shared
            shared, num_tokens = [], 0
    if shared:
        yield shared


def sound_shards(planned: Sequence[PlannedShard], data: str, *, run: Phases) -> dict[PlannedShard, ShardReceipt]:
    """Those of the shards that need not be made: of the same key, and just what their receipts say.

    Args:
        planned: all shards.
        data: the corpus folder.
        run: runs the tasks.
    """
    found = ((shard, read_receipt(storage.join(data, shard.receipt), ShardReceipt)) for shard in planned)
    candidates = [(shard, receipt) for shard, receipt in found if receipt is not None and receipt.key == shard.key]
    sound = run("check", partial(is_sound, data=data), candidates, num_bytes=lambda item: item[1].size_bytes)
    return {shard: receipt for (shard, receipt), good in zip(candidates, sound, strict=True) if good}


def is_sound(item: tuple[PlannedShard, ShardReceipt], *, data: str) -> bool:
    """Whether the shard is there and has the receipt's digest."""
    shard, receipt = item
    return is_whole(storage.join(data, shard.name), sha256=receipt.sha256)


def encode_shards(
    shards: Sequence[PlannedShard], vocabulary: MadeVocabulary, corpus: CorpusConfig, data: str, *, run: Phases
) -> dict[PlannedShard, ShardReceipt]:
    """Makes token shards.

    Args:
        shards: those to make.
        vocabulary: which words have an id.
        corpus: how the units are read.
        data: the corpus folder.
        run: runs the tasks.

    Returns:
        what each turned out to be.
    """
    receipts = run(
        "encode",
        partial(encode_shard, vocabulary=vocabulary, corpus=corpus, data=data),
        shards,
        num_bytes=lambda shard: shard.size_bytes,
        num_words=lambda receipt: receipt.num_tokens,
    )
    return dict(zip(shards, receipts, strict=True))


def encode_shard(shard: PlannedShard, *, vocabulary: MadeVocabulary, corpus: CorpusConfig, data: str) -> ShardReceipt:
    """Publishes a token shard, then its receipt.

    Args:
        shard: the units, and where their tokens go.
        vocabulary: which words have an id.
        corpus: how the units are read, where their words were not kept.
        data: the corpus folder.

    Raises:
        CorpusError: the bytes of a unit that is read are no longer those that were counted.
    """
    ids_of = word_ids(vocabulary, data)
    from_text = {part.counted.key for part in shard.parts if part.counted.ids_sha256 is None}

    def tokens() -> Iterator[Ids]:
        for part in shard.parts:
            if part.counted.key in from_text:
                yield from _encoded(part, vocabulary=ids_of, corpus=corpus)
            else:
                yield from _remapped(part, vocabulary=ids_of, data=data)

    write = partial(
        write_shard,
        storage.join(data, shard.name),
        vocabulary_fingerprint=vocabulary.fingerprint,
        vocab_size=vocabulary.size,
        source=shard.source,
    )
    written: WrittenShard | None = None
    while written is None:
        try:
            written = write(tokens())
        except KeptIdsError as damaged:
            from_text.add(damaged.key)
            storage.remove(kept_paths(data, COUNTS, damaged.key)[1])  # so that a rerun reads the unit, and keeps them
    tallies = [part.counted for part in shard.parts]
    receipt = ShardReceipt(
        shard.key,
        written.num_tokens,
        written.size_bytes,
        written.sha256,
        written.num_unk,
        num_replacement_chars=sum(each.num_replacement_chars for each in tallies),
        num_nul_bytes=sum(each.num_nul_bytes for each in tallies),
        num_null_rows=sum(each.num_null_rows for each in tallies),
    )
    write_receipt(storage.join(data, shard.receipt), receipt)
    return receipt


def _remapped(part: Part, *, vocabulary: WordIds, data: str) -> Iterator[Ids]:
    """The tokens of a unit, from its numbered words: each distinct word of a run is looked up once.

    Raises:
        KeptIdsError: the numbered words, or the words that they stand for, are not whole.
    """
    counted, tables_path = part.counted, kept_paths(data, COUNTS, part.counted.key)[0]
    if not is_whole(tables_path, sha256=counted.sha256) or not storage.exists(ids_path(data, counted.key)):
        raise KeptIdsError(counted.key)
    digest = hashlib.sha256()
    with (
        storage.open_read(tables_path, ahead=False) as tables_file,
        pa.ipc.open_file(tables_file) as tables,
        storage.open_read(ids_path(data, counted.key)) as file,
    ):
        for number, num_words in enumerate(counted.words_of_runs):
            distinct = tables.get_batch(number).column(0)
            ids = vocabulary.find(distinct)
            row_type = ids_type(len(distinct))
            for start in range(0, num_words, READ_WORDS):
                content = file.read(min(READ_WORDS, num_words - start) * row_type.itemsize)
                digest.update(content)
                rows = np.frombuffer(content, row_type)
                if len(rows) and rows.max() >= len(ids):
                    raise KeptIdsError(counted.key)
                yield ids[rows]
    if digest.hexdigest() != counted.ids_sha256:
        raise KeptIdsError(counted.key)


def _encoded(part: Part, *, vocabulary: WordIds, corpus: CorpusConfig) -> Iterator[Ids]:
    """The tokens of a unit, from its text.

    Raises:
        CorpusError: the unit's bytes are no longer those that were counted.
    """
    units, digest = observed(held([part.unit], corpus))
    for block in read_blocks(units[0], corpus):
        words = split_words(block, words=corpus.words, lowercase=corpus.lowercase).dictionary_encode()
        yield vocabulary.find(words.dictionary)[as_numpy(words.indices, np.int32)]
    if unit_key(part.unit, corpus, digest=digest_after(digest, units[0], corpus)) != part.counted.key:
        raise changed(part.unit)
