"""The vocabulary of count tables is what `Counter` and `sorted` give, however the tables and ranges are cut."""

import hashlib
import tempfile
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.vocabularies import write_vocabulary

from pipeline import storage
from pipeline.cluster.tasks import run_here
from pipeline.config import VocabularyConfig
from pipeline.corpus import merging, ranking
from pipeline.corpus.arrays import strings
from pipeline.corpus.folder import kept_paths
from pipeline.corpus.merging import VOCABULARY, Piece, index_path, merge_pieces, merge_vocabulary, partition_tables
from pipeline.corpus.phases import NoProgress, Phases
from pipeline.corpus.reading import COUNTS, Counted
from pipeline.corpus.vocabulary import COUNTS_SCHEMA, EOS_WORD, UNK_WORD, read_vocabulary, table_of
from pipeline.corpus.word_ids import WordIds, word_ids
from pipeline.errors import ConfigError, CorpusError

WORD = st.one_of(
    st.sampled_from([EOS_WORD, UNK_WORD, "a", "b", "é", "😀", "\uffff", "ab", "\0", "z" * 300, "z" * 299 + "y"]),
    st.text(alphabet="abé😀", min_size=1, max_size=3),
)
RUN = st.dictionaries(WORD, st.integers(1, 4), max_size=12)
TABLES = st.lists(st.tuples(st.lists(RUN, max_size=4), st.integers(1, 2)), min_size=1, max_size=5)
LIMITS = st.fixed_dictionaries(
    {
        "RANGE_ROWS": st.sampled_from([1, 5, 1 << 19]),
        "RANGE_BYTES": st.sampled_from([1, 60, 16 << 20]),
        "GROUP_TABLES": st.sampled_from([1, 2, 256]),
        "SORTED_ROWS": st.sampled_from([1, 4, 1 << 19]),
        "BATCH_ROWS": st.sampled_from([1, 3, 7, 1 << 20]),
        "INDEXED_WORDS": st.sampled_from([0, 1 << 17]),
    }
)
WIDE = {name: getattr(merging, name) for name in ("RANGE_ROWS", "RANGE_BYTES", "SORTED_ROWS", "BATCH_ROWS")}


def run_of(counter):
    words = sorted(counter, key=str.encode)
    arrays = [pa.array(words, pa.string()), pa.array([counter[word] for word in words], pa.int64())]
    return pa.RecordBatch.from_arrays(arrays, schema=COUNTS_SCHEMA)


def write_table(data, key, runs, sample_every=2):
    """A count table of several runs, and what its receipt says of it."""
    with storage.publish(kept_paths(data, COUNTS, key)[0]) as file, pa.ipc.new_file(file, COUNTS_SCHEMA) as writer:
        for run in runs:
            writer.write_batch(run_of(run))
    samples = [word for run in runs for word in sorted(run, key=str.encode)[::sample_every]]
    total = sum((Counter(run) for run in runs), Counter())
    return counted_as(key, num_words=total.total(), num_rows=sum(map(len, runs)), samples=tuple(samples))


def counted_as(key, *, num_rows, num_words=0, samples=()):
    """A receipt of a count table, as far as merging looks at it."""
    return Counted(key, True, num_words, num_rows, samples, "", (), None, 0, 0, 0)


def made_of(tables, data, *, size=None, min_count=1, path=None, limits=WIDE):
    """The vocabulary of tables (their runs, and how often they count): what was made, and the keys."""
    keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(len(tables))]
    counted = [write_table(data, key, runs) for key, (runs, _) in zip(keys, tables, strict=True)]
    train = [each for each, (_, times) in zip(counted, tables, strict=True) for _ in range(times)]
    config = VocabularyConfig(size=size, min_count=min_count, path=path)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in limits.items():
            patch.setattr(merging, name, value)
        return merge_vocabulary(train, config, data, run=Phases(run_here, NoProgress(), ()))


def summed(tables):
    return sum((Counter(run) for runs, times in tables for run in runs for _ in range(times)), Counter())


def plain_vocabulary(counter, size, min_count):
    """Words and counts in id order, by their definition."""
    others = sorted(
        (item for item in counter.items() if item[0] not in (EOS_WORD, UNK_WORD)),
        key=lambda item: (-item[1], item[0].encode()),
    )
    kept = [item for item in others if item[1] >= min_count][: None if size is None else size - 2]
    num_unk = counter.total() - counter[EOS_WORD] - sum(count for _, count in kept)
    return [(EOS_WORD, counter[EOS_WORD]), (UNK_WORD, num_unk), *kept]


def folder():
    return f"memory:///{uuid.uuid4().hex}"


def made_bytes(made, data):
    return storage.read_bytes(kept_paths(data, VOCABULARY, made.key)[0])


def items(data):
    table = pa.ipc.open_file(data).read_all()
    return list(zip(table["word"].to_pylist(), table["count"].to_pylist(), strict=True))


# --- what it is


@settings(max_examples=40)
@given(tables=TABLES, size=st.none() | st.integers(3, 12), min_count=st.integers(1, 4), limits=LIMITS)
@pytest.mark.parametrize("place", ["store", "disk"])
def test_the_vocabulary_is_that_of_a_counter(place, tables, size, min_count, limits):
    with tempfile.TemporaryDirectory() as temporary:
        data = folder() if place == "store" else temporary
        expected = plain_vocabulary(summed(tables), size, min_count)
        if len(expected) == 2:
            with pytest.raises((ConfigError, CorpusError)):
                made_of(tables, data, size=size, min_count=min_count, limits=limits)
            return
        made = made_of(tables, data, size=size, min_count=min_count, limits=limits)
        found = made_bytes(made, data)
        assert items(found) == expected
        assert made.size == len(expected)
        assert made.sha256 == hashlib.sha256(found).hexdigest()
        assert made.fingerprint == hashlib.sha256("\n".join(word for word, _ in expected).encode()).hexdigest()
        again = read_vocabulary(kept_paths(data, VOCABULARY, made.key)[0])
        assert (again.size, again.fingerprint) == (made.size, made.fingerprint)
        _check_ids(made, data, [word for word, _ in expected], asked=[*summed(tables), "\n", "absent", EOS_WORD])


def _check_ids(made, data, words, *, asked):
    ids = {word: number for number, word in enumerate(words)} | {"\n": 0}
    has_index = made.index_sha256 is not None
    assert storage.exists(index_path(data, made.key)) == has_index
    found = word_ids(made, data)
    assert found is word_ids(made, data)
    for part in (asked, asked[:2], []):
        assert found.find(pa.array(part, pa.string())).tolist() == [ids.get(word, 1) for word in part]
    without = WordIds(kept_paths(data, VOCABULARY, made.key)[0], index=None)
    assert without.find(pa.array(asked)[1:]).tolist() == [ids.get(word, 1) for word in asked[1:]]


@settings(max_examples=40)
@given(
    tables=TABLES,
    words=st.lists(WORD.filter(lambda word: word != "\0"), min_size=1, unique=True, max_size=9),
    limits=LIMITS,
    as_arrow=st.booleans(),
)
def test_a_given_vocabulary_takes_its_counts_range_by_range(tables, words, limits, as_arrow):
    words = [EOS_WORD, UNK_WORD, *(word for word in words if word not in (EOS_WORD, UNK_WORD))]
    if len(words) == 2:
        return
    with tempfile.TemporaryDirectory() as temporary:
        path, data = f"{temporary}/words", folder()
        if as_arrow:
            table = table_of(pa.array(words), pa.array([7] * len(words), pa.int64()).to_numpy())
            merging.write_words([table], path, index_path=None, batch_rows=limits["BATCH_ROWS"])
        else:
            Path(path).write_text("\n".join(reversed(words)), encoding="utf-8")
            words = [EOS_WORD, UNK_WORD, *reversed(words[2:])]
        made = made_of(tables, data, path=path, limits=limits)
        counter = summed(tables)
        counts = [counter[word] for word in words]
        counts[1] += counter.total() - sum(counts)
        assert items(made_bytes(made, data)) == list(zip(words, counts, strict=True))
        nothing = merge_vocabulary(
            [], VocabularyConfig(size=None, min_count=1, path=path), data, run=Phases(run_here, NoProgress(), ())
        )
        assert items(made_bytes(nothing, data)) == [(word, 7 if as_arrow else 0) for word in words]
        assert nothing.fingerprint == made.fingerprint


@pytest.mark.parametrize("as_arrow", [True, False])
def test_a_given_vocabulary_that_changes_while_it_is_prepared_is_refused(tmp_path, as_arrow):
    """Else what is made of the new one would be kept under the key of the old one."""
    path = tmp_path / "words"

    def write(word):
        if as_arrow:
            merging.write_words(
                [table_of(strings(EOS_WORD, UNK_WORD, word), np.zeros(3, np.int64))],
                str(path),
                index_path=None,
                batch_rows=1,
            )
        else:
            path.write_text(f"{word}\n")

    def run(function, items):
        write("new")
        return run_here(function, items)

    write("old")
    config = VocabularyConfig(size=None, min_count=1, path=str(path))
    with pytest.raises(CorpusError, match=rf"vocabulary\.path={path} changed while it was prepared; leave it"):
        merge_vocabulary([], config, str(tmp_path / "data"), run=Phases(run, NoProgress(), ()))
    merge_vocabulary([], config, str(tmp_path / "data"), run=Phases(run, NoProgress(), ()))


@settings(max_examples=40)
@given(tables=TABLES, limits=LIMITS, seed=st.randoms(), size=st.none() | st.integers(3, 6))
def test_runs_and_ranges_leave_no_trace(tables, limits, seed, size):
    if len(plain_vocabulary(summed(tables), size, 1)) == 2:
        return
    runs = [run for table, times in tables for run in table for _ in range(times)]
    seed.shuffle(runs)
    data, other = folder(), folder()
    limits = limits | {"BATCH_ROWS": 1 << 20}
    found = made_bytes(made_of(tables, data, size=size, limits=limits), data)
    assert found == made_bytes(made_of([(runs, 1)], other, size=size), other)
    write_vocabulary(read_vocabulary(_published(found)), f"{other}/again")
    assert storage.read_bytes(f"{other}/again") == found


def _published(data):
    path = f"{folder()}/v"
    storage.publish_bytes(path, data)
    return path


def test_a_vocabulary_of_several_batches_is_the_same_vocabulary():
    tables = [([{f"w{number:03d}": number + 1 for number in range(50)}], 1)]
    data, other = folder(), folder()
    one = made_of(tables, data)
    many = made_of(tables, other, limits=WIDE | {"BATCH_ROWS": 20})
    reader = pa.ipc.open_file(made_bytes(many, other))
    assert [reader.get_batch(number).num_rows for number in range(reader.num_record_batches)] == [20, 20, 12]
    assert items(made_bytes(many, other)) == items(made_bytes(one, data))
    assert many.fingerprint == one.fingerprint
    assert pa.ipc.open_file(made_bytes(one, data)).num_record_batches == 1


# --- what a task holds


def pieces_of(runs, data, cuts=()):
    counted = [write_table(data, f"k{number}", [run]) for number, run in enumerate(runs)]
    found = []
    for each in counted:
        files = partition_tables([(each.key, 1)], cuts=cuts, data=data, max_bytes=1 << 20)
        found += [Piece(file.path, 0, int(file.ends[0])) for file in files]
    return found


@given(
    runs=st.lists(st.dictionaries(st.integers(0, 300), st.integers(1, 3), min_size=1), min_size=1, max_size=8),
    max_bytes=st.integers(150, 2000),
)
def test_a_range_that_is_too_large_is_cut_until_each_part_fits(runs, max_bytes):
    data = folder()
    runs = [{f"w{number:03d}": count for number, count in run.items()} for run in runs]
    sizes, excess = [], []

    def watched_sum(tables):
        sizes.append(sum(table.nbytes for table in tables))
        excess.append(excess_bytes(tables))
        return plain_sum(tables)

    plain_sum = merging._sum
    pieces = pieces_of(runs, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "_sum", watched_sum)
        parts = merge_pieces(pieces, data=data, size=None, min_count=1, max_bytes=max_bytes)
    # A row takes 16 bytes; one row of each run may come on top.
    assert max(sizes) <= max_bytes + len(runs) * 16
    assert max(excess) <= 4 + 3 * 63  # one more offset than rows, and each of three buffers padded to 64 bytes
    merged = Counter()
    last = ""
    for part in parts:
        table = pa.ipc.open_file(storage.read_bytes(part.path)).read_all()
        words = table["word"].to_pylist()
        assert table["count"].to_pylist() == sorted(table["count"].to_pylist(), reverse=True)
        if words:
            assert min(words) > last
            last = max(words)
        merged.update(dict(zip(words, table["count"].to_pylist(), strict=True)))
    assert merged == sum(map(Counter, runs), Counter())


def excess_bytes(tables):
    """Bytes that a table keeps in memory beside those of its rows, at most."""
    return max(table.get_total_buffer_size() - table.nbytes for table in tables)


def test_so_many_bytes_are_summed_at_once_and_a_run_of_more_is_only_cut(monkeypatch):
    sizes = []
    plain_sum = merging._sum
    monkeypatch.setattr(merging, "_sum", lambda each: sizes.append([run.num_rows for run in each]) or plain_sum(each))
    data = folder()
    rows = [3, 3, 3, 20, 1, 1, 6, 1]
    runs = [{f"w{number:02d}": 1 for number in range(size)} for size in rows]
    counted = [write_table(data, "many", runs), write_table(data, "twice", runs[:1])]
    group = [(each.key, times) for each, times in zip(counted, (1, 2), strict=True)]
    files = partition_tables(group, cuts=("w02", "w05"), data=data, max_bytes=160)
    assert sizes == [[3, 3, 3], [20], [1, 1, 6, 1], [3]]  # a row takes 15 bytes, and a run 4
    found = Counter()
    for file in files:
        ends = file.ends.tolist()
        pieces = [Piece(file.path, start, stop) for start, stop in zip((0, *ends), ends, strict=False)]
        tables = [merging._read(piece) if piece.start < piece.stop else None for piece in pieces]
        for first, last, table in zip(("", "w02", "w05"), ("w02", "w05", "x"), tables, strict=True):
            words = table["word"].to_pylist() if table else []
            assert all(first <= word < last for word in words)
            found.update(dict(zip(words, table["count"].to_pylist(), strict=True)) if table else {})
    assert found == sum(map(Counter, [*runs, runs[0], runs[0]]), Counter())


@pytest.mark.parametrize("sorted_rows", [100, 1 << 19])
def test_many_words_that_are_as_frequent_stay_in_the_order_of_bytes(monkeypatch, sorted_rows):
    sizes = []
    plain = ranking._sorted
    monkeypatch.setattr(ranking, "_sorted", lambda table: sizes.append(table.num_rows) or plain(table))
    counter = {
        f"w{number * 7919 % 3000:04d}": 1 + (number * number) % 31 // 3 + 40 * (number < 90) for number in range(3000)
    }
    tables = [([counter], 1), ([dict.fromkeys(list(counter)[:700], 2)], 1)]
    data = folder()
    made = made_of(tables, data, limits=WIDE | {"RANGE_ROWS": 400, "SORTED_ROWS": sorted_rows})
    assert items(made_bytes(made, data)) == plain_vocabulary(summed(tables), None, 1)
    assert sizes and max(sizes) <= sorted_rows
    assert (len(sizes) == 1) == (sorted_rows > 3000)


def test_looking_words_up_leaves_nothing_of_a_large_vocabulary_mapped(tmp_path):
    words = [f"w{number}" for number in range(50)]
    tables = [([dict.fromkeys(words, 1)], 1)]
    made = made_of(tables, str(tmp_path), limits=WIDE | {"BATCH_ROWS": 10, "INDEXED_WORDS": 0})
    ids = word_ids(made, str(tmp_path))
    known = {word: number for number, (word, _) in enumerate(items(made_bytes(made, str(tmp_path))))}
    assert ids.find(pa.array(words)).tolist() == [known[word] for word in words]
    assert num_held(str(tmp_path)) == 0


def test_a_piece_is_read_twice_into_however_many_ranges_it_is_cut(monkeypatch):
    """Once for samples of its words, and once to be cut."""
    data = folder()
    pieces = pieces_of([{f"w{number:03d}": 1 for number in range(300)}] * 3, data)
    calls, plain = Counter(), storage.read_range
    monkeypatch.setattr(storage, "read_range", lambda path, *span: calls.update([path]) or plain(path, *span))
    parts = merge_pieces(pieces, data=data, size=None, min_count=1, max_bytes=1000)
    assert len(parts) > 10
    assert [calls[piece.path] for piece in pieces] == [2, 2, 2]


def test_a_task_that_merges_is_sent_the_number_of_its_range(monkeypatch):
    """Not where the words stand in each file: the driver would hold that for all files and ranges at once."""
    monkeypatch.setattr(merging, "RANGE_ROWS", 2)
    data, sent = folder(), []
    counted = [write_table(data, f"k{number}", [{"a": 1, "b": 1, "c": 1}], sample_every=1) for number in range(9)]

    def run(function, items):
        sent.append(items)
        return run_here(function, items)

    config = VocabularyConfig(size=None, min_count=1, path=None)
    merge_vocabulary(counted, config, data, run=Phases(run, NoProgress(), ()))
    assert sent[1] == [1, 2, 3]  # before the first word there is none


def test_a_word_that_all_runs_hold_stays_whole():
    data = folder()
    runs = [{"a": 1, "the": number + 1, "z": 1} for number in range(40)]
    parts = merge_pieces(pieces_of(runs, data), data=data, size=None, min_count=1, max_bytes=100)
    tables = [items(storage.read_bytes(part.path)) for part in parts]
    assert [item for table in tables for item in table] == [("a", 40), ("the", 820), ("z", 40)]


def test_a_task_takes_so_many_rows_and_tables(monkeypatch):
    monkeypatch.setattr(merging, "RANGE_ROWS", 10)
    monkeypatch.setattr(merging, "GROUP_TABLES", 3)
    sizes = [4, 4, 4, 1, 1, 1, 1, 30, 2]
    counted = [counted_as(str(number), num_rows=rows) for number, rows in enumerate(sizes)]
    groups = merging._groups([*counted, counted[7], counted[7]])
    assert [[key for key, _ in group] for group in groups] == [["0", "1", "2"], ["3", "4", "5"], ["6", "7"], ["8"]]
    assert [times for group in groups for _, times in group] == [1] * 7 + [3, 1]


def num_held(folder):
    """Files of a folder that this process has open or mapped."""
    descriptors = [each for each in Path("/proc/self/fd").iterdir() if str(_target(each)).startswith(folder)]
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if folder in line]
    return len(descriptors) + len(mapped)


def _target(link):
    with suppress(FileNotFoundError):
        return link.readlink()


def test_no_file_is_held_while_rows_are_summed_or_sorted(tmp_path, monkeypatch):
    held = []
    for module, name in ((merging, "_sum"), (ranking, "_sorted")):
        plain = getattr(module, name)
        monkeypatch.setattr(module, name, lambda each, plain=plain: held.append(num_held(str(tmp_path))) or plain(each))
    runs = [{"a": 1, f"b{number:04d}": 2} for number in range(60)]
    made = made_of([([run], 2) for run in runs], str(tmp_path), limits=WIDE | {"RANGE_ROWS": 8, "GROUP_TABLES": 1})
    assert items(made_bytes(made, str(tmp_path)))[2:4] == [("a", 120), ("b0000", 4)]
    assert len(held) > 60
    assert max(held) <= 1  # a count table while its runs are read


# --- what need not be made


def test_a_sound_vocabulary_is_kept_and_one_without_its_index_is_made_anew(tmp_path):
    tables = [([{"a": 3, "b": 1}], 1)]
    data = str(tmp_path)
    made = made_of(tables, data, limits={"INDEXED_WORDS": 0})
    index = tmp_path / ".work" / "vocabulary" / f"{made.key}.index.arrow"
    whole = index.read_bytes()
    assert made.index_sha256 == hashlib.sha256(whole).hexdigest()
    before = index.stat().st_mtime_ns
    assert made_of(tables, data, limits={"INDEXED_WORDS": 0}) == made
    assert index.stat().st_mtime_ns == before
    for spoil in (index.unlink, lambda: index.write_bytes(whole[:-1] + b"x")):
        spoil()
        assert made_of(tables, data, limits={"INDEXED_WORDS": 0}) == made
        assert index.read_bytes() == whole
    small = made_of(tables, data, size=3, limits={"INDEXED_WORDS": 3})
    assert small.index_sha256 is None


@pytest.mark.parametrize(
    ("tables", "min_count", "message"),
    [
        ([([], 1)], 1, "the training text holds no words"),
        ([([{EOS_WORD: 3, UNK_WORD: 1}], 1)], 1, "the training text holds no words"),
        ([([{"a": 2, "b": 1, EOS_WORD: 9}], 2)], 5, "vocabulary.min_count=5 cuts every word: .* occurs 4 times"),
    ],
)
def test_a_vocabulary_without_words_is_refused(tables, min_count, message):
    with pytest.raises((ConfigError, CorpusError), match=message):
        made_of(tables, folder(), min_count=min_count)
