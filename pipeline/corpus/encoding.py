"""Token shards: which there are to be, which of them are there, and how one is made.

In: work units with their keys, and the vocabulary. Out: a token shard for each unit, and its receipt. Refuses: a unit
that changed since it was counted.
"""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial

from pipeline import storage
from pipeline.config import CorpusConfig
from pipeline.corpus.blocks import read_blocks
from pipeline.corpus.folder import kept_paths, receipt_name, shard_name
from pipeline.corpus.keys import Digested, hashed, refuse_changed
from pipeline.corpus.merging import VOCABULARY, MadeVocabulary
from pipeline.corpus.phases import Phases
from pipeline.corpus.readers.reader import Tally
from pipeline.corpus.receipts import is_whole, read_receipt, write_receipt
from pipeline.corpus.text import split_words
from pipeline.corpus.tokens import write_shard
from pipeline.corpus.units import SPLITS, WorkUnit
from pipeline.corpus.vocabulary import Vocabulary, read_vocabulary


@dataclass(frozen=True)
class PlannedShard:
    """A token shard that the corpus is to have: of which unit, under which name, and the key of what it is made of."""

    unit: WorkUnit
    unit_key: str
    name: str  # path below the corpus folder
    key: str

    @property
    def receipt(self) -> str:
        """Path of its receipt below the corpus folder."""
        return receipt_name(self.name)


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
    units: Sequence[WorkUnit], digested: Sequence[Digested], vocabulary: MadeVocabulary
) -> list[PlannedShard]:
    """A shard for each unit, numbered within its split.

    Args:
        units: of all splits, in their order.
        digested: their keys.
        vocabulary: that they are encoded by.
    """
    numbers = {split: itertools.count() for split in SPLITS}
    return [
        PlannedShard(
            unit,
            each.key,
            shard_name(unit.split, next(numbers[unit.split])),
            key=hashed([each.key, vocabulary.fingerprint, vocabulary.size, unit.name]),
        )
        for unit, each in zip(units, digested, strict=True)
    ]


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
        partial(encode_unit, vocabulary=vocabulary, corpus=corpus, data=data),
        shards,
        num_bytes=lambda shard: shard.unit.size_bytes,
        num_words=lambda receipt: receipt.num_tokens,
    )
    return dict(zip(shards, receipts, strict=True))


def encode_unit(shard: PlannedShard, *, vocabulary: MadeVocabulary, corpus: CorpusConfig, data: str) -> ShardReceipt:
    """Publishes the token shard of a unit, then its receipt.

    Args:
        shard: the unit, and where its tokens go.
        vocabulary: which words have an id.
        corpus: how the unit is read.
        data: the corpus folder.

    Raises:
        CorpusError: the unit's bytes are no longer those that were counted.
    """
    words = _vocabulary(kept_paths(data, VOCABULARY, vocabulary.key)[0], vocabulary.fingerprint)
    tally = Tally()
    blocks = read_blocks(shard.unit, corpus, tally)
    written = write_shard(
        storage.join(data, shard.name),
        (words.encode(split_words(block, words=corpus.words, lowercase=corpus.lowercase)) for block in blocks),
        vocabulary_fingerprint=vocabulary.fingerprint,
        vocab_size=vocabulary.size,
        source=shard.unit.name,
    )
    refuse_changed(shard.unit, corpus, key=shard.unit_key)
    receipt = ShardReceipt(
        shard.key, written.num_tokens, written.size_bytes, written.sha256, written.num_unk, **asdict(tally)
    )
    write_receipt(storage.join(data, shard.receipt), receipt)
    return receipt


@lru_cache(maxsize=1)
def _vocabulary(path: str, fingerprint: str) -> Vocabulary:
    """The vocabulary, read once in a process."""
    found = read_vocabulary(path)
    assert found.fingerprint == fingerprint, path
    return found
