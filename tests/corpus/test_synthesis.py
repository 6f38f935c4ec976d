"""Made text: the laws of its words, and that its bytes are a function of the seed and the number of words alone."""

import fcntl
import hashlib
import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.cluster.tasks import run_here
from pipeline.corpus import synthesis as made
from pipeline.corpus.synthesis import Part, Synthesis, check_target, make_part, synthesize
from pipeline.errors import ConfigError

SMALL = Synthesis(num_words=2500, seed=3, part_words=1000)


def text_of(num_words, *, seed=1, number=0):
    return b"".join(block.to_pybytes() for block in made.made_blocks(num_words, seed=seed, number=number))


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def backwards(function, items):
    """Tasks in another order."""
    yield from ((index, function(items[index])) for index in reversed(range(len(items))))


def dies_after(number):
    """Tasks of which only the first ones come to an end."""

    def run(function, items):
        yield from ((index, function(item)) for index, item in enumerate(items[:number]))
        raise KeyboardInterrupt

    return run


@pytest.fixture(scope="module")
def words():
    return text_of(10_000_000).split()


# --- the laws


def test_frequencies_fall_as_zipf_and_mandelbrot_have_it_and_steeper_beyond_the_head(words):
    counts = np.array(sorted(Counter(words).values(), reverse=True))

    def slope(low, high):
        return np.log(counts[high - 1] / counts[low - 1]) / np.log(high / low)

    assert -1.03 < slope(30, 1500) < -0.93
    assert -1.80 < slope(4000, 40_000) < -1.55  # rank^(-5/3)
    ours = 1 / (np.arange(1, 31) + 1.5)
    found = counts[1:31]  # the full stop comes first
    np.testing.assert_allclose(found / found.sum(), ours / ours.sum(), rtol=0.03)


@pytest.mark.parametrize(("low", "high"), [(10**5, 10**6), (10**6, 10**7)])
def test_new_words_keep_appearing_as_heaps_has_it(words, low, high):
    few, many = (len(set(words[:num_words])) for num_words in (low, high))
    assert 0.58 < np.log(many / few) / np.log(high / low) < 0.62


def test_other_parts_bring_other_words():
    first, second, other_seed = (set(text_of(100_000, seed=s, number=n).split()) for s, n in [(1, 0), (1, 1), (2, 0)])
    for other in (second, other_seed):
        assert 5000 < len(other - first) < 0.75 * len(other)


def test_lines_have_plausible_lengths_and_marks_are_words(words):
    lines = [line.split(b" ") for line in text_of(200_000).splitlines()]
    assert sum(map(len, lines)) == 200_000
    lengths = np.array([len(line) for line in lines])
    assert 19 < lengths.mean() < 21 and 9 < lengths.std() < 11
    assert lengths.max() <= 67 and (lengths < 4).sum() <= 2  # the last lines of two blocks
    assert {line[-1] for line in lines} == {b"."} and not any(b"." in line[:-1] for line in lines)
    assert 0.025 < words.count(b",") / len(words) < 0.04
    assert all(re.fullmatch(rb"[a-z]+|[.,]", word) for word in set(words))


def test_a_word_has_six_bytes_with_its_blank_and_rarer_words_are_longer(words):
    assert 5.4 < len(text_of(200_000)) / 200_000 < 6.1
    ranked = [word for word, _ in Counter(words).most_common()]
    means = [np.mean([len(word) for word in ranked[low:high]]) for low, high in [(3, 30), (30, 1000), (2000, 10**5)]]
    assert means == sorted(means) and means[0] < 3 < means[1] < 6 < means[2]


def test_no_two_ranks_are_spelled_alike():
    largest = 1 + int(made.HEAD * 2.0 ** (1.5 * made.TAIL_BITS))
    numbers = np.append(np.arange(1, 1_100_000), [2**40, 2**40 + 1, 2**62, largest - 1, largest])
    spelled = made.spell(numbers).to_pylist()
    assert len(set(spelled)) == len(numbers)
    assert all(re.fullmatch(rb"([bdghkmptv][aeiou][lnrs]?)+ ", word) for word in spelled)
    in_order = [len(word) for word in spelled[:-5]]
    assert max(in_order[:32]) < max(in_order[:1000]) < max(in_order)
    assert largest < 2**63 and len(spelled[-1]) > 0


def test_the_largest_rank_is_spelled(monkeypatch):
    """Drawn once in 2^54 words: all bits of the head's slot, none of the tail's."""

    class Lowest:
        def random_raw(self, size):
            return np.full(size, ((1 << made.SLOT_BITS) - 1) << (64 - made.SLOT_BITS), dtype=np.uint64)

    ranks = made.draw_ranks(Lowest(), 9)
    assert ranks.max() == 1 + int(made.HEAD * 2.0 ** (1.5 * made.TAIL_BITS))
    monkeypatch.setattr(np.random, "Philox", lambda key: Lowest())
    words = text_of(9).split()
    assert len(words) == 9 and len(max(words, key=len)) >= 2 * made.MAX_SYLLABLES


# --- the same bytes


def test_the_bytes_stay_what_they_are():
    """On every machine and with every numpy; another digest needs another `FORMAT`."""
    digest = hashlib.sha256(text_of(250_000, seed=7, number=2)).hexdigest()
    assert (made.FORMAT, digest) == (1, "2b93d6354dbc5ebdae8a67822487b0a3b8ffd33989d0f1dfad84ea7104a3ccfd")


def test_the_order_of_tasks_a_stop_and_a_rerun_leave_no_trace(tmp_path):
    synthesize(SMALL, str(tmp_path / "a"), run_tasks=run_here)
    synthesize(SMALL, str(tmp_path / "b"), run_tasks=backwards)
    with pytest.raises(KeyboardInterrupt):
        synthesize(SMALL, str(tmp_path / "c"), run_tasks=dies_after(1))
    (tmp_path / "c" / "00001.txt.tmp").write_text("half")
    (tmp_path / "c" / "00002.txt.0a1b2c3d.tmp").write_text("half")
    assert len(synthesize(SMALL, str(tmp_path / "c"), run_tasks=run_here)) == 2
    files = files_of(tmp_path / "a")
    assert files == files_of(tmp_path / "b") == files_of(tmp_path / "c")
    assert {name: len(text.split()) for name, text in files.items()} == {
        "00000.txt": 1000,
        "00001.txt": 1000,
        "00002.txt": 500,
    }
    assert len(set(files.values())) == 3


def test_a_part_is_made_of_the_seed_and_its_number(tmp_path):
    synthesize(SMALL, str(tmp_path), run_tasks=run_here)
    assert (tmp_path / "00002.txt").read_bytes() == text_of(500, seed=3, number=2)


def test_what_is_there_is_kept(tmp_path):
    assert len(synthesize(SMALL, str(tmp_path), run_tasks=run_here)) == 3
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.txt")}
    assert synthesize(SMALL, str(tmp_path), run_tasks=run_here) == []
    assert times == {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.txt")}


def test_in_an_object_store(s3_bucket, tmp_path):
    import fsspec

    to = f"{s3_bucket}/made"
    assert len(synthesize(SMALL, to, run_tasks=run_here)) == 3
    assert synthesize(SMALL, to, run_tasks=run_here) == []
    synthesize(SMALL, str(tmp_path), run_tasks=run_here)
    assert fsspec.filesystem("s3").cat_file(f"{to}/00002.txt") == (tmp_path / "00002.txt").read_bytes()
    with pytest.raises(ConfigError, match="needed"):
        check_target(replace(SMALL, seed=4), to)


def test_memory_is_that_of_a_block(tmp_path):
    """Arrow's is counted by its pool; numpy's arrays of a block are some of the same size."""
    size_bytes = make_part(Part(str(tmp_path / "a.txt"), 1, 0, 2_000_000)).size_bytes
    assert size_bytes == (tmp_path / "a.txt").stat().st_size > 10_000_000
    assert pa.default_memory_pool().bytes_allocated() < 4_000_000
    assert max(block.size for block in made.made_blocks(2_000_000, seed=1, number=0)) < 700_000


# --- what is refused


@pytest.mark.parametrize("other", [{"seed": 4}, {"num_words": 2501}, {"part_words": 999}, {"format": 0}])
def test_a_folder_of_other_text_is_refused(tmp_path, other):
    synthesize(SMALL, str(tmp_path), run_tasks=run_here)
    before = files_of(tmp_path)
    with pytest.raises(ConfigError) as refused:
        synthesize(replace(SMALL, **other), str(tmp_path), run_tasks=run_here)
    assert str(refused.value).startswith(f'to={tmp_path} holds text of {{"num_words": 2500, "seed": 3, ')
    assert f"needed {json.dumps({**vars(SMALL), **other})}; give the same num_words and seed, or" in str(refused.value)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("name", ["notes.txt", "00003.txt", "0000.txt", "00000.txt.bak", "sub/00000.txt"])
@pytest.mark.parametrize("begun", [True, False])
def test_a_folder_with_other_files_is_refused(tmp_path, name, begun):
    if begun:
        synthesize(SMALL, str(tmp_path), run_tasks=run_here)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=rf"to={tmp_path} holds {name}, which synthesize did not write there; use"):
        synthesize(SMALL, str(tmp_path), run_tasks=run_here)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / name).read_text() == "mine\n"


def test_a_file_of_the_users_own_at_the_name_of_a_part_is_not_taken_for_one(tmp_path):
    (tmp_path / "00000.txt").write_text("mine\n")
    with pytest.raises(ConfigError, match=r"holds 00000\.txt, which synthesize did not write there"):
        synthesize(SMALL, str(tmp_path), run_tasks=run_here)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "a").write_text("mine\n")
    with pytest.raises(ConfigError, match=r"to=.*/a is a file, needed a folder; use another to=FOLDER"):
        synthesize(SMALL, str(tmp_path / "a"), run_tasks=run_here)


def test_a_folder_that_another_process_writes_to_is_refused(tmp_path):
    with (tmp_path / made.LOCK_NAME).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="is written to by another process; wait for it or use another"):
            synthesize(SMALL, str(tmp_path), run_tasks=run_here)
    assert len(synthesize(SMALL, str(tmp_path), run_tasks=run_here)) == 3
