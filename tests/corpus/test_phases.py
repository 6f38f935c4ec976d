"""A phase: the other tasks finish when one fails, which is named; what is kept, done and failed is reported."""

import gzip
from dataclasses import dataclass

import pytest
from support.corpora import config, corpus_config, digests, words

from pipeline import storage
from pipeline.cluster.tasks import run_here
from pipeline.corpus import phases
from pipeline.corpus.phases import Kept, NoProgress, Phases, read_by
from pipeline.corpus.prepare import prepare
from pipeline.corpus.units import Source, WorkUnit
from pipeline.errors import ClusterError, ConfigError, CorpusError


def unit(path, start=0, stop=9):
    return WorkUnit(
        "train", "text", path, start, stop, stop - start, last=True, low=0.0, high=1.0, packing=None, has_mark=False
    )


class Reports(NoProgress):
    """Keeps what is reported of tasks."""

    def __init__(self):
        self.found = []

    def advance(self, *, num_bytes, num_words, outcome, peak_bytes):
        self.found.append((num_bytes, num_words, outcome, peak_bytes > 0))


@dataclass(frozen=True)
class OfUnit:
    """As planned shards have a unit."""

    unit: WorkUnit


def backwards(function, items):
    """Gives the last task's result first."""
    return reversed(list(run_here(function, items)))


def phase(function, items, *, run_tasks=run_here, progress=None, **more):
    return Phases(run_tasks, progress or NoProgress(), ())("count", function, items, **more)


def test_results_stand_in_the_order_of_items_and_say_whether_they_were_kept():
    def work(number):
        return Kept(number * 10) if number == 2 else number * 10

    reports = Reports()
    more = {"num_bytes": lambda number: number, "num_words": lambda result: result + 1}
    assert phase(work, [3, 1, 2], run_tasks=backwards, progress=reports, **more) == [30, 10, 20]
    assert reports.found == [(2, 21, "kept", True), (1, 11, "done", True), (3, 31, "done", True)]


def test_peak_memory_is_that_of_the_process():
    class Peaks(NoProgress):
        def advance(self, *, peak_bytes, **_):
            self.peak_bytes = peak_bytes

    before, after = Peaks(), Peaks()
    phase(str, [0], progress=before)
    held = bytearray(before.peak_bytes)  # more than there ever was
    held[::4096] = b"x" * len(held[::4096])
    phase(str, [0], progress=after)
    assert before.peak_bytes + (1 << 20) < after.peak_bytes < 4 * before.peak_bytes
    assert before.peak_bytes > 30 << 20  # Python, numpy and Arrow


def test_the_others_finish_and_the_first_that_failed_are_named():
    done = []

    def work(item):
        if item.start % 2:
            raise CorpusError(f"{item.path} is damaged")
        done.append(item.start)
        return item.start

    reports = Reports()
    items = [unit("/texts/a.txt", start, 99) for start in range(10)]
    with pytest.raises(CorpusError) as refused:
        phase(work, items, progress=reports)
    assert str(refused.value) == (
        "5 of 10 tasks of count failed, the others are done: /texts/a.txt is damaged (in a.txt[1:99])"
        " | /texts/a.txt is damaged (in a.txt[3:99]) | /texts/a.txt is damaged (in a.txt[5:99]) | and 2 more"
    )
    assert done == [0, 2, 4, 6, 8]
    assert [outcome for _, _, outcome, _ in reports.found] == ["done", "failed"] * 5
    with pytest.raises(CorpusError) as again:  # the order of workers leaves no trace
        phase(work, items, run_tasks=backwards)
    assert str(again.value) == str(refused.value)
    with pytest.raises(CorpusError) as alone:
        phase(work, items[:2])
    assert str(alone.value) == "/texts/a.txt is damaged (in a.txt[1:99])"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (unit("/texts/a.txt"), "/texts/a.txt: the worker died (in a.txt[0:9])"),
        (("key", unit("/texts/a.txt")), "/texts/a.txt: the worker died (in a.txt[0:9])"),
        ((OfUnit(unit("b/a.txt")), "receipt"), "b/a.txt: the worker died (in a.txt[0:9])"),
        (Source("train", "text", "/texts/a.txt"), "/texts/a.txt: the worker died"),
        (("first", None), "task 1 of count: the worker died"),
        (unit("https://me:hidden@host/a.txt"), "https://***@host/a.txt: the worker died (in a.txt[0:9])"),
    ],
)
def test_what_failed_is_named_by_what_it_read(item, message):
    def die(_):
        raise ClusterError("the worker died")

    with pytest.raises(ClusterError) as refused:
        phase(die, [item])
    assert str(refused.value) == message


def test_a_path_that_holds_a_secret_is_told_once():
    def refuse(item):
        raise CorpusError(f"{item.path} is damaged")

    with pytest.raises(CorpusError, match=r"^https://\*\*\*@host/a\.txt is damaged \(in a\.txt\[0:9\]\)$"):
        phase(refuse, [unit("https://me:hidden@host/a.txt")])


def test_a_mistake_that_is_about_no_input_stays_as_it_is():
    def refuse(_):
        raise ConfigError("min_count=5 cuts every word")

    with pytest.raises(ConfigError, match=r"^min_count=5 cuts every word$"):
        phase(refuse, [("a", "b")])
    assert read_by((("a", "b"), 3)) is None


def test_where_none_is_done_the_rest_is_not_tried(monkeypatch):
    monkeypatch.setattr(phases, "NUM_HOPELESS_TASKS", 4)
    tried = []

    def refuse(number, *, but=None):
        tried.append(number)
        if number == but:
            return number
        raise CorpusError("no network")

    with pytest.raises(CorpusError, match=r"^4 of 9 tasks of count failed, none was done, and the others were not"):
        phase(refuse, range(9))
    assert tried == [0, 1, 2, 3]
    tried.clear()
    with pytest.raises(CorpusError, match=r"^8 of 9 tasks of count failed, the others are done: "):
        phase(lambda number: refuse(number, but=2), range(9))
    assert tried == [*range(9)]


def test_a_mistake_of_ours_ends_the_phase_at_once():
    tried = []

    def divide(number):
        tried.append(number)
        return 1 / number

    with pytest.raises(ZeroDivisionError):
        phase(divide, [1, 0, 2])
    assert tried == [1, 0]


def test_a_damaged_file_leaves_only_itself_to_be_done(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in "abcd":
        (texts / f"{name}.txt.gz").write_bytes(gzip.compress(words(ord(name), 20_000).encode()))
    whole = (texts / "b.txt.gz").read_bytes()
    flipped = bytearray(whole)
    flipped[-8] ^= 1  # in its checksum
    (texts / "b.txt.gz").write_bytes(flipped)
    corpus = corpus_config(train=str(texts))
    with pytest.raises(CorpusError) as refused:
        prepare(corpus, str(tmp_path / "data"), run_tasks=run_here)
    assert str(refused.value).startswith(f"{texts}/b.txt.gz is damaged")
    assert str(refused.value).endswith(f"(in b.txt.gz[0:{len(whole)}])")
    assert not (tmp_path / "data" / "manifest.json").exists()
    (texts / "b.txt.gz").write_bytes(whole)
    prepare(corpus, str(tmp_path / "data"), run_tasks=run_here)
    prepare(corpus, str(tmp_path / "whole"), run_tasks=run_here)
    assert digests(tmp_path / "data") == digests(tmp_path / "whole")


def test_a_disk_that_is_full_is_one_line(texts, tmp_path, monkeypatch):
    publish = storage.publish

    def full(path, *args, **kw):
        if path.endswith("train/00001.arrow"):
            raise OSError(28, "No space left on device", path)
        return publish(path, *args, **kw)

    monkeypatch.setattr(storage, "publish", full)
    data = tmp_path / "data"
    with pytest.raises(ClusterError, match=r"^.*/texts/\d\.txt: .*No space left on device: .*train/00001\.arrow"):
        prepare(config(texts), str(data), run_tasks=run_here)
    assert (data / "train" / "00002.arrow").exists() and not (data / "manifest.json").exists()
    monkeypatch.setattr(storage, "publish", publish)
    prepare(config(texts), str(data), run_tasks=run_here)
    prepare(config(texts), str(tmp_path / "whole"), run_tasks=run_here)
    assert digests(data) == digests(tmp_path / "whole")
