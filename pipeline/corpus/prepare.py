"""Prepares a corpus: sources → work units → counts → vocabulary → token shards → manifest.

In: `CorpusConfig`, the corpus folder, and what runs tasks. Out: the corpus folder and its manifest.
Refuses: what `sources` refuses; a split that was asked for and came out empty; input that changes while it is read.

    list        what to read, cut into units                              sources.py
    read        the one pass: each unit's key, counts and numbered words  reading.py
    merge       count tables → ranges of words → vocabulary               merging.py
    check       which shards are there already and sound                  encoding.py
    encode      numbered words → token shards, each with a receipt        encoding.py
    manifest    written last; removed before the first shard of a changed corpus is replaced

Everything that a phase leaves behind is published whole under a name or with a key that says what it was made of, and
nothing else: so a rerun, also after a kill, does what is missing, and neither workers nor their order leave a trace.
This process holds names, receipts and sums; text, counts and tokens are in tasks alone. A task's memory is bounded by
its blocks, its count table, and, where the vocabulary is made, by the vocabulary.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pipeline import __version__, storage
from pipeline.config import CorpusConfig, VocabularyConfig
from pipeline.corpus.encoding import PlannedShard, ShardReceipt, encode_shards, plan_shards, sound_shards
from pipeline.corpus.folder import LOCK_NAME, WORK, check_folder, check_sources, kept_paths, reserved, shard_files
from pipeline.corpus.manifest import (
    VOCABULARY_NAME,
    Manifest,
    Shard,
    Split,
    read_manifest,
    remove_manifest,
    write_manifest,
)
from pipeline.corpus.merging import VOCABULARY, MadeVocabulary, index_path, merge_vocabulary
from pipeline.corpus.phases import NoProgress, Phases, Progress, RunTasks
from pipeline.corpus.reading import COUNTS, Counted, ids_path, read_units
from pipeline.corpus.sources import cut_units, list_bystanders, list_sources
from pipeline.corpus.units import SPLITS, Source, WorkUnit, printable
from pipeline.corpus.vocabulary import EOS_WORD, UNK_WORD, given_vocabulary
from pipeline.errors import ConfigError, CorpusError
from pipeline.masking import masked_tree

NUM_NAMED_FILES = 3
LIST_TASKS = 256  # at most, some: a file is looked at in a moment, and there may be very many


def prepare(
    corpus: CorpusConfig,
    data: str,
    *,
    run_tasks: RunTasks,
    keep_ids: bool = True,
    progress: Progress | None = None,
    extensions: Sequence[str] = (),
    sources: Sequence[Source] | None = None,
) -> Manifest:
    """Prepares the corpus folder `data`, doing only what is not there yet.

    Args:
        corpus: what to read and what a word is.
        data: the corpus folder, local or in an object store; made if need be.
        run_tasks: runs a function over items, in any order and on any number of workers.
        keep_ids: whether the words of the text stay in the work folder as numbers, which take about half the text's
            room, so that another vocabulary reads no text; else shards are made of the text, read a second time.
        progress: receives reports of phases and tasks.
        extensions: modules that the processes of tasks import first, since they add text formats.
        sources: what `check_inputs` has just given for this; None: it is called.

    Returns:
        the manifest, as it was written or, if nothing had changed, as it was found.

    Raises:
        CorpusError: the input is missing, empty or damaged, or changes while it is read.
        ConfigError: the vocabulary's size leaves no room for a word; the folder is not one to prepare in, or another
            process does.
    """
    if sources is None:
        sources = check_inputs(corpus, data)
    with reserved(data):
        run = Phases(run_tasks, progress or NoProgress(), tuple(extensions))
        return _prepare(sources, corpus, data, keep_ids=keep_ids, run=run)


def check_inputs(corpus: CorpusConfig, data: str) -> list[Source]:
    """Refuses what can be refused before anything is started or written.

    Args:
        corpus: what to read and what a word is.
        data: the corpus folder.

    Returns:
        the files, or splits of a data set, that the configuration names.

    Raises:
        CorpusError: the input is missing or empty.
        ConfigError: the folder is not one to prepare in.
    """
    check_given_vocabulary(corpus.vocabulary)
    check_folder(data, corpus)
    sources = list_sources(corpus)
    check_sources(data, corpus, sources)
    return sources


def _prepare(sources: Sequence[Source], corpus: CorpusConfig, data: str, *, keep_ids: bool, run: Phases) -> Manifest:
    units = _list(sources, corpus, run=run)
    counted = read_units(units, corpus, data, keep_ids=keep_ids, run=run)
    _refuse_empty_splits(units, counted, corpus)
    train = [each for unit, each in zip(units, counted, strict=True) if unit.split == "train"]
    vocabulary = merge_vocabulary(train, corpus.vocabulary, data, run=run)
    planned = plan_shards(units, counted, vocabulary, shard_tokens=corpus.shard_tokens)
    receipts = sound_shards(planned, data, run=run)
    missing = [shard for shard in planned if shard not in receipts]
    if not missing:
        manifest = _manifest(planned, receipts, vocabulary, corpus)
        if _is_published(manifest, vocabulary, data):
            _remove_stale(planned, vocabulary, data, keep_ids=keep_ids)
            run.progress.note(f"unchanged: all {len(planned)} shards are kept")
            return manifest
    if len(missing) < len(planned):
        run.progress.note(f"{len(planned) - len(missing)} of {len(planned)} shards are kept")
    remove_manifest(data)
    _publish_vocabulary(vocabulary, data)
    receipts |= encode_shards(missing, vocabulary, corpus, data, run=run)
    manifest = _manifest(planned, receipts, vocabulary, corpus)
    _check_sizes(manifest, data)
    _remove_stale(planned, vocabulary, data, keep_ids=keep_ids)
    write_manifest(manifest, data)
    return manifest


# --- what to read ---


def check_given_vocabulary(vocabulary: VocabularyConfig) -> None:
    """Checks the vocabulary that the configuration names, if it names one, before any text is read.

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


def _list(sources: Sequence[Source], corpus: CorpusConfig, *, run: Phases) -> list[WorkUnit]:
    """The units of all splits in their order."""
    _note_bystanders(list_bystanders(sources, corpus), run=run)
    num_together = 1 + len(sources) // LIST_TASKS
    batches = [Batch(tuple(sources[at : at + num_together])) for at in range(0, len(sources), num_together)]
    found = run("list", partial(_cut_all, corpus=corpus), batches)
    units = [unit for each in found for unit in each]
    return sorted(units, key=lambda unit: SPLITS.index(unit.split))  # stable: the order of sources stays


@dataclass(frozen=True)
class Batch:
    """Sources that one task looks at."""

    sources: tuple[Source, ...]

    @property
    def unit(self) -> Source | None:
        """What is told of the only source when it fails."""
        return self.sources[0] if len(self.sources) == 1 else None


def _cut_all(batch: Batch, *, corpus: CorpusConfig) -> list[WorkUnit]:
    return [unit for source in batch.sources for unit in cut_units(source, corpus)]


def _note_bystanders(paths: Sequence[str], *, run: Phases) -> None:
    if paths:
        named = ", ".join(map(printable, paths[:NUM_NAMED_FILES]))
        more = f" and {len(paths) - NUM_NAMED_FILES} more" if len(paths) > NUM_NAMED_FILES else ""
        run.progress.note(f"read as text like the rest: {named}{more}; to leave them out, name the others by a glob")


def _refuse_empty_splits(units: Sequence[WorkUnit], counted: Sequence[Counted], corpus: CorpusConfig) -> None:
    with_text = {unit.split for unit, each in zip(units, counted, strict=True) if each.has_text}
    for split in SPLITS:
        if split not in with_text and _is_asked(split, corpus):
            raise CorpusError(_empty_split(split, corpus))


def _is_asked(split: str, corpus: CorpusConfig) -> bool:
    return getattr(corpus, split) is not None or _fractions(corpus)[split] > 0


def _fractions(corpus: CorpusConfig) -> dict[str, float]:
    return {"train": 0.0, "valid": corpus.valid_fraction, "test": corpus.test_fraction}


def _empty_split(split: str, corpus: CorpusConfig) -> str:
    """What to say of a split that was asked for and got no text."""
    fractions = _fractions(corpus)
    if fractions[split] == 0 and not (split == "train" and sum(fractions.values()) > 0):
        rows = f" in corpus.text_column={corpus.text_column}" if corpus.null_rows == "skip" else ""
        return (
            f"corpus.{split}={', '.join(getattr(corpus, split))} holds no text{rows}; give text or corpus.{split}=null"
        )
    share = 1 - sum(fractions.values()) if split == "train" else fractions[split]
    lines = "corpus.documents=lines or " if corpus.source == "files" and corpus.documents == "files" else ""
    return f"the {split} split, a share of {share:g}, got none of train's documents; use {lines}other fractions"


# --- what is published ---


def _publish_vocabulary(vocabulary: MadeVocabulary, data: str) -> None:
    target = storage.join(data, VOCABULARY_NAME)
    with storage.open_read(kept_paths(data, VOCABULARY, vocabulary.key)[0]) as made, storage.publish(target) as file:
        shutil.copyfileobj(made, file)


def _manifest(
    planned: Sequence[PlannedShard],
    receipts: Mapping[PlannedShard, ShardReceipt],
    vocabulary: MadeVocabulary,
    corpus: CorpusConfig,
) -> Manifest:
    splits = {}
    for split in SPLITS:
        made = [(shard, receipts[shard]) for shard in planned if shard.split == split]
        if made:
            splits[split] = Split(
                shards=tuple(
                    Shard(
                        name=shard.name,
                        num_tokens=receipt.num_tokens,
                        size_bytes=receipt.size_bytes,
                        sha256=receipt.sha256,
                        source=shard.source,
                    )
                    for shard, receipt in made
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
        configuration=masked_tree(corpus.model_dump(mode="json")),
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
    for name, split in manifest.splits.items():
        sizes = storage.sizes_below(storage.join(data, name))
        for shard in split.shards:
            path = storage.join(data, shard.name)
            found = sizes.get(shard.name.removeprefix(f"{name}/"))
            if found != shard.size_bytes:
                raise CorpusError(f"{path} has {found} bytes, needed {shard.size_bytes}: who changed it? prepare again")


def _remove_stale(planned: Sequence[PlannedShard], vocabulary: MadeVocabulary, data: str, *, keep_ids: bool) -> None:
    """Removes what an earlier, other corpus left in the folder; what is not named as a shard is the user's own."""
    shards = [storage.join(data, shard.name) for shard in planned]
    _remove_others([path for split in SPLITS for path in shard_files(data, split)], keep=shards)
    kept = [storage.join(data, WORK, LOCK_NAME), *(storage.join(data, shard.receipt) for shard in planned)]
    keys = {part.counted.key for shard in planned for part in shard.parts}
    kept += [path for key in keys for path in kept_paths(data, COUNTS, key)]
    kept += [ids_path(data, key) for key in keys if keep_ids]
    kept += [*kept_paths(data, VOCABULARY, vocabulary.key), index_path(data, vocabulary.key)]
    _remove_others(storage.list_files(storage.join(data, WORK)), keep=kept)


def _remove_others(paths: Sequence[str], *, keep: Sequence[str]) -> None:
    kept = {storage.resolve(path)[1] for path in keep}
    for path in paths:
        if storage.resolve(path)[1] not in kept:
            storage.remove(path)
