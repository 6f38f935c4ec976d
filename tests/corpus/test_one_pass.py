"""One pass: a range is read and tokenised once; what is kept of it leaves no trace in a corpus."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from support.corpora import PACK, Calls, config, corpus_config, digests, words

from pipeline import storage
from pipeline.cluster.tasks import run_here
from pipeline.corpus import encoding, reading
from pipeline.corpus.manifest import read_manifest
from pipeline.corpus.prepare import prepare
from pipeline.corpus.readers import READERS, dataset
from pipeline.corpus.reading import ids_type, numbered
from pipeline.corpus.text import split_words
from pipeline.corpus.tokens import TokenSequence
from pipeline.corpus.word_order import sort_words
from pipeline.errors import ClusterError, ConfigError

VOCABULARY = {"size": None, "min_count": 1, "path": None}


@pytest.fixture
def reads(monkeypatch):
    """Bytes that were read of each file of text, and blocks that were tokenised."""
    found = Counter()
    opened, split = storage.open_read, split_words

    def counting(path, **how):
        file = opened(path, **how)
        if "/.work/" not in path and not path.endswith(".arrow"):
            read = file.read

            class Watched:
                def __enter__(self):
                    return self

                def __exit__(self, *error):
                    file.close()

                def __getattr__(self, name):
                    return getattr(file, name)

                def read(self, *size):
                    data = read(*size)
                    found[path.rpartition("/")[2]] += len(data)
                    return data

            return Watched()
        return file

    monkeypatch.setattr(storage, "open_read", counting)
    monkeypatch.setattr(reading, "split_words", lambda *args, **how: found.update(["tokenised"]) or split(*args, **how))
    return found


def made(corpus, data, **how):
    """What a preparation left for readers: every file but those of the work folder."""
    prepare(corpus, str(data), run_tasks=how.pop("run_tasks", run_here), **how)
    return {name: digest for name, digest in digests(data).items() if not name.startswith(".work/")}


TEXT = words("pass", 3000)
ROWS = "".join(json.dumps({"text": line, "n": 1}) + "\n" for line in TEXT.splitlines())


def written(folder, name):
    folder.mkdir(exist_ok=True)
    packing = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}.get("." + name.rpartition(".")[2])
    content = (ROWS if "jsonl" in name else TEXT).encode()
    path = folder / name
    path.write_bytes(PACK[packing](content) if packing else content)
    return path


@pytest.mark.parametrize("is_held", [True, False])
@pytest.mark.parametrize("shares", [{}, {"valid_fraction": 0.2, "test_fraction": 0.1, "documents": "lines"}])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.jsonl.bz2", "a.txt.xz", "a.jsonl.zst"])
def test_a_byte_is_read_once_and_a_word_tokenised_once(tmp_path, monkeypatch, reads, name, shares, is_held):
    path = written(tmp_path / "texts", name)
    if not is_held:
        monkeypatch.setattr(reading, "HELD_BYTES", 0)
    corpus = corpus_config(train=str(path), unit_bytes=16384, **shares)
    before = made(corpus, tmp_path / "data")
    size_bytes = path.stat().st_size
    # beside the one pass: the first bytes of the file, which is small, and a look for the line end at each unit's end
    looks = 4096 + (4096 * (1 + size_bytes // 16384) if name in ("a.txt", "a.jsonl") else size_bytes)
    assert size_bytes <= reads[name] <= size_bytes + looks
    first = dict(reads)
    corpus = corpus_config(
        train=str(path), unit_bytes=16384, **shares, vocabulary={"size": 50, "min_count": 2, "path": None}
    )
    assert made(corpus, tmp_path / "data") == made(corpus, tmp_path / "fresh") != before
    assert reads["tokenised"] == 2 * first["tokenised"]  # once in each folder


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shares", [{}, {"valid_fraction": 0.2, "test_fraction": 0.1}])
def test_a_column_of_parquet_is_read_once(tmp_path, monkeypatch, reads, shares, groups):
    texts = words("column", 60_000).splitlines()
    table = pa.table({"text": texts, "other": ["x" * 20] * len(texts)})
    path = tmp_path / "texts" / "a.parquet"
    path.parent.mkdir()
    parquet.write_table(table, path, compression="none", use_dictionary=False, row_group_size=-(-len(texts) // groups))
    corpus = corpus_config(train=str(path), **shares)
    whole = made(corpus, tmp_path / "data")
    column_bytes = sum(len(text.encode()) + 4 for text in texts)
    assert column_bytes < reads["a.parquet"] < 1.6 * column_bytes  # and the ends of the file, which say where it lies
    monkeypatch.setattr(reading, "HELD_BYTES", 0)
    assert made(corpus, tmp_path / "streamed") == whole
    assert made(corpus, tmp_path / "data", keep_ids=False) == whole


@pytest.mark.parametrize("shares", [{}, {"valid_fraction": 0.2}])
def test_a_data_set_is_streamed_once(tmp_path, monkeypatch, shares):
    path = written(tmp_path / "texts", "a.jsonl")
    corpus = corpus_config(source="datasets", dataset="json", train=str(path), **shares)
    passes = []
    batches = dataset.batches

    def counted(*args, **how):
        if "num_rows" not in how:  # a look at the first row, for its columns
            passes.append(args)
        return batches(*args, **how)

    monkeypatch.setattr(dataset, "batches", counted)
    first = made(corpus, tmp_path / "data")
    assert len(passes) == 1
    assert made(corpus, tmp_path / "data") == first
    assert len(passes) == 2  # for its digest
    path.write_text(ROWS.replace("w1 ", "w2 "))
    assert made(corpus, tmp_path / "data") == made(corpus, tmp_path / "fresh") != first


@pytest.mark.parametrize("keep_ids", [True, False])
@pytest.mark.parametrize("shares", [{}, {"valid_fraction": 0.2, "documents": "lines"}])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.gz"])
def test_what_is_kept_leaves_no_trace(tmp_path, monkeypatch, name, shares, keep_ids):
    corpus = corpus_config(train=str(written(tmp_path / "texts", name)), unit_bytes=8192, **shares)
    whole = made(corpus, tmp_path / "whole")
    assert made(corpus, tmp_path / "other", keep_ids=keep_ids, run_tasks=Calls(seed=3)) == whole
    assert bool(list((tmp_path / "other" / ".work").glob("ids/*"))) == keep_ids
    monkeypatch.setattr(reading, "HELD_BYTES", 0)
    assert made(corpus, tmp_path / "streamed", keep_ids=keep_ids) == whole


def test_ids_that_are_no_longer_to_be_kept_go(texts, tmp_path):
    whole = made(config(texts), tmp_path / "data")
    assert made(config(texts), tmp_path / "data", keep_ids=False) == whole
    assert not list((tmp_path / "data" / ".work").glob("ids/*"))


@pytest.mark.parametrize("spoil", ["flip", "high", "cut", "empty", "gone"])
def test_ids_that_are_damaged_are_made_of_the_text(texts, tmp_path, spoil):
    whole = made(config(texts), tmp_path / "data")
    for path in (tmp_path / "data" / ".work" / "ids").iterdir():
        content = path.read_bytes()
        changed = {
            "flip": bytes([content[0] ^ 1]) + content[1:],
            "high": b"\xff" + content[1:],
            "cut": content[:-1],
            "empty": b"",
        }
        if spoil == "gone":
            path.unlink()
        else:
            path.write_bytes(changed[spoil])
    (tmp_path / "data" / "train" / "00000.arrow").unlink()
    (tmp_path / "data" / "valid" / "00000.arrow").unlink()
    assert made(config(texts), tmp_path / "data") == whole


def test_a_large_file_that_changes_while_it_is_read_for_the_second_time_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "HELD_BYTES", 0)
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    corpus = corpus_config(train=str(path))
    prepare(corpus, str(tmp_path / "data"), run_tasks=run_here)
    path.write_text(TEXT.replace("w1 ", "w2 "))
    digest = reading.range_digest

    def digest_then_change(*args):
        found = digest(*args)
        path.write_text(TEXT.replace("w1 ", "w3 "))
        return found

    monkeypatch.setattr(reading, "range_digest", digest_then_change)
    with pytest.raises(reading.CorpusError, match=r"a\.txt changed while it was prepared"):
        prepare(corpus, str(tmp_path / "data"), run_tasks=run_here)


@pytest.mark.parametrize("tail", [b"caf\xe9", b"\xf0\x9f", b"a\n\xc3", b""])
def test_the_key_of_a_range_is_the_same_whether_it_is_held_or_streamed(tmp_path, monkeypatch, tail):
    (tmp_path / "a.txt").write_bytes(b"".join(b"f\xc3\xbcnf \xff %d\n" % number for number in range(30)) + tail)
    for name, changes in (("whole", {}), ("shares", {"valid_fraction": 0.3, "documents": "lines"})):
        corpus = corpus_config(train=f"{tmp_path}/a.txt", **changes)
        for held_bytes in (0, 1 << 20):
            monkeypatch.setattr(reading, "HELD_BYTES", held_bytes)
            prepare(corpus, str(tmp_path / f"{name}{held_bytes}"), run_tasks=run_here)
        assert digests(tmp_path / f"{name}0") == digests(tmp_path / f"{name}{1 << 20}")


def write_column(path, texts):
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pa.table({"text": texts}), path.with_suffix(".new"), compression="none", use_dictionary=False)
    path.with_suffix(".new").rename(path)


def test_a_large_column_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "HELD_BYTES", 0)
    path = tmp_path / "texts" / "a.parquet"
    write_column(path, ["old one"] * 20)
    corpus, read = corpus_config(train=str(path)), reading.read_shares

    def read_then_change(*args):
        yield from read(*args)
        write_column(path, ["new two"] * 20)

    with monkeypatch.context() as patch, pytest.raises(reading.CorpusError, match=r"a\.parquet changed while"):
        patch.setattr(reading, "read_shares", read_then_change)
        prepare(corpus, str(tmp_path / "data"), run_tasks=run_here)
    assert made(corpus, tmp_path / "data") == made(corpus, tmp_path / "fresh")


def test_a_held_column_whose_file_is_replaced_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "texts" / "a.parquet"
    write_column(path, ["old one"] * 20)
    hold = reading.held

    def hold_then_change(*args):
        found = hold(*args)
        write_column(path, ["new and longer"] * 20)
        return found

    monkeypatch.setattr(reading, "held", hold_then_change)
    with pytest.raises(reading.CorpusError, match=r"a\.parquet changed while"):
        prepare(corpus_config(train=str(path)), str(tmp_path / "data"), run_tasks=run_here)


@pytest.mark.parametrize("held_bytes", [0, 1 << 20])
def test_a_reader_that_opens_its_file_itself_is_not_believed_blindly(tmp_path, monkeypatch, held_bytes):
    """It shows nothing of what it reads, so that its range is read once more for the digest."""
    monkeypatch.setattr(reading, "HELD_BYTES", held_bytes)
    own = replace(READERS["text"], text=lambda unit: iter([Path(unit.path).read_bytes()]))
    monkeypatch.setitem(READERS, "text", own)
    path = tmp_path / "a.txt"
    path.write_text("old one\n")
    corpus = corpus_config(train=str(path))
    first = made(corpus, tmp_path / "data")
    path.write_text("new two\n")
    assert made(corpus, tmp_path / "data") == made(corpus, tmp_path / "fresh") != first


def test_null_rows_of_a_data_set_count_though_they_leave_no_text(tmp_path):
    path = tmp_path / "a.jsonl"
    corpus = corpus_config(source="datasets", dataset="json", train=str(path), null_rows="skip")
    rows = ['{"text": "a b"}'] * 3
    for content in (rows, [*rows, *['{"text": null}'] * 3]):
        path.write_text("\n".join(content) + "\n")
        manifest = prepare(corpus, str(tmp_path / "data"), run_tasks=run_here)
        assert manifest.splits["train"].num_null_rows == len(content) - 3
        fresh = prepare(corpus, str(tmp_path / str(len(content))), run_tasks=run_here)
        assert fresh == manifest


def test_ids_are_kept_again_once_they_are_to_be(texts, tmp_path):
    whole = made(config(texts), tmp_path / "data", keep_ids=False)
    assert made(config(texts), tmp_path / "data") == whole
    assert len(list((tmp_path / "data" / ".work").glob("ids/*"))) > 3


def test_of_a_shared_shard_only_the_part_without_ids_is_read_again(tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    for number in range(9):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"w{number} x\n" * 9)
    corpus = corpus_config(train=f"{tmp_path}/texts", shard_tokens=1000)
    whole = made(corpus, tmp_path / "data")
    damaged = sorted((tmp_path / "data" / ".work" / "ids").iterdir())[4]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\1\1")
    (tmp_path / "data" / "train" / "00000.arrow").unlink()
    units, read = [], encoding.read_blocks
    monkeypatch.setattr(encoding, "read_blocks", lambda unit, *rest: units.append(unit) or read(unit, *rest))
    assert made(corpus, tmp_path / "data") == whole
    assert len(units) == 1
    assert made(corpus, tmp_path / "data") == whole  # reads that unit anew, and keeps its words again
    (tmp_path / "data" / "train" / "00000.arrow").unlink()
    assert made(corpus, tmp_path / "data") == whole
    assert len(units) == 1


def test_a_count_table_that_is_damaged_is_not_looked_up(texts, tmp_path):
    whole = made(config(texts), tmp_path / "data")

    def damage_then_encode(function, items):
        if function.function.func.__name__ == "encode_shard":
            for path in (tmp_path / "data" / ".work" / "counts").glob("*.arrow"):
                content = bytearray(path.read_bytes())
                at = content.rindex(b"w1")
                content[at : at + 2] = b"w9"
                path.write_bytes(content)
        return run_here(function, items)

    assert made(config(texts), tmp_path / "other", run_tasks=run_here) == whole
    for path in (tmp_path / "data" / "train").iterdir():
        path.unlink()
    assert made(config(texts), tmp_path / "data", run_tasks=damage_then_encode) == whole


def test_small_runs_are_sampled_too(tmp_path):
    (tmp_path / "texts").mkdir()
    draw = random.Random(3)
    for number in range(400):
        (tmp_path / "texts" / f"{number}.txt").write_text(" ".join(f"w{draw.randrange(10**6)}" for _ in range(400)))
    samples, rows = [], 0

    def watched(function, items):
        nonlocal rows
        for index, ended in run_here(function, items):
            if function.function.func.__name__ == "read_portion":
                samples.extend(word for counted in ended.result for word in counted.samples)
                rows += sum(counted.num_rows for counted in ended.result)
            yield index, ended

    prepare(corpus_config(train=f"{tmp_path}/texts"), str(tmp_path / "data"), run_tasks=watched)
    assert 0.4 < len(samples) * reading.SAMPLE_ROWS / rows < 2.5
    assert len({word[:2] for word in samples}) > 3


def test_one_file_of_many_that_cannot_be_reached_leaves_the_others_be(tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    for number in range(9):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"w{number} x\n")
    hold = reading.held

    def forbidden(units, corpus):
        if units[0].path.endswith("4.txt"):
            raise ConfigError(f"{units[0].path} cannot be reached (forbidden)")
        return hold(units, corpus)

    monkeypatch.setattr(reading, "held", forbidden)
    with pytest.raises(ConfigError, match=r"4\.txt cannot be reached \(forbidden\) \(in 4\.txt\[0:5\]\)"):
        prepare(corpus_config(train=f"{tmp_path}/texts"), str(tmp_path / "data"), run_tasks=run_here)
    assert len(list((tmp_path / "data" / ".work" / "counts").glob("*.json"))) == 8


def test_of_small_files_that_share_a_task_only_the_deadly_one_is_not_done(tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(9):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"w{number} x\n")

    def dying(function, items):
        for index, item in enumerate(items):
            named = str(getattr(item, "ranges", ""))
            dies = "4.txt" in named and function.function.func.__name__ == "read_portion"
            yield index, ClusterError("the worker died 4 times") if dies else function(item)

    corpus = corpus_config(train=f"{tmp_path}/texts")
    with pytest.raises(ClusterError, match=r"/4\.txt: the worker died 4 times \(in 4\.txt\[0:5\]\)$"):
        prepare(corpus, str(tmp_path / "data"), run_tasks=dying)
    assert len(list((tmp_path / "data" / ".work" / "counts").glob("*.json"))) == 8
    (tmp_path / "texts" / "4.txt").write_text("w4 x y\n")
    assert made(corpus, tmp_path / "data") == made(corpus, tmp_path / "fresh")


def test_many_small_files_are_read_by_few_tasks(tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(600):
        (tmp_path / "texts" / f"{number:03}.txt").write_text(f"w{number} x\n" if number % 100 else "")
    calls = Calls()
    manifest = prepare(corpus_config(train=f"{tmp_path}/texts"), str(tmp_path / "data"), run_tasks=calls)
    assert calls.count("read_portion") == 3
    assert len(manifest.splits["train"].shards) == 594


@pytest.mark.parametrize("shard_tokens", [1, 10, 100, 10**9])
def test_files_share_shards(tmp_path, shard_tokens):
    (tmp_path / "texts").mkdir()
    draw = random.Random(1)
    contents = [f"w{number} " * draw.randrange(1, 12) + "\n" for number in range(40)]
    for number, content in enumerate(contents):
        (tmp_path / "texts" / f"{number:02}.txt").write_text(content)

    def tokens(data, **changes):
        corpus = corpus_config(train=f"{tmp_path}/texts", **changes)
        manifest = prepare(corpus, str(data), run_tasks=run_here)
        assert read_manifest(str(data)) == manifest
        split = manifest.splits["train"]
        sequence = TokenSequence(
            str(data),
            shards=split.shards,
            vocabulary_fingerprint=manifest.vocabulary_fingerprint,
            vocab_size=manifest.vocab_size,
        )
        return split, sequence.read(0, len(sequence)).tolist()

    alone, expected = tokens(tmp_path / "alone")
    split, found = tokens(tmp_path / "shared", shard_tokens=shard_tokens)
    assert found == expected and split.num_tokens == alone.num_tokens
    sizes = [shard.num_tokens for shard in split.shards]
    assert all(size >= shard_tokens for size in sizes[:-1])
    lengths = [len(content.split()) + 1 for content in contents]
    assert max(sizes) < shard_tokens + max(lengths)
    if shard_tokens == 10**9:
        assert [shard.source for shard in split.shards] == [
            f"00.txt[0:{len(contents[0])}] to 39.txt[0:{len(contents[39])}], 40 parts"
        ]
    calls = Calls()
    corpus = corpus_config(train=f"{tmp_path}/texts", shard_tokens=shard_tokens)
    prepare(corpus, str(tmp_path / "shared"), run_tasks=calls)
    assert calls.count("encode_shard") == 0
    (tmp_path / "texts" / "20.txt").write_text("w1\n")
    prepare(corpus, str(tmp_path / "shared"), run_tasks=calls)
    prepare(corpus, str(tmp_path / "fresh"), run_tasks=run_here)
    assert digests(tmp_path / "shared") == digests(tmp_path / "fresh")


def test_shards_of_one_unit_are_those_of_before_the_key(texts, tmp_path):
    prepare(config(texts), str(tmp_path / "data"), run_tasks=run_here)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "train").iterdir()}
    calls = Calls()
    prepare(config(texts, shard_tokens=1), str(tmp_path / "data"), run_tasks=calls)
    assert calls.count("encode_shard") == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "train").iterdir()} == before


WORDS = st.lists(
    st.sampled_from(["\n", "<eos>", "<unk>", "a", "ab", "abcdefgh", "abcdefghi", "abcdefgh\0", "é", "\U0001f600"])
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), min_size=1, max_size=12)
)


@given(WORDS)
def test_numbered_words_are_rows_of_the_count_table(found):
    table, ids = numbered(pa.array(found, pa.string()))
    names, counts = (table.column(name).to_pylist() for name in ("word", "count"))
    folded = ["<eos>" if word == "\n" else word for word in found]
    assert names == sorted(set(folded), key=str.encode)
    assert [names[row] for row in ids] == folded
    assert dict(zip(names, counts, strict=True)) == Counter(folded)


def test_the_numbers_type_is_the_smallest_that_holds_the_rows():
    sizes = [1, 256, 257, 65536, 65537]
    assert [ids_type(size).itemsize for size in sizes] == [1, 1, 2, 2, 4]
    for size in sizes:
        table, ids = numbered(pa.array([f"{number:05}" for number in range(size)]))
        assert ids.dtype == ids_type(size) and ids.max() == size - 1 == table.num_rows - 1


@given(st.sets(st.text(st.sampled_from("ab\0é"), max_size=11) | st.text(st.characters(exclude_categories=["Cs"]))))
def test_words_are_sorted_by_their_bytes(found):
    names = sorted(found)
    random.Random(len(names)).shuffle(names)
    array = pa.array(["first", *names, "last"], pa.string()).slice(1, len(names))
    assert [names[row] for row in sort_words(array)] == sorted(names, key=str.encode)
    assert sort_words(array).dtype == np.int64
