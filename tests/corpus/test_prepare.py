"""Preparation: bytes are a function of input and configuration; a rerun does what is missing; mistakes cost nothing."""

import gzip
import json
from contextlib import contextmanager
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from support.corpora import Calls, config, corpus_config, digests, words

from pipeline import storage
from pipeline.cluster.tasks import run_here
from pipeline.corpus import merging, reading
from pipeline.corpus.manifest import read_manifest, verify_corpus
from pipeline.corpus.phases import NoProgress
from pipeline.corpus.prepare import prepare
from pipeline.corpus.tokens import TokenSequence
from pipeline.corpus.vocabulary import read_vocabulary
from pipeline.errors import ConfigError, CorpusError


def test_tokens_are_those_of_the_plain_formula(texts, tmp_path):
    data = str(tmp_path / "data")
    manifest = prepare(config(texts, vocabulary={"size": 40, "min_count": 1, "path": None}), data, run_tasks=run_here)
    verify_corpus(data, read_manifest(data), digests=True)
    assert read_manifest(data) == manifest
    text = "".join((texts / f"{number}.txt").read_text() for number in range(3))
    counts = {}
    for word in text.split():
        counts[word] = counts.get(word, 0) + 1
    ranked = sorted(counts, key=lambda word: (-counts[word], word.encode()))[:38]
    vocabulary = read_vocabulary(f"{data}/vocabulary.arrow")
    assert vocabulary.words.to_pylist() == ["<eos>", "<unk>", *ranked]
    ids = {word: number for number, word in enumerate(["\n", None, *ranked])}
    for split, expected in (("train", text), ("valid", (tmp_path / "valid.txt").read_text())):
        found = manifest.splits[split]
        sequence = TokenSequence(
            data, shards=found.shards, vocabulary_fingerprint=manifest.vocabulary_fingerprint, vocab_size=40
        )
        plain = [ids.get(word, 1) for word in expected.replace("\n", " \n ").split(" ") if word]
        assert sequence.read(0, len(sequence)).tolist() == plain
        assert found.num_unk == plain.count(1)
    assert len(manifest.splits["train"].shards) > 3
    assert vocabulary.counts[1] == sum(counts.values()) - sum(counts[word] for word in ranked)


def test_order_of_tasks_and_place_leave_no_trace(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "RANGE_ROWS", 100)
    monkeypatch.setattr(reading, "SAMPLE_ROWS", 8)
    corpus = config(texts, vocabulary={"size": 50, "min_count": 2, "path": None})
    runs = [tmp_path / "somewhere" / "a", tmp_path / "b", tmp_path / "c"]
    for seed, data in enumerate(runs):
        calls = Calls(seed=seed)
        prepare(corpus, str(data), run_tasks=calls)
        assert calls.count("merge_range") > 3
        assert digests(data) == digests(runs[0])
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in runs[0].rglob("*.arrow"))


@pytest.mark.parametrize("eos", ["line", "document"])
def test_cutting_units_otherwise_gives_the_same_tokens_and_vocabulary(texts, tmp_path, eos):
    def tokens(name, unit_bytes):
        data = str(tmp_path / name)
        made = prepare(config(texts, unit_bytes=unit_bytes, eos=eos), data, run_tasks=run_here)
        fingerprint = made.vocabulary_fingerprint
        sequences = [
            TokenSequence(data, shards=each.shards, vocabulary_fingerprint=fingerprint, vocab_size=made.vocab_size)
            for each in made.splits.values()
        ]
        return fingerprint, [each.read(0, len(each)).tolist() for each in sequences]

    assert tokens("a", 1024) == tokens("b", 3000) == tokens("c", 1 << 20)


def test_rerun_unchanged_does_nothing(texts, tmp_path):
    corpus, data = config(texts), tmp_path / "data"
    first = prepare(corpus, str(data), run_tasks=run_here)
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file()}
    calls = Calls()
    assert prepare(corpus, str(data), run_tasks=calls) == first
    assert calls.count("encode_shard") == calls.count("merge_range") == 0
    assert calls.count("is_sound") == sum(len(split.shards) for split in first.splits.values())
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file()} == before


def test_rerun_counts_and_encodes_what_changed(texts, tmp_path, monkeypatch):
    data = str(tmp_path / "data")
    prepare(config(texts), data, run_tasks=run_here)
    tokenised = []
    reader = reading.read_shares
    monkeypatch.setattr(reading, "read_shares", lambda units, *rest: tokenised.extend(units) or reader(units, *rest))

    def redone():
        found = list(tokenised)
        tokenised.clear()
        return found

    lines = (texts / "1.txt").read_text().splitlines(keepends=True)
    (texts / "1.txt").write_text("".join([*lines[:-1], "w1 w1\n"]))  # same words: the vocabulary's order may stay
    calls = Calls()
    changed = prepare(config(texts), data, run_tasks=calls)
    (last,) = redone()
    assert last.path.endswith("1.txt") and last.last
    (texts.parent / "valid.txt").write_text("w1 w2 unheard\n")
    calls = Calls()
    after = prepare(config(texts), data, run_tasks=calls)
    assert after.splits["train"] == changed.splits["train"]
    assert calls.count("encode_shard") == 1 and calls.count("merge_range") == 0
    assert [unit.split for unit in redone()] == ["valid"]
    assert not (tmp_path / "data" / "valid" / "00001.arrow").exists()
    verify_corpus(data, read_manifest(data), digests=True)


def test_the_users_own_files_stay(texts, tmp_path):
    own = tmp_path / "data" / "train" / "novel.txt"
    own.parent.mkdir(parents=True)
    own.write_text("it was a dark and stormy night\n")
    prepare(config(texts), str(tmp_path / "data"), run_tasks=run_here)
    assert own.read_text() == "it was a dark and stormy night\n"


def test_damaged_lost_and_stale_shards(texts, tmp_path):
    corpus, data = config(texts), tmp_path / "data"
    prepare(corpus, str(data), run_tasks=run_here)
    whole = digests(data)
    shard = data / "train" / "00001.arrow"
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    (data / "train" / "00002.arrow").unlink()
    (data / ".work" / "train" / "00003.json").unlink()
    (data / "train" / "99999.arrow").write_bytes((data / "train" / "00000.arrow").read_bytes())
    (data / "test").mkdir()
    (data / "test" / "00000.arrow.tmp").write_bytes(b"stale")
    (data / "train" / "00001.arrow.0a1b2c3d.tmp").write_bytes(b"of a task that was killed")
    (data / "vocabulary.arrow").write_bytes(b"other")
    calls = Calls()
    prepare(corpus, str(data), run_tasks=calls)
    assert calls.count("encode_shard") == 3
    (data / "manifest.json").unlink()
    prepare(corpus, str(data), run_tasks=calls)
    assert calls.count("encode_shard") == 3
    assert digests(data) == whole


def spoilt(content):
    """A file with one flipped bit in its middle, cut, empty, and gone."""
    yield content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]
    yield content[:-9]
    yield b""
    yield None


@pytest.mark.parametrize(
    "kind", ["counts/*.arrow", "counts/*.json", "vocabulary/*.arrow", "vocabulary/*.json", "train/*"]
)
@pytest.mark.parametrize("again", ["unchanged", "encoded", "merged"])
def test_whatever_of_the_work_folder_is_damaged_is_made_anew(texts, tmp_path, kind, again):
    corpus, data = config(texts), tmp_path / "data"
    prepare(corpus, str(data), run_tasks=run_here)
    whole = digests(data)
    for number in range(4):
        for path in (data / ".work").glob(kind):
            content = list(spoilt(path.read_bytes()))[number]
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)
        if again != "unchanged":
            (data / "train" / "00000.arrow").unlink()
        if again == "merged":
            for path in (data / ".work" / "vocabulary").iterdir():
                path.unlink()
        prepare(corpus, str(data), run_tasks=run_here)
        assert digests(data) == whole


def test_what_belongs_to_another_key_is_made_anew(texts, tmp_path):
    """A file under the name of another, as a mistaken copy leaves it."""
    corpus, data = config(texts), tmp_path / "data"
    prepare(corpus, str(data), run_tasks=run_here)
    whole = digests(data)
    for folder, kinds in (("counts", ("arrow", "json")), ("train", ("json",))):
        first, second = sorted({path.stem for path in (data / ".work" / folder).iterdir()})[:2]
        for kind in kinds:
            path = data / ".work" / folder / f"{first}.{kind}"
            path.write_bytes(path.with_stem(second).read_bytes())
    (data / "train" / "00000.arrow").write_bytes((data / "train" / "00001.arrow").read_bytes())
    for path in (data / ".work" / "vocabulary").iterdir():
        path.unlink()
    prepare(corpus, str(data), run_tasks=run_here)
    assert digests(data) == whole
    prepare(config(texts, words="words"), str(tmp_path / "other"), run_tasks=run_here)
    for path in (data / ".work" / "vocabulary").iterdir():
        (other,) = (tmp_path / "other" / ".work" / "vocabulary").glob(f"*{path.suffix}")
        path.write_bytes(other.read_bytes())
    prepare(corpus, str(data), run_tasks=run_here)
    assert digests(data) == whole


@pytest.mark.parametrize(
    "die_before",
    [("read_portion", 2), ("merge_range", 0), ("make_vocabulary", 0), ("encode_shard", 0), ("encode_shard", 4)],
)
def test_killed_and_run_again(texts, tmp_path, die_before):
    data, whole = tmp_path / "data", tmp_path / "whole"
    prepare(config(texts), str(whole), run_tasks=run_here)
    prepare(config(texts, lowercase=True, words="words"), str(data), run_tasks=run_here)
    with pytest.raises(KeyboardInterrupt):
        prepare(config(texts), str(data), run_tasks=Calls(die_before=die_before))
    assert (data / "manifest.json").exists() == (die_before[0] != "encode_shard")
    calls = Calls()
    prepare(config(texts), str(data), run_tasks=calls)
    assert digests(data) == digests(whole)
    if die_before == ("encode_shard", 4):
        num_shards = sum(len(split.shards) for split in read_manifest(str(data)).splits.values())
        assert calls.count("encode_shard") == num_shards - 4


def test_what_another_killed_preparation_left_goes(texts, tmp_path):
    data = tmp_path / "data"
    prepare(config(texts), str(data), run_tasks=run_here)
    whole = digests(data)
    with pytest.raises(KeyboardInterrupt):
        prepare(config(texts, lowercase=True), str(data), run_tasks=Calls(die_before=("make_vocabulary", 0)))
    (data / ".work" / "counts" / "half.arrow.tmp").touch()
    assert digests(data) != whole
    prepare(config(texts), str(data), run_tasks=run_here)
    assert digests(data) == whole


def die_before_step(patch, number):
    """The process dies before it has made or removed one file more than so many, and leaves a half-written one."""
    done = []
    publish, remove = storage.publish, storage.remove

    def step(path):
        if len(done) == number:
            raise KeyboardInterrupt
        done.append(path)

    @contextmanager
    def publish_or_die(path, **how):
        if len(done) == number:
            Path(f"{path}.tmp").parent.mkdir(parents=True, exist_ok=True)
            Path(f"{path}.tmp").write_bytes(b"half")
        step(path)
        with publish(path, **how) as file:
            yield file

    move = storage.move
    patch.setattr(storage, "publish", publish_or_die)
    patch.setattr(storage, "move", lambda *paths: step(paths) or move(*paths))
    patch.setattr(storage, "remove", lambda path: step(path) or remove(path))


@pytest.mark.parametrize("before", ["nothing", "nothing, large", "another vocabulary", "another text"])
def test_killed_at_any_step_a_reader_sees_a_whole_corpus_or_none_and_a_rerun_makes_it(tmp_path, monkeypatch, before):
    if before == "nothing, large":
        monkeypatch.setattr(reading, "HELD_BYTES", 0)
    for name, num_lines in (("a", 60), ("b", 15)):
        (tmp_path / f"{name}.txt").write_text(words(name, num_lines))
    corpus = corpus_config(train=f"{tmp_path}/a.txt", valid=f"{tmp_path}/b.txt", unit_bytes=1024)
    first = {
        "nothing": None,
        "nothing, large": None,
        "another vocabulary": corpus.model_copy(update={"lowercase": True, "words": "words"}),
        "another text": corpus.model_copy(update={"train": (f"{tmp_path}/b.txt",), "valid": (f"{tmp_path}/a.txt",)}),
    }[before]
    prepare(corpus, str(tmp_path / "whole"), run_tasks=run_here)
    whole = digests(tmp_path / "whole")
    for number in range(1000):
        data = tmp_path / str(number)
        if first is not None:
            prepare(first, str(data), run_tasks=run_here)
        with monkeypatch.context() as patch:
            die_before_step(patch, number)
            try:
                prepare(corpus, str(data), run_tasks=run_here)
                break
            except KeyboardInterrupt:
                pass
        if (data / "manifest.json").exists():
            verify_corpus(str(data), read_manifest(str(data)), digests=True)
        prepare(corpus, str(data), run_tasks=run_here)
        assert digests(data) == whole
    assert number > 15


ROWS = [{"text": f"A b, w{number}\nb", "other": f"c c. w{number % 7}"} for number in range(60)]
VOCABULARY = {"size": None, "min_count": 1, "path": None}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"lowercase": False}, {"lowercase": True}),
        ({"words": "whitespace"}, {"words": "words"}),
        ({"eos": "line"}, {"eos": "document"}),
        ({"text_column": "text"}, {"text_column": "other"}),
        (
            {"train": "plain.txt", "eos": "document", "documents": "files"},
            {"train": "plain.txt", "eos": "document", "documents": "lines"},
        ),
        ({"train": "a.jsonl"}, {"train": "b.jsonl"}),
        ({"valid_fraction": 0.0}, {"valid_fraction": 0.5}),
        ({"valid_fraction": 0.3}, {"valid_fraction": 0.5}),
        ({"valid_fraction": 0.3}, {"test_fraction": 0.3}),
        ({"vocabulary": VOCABULARY}, {"vocabulary": VOCABULARY | {"size": 4}}),
        ({"vocabulary": VOCABULARY | {"size": 4}}, {"vocabulary": VOCABULARY | {"size": 5}}),
        ({"vocabulary": VOCABULARY}, {"vocabulary": VOCABULARY | {"min_count": 40}}),
        ({"vocabulary": VOCABULARY}, {"vocabulary": VOCABULARY | {"path": "words"}}),
        ({"vocabulary": VOCABULARY | {"path": "words"}}, {"vocabulary": VOCABULARY | {"path": "other"}}),
        ({"train": "a.jsonl"}, {"train": ("a.jsonl", "copy.jsonl")}),
    ],
)
def test_what_is_changed_gives_the_bytes_of_a_fresh_preparation(tmp_path, monkeypatch, first, second):
    monkeypatch.chdir(tmp_path)
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    for name, content in {
        "a.jsonl": text,
        "copy.jsonl": text,
        "b.jsonl": text.replace("w1", "w9"),
        "plain.txt": "A b\nb c\n" * 30,
        "words": "b\nA\n",
        "other": "A\nb\n",
    }.items():
        Path(name).write_text(content)
    for data, changes in (("data", first), ("data", second), ("fresh", second), ("data", first), ("whole", first)):
        prepare(corpus_config(**{"train": "a.jsonl", "vocabulary": VOCABULARY} | changes), data, run_tasks=run_here)
        assert data != "fresh" or digests("data") == digests("fresh")
    assert digests("data") == digests("whole") != digests("fresh")


def test_what_is_kept_is_told(texts, tmp_path):
    class Notes(NoProgress):
        def __init__(self):
            self.notes = []

        def note(self, text):
            self.notes.append(text)

    def notes():
        progress = Notes()
        made = prepare(config(texts), str(tmp_path / "data"), run_tasks=run_here, progress=progress)
        return progress.notes, sum(len(split.shards) for split in made.splits.values())

    found, num_shards = notes()
    assert found == []
    assert notes()[0] == [f"unchanged: all {num_shards} shards are kept"]
    (tmp_path / "data" / "train" / "00001.arrow").unlink()
    assert notes()[0] == [f"{num_shards - 1} of {num_shards} shards are kept"]


def test_a_file_that_grows_ends_later(tmp_path):
    """What was its last unit has the same bytes and the same place, but no longer the end of the document."""
    text, data = tmp_path / "a.txt", tmp_path / "data"
    text.write_text("one two three \n" * 69)
    corpus = corpus_config(train=str(text), eos="document", unit_bytes=1024)
    first = prepare(corpus, str(data), run_tasks=run_here)
    text.write_text("one two three \n" * 69 + "one\n")
    second = prepare(corpus, str(data), run_tasks=run_here)
    sources = [[shard.source for shard in made.splits["train"].shards] for made in (first, second)]
    assert sources == [["a.txt[0:1035]"], ["a.txt[0:1035]", "a.txt[1035:1039]"]]
    assert [made.splits["train"].num_tokens for made in (first, second)] == [69 * 3 + 1, 69 * 3 + 2]
    prepare(corpus, str(tmp_path / "fresh"), run_tasks=run_here)
    assert digests(data) == digests(tmp_path / "fresh")


def test_a_file_that_is_renamed_gives_the_bytes_of_its_new_name(tmp_path):
    text, data = tmp_path / "a.txt", tmp_path / "data"
    text.write_text("one two\n")
    prepare(corpus_config(train=str(text)), str(data), run_tasks=run_here)
    text.rename(tmp_path / "b.txt")
    corpus = corpus_config(train=str(tmp_path / "b.txt"))
    prepare(corpus, str(data), run_tasks=run_here)
    prepare(corpus, str(tmp_path / "fresh"), run_tasks=run_here)
    assert digests(data) == digests(tmp_path / "fresh")


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_shard_that_is_spoilt_meanwhile_makes_no_corpus(texts, tmp_path, spoil):
    def spoil_then_encode(function, items):
        yield from run_here(function, items)
        if function.function.func.__name__ == "encode_shard":
            spoil(tmp_path / "data" / "train" / "00001.arrow")

    with pytest.raises(CorpusError, match=r"train/00001\.arrow has (None|\d+) bytes, needed \d+: who changed it\?"):
        prepare(config(texts), str(tmp_path / "data"), run_tasks=spoil_then_encode)
    assert not (tmp_path / "data" / "manifest.json").exists()
    prepare(config(texts), str(tmp_path / "data"), run_tasks=run_here)
    prepare(config(texts), str(tmp_path / "whole"), run_tasks=run_here)
    assert digests(tmp_path / "data") == digests(tmp_path / "whole")


def test_identical_files_count_twice(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("x x y\n")
    data = str(tmp_path / "data")
    corpus = corpus_config(train=f"{tmp_path}/*.txt")
    manifest = prepare(corpus, data, run_tasks=run_here)
    assert read_vocabulary(f"{data}/vocabulary.arrow").counts.tolist() == [2, 0, 4, 2]
    assert [shard.source for shard in manifest.splits["train"].shards] == ["a.txt[0:6]", "b.txt[0:6]"]


def test_files_of_any_name_are_prepared(tmp_path):
    names = ["Foo::Bar.3pm", "caf\udce9.txt", "line\nend.txt", "what?[1]*.txt"]
    (tmp_path / "texts").mkdir()
    for name in names:
        (tmp_path / "texts" / name).write_text("x y\n")
    data = str(tmp_path / "data")
    manifest = prepare(corpus_config(train=f"{tmp_path}/texts"), data, run_tasks=run_here)
    assert read_manifest(data) == manifest
    assert [shard.source.rpartition("[")[0] for shard in manifest.splits["train"].shards] == [
        "Foo::Bar.3pm",
        "caf\\udce9.txt",
        "line\nend.txt",
        "what?[1]*.txt",
    ]


def test_what_is_odd_in_a_text_is_counted(tmp_path):
    for split, rows in (("train", [b"a\0b\0", b"\xff\xfe c", "\ufffd d".encode()]), ("valid", [b"plain"])):
        (tmp_path / f"{split}.txt").write_bytes(b"\n".join(rows))
    (tmp_path / "more.jsonl").write_text('{"text": "\\u0000 \\ud800"}\n{"text": null}\n')
    corpus = corpus_config(
        train=[f"{tmp_path}/train.txt", f"{tmp_path}/more.jsonl"], valid=f"{tmp_path}/valid.txt", null_rows="skip"
    )
    manifest = prepare(corpus, str(tmp_path / "data"), run_tasks=run_here)
    counts = {
        name: (split.num_replacement_chars, split.num_nul_bytes, split.num_null_rows)
        for name, split in manifest.splits.items()
    }
    assert counts == {"train": (2 + 1 + 3, 2 + 1, 1), "valid": (0, 0, 0)}
    calls = Calls()
    assert prepare(corpus, str(tmp_path / "data"), run_tasks=calls) == manifest
    assert calls.count("encode_shard") == 0


def test_what_nobody_counted_before_is_not_known_and_counted_by_a_rerun(texts, tmp_path):
    data = tmp_path / "data"
    made = prepare(config(texts), str(data), run_tasks=run_here)
    receipts = sorted((data / ".work" / "train").glob("*.json"))
    for path in (receipts[0], data / "manifest.json"):
        tree = json.loads(path.read_text())
        for each in tree.get("splits", {"": tree}).values():
            for name in ("num_replacement_chars", "num_nul_bytes", "num_null_rows"):
                del each[name]
        path.write_text(json.dumps(tree))
    assert read_manifest(str(data)).splits["valid"].num_nul_bytes is None
    again = prepare(config(texts), str(data), run_tasks=run_here)
    assert again.fingerprint == made.fingerprint
    assert [each.num_nul_bytes for each in again.splits.values()] == [0, 0]


def test_null_rows_belong_to_the_key_of_rows_alone(texts, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "w1"}\n')
    changes = {"valid": str(tmp_path / "rows.jsonl")}
    prepare(config(texts, **changes), str(tmp_path / "data"), run_tasks=run_here)
    calls = Calls()
    prepare(config(texts, **changes, null_rows="skip"), str(tmp_path / "data"), run_tasks=calls)
    assert calls.count("encode_shard") == 1


def test_files_beside_the_data_are_named_once_they_are_read(tmp_path):
    class Notes(NoProgress):
        def __init__(self):
            self.found = []

        def note(self, text):
            self.found.append(text)

    names = ["a.txt", "b/license-MIT", "CHANGELOG.rst", "README.md", "SHA256SUMS", "read me.txt", "licensed.txt"]
    for name in names:
        path = tmp_path / "texts" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("x y\n")

    def notes(train):
        notes = Notes()
        prepare(corpus_config(train=train), str(tmp_path / "data"), run_tasks=run_here, progress=notes)
        return [note for note in notes.found if note.startswith("read as")]

    folder = str(tmp_path / "texts")
    (line,) = notes(folder)
    assert line == (
        f"read as text like the rest: {folder}/CHANGELOG.rst, {folder}/README.md, {folder}/SHA256SUMS and 1 more;"
        " to leave them out, name the others by a glob"
    )
    assert notes(f"{folder}/README*") != [] == notes(f"{folder}/README.md") == notes(f"{folder}/*.txt")
    assert [each.count(",") for each in notes([folder, f"{folder}/README.md"])] == [3]


def test_mistakes_leave_the_corpus_that_is_there(texts, tmp_path):
    data = tmp_path / "data"
    prepare(config(texts), str(data), run_tasks=run_here)
    before = {name: digest for name, digest in digests(data).items() if not name.startswith(".work/")}
    blank = tmp_path / "blank.txt"
    blank.write_text(" \n\n")

    def refused(error, message, **changes):
        with pytest.raises(error, match=message):
            prepare(config(texts, **changes), str(data), run_tasks=run_here)
        assert {name: digest for name, digest in digests(data).items() if not name.startswith(".work/")} == before

    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    refused(CorpusError, "holds no words", train=str(blank))
    refused(CorpusError, r"corpus\.train=.*empty\.jsonl holds no text; give text or", train=f"{tmp_path}/empty.jsonl")
    refused(CorpusError, r"corpus\.valid=.*empty\.jsonl holds no text; give text or", valid=f"{tmp_path}/empty.jsonl")
    refused(CorpusError, "is missing, or a glob", valid="nothing-here.txt")
    refused(CorpusError, "use corpus.documents=lines", valid=None, valid_fraction=1e-6)
    refused(
        ConfigError, "min_count=100000 cuts every word", vocabulary={"size": None, "min_count": 100000, "path": None}
    )
    refused(
        CorpusError,
        "vocabulary.path=none.txt is missing",
        vocabulary={"size": None, "min_count": 1, "path": "none.txt"},
    )


def test_input_that_changes_meanwhile_is_refused(texts, tmp_path):
    def change_before_encoding(function, items):
        if function.function.func.__name__ == "encode_shard":
            (texts / "0.txt").write_bytes((texts / "0.txt").read_bytes().replace(b"w1", b"w9"))
        return run_here(function, items)

    with pytest.raises(CorpusError, match=r"0\.txt changed while it was prepared"):
        prepare(config(texts), str(tmp_path / "data"), run_tasks=change_before_encoding, keep_ids=False)
    assert not (tmp_path / "data" / "manifest.json").exists()
    prepare(config(texts), str(tmp_path / "data"), run_tasks=run_here)


def test_with_kept_ids_a_corpus_is_of_the_text_as_it_was_read(texts, tmp_path):
    def change_before_encoding(function, items):
        if function.function.func.__name__ == "encode_shard":
            (texts / "0.txt").write_bytes(b"something else\n")
        return run_here(function, items)

    prepare(config(texts), str(tmp_path / "whole"), run_tasks=run_here)
    prepare(config(texts), str(tmp_path / "data"), run_tasks=change_before_encoding)
    assert digests(tmp_path / "data") == digests(tmp_path / "whole")


def test_a_packed_file_that_grows_meanwhile_is_refused(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"one two\n"))

    def grow_before_counting(function, items):
        if function.function.func.__name__ == "read_portion":
            path.write_bytes(path.read_bytes() + gzip.compress(b"three\n"))
        return run_here(function, items)

    with pytest.raises(CorpusError, match=r"a\.gz changed while it was prepared"):
        prepare(corpus_config(train=str(path)), str(tmp_path / "data"), run_tasks=grow_before_counting)
    assert not (tmp_path / "data" / "manifest.json").exists()
    manifest = prepare(corpus_config(train=str(path)), str(tmp_path / "data"), run_tasks=run_here)
    assert manifest.splits["train"].num_tokens == 5


def test_given_vocabulary_with_and_without_train(texts, tmp_path):
    (tmp_path / "words.txt").write_text("w2\nw1\n")
    given = {"size": None, "min_count": 1, "path": str(tmp_path / "words.txt")}
    prepare(config(texts, vocabulary=given), str(tmp_path / "a"), run_tasks=run_here)
    made = prepare(config(texts, train=None, vocabulary=given), str(tmp_path / "b"), run_tasks=run_here)
    vocabularies = [read_vocabulary(str(tmp_path / name / "vocabulary.arrow")) for name in "ab"]
    assert [each.words.to_pylist() for each in vocabularies] == [["<eos>", "<unk>", "w2", "w1"]] * 2
    assert vocabularies[0].counts.sum() > vocabularies[1].counts.sum() == 0
    assert list(made.splits) == ["valid"]


@pytest.mark.parametrize("form", ["text", "arrow"])
def test_a_given_vocabulary_is_judged_before_any_text_is_read(texts, tmp_path, form):
    path = tmp_path / "words"
    path.write_text("w2\nw1\n<unk>\nw3\n")
    if form == "arrow":
        given = {"size": None, "min_count": 1, "path": str(path)}
        prepare(config(texts, vocabulary=given), str(tmp_path / "made"), run_tasks=run_here)
        path = tmp_path / "made" / "vocabulary.arrow"

    def made(size, min_count, calls):
        vocabulary = {"size": size, "min_count": min_count, "path": str(path)}
        return prepare(config(texts, vocabulary=vocabulary), str(tmp_path / "data"), run_tasks=calls)

    calls = Calls()
    with pytest.raises(ConfigError, match=r"min_count=2 cuts no word of corpus\.vocab.*; use .*min_count=1"):
        made(None, 2, calls)
    with pytest.raises(ConfigError, match=r"holds 5 words .* more than corpus\.vocabulary\.size=4; use .*size=null or"):
        made(4, 1, calls)
    path.write_bytes(path.read_bytes()[:-3] + b"x y")
    with pytest.raises(CorpusError):
        made(None, 1, calls)
    assert calls.names == [] and not (tmp_path / "data").exists()


def test_a_given_vocabulary_of_just_the_size_is_taken(texts, tmp_path):
    (tmp_path / "words").write_text("w2\nw1\n")
    given = {"size": 4, "min_count": 1, "path": str(tmp_path / "words")}
    assert prepare(config(texts, vocabulary=given), str(tmp_path / "data"), run_tasks=run_here).vocab_size == 4


def test_train_alone_is_a_corpus_and_fractions_make_splits(texts, tmp_path):
    manifest = prepare(config(texts, valid=None), str(tmp_path / "a"), run_tasks=run_here)
    assert list(manifest.splits) == ["train"]
    shares = {"valid": None, "valid_fraction": 0.2, "test_fraction": 0.2, "documents": "lines"}
    dealt = prepare(config(texts, **shares), str(tmp_path / "b"), run_tasks=run_here)
    assert list(dealt.splits) == ["train", "valid", "test"]
    assert sum(split.num_tokens for split in dealt.splits.values()) == manifest.splits["train"].num_tokens


@pytest.mark.parametrize("size", [7, 30, 100, None])
def test_cutting_ranges_otherwise_gives_the_same_vocabulary(texts, tmp_path, monkeypatch, size):
    corpus = config(texts, vocabulary={"size": size, "min_count": 1, "path": None})
    (texts / "literal.txt").write_text("<unk> w1 <eos> <unk>\n" * 3)
    found = []
    for number, rows in enumerate([10, 40, 1 << 19]):
        monkeypatch.setattr(merging, "RANGE_ROWS", rows)
        monkeypatch.setattr(reading, "SAMPLE_ROWS", 4)
        prepare(corpus, str(tmp_path / str(number)), run_tasks=run_here)
        found.append((tmp_path / str(number) / "vocabulary.arrow").read_bytes())
    assert len(set(found)) == 1


def test_ranges_are_about_as_large_whatever_the_units_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(merging, "RANGE_ROWS", 256)
    monkeypatch.setattr(reading, "SAMPLE_ROWS", 8)
    names = [f"{first}{number}" for first in "bac" for number in range(1000)]
    (tmp_path / "a.txt").write_text("".join(f"{name}\n" for name in names))
    sizes = []

    def run_tasks(function, items):
        for index, result in run_here(function, items):
            if function.function.func.__name__ == "merge_range":
                sizes.extend(pa.ipc.open_file(part.path).read_all().num_rows for part in result.result)
            yield index, result

    prepare(corpus_config(train=f"{tmp_path}/a.txt", unit_bytes=1024), str(tmp_path / "data"), run_tasks=run_tasks)
    assert sum(sizes) == len(names) and len(sizes) >= 11
    assert max(sizes) < 2 * 256


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # datasets leaves its memory maps to the collector
def test_datasets_opens_the_shards_as_they_are(texts, tmp_path):
    data = tmp_path / "data"
    manifest = prepare(config(texts), str(data), run_tasks=run_here)
    files = [str(data / shard.name) for shard in manifest.splits["train"].shards]
    for streaming in (False, True):
        opened = datasets.load_dataset(
            "arrow", data_files=files, split="train", streaming=streaming, cache_dir=str(tmp_path / "cache")
        )
        assert sum(1 for _ in opened) == manifest.splits["train"].num_tokens
