"""No manifest, no corpus; and what does not match the manifest is refused by name."""

import hashlib
import json
import re

import numpy as np
import pytest
from pydantic import ValidationError
from support.vocabularies import count_words, cut_vocabulary, write_vocabulary

from pipeline.corpus import manifest as module
from pipeline.corpus.manifest import (
    Manifest,
    Shard,
    Split,
    check_shards,
    check_vocabulary,
    read_manifest,
    remove_manifest,
    verify_corpus,
    write_manifest,
)
from pipeline.corpus.text import split_words
from pipeline.corpus.tokens import write_shard
from pipeline.corpus.vocabulary import Vocabulary, read_vocabulary
from pipeline.errors import CorpusError
from pipeline.upgrades import CONFIGURATION

DIGEST = "0123456789abcdef" * 4


# which a manifest gets as it is read, unless it has them
LATER_KEYS = {
    key.removeprefix("corpus."): value for key, value in CONFIGURATION.items() if re.match(r"corpus\.\w+$", key)
}


def shard(**changes):
    return Shard(
        **({"name": "train/00000.arrow", "num_tokens": 5, "size_bytes": 9, "sha256": DIGEST, "source": "a"} | changes)
    )


def manifest(**changes):
    fields = {
        "splits": {"train": Split(shards=(shard(),), num_tokens=5, num_unk=2)},
        "vocab_size": 7,
        "vocabulary_fingerprint": DIGEST,
        "configuration": {**LATER_KEYS, "words": "whitespace", "nested": {"size": None, "list": [1, 2.5]}},
        "tool_version": "0.1.0",
    }
    return Manifest(**(fields | changes))


@pytest.fixture
def corpus(tmp_path):
    """A corpus of four shards on disk, and its manifest."""
    data = tmp_path / "corpus"
    words = split_words(b"a b a c\n", words="whitespace", lowercase=False)
    vocabulary = cut_vocabulary(count_words(words), size=None, min_count=1)
    write_vocabulary(vocabulary, str(data / "vocabulary.arrow"))
    splits = {}
    for split, numbers in {"train": [0, 1, 2], "valid": [0]}.items():
        shards = []
        for number in numbers:
            name = f"{split}/{number:05}.arrow"
            receipt = write_shard(
                str(data / name),
                [np.arange(100 + number) % vocabulary.size],
                vocabulary_fingerprint=vocabulary.fingerprint,
                vocab_size=vocabulary.size,
                source="",
            )
            shards.append(
                shard(
                    name=name,
                    num_tokens=receipt.num_tokens,
                    size_bytes=receipt.size_bytes,
                    sha256=receipt.sha256,
                )
            )
        splits[split] = Split(shards=tuple(shards), num_tokens=sum(each.num_tokens for each in shards), num_unk=0)
    write_manifest(
        manifest(splits=splits, vocab_size=vocabulary.size, vocabulary_fingerprint=vocabulary.fingerprint), str(data)
    )
    return data


def problems(data, *, digests):
    return check_shards(str(data), read_manifest(str(data)), digests=digests)


def verify(data, *, digests=False):
    verify_corpus(str(data), read_manifest(str(data)), digests=digests)


# --- the file


def test_a_manifest_comes_back_from_its_file(tmp_path):
    write_manifest(manifest(), str(tmp_path / "new"))
    assert read_manifest(str(tmp_path / "new")) == manifest()
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["manifest.json"]


def test_the_file_does_not_depend_on_the_order_of_keys(tmp_path):
    one = Split(shards=(shard(),), num_tokens=5, num_unk=2)
    for name, keys in [("a", ["train", "ä"]), ("b", ["ä", "train"])]:
        write_manifest(manifest(splits=dict.fromkeys(keys, one)), str(tmp_path / name))
    text = (tmp_path / "a" / "manifest.json").read_text(encoding="utf-8")
    assert text == (tmp_path / "b" / "manifest.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert '\n  "configuration": {\n' in text
    assert '"ä"' in text


def test_no_manifest_no_corpus(tmp_path):
    (tmp_path / "file").touch()
    for data in [tmp_path, tmp_path / "absent", tmp_path / "file"]:
        with pytest.raises(CorpusError, match=r"^data=.* holds no manifest\.json; .*`python -m jobs prepare`"):
            read_manifest(str(data))


def test_a_removed_manifest_is_gone(tmp_path):
    write_manifest(manifest(), str(tmp_path))
    remove_manifest(str(tmp_path))
    remove_manifest(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mend", "message"),
    [
        (lambda content: content.update(vocab_size="7"), "vocab_size: Input should be a valid integer"),
        (lambda content: content.update(vocab_size=2), "vocab_size: "),
        (lambda content: content.update(extra=1), "extra: Extra inputs are not permitted"),
        (lambda content: content.pop("tool_version"), "tool_version: Field required"),
        (lambda content: content.update(vocabulary_fingerprint="0" * 63), "vocabulary_fingerprint: "),
        (lambda content: content["splits"]["train"].update(num_tokens=4), "num_tokens is 4, but the shards hold 5"),
        (lambda content: content["splits"]["train"].update(num_unk=6), "num_unk is 6, more than num_tokens, 5"),
        (lambda content: content["splits"]["train"].update(num_unk=-1), "splits.train.num_unk: "),
        (lambda content: content["splits"]["train"]["shards"][0].pop("sha256"), "splits.train.shards.0.sha256: Field"),
        (lambda content: content["splits"]["train"]["shards"][0].update(name=""), "splits.train.shards.0.name: "),
        (lambda content: content["splits"]["train"]["shards"][0].update(name="../x"), "../x leads out of the corpus"),
        (lambda content: content["splits"]["train"]["shards"][0].update(name="a/../../x"), "leads out of the corpus"),
        (lambda content: content["splits"]["train"]["shards"][0].update(name="/x"), "/x leads out of the corpus"),
        (lambda content: content["splits"]["train"]["shards"][0].update(name="x/.."), "x/.. leads out of the corpus"),
        (lambda content: content["splits"]["train"]["shards"][0].update(name="s3://x"), "s3://x leads out of the"),
        (lambda content: content["splits"]["train"]["shards"][0].update(name="a::b"), "a::b leads out of the corpus"),
        (lambda content: content.update(vocabulary_sha256="0" * 63), "vocabulary_sha256: "),
    ],
)
def test_a_manifest_of_another_shape_is_refused(tmp_path, mend, message):
    content = manifest().model_dump(mode="json")
    mend(content)
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(CorpusError, match=r"manifest\.json is no manifest: ") as refusal:
        read_manifest(str(tmp_path))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_brackets_within_brackets_are_refused_in_one_line(tmp_path):
    for depth in [100, *range(880, 1000), 100_000]:  # what Python reads and cannot write depends on the stack
        (tmp_path / "manifest.json").write_text('{"configuration": ' + '{"a": ' * depth + "1" + "}" * depth + "}")
        with pytest.raises(CorpusError, match=r"is no manifest: .*jobs prepare"):
            read_manifest(str(tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\x00", '{"splits": {}}', "9" * 5000, "[" * 5000])
def test_malformed_json_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(CorpusError, match=r"is no manifest: .*jobs prepare") as refusal:
        read_manifest(str(tmp_path))
    assert "\n" not in str(refusal.value)


def test_a_manifest_is_frozen():
    with pytest.raises(ValidationError):
        manifest().vocab_size = 8


# --- what it says


def test_oov_rate_is_the_share_of_unk():
    assert Split(shards=(shard(),), num_tokens=5, num_unk=2).oov_rate == 0.4
    assert Split(shards=(), num_tokens=0, num_unk=0).oov_rate == 0.0
    assert Split(shards=(shard(),), num_tokens=5, num_unk=5).oov_rate == 1.0


def test_the_fingerprint_is_of_the_tokens_and_not_of_the_place():
    other = DIGEST[::-1]

    def fingerprint(*shards, names=("train",), **changes):
        num_tokens = sum(each.num_tokens for each in shards)
        split = Split(shards=shards, num_tokens=num_tokens, num_unk=0)
        return manifest(splits=dict.fromkeys(names, split), **changes).fingerprint

    base = fingerprint(shard(), shard(sha256=other))
    assert base == fingerprint(shard(name="x", source="y", size_bytes=3), shard(sha256=other), tool_version="9")
    assert base == fingerprint(shard(), shard(sha256=other), configuration={})
    assert fingerprint(shard(), names=("a", "b")) == fingerprint(shard(), names=("b", "a"))
    changed = [
        fingerprint(shard(sha256=other), shard()),
        fingerprint(shard()),
        fingerprint(shard(num_tokens=6), shard(sha256=other)),
        fingerprint(shard(), shard(sha256=other), names=("valid",)),
        fingerprint(shard(), shard(sha256=other), vocabulary_fingerprint=other),
        fingerprint(shard(), shard(sha256=other), names=("train", "valid")),
    ]
    assert len({base, *changed}) == len(changed) + 1


def test_the_fingerprint_is_kept_in_the_file_and_not_computed_as_it_is_read(tmp_path, monkeypatch):
    made = manifest()
    write_manifest(made, str(tmp_path))
    assert json.loads((tmp_path / "manifest.json").read_text())["fingerprint"] == made.fingerprint
    monkeypatch.setattr(module, "_fingerprint", None)
    assert read_manifest(str(tmp_path)).fingerprint == made.fingerprint


def test_a_manifest_of_before_gets_its_fingerprint_and_is_equal_to_the_one_made_anew(tmp_path):
    made = manifest()
    tree = made.model_dump(mode="json")
    del tree["fingerprint"]
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    assert read_manifest(str(tmp_path)) == made
    assert made.fingerprint == "4b2b68c5a1249113cb79b8ba4b9f36e4bacab6278c12d9e90c082c9f28eeef11"


def test_a_split_alone_has_a_fingerprint_of_its_own():
    one = Split(shards=(shard(),), num_tokens=5, num_unk=2)
    both = manifest(splits={"train": one, "valid": one})
    assert both.only("train") == manifest(splits={"train": one})
    assert both.only("train").fingerprint != both.fingerprint


@pytest.mark.parametrize("fingerprint", [None, 7, "0" * 63])
def test_a_fingerprint_that_is_none_is_refused(tmp_path, fingerprint):
    (tmp_path / "manifest.json").write_text(
        json.dumps(manifest().model_dump(mode="json") | {"fingerprint": fingerprint})
    )
    with pytest.raises(
        CorpusError, match=r"manifest\.json is no manifest: fingerprint: .*; run `python -m jobs prepare`"
    ):
        read_manifest(str(tmp_path))


def test_a_fingerprint_that_is_not_that_of_the_shards_is_refused_where_digests_are_checked(corpus):
    true = read_manifest(str(corpus)).fingerprint
    tree = json.loads((corpus / "manifest.json").read_text()) | {"fingerprint": DIGEST}
    (corpus / "manifest.json").write_text(json.dumps(tree))
    verify(corpus)  # of sizes alone
    with pytest.raises(CorpusError) as refusal:
        verify(corpus, digests=True)
    assert str(refusal.value) == (
        f"{corpus}/manifest.json does not have the fingerprint of its shards: found {DIGEST}, needed {true};"
        " run `python -m jobs prepare` again"
    )


@pytest.mark.parametrize("what", ["sha256", "num_tokens"])
def test_a_shard_that_was_exchanged_in_the_manifest_is_found_by_the_fingerprint(corpus, what):
    tree = json.loads((corpus / "manifest.json").read_text())
    first, second = tree["splits"]["train"]["shards"][:2]
    first[what], second[what] = second[what], first[what]
    (corpus / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(CorpusError, match="does not have the fingerprint of its shards"):
        verify(corpus, digests=True)


# --- the checks


def test_a_whole_corpus_passes(corpus):
    assert problems(corpus, digests=True) == []
    verify(corpus, digests=True)
    assert check_vocabulary(str(corpus), read_manifest(str(corpus))).words.to_pylist()[2:] == ["a", "b", "c"]


def test_a_flipped_bit_is_found_by_digests_alone(corpus):
    path = corpus / "train" / "00001.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert problems(corpus, digests=False) == []
    verify(corpus, digests=False)
    (problem,) = problems(corpus, digests=True)
    needed = read_manifest(str(corpus)).splits["train"].shards[1].sha256
    assert problem.startswith("train/00001.arrow: found sha256 ")
    assert problem.endswith(f"needed {needed}")
    assert problem.count(needed) == 1
    with pytest.raises(CorpusError, match=r"has 1 bad token shard\(s\): train/00001.arrow: found sha256"):
        verify(corpus, digests=True)


def test_a_shard_that_grew_is_found_by_its_size(corpus):
    path = corpus / "valid" / "00000.arrow"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"x")
    assert problems(corpus, digests=False) == [f"valid/00000.arrow: found {size + 1} bytes, needed {size}"]


@pytest.mark.parametrize("digests", [False, True])
def test_wrong_sizes_and_missing_files_are_listed_in_order(corpus, digests):
    (corpus / "valid" / "00000.arrow").unlink()
    path = corpus / "train" / "00002.arrow"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    missing = read_manifest(str(corpus)).splits["valid"].shards[0].size_bytes
    assert problems(corpus, digests=digests) == [
        f"train/00002.arrow: found {size - 1} bytes, needed {size}",
        f"valid/00000.arrow: found no file, needed {missing} bytes",
    ]


def test_a_shard_that_cannot_be_read_is_a_problem_too(corpus):
    path = corpus / "train" / "00002.arrow"
    path.unlink()
    path.mkdir()
    whole = read_manifest(str(corpus))
    folder = whole.splits["train"].shards[2].model_copy(update={"size_bytes": path.stat().st_size})
    split = Split(shards=(folder,), num_tokens=folder.num_tokens, num_unk=0)
    found = check_shards(str(corpus), whole.model_copy(update={"splits": {"t": split}}), digests=True)
    assert len(found) == 1
    assert found[0].startswith("train/00002.arrow: cannot be read (")


def test_names_with_dots_within_are_taken(tmp_path):
    name = "train/a..b/.c./...x.arrow"
    split = Split(shards=(shard(name=name),), num_tokens=5, num_unk=0)
    write_manifest(manifest(splits={"train": split}), str(tmp_path))
    assert read_manifest(str(tmp_path)).splits["train"].shards[0].name == name


@pytest.mark.parametrize("at_once", [1, 2, 3, 64])
def test_each_shard_is_looked_at_however_many_a_thread_takes(corpus, monkeypatch, at_once):
    monkeypatch.setattr(module, "SIZES_AT_ONCE", at_once)
    for name in ("train/00000.arrow", "train/00002.arrow", "valid/00000.arrow"):
        (corpus / name).unlink()
    found = [problem.partition(":")[0] for problem in problems(corpus, digests=False)]
    assert found == ["train/00000.arrow", "train/00002.arrow", "valid/00000.arrow"]
    monkeypatch.chdir(corpus.parent)
    assert (
        problems(corpus.name, digests=False)
        == problems(f"file://{corpus}", digests=False)
        == problems(corpus, digests=False)
    )


@pytest.mark.parametrize(("num_bad", "more"), [(1, ""), (3, ""), (4, "; and 1 more")])
def test_the_refusal_names_the_first_bad_shards(corpus, num_bad, more):
    names = ["train/00000.arrow", "train/00001.arrow", "train/00002.arrow", "valid/00000.arrow"]
    for name in names[:num_bad]:
        (corpus / name).unlink()
    with pytest.raises(CorpusError) as refusal:
        verify(corpus)
    message = str(refusal.value)
    assert message.startswith(f"data={corpus} has {num_bad} bad token shard(s): train/00000.arrow: found no file")
    assert message.endswith(f"bytes{more}; run `python -m jobs prepare` again")
    assert [name for name in names if name in message] == names[: min(num_bad, 3)]


def test_another_vocabulary_is_refused(corpus):
    vocabulary = cut_vocabulary(
        count_words(split_words(b"a a a b b d", words="whitespace", lowercase=False)), size=None, min_count=1
    )
    write_vocabulary(vocabulary, str(corpus / "vocabulary.arrow"))
    with pytest.raises(
        CorpusError, match=r"vocabulary\.arrow is not the vocabulary of the manifest: found 5 words, .*"
    ):
        verify(corpus)
    (corpus / "vocabulary.arrow").unlink()
    with pytest.raises(CorpusError, match=r"vocabulary\.arrow is no readable vocabulary"):
        verify(corpus)


def test_a_flipped_bit_in_the_counts_is_found_by_the_digest_of_the_file(corpus):
    path = corpus / "vocabulary.arrow"
    whole = read_manifest(str(corpus))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    write_manifest(whole.model_copy(update={"vocabulary_sha256": digest}), str(corpus))
    verify(corpus)
    vocabulary = read_vocabulary(str(path))
    write_vocabulary(Vocabulary(words=vocabulary.words, counts=vocabulary.counts ^ [0, 1 << 20, 0, 0, 0]), str(path))
    needed = rf"vocabulary\.arrow has other counts than the manifest's: found sha256 [0-9a-f]+, needed {digest}; run "
    with pytest.raises(CorpusError, match=needed):
        verify(corpus)
    assert read_manifest(str(corpus)).fingerprint == whole.fingerprint


def test_a_corpus_of_before_has_no_digest_of_its_vocabulary(corpus):
    content = json.loads((corpus / "manifest.json").read_text())
    del content["vocabulary_sha256"]
    (corpus / "manifest.json").write_text(json.dumps(content))
    verify(corpus, digests=True)
    assert read_manifest(str(corpus)).vocabulary_sha256 is None


def test_a_vocabulary_of_another_size_than_the_manifest_says_is_refused(corpus):
    whole = read_manifest(str(corpus))
    write_manifest(whole.model_copy(update={"vocab_size": whole.vocab_size + 1}), str(corpus))
    with pytest.raises(CorpusError, match=r"found 5 words, .* needed 6 words"):
        verify(corpus)


def test_verification_needs_a_manifest(corpus):
    remove_manifest(str(corpus))
    with pytest.raises(CorpusError, match=r"holds no manifest\.json"):
        verify(corpus)


def test_a_manifest_of_the_demo_of_before_is_read(tmp_path):
    """It named the packages that its text was made of, and a source that prepare made itself."""
    made = manifest(configuration={**LATER_KEYS, "source": "python_docs"})
    tree = {**made.model_dump(mode="json"), "versions": {"python": "3.11.7"}}
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    assert read_manifest(str(tmp_path)) == made
