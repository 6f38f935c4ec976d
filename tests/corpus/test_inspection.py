"""What a corpus holds, as plain Python counts it in the text."""

import json
from collections import Counter
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import config, words

from pipeline.cluster.tasks import run_here
from pipeline.corpus import inspection, tokens
from pipeline.corpus.inspection import coverage, inspect_corpus, rank_rows
from pipeline.corpus.manifest import read_manifest
from pipeline.corpus.prepare import prepare
from pipeline.errors import CorpusError

SIZE = 40


@pytest.fixture
def heard(texts, tmp_path):
    """Validation text of which every third line stands in train."""
    lines = [line for number in range(3) for line in (texts / f"{number}.txt").read_text().splitlines(keepends=True)]
    (tmp_path / "valid.txt").write_text("".join(lines[::3]) + words(7, 50))
    return texts


def inspected(data, **changes):
    return inspect_corpus(str(data), **{"num_words": 5, "num_windows": 3, "bptt": 7, "min_words": 3} | changes)


def prepared(texts, data, **changes):
    prepare(config(texts, **changes), str(data), run_tasks=run_here)
    return data


def as_read(text, vocabulary):
    """The words of a text as a model reads them."""
    known = {*vocabulary, "<eos>"}
    return [each if each in known else "<unk>" for line in text.splitlines() for each in (*line.split(), "<eos>")]


@pytest.mark.parametrize("block_tokens", [50, 1 << 20])
def test_everything_is_as_plain_python_counts_it(heard, tmp_path, monkeypatch, block_tokens):
    monkeypatch.setattr(inspection, "CUTOFFS", (3, 10, 50))
    monkeypatch.setattr(inspection, "BLOCK_TOKENS", block_tokens)
    vocabulary = {"size": SIZE, "min_count": 1, "path": None}
    found = inspected(prepared(heard, tmp_path / "data", vocabulary=vocabulary))
    assert len(found.manifest.splits["train"].shards) > 3
    train_text = "".join((heard / f"{number}.txt").read_text() for number in range(3))
    ranked = sorted(Counter(train_text.split()).items(), key=lambda each: (-each[1], each[0].encode()))[: SIZE - 2]
    train, valid = (
        as_read(each, {word for word, _ in ranked}) for each in (train_text, (tmp_path / "valid.txt").read_text())
    )
    counts = Counter(train)
    in_order = [(0, "<eos>"), (1, "<unk>"), *enumerate((word for word, _ in ranked), 2)]
    by_count = sorted(((id_, word, counts[word]) for id_, word in in_order), key=lambda each: (-each[2], each[0]))
    assert [*map(astuple, found.most_frequent)] == by_count[:5]
    assert [*map(astuple, found.least_frequent)] == by_count[::-1][:5]
    assert (found.num_once, found.num_never) == (sum(count == 1 for *_, count in by_count), 0)
    covered = [sum(counts[word] for _, word in in_order[:first]) for first in (3, 10, SIZE)]
    assert [*map(astuple, found.coverage)] == [
        (first, each, each / len(train)) for first, each in zip((3, 10, SIZE), covered, strict=True)
    ]
    lines = {"train": [], "valid": []}
    for split, told in (("train", train), ("valid", valid)):
        for line in " ".join(told).split("<eos>")[:-1]:
            lines[split].append(tuple(line.split()))
    compared = [line for line in lines["valid"] if len(line) - line.count("<unk>") >= 3]
    both = [line for line in compared if line in set(lines["train"])]
    assert len(both) > 50
    assert {**vars(found.duplicates["valid"]), "examples": None} == {
        "num_lines": len(lines["valid"]),
        "num_words": sum(map(len, lines["valid"])),
        "num_compared": len(compared),
        "num_duplicates": len(both),
        "num_without_unk": sum("<unk>" not in line for line in both),
        "num_duplicate_words": sum(map(len, both)),
        "examples": None,
    }
    examples = [tuple(each) for each in found.examples["valid"]]
    assert len({*examples} & {*both}) == 3
    sure = [line for line in both if "<unk>" not in line]
    assert [*map(len, examples)] == sorted(map(len, {*sure}), reverse=True)[:3]
    assert [each.targets for each in found.windows] == [train[:7], train[7:14], train[14:21]]
    assert [each.inputs for each in found.windows] == [["<eos>", *train[:6]], train[6:13], train[13:20]]


def test_a_given_vocabulary_is_covered_in_its_own_order(texts, tmp_path, monkeypatch):
    """Ids are what cutoffs divide; most and least frequent are by count."""
    monkeypatch.setattr(inspection, "CUTOFFS", (3,))
    (tmp_path / "words.txt").write_text("w2\nnever\nw1\nw3\n")
    found = inspected(
        prepared(texts, tmp_path / "data", vocabulary={"size": None, "min_count": 1, "path": f"{tmp_path}/words.txt"})
    )
    train = "".join((texts / f"{number}.txt").read_text() for number in range(3))
    counts = Counter(as_read(train, {"w1", "w2", "w3"}))
    assert (found.num_never, found.num_once, len(found.least_frequent)) == (1, 0, 5)
    assert min(counts.values()) > 1
    assert [each.word for each in found.most_frequent] == [word for word, _ in counts.most_common()]
    assert [each.word for each in found.least_frequent] == [word for word, _ in counts.most_common()][::-1]
    assert found.coverage[0].num_tokens == counts["<eos>"] + counts["<unk>"] + counts["w2"]
    assert [row.get("count") for row in rank_rows(found.vocabulary.counts, most=50)] == [
        *sorted(counts.values(), reverse=True),
        None,
    ]


def test_a_corpus_without_train_has_no_coverage_and_nothing_to_compare_with(texts, tmp_path):
    (tmp_path / "words.txt").write_text("w2\nw1\n")
    vocabulary = {"size": None, "min_count": 1, "path": f"{tmp_path}/words.txt"}
    found = inspected(prepared(texts, tmp_path / "data", train=None, vocabulary=vocabulary))
    assert [*found.manifest.splits] == ["valid"]
    assert (found.coverage, found.duplicates, found.windows, found.num_never) == ([], {}, [], 2)
    assert found.least_frequent == []


def test_lines_across_shards_are_whole_and_splits_come_in_their_order(make_corpus):
    one, many = (inspected(make_corpus(f"{shards}", shards=shards), min_words=1) for shards in (1, 13))
    assert one.duplicates == many.duplicates
    assert one.windows == many.windows
    assert [*one.manifest.splits] == ["train", "valid", "test"]
    assert one.duplicates["valid"].num_lines == -(-150 // 11)


def test_a_window_beyond_the_end_is_not_there(make_corpus):
    found = inspected(make_corpus(train=20), bptt=15, num_windows=9)
    assert [len(each.targets) for each in found.windows] == [15, 7]


def test_progress_is_told_for_every_token_of_train(make_corpus, monkeypatch):
    monkeypatch.setattr(inspection, "BLOCK_TOKENS", 64)
    told = []
    found = inspected(make_corpus(), min_words=1, progress=lambda words, total: told.append((words, total)))
    num_tokens = found.manifest.splits["train"].num_tokens
    assert sum(words for words, _ in told) == num_tokens
    assert {total for _, total in told} == {num_tokens}


@given(
    counts=st.lists(st.integers(0, 20), min_size=3, max_size=300),
    most=st.integers(2, 50),
)
def test_curves_are_those_of_the_counts(counts, most):
    rows = rank_rows(np.array(counts), most=most)
    falling = sorted(counts, reverse=True)
    for row in rows:
        assert row.get("count", 0) == falling[row["rank"] - 1]
        assert row["share"] == pytest.approx(sum(counts[: row["rank"]]) / max(sum(counts), 1))
    ranks = [row["rank"] for row in rows]
    assert ranks == sorted({*ranks}) and ranks[0] == 1 and ranks[-1] == len(counts) and len(ranks) <= most
    gaps = np.diff(np.log(ranks))[np.array(ranks[:-1]) > most]
    assert (gaps < 3 * np.log(len(counts)) / (most - 1)).all()


def test_a_cutoff_at_the_size_of_the_vocabulary_is_told_once():
    assert [each.num_words for each in coverage(np.ones(2000, dtype=np.int64))] == [2000]
    assert [each.num_words for each in coverage(np.ones(10_001, dtype=np.int64))] == [2000, 10_000, 10_001]


# --- what is refused


def test_a_folder_without_manifest(tmp_path):
    with pytest.raises(CorpusError, match=r"holds no manifest\.json; prepare the corpus"):
        inspected(tmp_path)


def test_a_flipped_bit_of_a_shard(make_corpus):
    data = make_corpus()
    shard = Path(data, "valid/00001.arrow")
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorpusError, match=r"1 bad token shard\(s\): valid/00001\.arrow: found sha256"):
        inspected(data)


def test_another_vocabulary(make_corpus):
    data, other = make_corpus(), make_corpus("other", num_types=30)
    Path(data, "vocabulary.arrow").write_bytes(Path(other, "vocabulary.arrow").read_bytes())
    with pytest.raises(CorpusError, match="is not the vocabulary of the manifest"):
        inspected(data)


def test_an_id_beyond_the_vocabulary(make_corpus, monkeypatch):
    data = make_corpus(num_types=30)
    manifest = read_manifest(data)
    monkeypatch.setattr(tokens, "_rechunk", lambda ids, vocab_size: (np.uint16(each) for each in ids))
    written = tokens.write_shard(
        f"{data}/test/00000.arrow",
        [np.full(manifest.splits["test"].shards[0].num_tokens, manifest.vocab_size)],
        vocabulary_fingerprint=manifest.vocabulary_fingerprint,
        vocab_size=manifest.vocab_size,
        source="test",
    )
    path = Path(data, "manifest.json")
    tree = json.loads(path.read_text())
    tree["splits"]["test"]["shards"][0] |= {"sha256": written.sha256, "size_bytes": written.size_bytes}
    del tree["fingerprint"]
    path.write_text(json.dumps(tree))
    with pytest.raises(CorpusError, match=r"test/00000\.arrow holds an id beyond"):
        inspected(data)
