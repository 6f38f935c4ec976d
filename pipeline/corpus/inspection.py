"""What a prepared corpus holds, in numbers and in words.

In: the corpus folder, local or in an object store. Out: its words by count, what the first of them cover, the first
windows as words, and what of the held-out splits stands in train. Refuses a corpus that is not what its manifest says.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.corpus.arrays import as_arrow
from pipeline.corpus.duplicates import Duplicates, find_duplicates
from pipeline.corpus.lanes import LanePlan
from pipeline.corpus.manifest import Manifest, Shard, read_manifest, verify_corpus
from pipeline.corpus.stream import read_window
from pipeline.corpus.tokens import TokenSequence
from pipeline.corpus.units import SPLITS
from pipeline.corpus.vocabulary import MEND, Vocabulary
from pipeline.errors import CorpusError

TRAIN = "train"
CUTOFFS = (2_000, 10_000, 50_000)  # of which the coverage is told
BLOCK_TOKENS = 1 << 20  # read at a time
NUM_EXAMPLES = 3

Ids = npt.NDArray[np.integer]
Counts = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]
Row = dict[str, str | int | float]  # of a chart


@dataclass(frozen=True, kw_only=True)
class CountedWord:
    """A word, its id and how often it stands in train."""

    id: int
    word: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How many tokens of train are among the first words of the vocabulary."""

    num_words: int
    num_tokens: int
    share: float


@dataclass(frozen=True, kw_only=True)
class WordWindow:
    """A window of one lane: the word before each target, and the targets."""

    inputs: list[str]
    targets: list[str]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a corpus holds.

    Attributes:
        manifest: of the corpus, train first.
        vocabulary: its words and their counts in train.
        most_frequent: words, by falling count.
        least_frequent: words of train, by rising count.
        num_once: words that stand in train once.
        num_never: words that do not stand in train.
        coverage: of the words below each cutoff, and of all; empty without a count.
        duplicates: of each held-out split; empty without train.
        examples: lines of these splits that stand in train, as words, by split.
        windows: the first ones of train that lane 0 reads, in the order of the text.
    """

    manifest: Manifest
    vocabulary: Vocabulary
    most_frequent: list[CountedWord]
    least_frequent: list[CountedWord]
    num_once: int
    num_never: int
    coverage: list[Coverage]
    duplicates: dict[str, Duplicates]
    examples: dict[str, list[list[str]]]
    windows: list[WordWindow]


def inspect_corpus(
    data: str,
    *,
    num_words: int,
    num_windows: int,
    bptt: int,
    min_words: int,
    progress: Progress = lambda num_tokens, total: None,
) -> Inspection:
    """Reads a corpus: the digest of every shard, then the tokens.

    Args:
        data: the corpus folder.
        num_words: most and least frequent words, each.
        num_windows: first windows.
        bptt: tokens of a window.
        min_words: words other than `<unk>` that a held-out line must hold to be looked for in train.
        progress: told of each block of train how many tokens it has, and how many there will be in all.

    Raises:
        CorpusError: there is no manifest; the vocabulary or a shard is not the manifest's.
    """
    manifest = _ordered(read_manifest(data))
    vocabulary = verify_corpus(data, manifest, digests=True)
    counts = vocabulary.counts
    order = by_count(counts)
    present = order[counts[order] > 0]
    duplicates = _duplicates(data, manifest, min_words=min_words, progress=progress)
    return Inspection(
        manifest=manifest,
        vocabulary=vocabulary,
        most_frequent=_counted_words(vocabulary, order[:num_words]),
        least_frequent=_counted_words(vocabulary, present[::-1][:num_words]),
        num_once=int(np.count_nonzero(counts == 1)),
        num_never=int(np.count_nonzero(counts[2:] == 0)),
        coverage=coverage(counts),
        duplicates=duplicates,
        examples={
            split: [words_of(vocabulary, np.array(ids)) for ids in found.examples]
            for split, found in duplicates.items()
        },
        windows=_first_windows(data, manifest, vocabulary, num_windows=num_windows, bptt=bptt),
    )


def _ordered(manifest: Manifest) -> Manifest:
    """The manifest, which holds its splits in the order of their names, with train, valid and test first."""
    names = sorted(manifest.splits, key=lambda name: (*SPLITS, name).index(name))
    return manifest.model_copy(update={"splits": {name: manifest.splits[name] for name in names}})


def by_count(counts: Counts) -> npt.NDArray[np.int64]:
    """The ids by falling count, of equal ones the lower first. In a vocabulary of prepare's own this is the order of
    the ids but for `<eos>` and `<unk>`."""
    return np.argsort(-counts, kind="stable")


def coverage(counts: Counts) -> list[Coverage]:
    """What the words below each cutoff cover, and all words; nothing where nothing is counted.

    Args:
        counts: of each word in train, in the order of ids.
    """
    total = int(counts.sum())
    cutoffs = [each for each in CUTOFFS if each < len(counts)]
    covered = [(cutoff, int(counts[:cutoff].sum())) for cutoff in (*cutoffs, len(counts))]
    return [Coverage(num_words=of, num_tokens=found, share=found / total) for of, found in covered if total]


def rank_rows(counts: Counts, *, most: int) -> list[Row]:
    """The curves of a vocabulary, at ranks that are even on a logarithmic axis.

    Args:
        counts: of each word in train, in the order of ids.
        most: rows, about.

    Returns:
        rows with `rank`, from 1; `count`, of the word at that rank by count, left out where it is 0; and `share`, of
        the tokens that the first so many words of the vocabulary cover.
    """
    ranks = np.unique(np.geomspace(1, len(counts), most).round().astype(np.int64))
    ranked = counts[by_count(counts)][ranks - 1]
    covered = np.cumsum(counts)[ranks - 1]
    total = max(int(counts.sum()), 1)
    return [
        {"rank": rank, "share": found / total, **({"count": count} if count else {})}
        for rank, count, found in zip(ranks.tolist(), ranked.tolist(), covered.tolist(), strict=True)
    ]


def words_of(vocabulary: Vocabulary, ids: Ids) -> list[str]:
    """Words by their ids."""
    words: list[str] = vocabulary.words.take(as_arrow(ids.astype(np.int64))).to_pylist()
    return words


def _counted_words(vocabulary: Vocabulary, ids: npt.NDArray[np.int64]) -> list[CountedWord]:
    words = words_of(vocabulary, ids)
    counts = vocabulary.counts[ids].tolist()
    return [
        CountedWord(id=id_, word=word, count=count)
        for id_, word, count in zip(ids.tolist(), words, counts, strict=True)
    ]


def _first_windows(
    data: str, manifest: Manifest, vocabulary: Vocabulary, *, num_windows: int, bptt: int
) -> list[WordWindow]:
    """Lane 0 begins where train does, so its first windows are the same for any number of lanes."""
    tokens = _sequence(data, manifest.splits[TRAIN].shards if TRAIN in manifest.splits else (), manifest)
    if not len(tokens):
        return []
    plan = LanePlan(num_targets=len(tokens), num_lanes=1, bptt=bptt)
    windows = [read_window(tokens, plan, step=step, lanes=[0]) for step in range(min(num_windows, plan.num_windows))]
    return [
        WordWindow(inputs=words_of(vocabulary, each.inputs_TL[:, 0]), targets=words_of(vocabulary, each.targets_N))
        for each in windows
    ]


def _duplicates(data: str, manifest: Manifest, *, min_words: int, progress: Progress) -> dict[str, Duplicates]:
    """Lines of each held-out split that stand in train."""
    if TRAIN not in manifest.splits:
        return {}
    train = manifest.splits[TRAIN]
    total = 0

    def read_train() -> Iterator[Ids]:
        nonlocal total
        total += train.num_tokens
        for block in _blocks(data, train.shards, manifest):
            yield block
            progress(len(block), total)

    return find_duplicates(
        {name: _blocks(data, split.shards, manifest) for name, split in manifest.splits.items() if name != TRAIN},
        read_train,
        vocab_size=manifest.vocab_size,
        min_words=min_words,
        num_examples=NUM_EXAMPLES,
    )


def _blocks(data: str, shards: Sequence[Shard], manifest: Manifest) -> Iterator[Ids]:
    """The tokens of a split, in order; one shard is open at a time.

    Raises:
        CorpusError: an id is beyond the vocabulary.
    """
    for shard in shards:
        tokens = _sequence(data, [shard], manifest)
        for start in range(0, len(tokens), BLOCK_TOKENS):
            block = tokens.read(start, min(start + BLOCK_TOKENS, len(tokens)))
            if not 0 <= block.min() <= block.max() < manifest.vocab_size:
                raise CorpusError(f"token shard {shard.name} holds an id beyond {manifest.vocab_size} words; {MEND}")
            yield block


def _sequence(data: str, shards: Sequence[Shard], manifest: Manifest) -> TokenSequence:
    return TokenSequence(
        data,
        shards=shards,
        vocabulary_fingerprint=manifest.vocabulary_fingerprint,
        vocab_size=manifest.vocab_size,
    )
