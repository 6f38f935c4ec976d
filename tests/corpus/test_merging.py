"""Ranges of a vocabulary lose only words that no vocabulary of the size would have."""

import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.vocabulary import rank
from pipeline.corpus.vocabulary import COUNTS_SCHEMA, cut_vocabulary


def test_pruning_a_range_keeps_the_sums_and_the_special_words():
    rows = [(f"w{number:03d}", 100 - number) for number in range(100)] + [("<eos>", 1), ("<unk>", 2)]
    counts = pa.table([[word for word, _ in rows], [count for _, count in rows]], schema=COUNTS_SCHEMA)
    pruned = most_frequent(counts, size=20)
    assert pruned.num_rows == 22
    for size in (3, 10, 20):
        whole, part = (cut_vocabulary(each, size=size, min_count=1) for each in (counts, pruned))
        assert whole.words == part.words and whole.counts.tolist() == part.counts.tolist()


@given(
    counter=st.dictionaries(st.sampled_from([*"abcdefghij", "é", "😀", "\uffff", "<eos>", "<unk>"]), st.integers(1, 4)),
    size=st.none() | st.integers(1, 12),
)
def test_pruning_keeps_the_first_of_words_that_are_as_frequent(counter, size):
    words = sorted(counter, key=str.encode)
    counts = pa.table([words, [counter[word] for word in words]], schema=COUNTS_SCHEMA)
    found = most_frequent(counts, size=size)
    others = [word for word in words if word not in ("<eos>", "<unk>")]
    kept = sorted(others, key=lambda word: -counter[word])[:size]
    found_words = found["word"].to_pylist()
    if size is None or len(words) <= size:
        assert found.equals(counts)
    else:
        assert sorted(found_words) == sorted({*kept, "<unk>"} | ({"<eos>"} & counter.keys()))
        assert [word for word in found_words if word in kept] == [word for word in others if word in kept]
        assert pc.sum(found["count"]).as_py() == sum(counter.values())
