"""The index of a prepared corpus: which shards make up each split, and what they must be.

In: what the writers of shards report. Out: `manifest.json`, written last; and the checks of a corpus against it.
Refuses: a corpus without a manifest, a manifest of another shape, shards and vocabularies that are not the manifest's.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Self

from pydantic import AfterValidator, Field, JsonValue, ValidationError, model_validator

from pipeline import storage
from pipeline.config import Count, Section
from pipeline.corpus.vocabulary import MEND, Vocabulary, read_vocabulary
from pipeline.errors import CorpusError
from pipeline.upgrades import upgraded_manifest

MANIFEST_NAME = "manifest.json"
VOCABULARY_NAME = "vocabulary.arrow"
NUM_NAMED_PROBLEMS = 3
SIZES_AT_ONCE = 64  # by a thread: handing out each alone would take longer than the answers

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def _within(name: str) -> str:
    if name.startswith("/") or ".." in name.split("/") or "::" in name or "://" in name or "\0" in name:
        raise ValueError(f"{name} leads out of the corpus folder")
    return name


Name = Annotated[str, Field(min_length=1), AfterValidator(_within)]


class Shard(Section):
    """One token shard.

    Attributes:
        name: path below the corpus folder, such as `train/00000.arrow`.
        num_tokens: tokens in it; 0 is allowed.
        size_bytes: size of the file.
        sha256: digest of the file, 64 hexadecimal digits.
        source: the range of the input that it holds, for people.
    """

    name: Name
    num_tokens: Count
    size_bytes: Count
    sha256: Digest
    source: str


class Split(Section):
    """The shards of one split in the order of the text, with their sums.

    Attributes:
        shards: in the order of the text.
        num_tokens: tokens in them.
        num_unk: of these, `<unk>`.
        num_replacement_chars: U+FFFD in the text, there before or put in for bytes that are no UTF-8; None: not known.
        num_nul_bytes: NUL in the text; None: not known.
        num_null_rows: rows without text that were passed over; None: not known.
    """

    shards: tuple[Shard, ...]
    num_tokens: Count
    num_unk: Count
    num_replacement_chars: Count | None = None
    num_nul_bytes: Count | None = None
    num_null_rows: Count | None = None

    @model_validator(mode="after")
    def _sums_agree(self) -> Self:
        found = sum(shard.num_tokens for shard in self.shards)
        if found != self.num_tokens:
            raise ValueError(f"num_tokens is {self.num_tokens}, but the shards hold {found}")
        if self.num_unk > self.num_tokens:
            raise ValueError(f"num_unk is {self.num_unk}, more than num_tokens, {self.num_tokens}")
        return self

    @property
    def oov_rate(self) -> float:
        """Share of `<unk>` among the tokens, line ends included; 0 for a split without tokens."""
        return self.num_unk / self.num_tokens if self.num_tokens else 0.0


class Manifest(Section):
    """What a prepared corpus consists of.

    Attributes:
        splits: by name (`train`, `valid`, `test`).
        vocab_size: words of `vocabulary.arrow`, `<eos>` and `<unk>` included.
        vocabulary_fingerprint: that of `vocabulary.arrow`, of its words in order.
        vocabulary_sha256: digest of that file, so of its counts too; None in a corpus that an earlier version prepared.
        configuration: the section of the configuration that the corpus was prepared with.
        tool_version: version of wordlanes that prepared it.
        fingerprint: sha256 of what defines the token sequences: vocabulary, and shards' digests and token counts in
            order. Neither where the corpus lies nor the names of its shards count. A file of an earlier version does
            not say it; then it is computed. What a file says is believed until digests are checked.
    """

    splits: dict[Name, Split]
    vocab_size: Annotated[int, Field(ge=3)]
    vocabulary_fingerprint: Digest
    vocabulary_sha256: Digest | None = None
    configuration: dict[str, JsonValue]
    tool_version: str
    fingerprint: Digest = Field(default_factory=lambda made: _fingerprint(**made))

    def only(self, split: str) -> "Manifest":
        """The manifest of a corpus that has one of the splits alone."""
        found = self.model_copy(update={"splits": {split: self.splits[split]}})
        return found.model_copy(update={"fingerprint": found.computed_fingerprint()})

    def computed_fingerprint(self) -> str:
        """What the fingerprint must be."""
        return _fingerprint(splits=self.splits, vocabulary_fingerprint=self.vocabulary_fingerprint)

    def shards_of(self, *splits: str) -> list[Shard]:
        """The shards of those of some splits that the corpus has."""
        return [shard for name in splits if name in self.splits for shard in self.splits[name].shards]


def _fingerprint(*, splits: Mapping[str, Split], vocabulary_fingerprint: str, **_others: object) -> str:
    shards = {name: [[shard.sha256, shard.num_tokens] for shard in split.shards] for name, split in splits.items()}
    content = {"vocabulary": vocabulary_fingerprint, "splits": shards}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_manifest(manifest: Manifest, data: str) -> None:
    """Publishes `manifest.json` in the corpus folder `data`. It comes last: it is what makes a corpus of the files."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False)
    storage.publish_bytes(storage.join(data, MANIFEST_NAME), f"{text}\n".encode())


def read_manifest(data: str) -> Manifest:
    """The manifest of the corpus folder `data`.

    Raises:
        CorpusError: there is none, so no corpus either; or it is damaged or of another shape.
    """
    path = storage.join(data, MANIFEST_NAME)
    try:
        return Manifest.model_validate_json(_upgraded(storage.read_bytes(path)))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorpusError(
            f"data={data} holds no {MANIFEST_NAME}; prepare the corpus with `python -m jobs prepare`, or mend the path"
        ) from error
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror}); mend it, or {MEND}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise CorpusError(f"{path} is no manifest: {place}: {first['msg']}; {MEND}") from error


def _upgraded(text: bytes) -> bytes:
    """The manifest with the keys that came later; what is no JSON object is left for the schema to refuse."""
    try:
        tree = json.loads(text)
        if not isinstance(tree, dict) or (upgraded := upgraded_manifest(tree)) == tree:
            return text
        return json.dumps(upgraded).encode()
    except (ValueError, RecursionError):
        return text


def remove_manifest(data: str) -> None:
    """Removes the manifest, if there is one, before the first shard of a changed corpus is replaced."""
    storage.remove(storage.join(data, MANIFEST_NAME))


def check_shards(data: str, manifest: Manifest, *, digests: bool) -> list[str]:
    """What is wrong with the shards of a corpus. As many are checked at once as there are cores.

    Args:
        data: the corpus folder.
        manifest: its manifest.
        digests: whether each shard is read and its sha256 compared; sizes are compared always.

    Returns:
        one line per bad shard, in the order of the manifest; empty if all is well.
    """
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    place = storage.resolve(data)[1] if storage.is_local(data) else data
    size = 1 if digests else SIZES_AT_ONCE
    parts = [shards[start : start + size] for start in range(0, len(shards), size)]

    def check(part: Sequence[Shard]) -> list[str | None]:
        return [_problem(place, shard, digest=digests) for shard in part]

    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:  # neither sha256 nor a disk holds the interpreter's lock
        return [problem for part in threads.map(check, parts) for problem in part if problem is not None]


def check_vocabulary(data: str, manifest: Manifest) -> Vocabulary:
    """The vocabulary of a corpus.

    Raises:
        CorpusError: it is missing, damaged or not the manifest's.
    """
    path = storage.join(data, VOCABULARY_NAME)
    vocabulary = read_vocabulary(path)
    if (vocabulary.fingerprint, vocabulary.size) != (manifest.vocabulary_fingerprint, manifest.vocab_size):
        raise CorpusError(
            f"{path} is not the vocabulary of the manifest: found {vocabulary.size} words, {vocabulary.fingerprint}, "
            f"needed {manifest.vocab_size} words, {manifest.vocabulary_fingerprint}; {MEND}"
        )
    found = storage.sha256(path)
    if manifest.vocabulary_sha256 not in (None, found):
        raise CorpusError(
            f"{path} has other counts than the manifest's: found sha256 {found}, needed {manifest.vocabulary_sha256};"
            f" {MEND}"
        )
    return vocabulary


def check_fingerprint(data: str, manifest: Manifest) -> None:
    """Refuses a manifest whose fingerprint is not that of its shards.

    Raises:
        CorpusError: names both.
    """
    needed = manifest.computed_fingerprint()
    if manifest.fingerprint != needed:
        raise CorpusError(
            f"{storage.join(data, MANIFEST_NAME)} does not have the fingerprint of its shards: found"
            f" {manifest.fingerprint}, needed {needed}; {MEND}"
        )


def verify_corpus(data: str, manifest: Manifest, *, digests: bool) -> Vocabulary:
    """Checks a corpus against its manifest: vocabulary and shards.

    Args:
        data: the corpus folder.
        manifest: its manifest.
        digests: whether the fingerprint is computed anew, and each shard is read and its sha256 compared; sizes
            are compared always.

    Returns:
        the vocabulary, since it has been read.

    Raises:
        CorpusError: names the fingerprint or the first bad shards, with what was found and what is needed.
    """
    vocabulary = check_vocabulary(data, manifest)
    if digests:
        check_fingerprint(data, manifest)
    problems = check_shards(data, manifest, digests=digests)
    if problems:
        named = "; ".join(problems[:NUM_NAMED_PROBLEMS])
        more = f"; and {len(problems) - NUM_NAMED_PROBLEMS} more" if len(problems) > NUM_NAMED_PROBLEMS else ""
        raise CorpusError(f"data={data} has {len(problems)} bad token shard(s): {named}{more}; {MEND}")
    return vocabulary


def _problem(data: str, shard: Shard, *, digest: bool) -> str | None:
    """One line on what is wrong with a shard, None if nothing is."""
    path = storage.join(data, shard.name)
    try:
        size_bytes = os.stat(path).st_size if data.startswith("/") else storage.size_bytes(path)  # noqa: PTH116
        if size_bytes != shard.size_bytes:
            return f"{shard.name}: found {size_bytes} bytes, needed {shard.size_bytes}"
        if digest and (found := storage.sha256(path)) != shard.sha256:
            return f"{shard.name}: found sha256 {found}, needed {shard.sha256}"
    except FileNotFoundError:
        return f"{shard.name}: found no file, needed {shard.size_bytes} bytes"
    except OSError as error:
        return f"{shard.name}: cannot be read ({error})"
    return None
