"""Counting, merging, cutting and encoding equal what `Counter`, `sorted` and `dict` give."""

import hashlib
import random
from collections import Counter
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.vocabularies import count_words, cut_vocabulary, write_vocabulary

from pipeline.corpus import vocabulary as module
from pipeline.corpus.vocabulary import (
    EOS,
    EOS_WORD,
    UNK,
    UNK_WORD,
    Vocabulary,
    given_vocabulary,
    merge_counts,
    read_vocabulary,
)
from pipeline.errors import ConfigError, CorpusError

WORDS = st.lists(
    st.one_of(
        st.sampled_from(["\n", EOS_WORD, UNK_WORD, "a", "b", "é", "\ufffd", "😀", "\0", "aa", "\u2028", "\uffff"]),
        st.text(alphabet=st.characters(codec="utf-8", exclude_characters=" \t\n\v\f\r"), min_size=1, max_size=3),
    ),
    max_size=60,
)


def array(words):
    return pa.array(words, pa.string())


def counts_of(counter):
    return pa.table([array(list(counter)), pa.array(list(counter.values()), pa.int64())], schema=module.COUNTS_SCHEMA)


def as_dict(counts):
    words = counts["word"].to_pylist()
    assert len(set(words)) == len(words)
    return dict(zip(words, counts["count"].to_pylist(), strict=True))


def plain_counts(words):
    return Counter(EOS_WORD if word == "\n" else word for word in words)


def plain_vocabulary(counter, size, min_count):
    """Words and counts in id order, as DESIGN.md defines them."""
    others = [(word, count) for word, count in counter.items() if word not in (EOS_WORD, UNK_WORD)]
    others.sort(key=lambda item: (-item[1], item[0].encode()))
    kept = [item for item in others if item[1] >= min_count][: None if size is None else size - 2]
    num_unk = counter[UNK_WORD] + sum(count for _, count in others) - sum(count for _, count in kept)
    return [(EOS_WORD, counter[EOS_WORD]), (UNK_WORD, num_unk), *kept]


def items(vocabulary):
    return list(zip(vocabulary.words.to_pylist(), vocabulary.counts.tolist(), strict=True))


# --- counting and merging


@given(words=WORDS)
def test_count_words_equals_counter(words):
    found = count_words(array(words))
    assert found.schema.equals(module.COUNTS_SCHEMA)
    assert as_dict(found) == plain_counts(words)


@pytest.mark.parametrize("words", [["\n"], [EOS_WORD], ["\n", EOS_WORD, "\n"], [EOS_WORD, "a", "\n"]])
def test_line_ends_and_literal_eos_are_one_word(words):
    assert as_dict(count_words(array(words))) == plain_counts(words)


@given(parts=st.lists(WORDS, max_size=6), seed=st.integers(0, 99), rows=st.sampled_from([1, 7, 1 << 20]))
def test_merge_counts_sums_whatever_the_order(parts, seed, rows):
    tables = [count_words(array(words)) for words in parts]
    shuffled = random.Random(seed).sample(tables, len(tables))
    with pytest.MonkeyPatch.context() as patch:
        merged = merge_counts(iter(tables))
        patch.setattr(module, "MERGE_MIN_ROWS", rows)
        again = merge_counts(shuffled)
    expected = plain_counts(word for words in parts for word in words)
    assert merged.equals(again)
    assert as_dict(merged) == expected
    assert merged["word"].to_pylist() == sorted(expected, key=str.encode)


def test_merge_counts_holds_few_tables(monkeypatch):
    sizes = []
    plain_sum = module._sum_counts
    monkeypatch.setattr(module, "MERGE_MIN_ROWS", 10)
    monkeypatch.setattr(module, "_sum_counts", lambda tables: sizes.append(sum(map(len, tables))) or plain_sum(tables))
    merged = merge_counts(counts_of({f"w{word}": 1 for word in range(7)}) for _ in range(100))
    assert as_dict(merged) == {f"w{word}": 100 for word in range(7)}
    # 7 merged and two tables of 7 wait, as soon as they are 10 rows: never all 700.
    assert max(sizes) == 21
    assert len(sizes) == 51


def test_merge_counts_waits_for_as_many_rows_as_are_merged(monkeypatch):
    merges = []
    plain_sum = module._sum_counts
    monkeypatch.setattr(module, "MERGE_MIN_ROWS", 1)
    monkeypatch.setattr(module, "_sum_counts", lambda tables: merges.append(len(tables)) or plain_sum(tables))
    merge_counts(counts_of({f"w{table}": 1}) for table in range(9))
    assert merges == [2, 2, 3, 5, 2]  # with 1, 2, 4 and 8 rows; and at the end


def test_words_beyond_the_reach_of_arrow_are_refused(monkeypatch):
    tables = [counts_of({"aé": 1}), counts_of({"bcd": 1})]
    monkeypatch.setattr(module, "MAX_WORDS_BYTES", 6)
    assert as_dict(merge_counts(tables)) == {"aé": 1, "bcd": 1}
    monkeypatch.setattr(module, "MAX_WORDS_BYTES", 5)
    with pytest.raises(CorpusError, match="the distinct words take 6 bytes, more than the 5 that"):
        merge_counts(tables)


def test_counts_beyond_int32_are_exact():
    table = counts_of({"a": 2**40 + 1})
    assert as_dict(merge_counts([table, table])) == {"a": 2**41 + 2}


# --- cutting


@given(
    counter=st.dictionaries(WORDS.filter(bool).map(lambda each: each[0].replace("\n", "a")), st.integers(1, 5)),
    size=st.none() | st.integers(3, 9),
    min_count=st.integers(1, 5),
)
def test_cut_vocabulary_equals_the_definition(counter, size, min_count):
    expected = plain_vocabulary(Counter(counter), size, min_count)
    if len(expected) == 2:
        with pytest.raises((ConfigError, CorpusError)):
            cut_vocabulary(counts_of(counter), size=size, min_count=min_count)
        return
    found = cut_vocabulary(merge_counts([counts_of(counter)]), size=size, min_count=min_count)
    assert items(found) == expected
    assert found.counts.sum() == sum(counter.values())
    assert found.counts.dtype == np.int64
    assert found.words.type == pa.string()


def test_ties_are_ordered_by_bytes():
    counter = {"😀": 2, "\uffff": 2, "b": 2, "ab": 2, "a": 2, "é": 2, "Z": 2, "top": 3}
    found = cut_vocabulary(counts_of(counter), size=None, min_count=1)
    # U+FFFF comes before U+1F600 in UTF-8, though not in UTF-16.
    assert found.words.to_pylist()[2:] == ["top", "Z", "a", "ab", "b", "é", "\uffff", "😀"]


@pytest.mark.parametrize(("min_count", "expected"), [(1, "abc"), (2, "ab"), (3, "ab"), (4, "a")])
def test_min_count_keeps_words_that_occur_as_often(min_count, expected):
    found = cut_vocabulary(counts_of({"a": 4, "b": 3, "c": 1}), size=None, min_count=min_count)
    assert "".join(found.words.to_pylist()[2:]) == expected
    assert found.counts[UNK] == {"abc": 0, "ab": 1, "a": 4}[expected]


@pytest.mark.parametrize(("size", "found"), [(3, 3), (4, 4), (5, 5), (6, 5), (None, 5)])
def test_size_includes_eos_and_unk(size, found):
    cut = cut_vocabulary(counts_of({"a": 4, "b": 3, "c": 1, UNK_WORD: 7, EOS_WORD: 9}), size=size, min_count=1)
    assert cut.size == found
    assert cut.counts[:2].tolist() == [9, 7 + {3: 4, 4: 1, 5: 0}[found]]


def test_a_cut_that_leaves_no_word_is_refused():
    message = "vocabulary.min_count=5 cuts every word: the most frequent occurs 4 times; use at most that"
    with pytest.raises(ConfigError, match=message):
        cut_vocabulary(counts_of({"a": 4, "b": 1, EOS_WORD: 8}), size=None, min_count=5)


@pytest.mark.parametrize("counter", [{}, {EOS_WORD: 3}, {EOS_WORD: 3, UNK_WORD: 5}])
def test_a_text_without_words_is_refused(counter):
    with pytest.raises(CorpusError, match="the training text holds no words"):
        cut_vocabulary(counts_of(counter), size=None, min_count=1)


# --- ids


@given(training=WORDS, words=WORDS)
def test_encode_equals_a_dict(training, words):
    vocabulary = cut_vocabulary(count_words(array(["x", *training])), size=9, min_count=1)
    ids = {word: number for number, word in enumerate(vocabulary.words.to_pylist())} | {"\n": EOS}
    found = vocabulary.encode(array(words))
    assert found.dtype == np.int32
    assert found.tolist() == [ids.get(word, UNK) for word in words]


def test_encode_takes_literals_for_tokens_and_slices_for_arrays():
    vocabulary = cut_vocabulary(counts_of({"a": 2, "b": 1}), size=None, min_count=1)
    words = array(["a", "z", "\n", EOS_WORD, UNK_WORD, "b", "a"])
    assert vocabulary.encode(words).tolist() == [2, 1, 0, 0, 1, 3, 2]
    assert vocabulary.encode(words[1:6]).tolist() == [1, 0, 0, 1, 3]
    assert vocabulary.encode(words[:0]).tolist() == []


def test_a_vocabulary_is_frozen():
    vocabulary = cut_vocabulary(counts_of({"a": 2}), size=None, min_count=1)
    with pytest.raises(AttributeError):
        vocabulary.words = array(["b"])
    with pytest.raises(ValueError, match="read-only"):
        vocabulary.counts[0] = 1


def test_fingerprint_is_of_the_words_in_order_alone(monkeypatch):
    def fingerprint(*words, counts=0):
        return Vocabulary(words=array(words), counts=np.full(len(words), counts)).fingerprint

    base = fingerprint(EOS_WORD, UNK_WORD, "a", "é")
    assert base == hashlib.sha256("<eos>\n<unk>\na\né".encode()).hexdigest()  # pinned: checkpoints carry it
    assert base == fingerprint(EOS_WORD, UNK_WORD, "a", "é", counts=5)
    others = [("é", "a"), ("aé",), ("a", "é", "b"), ("a",), ("a", "e")]
    assert len({base, *(fingerprint(EOS_WORD, UNK_WORD, *each) for each in others)}) == len(others) + 1
    sliced = array(["x", EOS_WORD, UNK_WORD, "a", "é"])[1:]
    assert Vocabulary(words=sliced, counts=np.zeros(4, np.int64)).fingerprint == base
    monkeypatch.setattr(module, "SLICE_ROWS", 3)
    assert fingerprint(EOS_WORD, UNK_WORD, "a", "é") == base


# --- files


def test_a_vocabulary_comes_back_from_its_file(tmp_path):
    path = str(tmp_path / "folder" / "vocabulary.arrow")
    vocabulary = cut_vocabulary(counts_of({"a": 2, "é": 2**33, "b": 1, EOS_WORD: 4}), size=4, min_count=1)
    write_vocabulary(vocabulary, path)
    found = read_vocabulary(path)
    assert items(found) == items(vocabulary) == [(EOS_WORD, 4), (UNK_WORD, 1), ("é", 2**33), ("a", 2)]
    assert found.fingerprint == vocabulary.fingerprint
    assert not found.counts.flags.writeable
    assert pa.ipc.open_file(path).read_all().column_names == ["word", "count"]


def test_the_file_is_a_function_of_the_vocabulary(tmp_path):
    words = [EOS_WORD, UNK_WORD, "a", "é"]
    for name, stored in [("a", array(words)), ("b", array(["x", *words])[1:])]:
        write_vocabulary(Vocabulary(words=stored, counts=np.arange(4)), str(tmp_path / name))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def write_table(path, columns, names=("word", "count"), nullable=False):
    fields = [pa.field(name, column.type, nullable=nullable) for name, column in zip(names, columns, strict=True)]
    table = pa.table(columns, schema=pa.schema(fields))
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([UNK_WORD, EOS_WORD, "a"], r"begins with \['<unk>', '<eos>'\], needed <eos> and <unk>"),
        ([EOS_WORD, "a"], "begins with"),
        ([], r"begins with \[\]"),
        ([EOS_WORD, UNK_WORD, "a", "b", "a"], "id 4: found 'a' again, as in id 2"),
        ([EOS_WORD, UNK_WORD, "a", ""], "id 3: found '', needed one word"),
        ([EOS_WORD, UNK_WORD, "a b"], "id 2: found 'a b', needed one word"),
        ([EOS_WORD, UNK_WORD, "a", EOS_WORD], "id 3: found '<eos>' again"),
    ],
)
def test_damaged_vocabularies_are_refused(tmp_path, words, message):
    write_table(tmp_path / "v.arrow", [array(words), pa.array([1] * len(words), pa.int64())])
    with pytest.raises(CorpusError, match=message) as refusal:
        read_vocabulary(str(tmp_path / "v.arrow"))
    assert "\n" not in str(refusal.value)


def test_other_columns_are_refused(tmp_path):
    words, counts = array([EOS_WORD, UNK_WORD, "a"]), pa.array([1, 2, 3], pa.int64())
    wrong = [
        ([words], ["word"], False),
        ([words, counts], ["word", "n"], False),
        ([words, counts.cast(pa.int32())], ["word", "count"], False),
        ([words.cast(pa.large_string()), counts], ["word", "count"], False),
        ([words, counts], ["word", "count"], True),
    ]
    for columns, names, nullable in wrong:
        write_table(tmp_path / "v.arrow", columns, names, nullable)
        with pytest.raises(CorpusError, match=r"has the columns word .*needed word \(string\), count \(int64\)"):
            read_vocabulary(str(tmp_path / "v.arrow"))


@pytest.mark.parametrize(
    ("counts", "bad"), [([-1, 0, 5], 0), ([0, 0, -(2**63)], 2), ([1, None, 1], 1), ([0, -1, None], 1)]
)
def test_counts_below_0_are_refused(tmp_path, counts, bad):
    write_table(tmp_path / "v.arrow", [array([EOS_WORD, UNK_WORD, "a"]), pa.array(counts, pa.int64())])
    with pytest.raises(CorpusError, match=rf"v\.arrow, id {bad}: found the count {counts[bad]}, needed 0 or more"):
        read_vocabulary(str(tmp_path / "v.arrow"))
    write_table(tmp_path / "v.arrow", [array([EOS_WORD, UNK_WORD, "a"]), pa.array([0, 0, 0], pa.int64())])
    assert read_vocabulary(str(tmp_path / "v.arrow")).counts.tolist() == [0, 0, 0]


def test_a_missing_or_truncated_vocabulary_is_refused(tmp_path):
    path = tmp_path / "v.arrow"
    with pytest.raises(CorpusError, match=r"v\.arrow is no readable vocabulary .*jobs prepare"):
        read_vocabulary(str(path))
    write_vocabulary(cut_vocabulary(counts_of({"a": 2}), size=None, min_count=1), str(path))
    whole = path.read_bytes()
    for length in [0, 5, 100, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CorpusError, match="is no readable vocabulary"):
            read_vocabulary(str(path))


def test_any_damaged_byte_of_the_file_is_refused_or_harmless_but_never_a_crash(tmp_path):
    path = tmp_path / "v.arrow"
    write_vocabulary(cut_vocabulary(counts_of({"é": 2, "ab": 1}), size=None, min_count=1), str(path))
    whole = path.read_bytes()
    num_refused = 0
    for position in range(len(whole)):
        flip = (0x01, 0x80, 0xFF)[position % 3]
        path.write_bytes(whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :])
        num_refused += 1
        with suppress(CorpusError):
            found = read_vocabulary(str(path))
            assert len(found.fingerprint) == 64
            assert found.size == len(found.counts)
            num_refused -= 1
    assert num_refused > len(whole) // 20


def test_record_batches_hold_so_many_words_and_no_more_bytes_than_an_array_can(tmp_path, monkeypatch):
    words = [EOS_WORD, UNK_WORD, "aaa", "b", "ccccccc", "dd", "é", "f"]
    table = module.table_of(array(words), np.arange(8))
    pieces = [table.slice(0, 3), table.slice(3, 0), table.slice(3, 1), table.slice(4)]
    shapes = {}
    for batch_rows, max_bytes, slice_rows in [(8, 99, 2), (3, 99, 2), (3, 99, 9), (8, 12, 2), (8, 12, 1)]:
        monkeypatch.setattr(module, "MAX_WORDS_BYTES", max_bytes)
        monkeypatch.setattr(module, "SLICE_ROWS", slice_rows)
        path = str(tmp_path / "v")
        written = module.write_words(pieces, path, index_path=None, batch_rows=batch_rows)
        reader = pa.ipc.open_file(path)
        assert reader.read_all().equals(table)
        shapes[batch_rows, max_bytes, slice_rows] = [
            reader.get_batch(number).num_rows for number in range(reader.num_record_batches)
        ]
        assert written.sha256 == hashlib.sha256((tmp_path / "v").read_bytes()).hexdigest()
        assert written.fingerprint == Vocabulary(words=array(words), counts=np.arange(8)).fingerprint
    assert shapes == {
        (8, 99, 2): [8],
        (3, 99, 2): [3, 3, 2],
        (3, 99, 9): [3, 3, 2],
        (8, 12, 2): [2, 2, 4],
        (8, 12, 1): [2, 3, 3],
    }


def test_an_index_has_a_batch_for_each_of_the_vocabulary(tmp_path):
    words = array([EOS_WORD, UNK_WORD, "a", "b", "c"])
    paths = str(tmp_path / "v"), str(tmp_path / "i")
    written = module.write_words([module.table_of(words, np.arange(5))], paths[0], index_path=paths[1], batch_rows=2)
    assert written.index_sha256 == hashlib.sha256((tmp_path / "i").read_bytes()).hexdigest()
    index = pa.ipc.open_file(paths[1])
    found = [index.get_batch(number) for number in range(index.num_record_batches)]
    assert found == [module.sorted_hashes(words[start : start + 2]) for start in (0, 2, 4)]


def test_words_beyond_one_array_are_refused_where_they_must_be_one(tmp_path, monkeypatch):
    path = str(tmp_path / "v")
    vocabulary = cut_vocabulary(counts_of({"aaa": 2, "bbb": 1}), size=None, min_count=1)
    monkeypatch.setattr(module, "MAX_WORDS_BYTES", 15)
    write_vocabulary(vocabulary, path)  # 16 bytes of words, in two batches
    with pytest.raises(CorpusError, match=r"words of .*v take 16 bytes, more than the 15 .*smaller vocabulary\.size$"):
        read_vocabulary(path)
    (tmp_path / "words.txt").write_text("aaaaaaa\nbbbbbbbb")
    with pytest.raises(CorpusError, match=r"words\.txt has 16 bytes, more than the 15 .*; use fewer$"):
        given_vocabulary(str(tmp_path / "words.txt"), counts=None)
    monkeypatch.setattr(module, "MAX_WORDS_BYTES", 16)
    assert read_vocabulary(path).size == given_vocabulary(str(tmp_path / "words.txt"), counts=None).size == 4


def test_words_that_share_a_hash_are_not_taken_for_one(tmp_path):
    (tmp_path / "words.txt").write_text("\n".join("z" * 300 + last for last in "abc"))
    assert given_vocabulary(str(tmp_path / "words.txt"), counts=None).size == 5


@given(
    counter=st.dictionaries(
        st.sampled_from([*"abcdefghij", "é", "😀", "\uffff", EOS_WORD, UNK_WORD]), st.integers(1, 4)
    ),
    size=st.none() | st.integers(3, 12),
    min_count=st.integers(1, 5),
)
def test_ranking_keeps_the_first_of_words_that_are_as_frequent_and_all_sums(counter, size, min_count):
    words = sorted(counter, key=str.encode)
    found = module.rank(
        module.table_of(array(words), np.array([counter[word] for word in words], np.int64)),
        size=size,
        min_count=min_count,
    )
    others = [word for word in words if word not in (EOS_WORD, UNK_WORD)]
    kept = sorted((word for word in others if counter[word] >= min_count), key=lambda word: -counter[word])
    kept = kept[: None if size is None else size - 2]
    assert list(as_dict(found.words).items()) == [(word, counter[word]) for word in kept]
    assert found.num_eos == counter.get(EOS_WORD, 0)
    assert found.num_unk + found.num_eos + sum(counter[word] for word in kept) == sum(counter.values())
    assert found.most == max((counter[word] for word in others), default=0)


# --- a user's own vocabulary


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("b\na\n", [EOS_WORD, UNK_WORD, "b", "a"]),
        ("b\na", [EOS_WORD, UNK_WORD, "b", "a"]),
        ("<unk>\nb\n<eos>\na\n", [EOS_WORD, UNK_WORD, "b", "a"]),
        ("b\n<unk>\n", [EOS_WORD, UNK_WORD, "b"]),
        ("a\u00a0b\né\n", [EOS_WORD, UNK_WORD, "a\u00a0b", "é"]),
        ("\ufeffb\na\n", [EOS_WORD, UNK_WORD, "b", "a"]),
        ("\ufeff<eos>\n<unk>\nb\n", [EOS_WORD, UNK_WORD, "b"]),
        ("b\n\ufeffa\n", [EOS_WORD, UNK_WORD, "b", "\ufeffa"]),
    ],
)
def test_a_text_vocabulary_keeps_its_order(tmp_path, content, expected):
    (tmp_path / "words.txt").write_text(content, encoding="utf-8", newline="")
    found = given_vocabulary(str(tmp_path / "words.txt"), counts=None)
    assert items(found) == [(word, 0) for word in expected]


def test_a_given_vocabulary_takes_the_counts_of_the_text(tmp_path):
    (tmp_path / "words.txt").write_text("rare\noften\nnever\n")
    counts = counts_of({"often": 7, "rare": 2, "other": 30, UNK_WORD: 400, EOS_WORD: 5})
    found = given_vocabulary(str(tmp_path / "words.txt"), counts=[counts])
    assert items(found) == [(EOS_WORD, 5), (UNK_WORD, 430), ("rare", 2), ("often", 7), ("never", 0)]
    without = given_vocabulary(str(tmp_path / "words.txt"), counts=[counts_of({"rare": 2, "other": 3})])
    assert without.counts.tolist() == [0, 3, 2, 0, 0]


def test_a_given_arrow_vocabulary_keeps_its_counts_unless_others_are_given(tmp_path):
    path = str(tmp_path / "v")
    write_vocabulary(cut_vocabulary(counts_of({"b": 5, "a": 2}), size=None, min_count=1), path)
    assert items(given_vocabulary(path, counts=None)) == [(EOS_WORD, 0), (UNK_WORD, 0), ("b", 5), ("a", 2)]
    found = given_vocabulary(path, counts=[counts_of({"a": 9, "c": 1})])
    assert items(found) == [(EOS_WORD, 0), (UNK_WORD, 1), ("b", 0), ("a", 9)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb c\n", "line 2: found 'b c', needed one word"),
        (b"a\r\nb\r\n", r"line 1: found 'a\\r', needed one word .*; save the file with LF line ends, not CR LF$"),
        (b"\xef\xbb\xbfa\r\nb", r"line 1: found 'a\\r', .*; save the file with LF line ends"),
        (b"a\rb\rc", r"line 1: found 'a\\rb\\rc', .*; save the file with LF line ends"),
        (b"a\n\r\n", r"line 2: found '\\r', .*; save the file with LF line ends"),
        (b"a\t5\n", r"line 1: found 'a\\t5', needed one word .*; leave out the column of counts$"),
        (b"<unk> 50\nthe 7\n", "line 1: found '<unk> 50', .*; leave out the column of counts$"),
        (b"a\nb -1.5e-3\n", "line 2: found 'b -1.5e-3', .*; leave out the column of counts$"),
        (b"      5 a\n", "line 1: found '      5 a', .*; leave out the column of counts$"),
        (b"a .\n", "line 1: found 'a .', .*; mend it$"),
        (b"a " * 9999, f"line 1: found '{'a ' * 20}...', needed one word"),
        (b"a\n\nb\n", "line 2: found ''"),
        (b"a\nb\n\n", "line 3: found ''"),
        (b"a\nb\nc\na\n", "line 4: found 'a' again, as in line 1"),
        (b"<unk>\na\n<unk>\n", "line 3: found '<unk>' again, as in line 1"),
        (b"a\nb\n\xff\n", "line 3: found a byte that is not UTF-8; save the file as UTF-8, not compressed$"),
        (b"\xff", "line 1: found a byte that is not UTF-8"),
        (b"<eos>\n<unk>\n", "holds no word beside"),
        (b"", "line 1: found ''"),
    ],
)
def test_bad_text_vocabularies_are_refused_by_line(tmp_path, content, message):
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        given_vocabulary(str(tmp_path / "words.txt"), counts=None)


def test_a_missing_given_vocabulary_is_refused(tmp_path):
    with pytest.raises(CorpusError, match=r"vocabulary\.path=.*words\.txt cannot be read"):
        given_vocabulary(str(tmp_path / "words.txt"), counts=None)
