"""Shards of a remote corpus on this machine: the right bytes, within the bound, no more fetches than are needed."""

import errno
import fcntl
import hashlib
import itertools
import logging
import os
import threading
import time
import uuid
from collections import Counter
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sequences import Ids

from pipeline import storage
from pipeline.config import StreamConfig
from pipeline.corpus import cache as module
from pipeline.corpus import tokens
from pipeline.corpus.cache import Future, ShardCache, check_cache, eviction_order, open_cache
from pipeline.corpus.lanes import LanePlan, rank_lanes
from pipeline.corpus.manifest import Shard
from pipeline.corpus.order import Order, ranges_of
from pipeline.corpus.stream import read_window
from pipeline.corpus.tokens import TokenSequence, write_shard
from pipeline.errors import ConfigError, CorpusError

FINGERPRINT = "ab" * 32
STREAM = StreamConfig(
    num_lanes=3,
    bptt=5,
    random_bptt=False,
    seed=1,
    state="reset",
    verify="digest",
    order="sequential",
    block_tokens=100,
    cache_gb=1,
    cache_folder=None,
)


class Store:
    """A remote corpus, and what was fetched of it."""

    def __init__(self, data):
        self.data, self.fetched, self.on_piece = data, Counter(), lambda name: None
        self.shards, self.ids = [], np.empty(0, dtype=np.int64)

    def add(self, *lengths):
        """Shards of drawn tokens."""
        for length in lengths:
            number = len(self.shards)
            ids = np.random.default_rng(number).integers(0, 90, length)
            name = f"train/{number:05}.arrow"
            made = write_shard(
                f"{self.data}/{name}", [ids], vocabulary_fingerprint=FINGERPRINT, vocab_size=100, source=str(number)
            )
            sizes = {"num_tokens": length, "size_bytes": made.size_bytes, "sha256": made.sha256}
            self.shards.append(Shard(name=name, source="", **sizes))
            self.ids = np.concatenate([self.ids, ids])

    @property
    def largest(self):
        return max(shard.size_bytes for shard in self.shards)

    def future(self, plan, lanes=None, total_steps=10**6):
        lanes = range(plan.num_lanes) if lanes is None else lanes
        return Future(
            self.shards, plan, ranges_of(plan, Order(num_tokens=plan.num_targets), lanes), total_steps=total_steps
        )

    def read(self, cache, **options):
        """The corpus as a rank reads it."""
        return TokenSequence(
            self.data, shards=self.shards, vocabulary_fingerprint=FINGERPRINT, vocab_size=100, cache=cache, **options
        )


@pytest.fixture
def store(monkeypatch):
    store = Store(f"memory://{uuid.uuid4().hex}")
    sound = storage.read_pieces

    def read_pieces(path, num_bytes):
        store.fetched[path.removeprefix(f"{store.data}/")] += 1
        for piece in sound(path, num_bytes):
            store.on_piece(path)
            yield piece

    monkeypatch.setattr(storage, "read_pieces", read_pieces)
    yield store
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def make(store, tmp_path):
    """Caches of one folder, each as a process of its own would have it."""
    made = []

    def make(*, limit=10**9, digests=True, future=None, folder=None):
        cache = ShardCache(
            store.data, str(folder or tmp_path / "shards"), limit_bytes=limit, digests=digests, future=future
        )
        made.append(cache)
        return cache

    yield make
    for cache in made:
        cache.close()


def names_in(folder):
    return sorted(path.name for path in Path(folder).iterdir() if path.name != ".lock")


def bytes_in(folder):
    found = 0
    for name in names_in(folder):
        with suppress(FileNotFoundError):
            found += (Path(folder) / name).stat().st_size
    return found


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def mapped_here():
    """How many shards this process has mapped."""
    return Path("/proc/self/maps").read_text().count("/shards/")


def num_files():
    """How many files this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


# --- which shard goes


def test_what_does_not_come_goes_first_by_least_recent_use_and_then_what_comes_last():
    held = {"a": 5.0, "b": 3.0, "c": 4.0, "d": 1.0}
    assert eviction_order(held, ["c", "x", "a"]) == ["d", "b", "a", "c"]
    assert eviction_order(held, []) == ["d", "b", "c", "a"]
    assert eviction_order({}, ["c"]) == []


def fewest_misses(trace, room):
    """Of all ways to choose what goes; by trying them."""

    @lru_cache(10**6)
    def fewest(place, held):
        if place == len(trace):
            return 0
        name = trace[place]
        if name in held:
            return fewest(place + 1, held)
        if len(held) < room:
            return 1 + fewest(place + 1, held | {name})
        return 1 + min(fewest(place + 1, held - {gone} | {name}) for gone in held)

    return fewest(0, frozenset())


@given(trace=st.lists(st.sampled_from("abcdef"), max_size=14), room=st.integers(1, 4))
def test_no_choice_of_what_goes_needs_fewer_fetches(trace, room):
    held, misses = {}, 0
    for place, name in enumerate(trace):
        if name not in held:
            misses += 1
            if len(held) == room:
                del held[eviction_order(held, trace[place:])[0]]
        held[name] = place
    assert misses == fewest_misses(tuple(trace), room)


# --- what comes


@given(data=st.data())
def test_shards_come_in_the_order_in_which_the_lanes_read_them(data):
    lengths = data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(lambda found: sum(found) > 3))
    plan = LanePlan(
        num_targets=sum(lengths),
        num_lanes=data.draw(st.integers(1, 3)),
        bptt=data.draw(st.integers(1, 4)),
        window_seed=data.draw(st.none() | st.integers(0, 9)),
    )
    lanes = data.draw(st.lists(st.sampled_from(range(plan.num_lanes)), min_size=1, unique=True))
    step, total = data.draw(st.integers(0, 2 * plan.num_windows)), data.draw(st.integers(0, 5 * plan.num_windows))
    owner = np.repeat(np.arange(len(lengths)), lengths)
    shards = [
        Shard(name=str(n), num_tokens=length, size_bytes=1, sha256=hashlib.sha256(bytes([n])).hexdigest(), source="")
        for n, length in enumerate(lengths)
    ]
    uses = {}  # of each shard the first step, and how far a lane has read by then
    for each in range(step, total):
        ranges = plan.lane_ranges(each)
        for start, stop in [ranges[lane] for lane in lanes]:
            for place in range(max(start - 1, 0), stop) if start < stop else ():
                uses.setdefault(str(owner[place]), each)
                uses[str(owner[place])] = min(uses[str(owner[place])], each)
    future = Future(shards, plan, ranges_of(plan, Order(num_tokens=plan.num_targets), lanes), total_steps=total)
    found = [shard.name for shard in future.coming(step)]
    assert len(found) == len(set(found))
    assert set(found) == set(uses)
    assert [uses[name] for name in found] == sorted(uses.values())


def test_no_more_is_looked_at_than_is_asked_for_whatever_the_corpus():
    """A trillion tokens in a million shards: the first shards come at once."""
    shards = [
        Shard(name=str(n), num_tokens=10**6, size_bytes=2 * 10**6, sha256=f"{n:064x}", source="") for n in range(10**4)
    ]
    plan = LanePlan(num_targets=10**10, num_lanes=8, bptt=70)
    asked = []

    def ranges(epoch, start, stop):
        asked.append(stop - start)
        return ranges_of(plan, Order(num_tokens=plan.num_targets), range(8))(epoch, start, stop)

    future = Future(shards, plan, ranges, total_steps=plan.num_windows)
    found = [int(shard.name) for shard in itertools.islice(future.coming(0), 15)]  # and each lane's first input
    assert sorted(found) == sorted([*range(0, 10**4, 1250), *range(1249, 9999, 1250)])
    assert len(asked) == 1
    assert asked[0] * plan.bptt < 10**6


# --- the bytes, and how often they are fetched


def read_by_windows(store, sequences, plan, steps, at=lambda rank, step: None):
    """All ranks' lanes, window by window; what is read must be the corpus."""
    world = len(sequences)
    for step in steps:
        for rank, sequence in enumerate(sequences):
            at(rank, step)
            ranges = plan.lane_ranges(step)
            for lane in rank_lanes(plan.num_lanes, world_size=world, rank=rank):
                start, stop = ranges[lane]
                if start < stop:
                    start = max(start - 1, 0)
                    assert sequence.read(start, stop).tolist() == store.ids[start:stop].tolist()


@pytest.mark.parametrize("world", [1, 2])
def test_where_all_fits_each_shard_is_fetched_once_for_all_ranks_and_epochs(store, make, world):
    store.add(*[40, 7, 0, 31, 55, 12, 60, 28, 44])
    plan = LanePlan(num_targets=len(store.ids), num_lanes=4, bptt=6)
    caches = [make(future=store.future(plan)) for _ in range(world)]
    sequences = [store.read(cache) for cache in caches]
    steps = range(3 * plan.num_windows)
    read_by_windows(store, sequences, plan, steps, at=lambda rank, step: caches[rank].at(step))
    assert set(store.fetched.values()) == {1}
    assert len(store.fetched) >= 8


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("ahead", [False, True])
def test_the_smallest_cache_fetches_a_shard_once_for_each_lane_and_epoch(
    store, make, tmp_path, monkeypatch, world, ahead
):
    monkeypatch.setattr(module, "NUM_THREADS", 2 if ahead else 0)
    store.add(*([50, 41, 37, 48, 50, 33, 50, 45] * 4))
    plan = LanePlan(num_targets=len(store.ids), num_lanes=4, bptt=6)
    limit = plan.num_lanes * store.largest
    caches = [make(limit=limit, future=store.future(plan)) for _ in range(world)]
    sequences = [store.read(cache, most_open=2 * 4 // world) for cache in caches]
    most = [0]

    def on_piece(path):
        most[0] = max(most[0], bytes_in(tmp_path / "shards"))

    store.on_piece = on_piece

    num_epochs = 2
    steps = range(num_epochs * plan.num_windows)
    read_by_windows(store, sequences, plan, steps, at=lambda rank, step: caches[rank].at(step))
    starts = np.cumsum([0, *[shard.num_tokens for shard in store.shards]])
    lanes = np.array([plan.lane_start(lane) for lane in range(plan.num_lanes + 1)])
    for number, shard in enumerate(store.shards):
        readers = sum(
            max(starts[number], lanes[lane] - 1) < min(starts[number + 1], lanes[lane + 1])
            for lane in range(plan.num_lanes)
        )
        assert 1 <= store.fetched[shard.name] <= num_epochs * readers, shard.name
    assert limit * 0.5 < most[0] <= limit
    assert mapped_here() <= plan.num_lanes


@pytest.mark.parametrize("world", [1, 2])
def test_the_smallest_cache_fetches_no_shard_twice_within_a_block(store, make, tmp_path, monkeypatch, world):
    monkeypatch.setattr(module, "NUM_THREADS", 0)
    store.add(*[400] * 12)
    num_tokens = len(store.ids)
    plan = LanePlan(num_targets=num_tokens, num_lanes=4, bptt=10)
    order = Order(num_tokens=num_tokens, block_tokens=100, seed=1)  # a lane has 12 whole ones
    ranges = ranges_of(plan, order, range(4))
    futures = [Future(store.shards, plan, ranges, total_steps=10**6, run_tokens=100) for _ in range(world)]
    limit = 2 * plan.num_lanes * store.largest
    caches = [make(limit=limit, future=future) for future in futures]
    sequences = [store.read(cache, most_open=8 // world) for cache in caches]
    for step in range(plan.num_windows):
        for rank, sequence in enumerate(sequences):
            caches[rank].at(step)
            lanes = rank_lanes(4, world_size=world, rank=rank)
            window = read_window(sequence, plan, step=step, lanes=lanes, order=order)
            expected = read_window(Ids(store.ids), plan, step=step, lanes=lanes, order=order)
            assert window.targets_N.tolist() == expected.targets_N.tolist()
            assert bytes_in(tmp_path / "shards") <= limit
    assert sum(store.fetched.values()) <= order.num_blocks


def test_threads_that_want_one_shard_at_once_fetch_it_once(store, make):
    store.add(100)
    begun, go_on = threading.Event(), threading.Event()
    store.on_piece = lambda path: (begun.set(), go_on.wait(60))
    caches = [make() for _ in range(4)]
    found = []
    threads = [threading.Thread(target=lambda each=cache: found.append(each.open(store.shards[0]))) for cache in caches]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert store.fetched == {"train/00000.arrow": 1}
    assert len({bytes(each) for each in found}) == 1
    assert len(found) == 4


def test_a_part_gets_its_name_while_no_other_process_looks(store, make, tmp_path, monkeypatch):
    """One that looked before and tried its lock after would take it for what a dead process left."""
    store.add(40)
    rename, tried = Path.rename, []

    def checked(path, to):
        with (tmp_path / "shards" / ".lock").open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        tried.append(path.name)
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", checked)
    make().open(store.shards[0])
    assert tried == [f"{store.shards[0].sha256}.part"]


def test_an_empty_shard_is_not_fetched(store, make):
    store.add(0, 40, 0, 0, 40, 0)
    assert store.read(make()).read(0, 80).tolist() == store.ids.tolist()
    assert store.fetched == {"train/00001.arrow": 1, "train/00004.arrow": 1}


def test_another_corpus_and_another_run_use_what_is_there(store, make, tmp_path):
    store.add(30, 40)
    first = make()
    store.read(first).read(0, 70)
    first.close()
    renamed = [shard.model_copy(update={"name": f"elsewhere/{shard.name}"}) for shard in store.shards]
    sequence = TokenSequence(
        store.data, shards=renamed, vocabulary_fingerprint=FINGERPRINT, vocab_size=100, cache=make()
    )
    assert sequence.read(0, 70).tolist() == store.ids.tolist()
    assert sum(store.fetched.values()) == 2
    assert names_in(tmp_path / "shards") == sorted(shard.sha256 for shard in store.shards)


def test_what_comes_is_fetched_before_it_is_asked_for(store, make, tmp_path):
    store.add(30, 40, 40, 40, 40, 50)
    plan = LanePlan(num_targets=240, num_lanes=2, bptt=5)
    cache = make(limit=4 * store.largest, future=store.future(plan))
    cache.at(0)
    until(lambda: sum(len(name) == 64 for name in names_in(tmp_path / "shards")) == 4)
    assert sorted(list(store.fetched)[:2]) == ["train/00000.arrow", "train/00003.arrow"]
    assert names_in(tmp_path / "shards") == sorted(store.shards[n].sha256 for n in (0, 3, 1, 4))
    cache.at(9)  # lanes are in shards 1 and 4: what they left makes room for 2 and 5
    until(lambda: sum(store.fetched.values()) == 6)
    until(lambda: names_in(tmp_path / "shards") == sorted(store.shards[n].sha256 for n in (1, 2, 4, 5)))


def test_nothing_goes_for_what_is_needed_later(store, make, tmp_path):
    store.add(30, 40, 40, 40, 40, 50)
    plan = LanePlan(num_targets=240, num_lanes=2, bptt=5)
    cache = make(limit=2 * store.largest, future=store.future(plan))
    cache.at(0)
    until(lambda: sum(len(name) == 64 for name in names_in(tmp_path / "shards")) == 2)
    assert not cache._fetch_next(0)
    assert names_in(tmp_path / "shards") == sorted(store.shards[n].sha256 for n in (0, 3))
    assert sum(store.fetched.values()) == 2


def test_what_the_lanes_have_left_meanwhile_is_not_fetched_ahead(store, make, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "NUM_THREADS", 0)
    store.add(30, 40, 40, 40, 40, 50)
    plan = LanePlan(num_targets=240, num_lanes=2, bptt=5)
    cache = make(limit=4 * store.largest, future=store.future(plan))
    cache.at(9)  # lanes are in shards 1 and 4
    assert cache._fetch_next(0)  # as a thread does that began to look at step 0, when 0 and 3 came first
    assert names_in(tmp_path / "shards") == [store.shards[1].sha256]
    (tmp_path / "shards" / store.shards[1].sha256).unlink()
    cache.at(13)  # two windows on they are in 2 and 5
    assert [cache._fetch_next(9) for _ in range(3)] == [True, True, False]
    assert store.fetched == {f"train/0000{n}.arrow": 1 for n in (1, 2, 5)}


def test_what_a_lane_has_left_stays_where_another_comes_to_it_soon(store, make, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "NUM_THREADS", 0)
    store.add(*[40] * 4)
    plan = LanePlan(num_targets=160, num_lanes=1, bptt=5)
    cache = make(limit=2 * store.largest, future=store.future(plan))
    cache.at(2)
    for shard in (store.shards[0], store.shards[3]):
        cache.open(shard)
    cache.leave(store.shards[0])
    cache.open(store.shards[1])
    assert names_in(tmp_path / "shards") == sorted(store.shards[n].sha256 for n in (0, 1))
    cache.at(6)  # where it is needed no longer; shard 1 comes at step 8
    cache.leave(store.shards[0])
    cache.at(20)
    cache.leave(store.shards[1])
    cache.open(store.shards[2])
    assert store.shards[2].sha256 in names_in(tmp_path / "shards")


# --- the bound


def test_another_runs_shards_go_by_least_recent_use_and_fresh_ones_only_where_need_be(store, make, tmp_path):
    store.add(*[40] * 6)
    other = make()
    for shard in store.shards[3:]:
        other.open(shard)
    folder = tmp_path / "shards"
    now = time.time()
    for number, age in ((3, 5.0), (4, 3600.0), (5, 1800.0)):
        os.utime(folder / store.shards[number].sha256, (now - age, now - age))
    own = store.shards[:3]
    plan = LanePlan(num_targets=120, num_lanes=1, bptt=5)
    future = Future(own, plan, ranges_of(plan, Order(num_tokens=plan.num_targets), [0]), total_steps=100)
    cache = make(limit=4 * store.largest, future=future)
    assert cache._fetch_next(0)  # there is room
    assert cache._fetch_next(0)  # 4 goes
    assert names_in(folder) == sorted(store.shards[n].sha256 for n in (0, 1, 3, 5))
    assert cache._fetch_next(0)  # 5 goes
    assert names_in(folder) == sorted(store.shards[n].sha256 for n in (0, 1, 2, 3))
    small = make(limit=3 * store.largest, future=future)
    (folder / own[2].sha256).unlink()
    assert not small._fetch_next(0)  # 3 was used just now
    small.open(own[2])  # but this is needed at once
    assert names_in(folder) == sorted(each.sha256 for each in own)


def test_a_mapped_shard_stays_and_one_that_is_let_go_of_makes_room(store, make, tmp_path):
    store.add(*[40] * 3)
    cache = make(limit=2 * store.largest)
    first, second = cache.open(store.shards[0]), cache.open(store.shards[1])
    kept = bytes(first)
    with pytest.raises(module._NoRoomError):
        cache._fetch(store.shards[2], ahead=False)
    held = [second]
    cache.on_release(held.clear)
    del second
    cache.open(store.shards[2])  # has room as soon as the process lets go of what it can
    assert names_in(tmp_path / "shards") == sorted(store.shards[n].sha256 for n in (0, 2))
    assert bytes(first) == kept


def test_a_rank_that_cannot_go_on_takes_the_room_of_what_others_have_mapped(store, make, tmp_path):
    store.add(*[40] * 3)
    other = make()
    maps = [other.open(shard) for shard in store.shards[:2]]
    before = [bytes(each) for each in maps]
    make(limit=2 * store.largest).open(store.shards[2])
    assert bytes_in(tmp_path / "shards") <= 2 * store.largest
    assert [bytes(each) for each in maps] == before


def test_what_is_being_fetched_counts_and_is_waited_for(store, make, tmp_path):
    store.add(*[40] * 2)
    begun, go_on = threading.Event(), threading.Event()

    def on_piece(path):
        if path.endswith("00000.arrow"):
            begun.set()
            go_on.wait(60)

    store.on_piece = on_piece
    caches = [make(limit=store.largest) for _ in range(2)]
    threads = [threading.Thread(target=cache.open, args=(store.shards[n],)) for n, cache in enumerate(caches)]
    threads[0].start()
    assert begun.wait(60)
    assert bytes_in(tmp_path / "shards") == store.shards[0].size_bytes
    threads[1].start()
    time.sleep(0.1)
    assert names_in(tmp_path / "shards") == [f"{store.shards[0].sha256}.part"]
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert names_in(tmp_path / "shards") == [store.shards[1].sha256]


def test_a_bound_that_is_smaller_than_before_holds_from_the_first_step(store, make, tmp_path):
    store.add(40, 40, 40, 40)
    other = make()
    maps = [other.open(shard) for shard in store.shards]
    plan = LanePlan(num_targets=160, num_lanes=1, bptt=5)
    del maps[2:]
    make(limit=2 * store.largest, future=store.future(plan)).at(0)
    assert names_in(tmp_path / "shards") == sorted(shard.sha256 for shard in store.shards[:2])
    assert bytes(maps[0])


def test_a_run_with_a_smaller_bound_leaves_what_another_holds(store, make, tmp_path):
    store.add(*[40] * 10)
    other = make()
    maps = [other.open(shard) for shard in store.shards[:8]]
    own = store.shards[8:]
    plan = LanePlan(num_targets=80, num_lanes=1, bptt=5)
    future = Future(own, plan, ranges_of(plan, Order(num_tokens=80), [0]), total_steps=100)
    del maps[4:]
    cache = make(limit=2 * store.largest, future=future)
    cache._trim()
    assert len(names_in(tmp_path / "shards")) == 8  # all of it was used just now
    with open_cache(
        store.data,
        store.shards[4:],  # as those of another split, of which no lane's future tells
        stream=STREAM.model_copy(
            update={"cache_gb": 7 * store.largest / 1e9, "cache_folder": str(tmp_path / "shards")}
        ),
        num_lanes=1,
        future=future,
    ) as same:
        same._trim()
    assert len(names_in(tmp_path / "shards")) == 7
    for shard in own:
        cache.open(shard)
    left = names_in(tmp_path / "shards")
    assert len(left) == 7
    assert {shard.sha256 for shard in [*own, *store.shards[:4]]} <= set(left)
    old = time.time() - 3600.0
    for shard in store.shards[:8]:
        with suppress(FileNotFoundError):
            os.utime(tmp_path / "shards" / shard.sha256, (old, old))
    cache._trim()
    assert len(names_in(tmp_path / "shards")) == 4  # what the other has mapped
    assert len(maps) == 4


def test_what_is_no_shard_is_neither_counted_nor_removed(store, make, tmp_path):
    store.add(40, 40)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "notes.txt").write_bytes(bytes(10**6))
    cache = make(limit=store.largest)
    cache.open(store.shards[0])
    cache.open(store.shards[1])
    assert names_in(tmp_path / "shards") == sorted(["notes.txt", store.shards[1].sha256])


def test_a_disk_with_less_room_than_the_bound_is_a_bound_too(store, make, tmp_path, monkeypatch):
    store.add(40, 40, 40)
    cache = make()
    cache.open(store.shards[0])

    class Usage:
        free = store.largest // 2

    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Usage)
    cache.open(store.shards[1])
    assert names_in(tmp_path / "shards") == [store.shards[1].sha256]
    (tmp_path / "shards" / store.shards[1].sha256).unlink()
    with pytest.raises(
        ConfigError, match=r"has no room for token shard train/00002\.arrow: found \d+ bytes free"
    ) as told:
        cache.open(store.shards[2])
    assert "\n" not in str(told.value)


# --- what is wrong


def test_a_shard_that_is_not_the_manifests_is_refused_by_name_after_one_more_fetch(store, make, tmp_path):
    store.add(40)
    path = f"{store.data}/train/00000.arrow"
    whole = storage.read_bytes(path)
    cache = make()
    for wrong, told in (
        (whole[:-1], "found 873 bytes"),
        (whole + b"x", "found 875 bytes"),
        (whole[:-1] + b"x", "found sha256"),
    ):
        store.fetched.clear()
        storage.publish_bytes(path, wrong)
        with pytest.raises(CorpusError, match=told) as refused:
            cache.open(store.shards[0])
        message = str(refused.value)
        assert path in message
        assert message.endswith("run `python -m jobs prepare` again")
        assert "\n" not in message
        assert store.fetched == {"train/00000.arrow": 2}
        assert names_in(tmp_path / "shards") == []
    storage.publish_bytes(path, whole)
    assert bytes(cache.open(store.shards[0])) == whole


def test_a_fetch_that_went_wrong_once_is_made_again(store, make, monkeypatch):
    store.add(40)
    sound, calls = storage.read_pieces, []

    def read_pieces(path, num_bytes):
        calls.append(path)
        for piece in sound(path, num_bytes):
            yield piece[:-1] + b"x" if len(calls) == 1 else piece

    monkeypatch.setattr(storage, "read_pieces", read_pieces)
    assert store.read(make()).read(0, 40).tolist() == store.ids.tolist()
    assert len(calls) == 2


@pytest.mark.parametrize(("digests", "damage"), [(True, "byte"), (True, "size"), (False, "size")])
def test_a_damaged_file_in_the_cache_is_fetched_anew(store, make, tmp_path, digests, damage):
    store.add(40)
    make().open(store.shards[0])
    file = tmp_path / "shards" / store.shards[0].sha256
    whole = file.read_bytes()
    file.write_bytes(whole[:-5] if damage == "size" else whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
    assert bytes(make(digests=digests).open(store.shards[0])) == whole
    assert sum(store.fetched.values()) == 2
    assert file.read_bytes() == whole


def test_with_size_alone_a_file_that_is_there_is_not_read_again(store, make, tmp_path, monkeypatch):
    store.add(40)
    make().open(store.shards[0])
    digests = []
    monkeypatch.setattr(module.hashlib, "sha256", lambda *data: digests.append(1) or hashlib.new("sha256", *data))
    make(digests=False).open(store.shards[0])
    assert digests == []
    cache = make(digests=True)
    cache.open(store.shards[0])
    cache.open(store.shards[0])
    assert digests == [1]


def test_a_shard_that_is_gone_is_told(store, make, tmp_path):
    store.add(40)
    storage.remove(f"{store.data}/train/00000.arrow")
    with pytest.raises(CorpusError, match=r"token shard memory://.*/train/00000\.arrow is not there") as told:
        make().open(store.shards[0])
    assert "\n" not in str(told.value)
    assert names_in(tmp_path / "shards") == []


def test_a_store_that_fails_ahead_of_need_is_told_where_the_shard_is_needed(store, make, caplog, tmp_path):
    store.add(40, 40)
    plan = LanePlan(num_targets=80, num_lanes=1, bptt=5)
    failing = []

    def on_piece(path):
        if path.endswith("00001.arrow"):
            failing.append(path)
            raise ConfigError(f"{path} cannot be reached")

    store.on_piece = on_piece
    cache = make(future=store.future(plan))
    sequence = store.read(cache)
    with caplog.at_level(logging.WARNING):
        cache.at(0)
        until(lambda: failing)
        until(lambda: [each for each in caplog.records if "ahead of need" in each.getMessage()])
    assert sequence.read(0, 40).tolist() == store.ids[:40].tolist()
    with pytest.raises(ConfigError, match="cannot be reached"):
        sequence.read(40, 80)
    store.on_piece = lambda path: None
    assert sequence.read(40, 80).tolist() == store.ids[40:].tolist()


def test_what_nobody_expects_does_not_end_a_thread_unseen(store, make, caplog, monkeypatch):
    store.add(40, 40)
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.01)
    calls = []
    fetch_next = ShardCache._fetch_next

    def failing(self, step):
        calls.append(step)
        if len(calls) < 9:
            raise RuntimeError("nobody expects it")
        return fetch_next(self, step)

    monkeypatch.setattr(ShardCache, "_fetch_next", failing)
    monkeypatch.setattr(module, "NUM_THREADS", 1)
    cache = make(future=store.future(LanePlan(num_targets=80, num_lanes=1, bptt=5)))
    with caplog.at_level(logging.WARNING):
        cache.at(0)
        until(lambda: sum(store.fetched.values()) == 2)
    (line,) = [each.getMessage() for each in caplog.records]
    assert line.endswith("ahead of need: nobody expects it")


def test_a_shard_of_another_user_is_used_though_it_cannot_be_marked(store, make, monkeypatch):
    store.add(40)

    def refused(path):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(module.os, "utime", refused)
    cache = make(future=store.future(LanePlan(num_targets=40, num_lanes=1, bptt=5)))
    assert len(cache.open(store.shards[0])) == store.shards[0].size_bytes
    cache._touch(0)


def test_a_folder_that_cannot_be_used_is_told(store, make, tmp_path, monkeypatch):
    store.add(40)
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "shards", "/proc/shards"):
        with pytest.raises(ConfigError, match="cannot be written") as told:
            make(folder=folder)
        assert str(folder) in str(told.value)
        assert "\n" not in str(told.value)
    cache = make()

    def full(file, start, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match=r"stream\.cache_folder=.* \(No space left on device\); mend") as told:
        cache.open(store.shards[0])
    assert "\n" not in str(told.value)
    assert names_in(tmp_path / "shards") == []


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_fetches_is_not(store, make, tmp_path):
    store.add(40, 40)
    cache = make()
    left, living = (tmp_path / "shards" / f"{shard.sha256}.part" for shard in store.shards)
    left.write_bytes(bytes(5000))
    living.write_bytes(bytes(5000))
    with living.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        cache.open(store.shards[0])
        assert names_in(tmp_path / "shards") == sorted([store.shards[0].sha256, living.name])
    cache.open(store.shards[1])
    assert names_in(tmp_path / "shards") == sorted(shard.sha256 for shard in store.shards)


def test_a_folder_that_is_removed_meanwhile_is_made_again(store, make, tmp_path):
    store.add(40, 40)
    cache = make()
    first = cache.open(store.shards[0])
    for path in (tmp_path / "shards").iterdir():
        path.unlink()
    (tmp_path / "shards").rmdir()
    cache.open(store.shards[1])
    assert names_in(tmp_path / "shards") == [store.shards[1].sha256]
    assert len(first) == store.shards[0].size_bytes


# --- what it costs a process


def test_a_step_that_waited_is_told(store, make, caplog, monkeypatch):
    store.add(40, 40)
    plan = LanePlan(num_targets=80, num_lanes=1, bptt=5)
    monkeypatch.setattr(module, "NUM_THREADS", 0)
    monkeypatch.setattr(module, "TOLD_SECONDS", 0.05)
    cache = make(future=store.future(plan))
    with caplog.at_level(logging.INFO):
        cache.at(0)
        store.on_piece = lambda path: time.sleep(0.1)
        cache.open(store.shards[0])
        cache.at(1)
        cache.open(store.shards[0])
        cache.at(2)
    (line,) = [each.getMessage() for each in caplog.records]
    assert line.startswith("step 0 waited 0.")
    assert line.endswith("s for 1 token shard(s)")


def test_a_cache_that_is_closed_has_neither_threads_nor_maps(store, make):
    store.add(*[40] * 4)
    plan = LanePlan(num_targets=160, num_lanes=2, bptt=5)
    before = threading.active_count()
    cache = make(future=store.future(plan))
    sequence = store.read(cache)
    cache.at(0)
    sequence.read(0, 20)
    assert threading.active_count() > before
    assert mapped_here() == 1
    cache.close()
    assert threading.active_count() == before
    assert mapped_here() == 0
    assert sequence.read(20, 100).tolist() == store.ids[20:100].tolist()


def test_a_sequence_that_has_ended_is_known_no_longer(store, make):
    store.add(40)
    cache = make()
    for _ in range(3):
        sequence = store.read(cache)
        sequence.read(0, 40)
        assert mapped_here() == 1
        sequence.end()
        assert mapped_here() == 0
        assert cache._releases == []


@pytest.mark.parametrize("remote", [False, True])
def test_a_rank_has_few_shards_open_however_many_there_are(store, make, tmp_path, monkeypatch, remote):
    monkeypatch.setattr(tokens, "MOST_OPEN", 60)
    if not remote:
        store.data = str(tmp_path / "shards")
    store.add(*[9] * 400)
    plan = LanePlan(num_targets=3600, num_lanes=20, bptt=4)
    sequence = store.read(make() if remote else None, most_open=40 if remote else tokens.MOST_OPEN)
    before, most_files, most_maps = num_files(), 0, 0
    for step in range(plan.num_windows):
        read_by_windows(store, [sequence], plan, [step])
        most_files = max(most_files, num_files() - before)
        most_maps = max(most_maps, mapped_here())
    assert 20 <= most_maps <= (40 if remote else 60)
    assert most_files <= (40 if remote else 0)


# --- the section


def test_a_local_corpus_has_no_cache(tmp_path):
    stream = STREAM.model_copy(update={"cache_folder": str(tmp_path / "cache"), "cache_gb": 1e-9})
    shards = [Shard(name="a", num_tokens=1, size_bytes=10**6, sha256="0" * 64, source="")]
    with open_cache(str(tmp_path), shards, stream=stream, num_lanes=3, future=None) as cache:
        assert cache is None
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("size_bytes", [1, 999, 123_456, 10**9, 3 * 10**9 + 1])
@pytest.mark.parametrize("num_lanes", [1, 7, 128])
@pytest.mark.parametrize(("order", "for_a_lane", "told"), [("sequential", 1, "than a"), ("blocks", 2, "than 2 × a")])
def test_a_cache_that_is_too_small_is_refused_with_a_size_that_is_not(size_bytes, num_lanes, order, for_a_lane, told):
    shards = [Shard(name="a", num_tokens=1, size_bytes=size, sha256="0" * 64, source="") for size in (0, size_bytes)]
    needed_gb = for_a_lane * num_lanes * size_bytes / 1e9
    stream = STREAM.model_copy(update={"order": order})
    check = {"data": "memory://a", "shards": shards, "num_lanes": num_lanes}
    check_cache(**check, stream=stream.model_copy(update={"cache_gb": needed_gb}))
    with pytest.raises(ConfigError) as refused:
        check_cache(**check, stream=stream.model_copy(update={"cache_gb": needed_gb * 0.99 - 1e-9}))
    message = str(refused.value)
    assert "\n" not in message
    assert f"{told} machine's {num_lanes} lanes × the largest token shard, {size_bytes} bytes" in message
    assert "fewer lanes" in message
    assert "corpus.unit_bytes" in message
    mend = float(message.split("use stream.cache_gb=")[1].split(maxsplit=1)[0])
    assert mend < 1.2 * needed_gb
    check_cache(**check, stream=stream.model_copy(update={"cache_gb": mend}))


def test_a_folder_in_a_store_is_refused_and_none_is_the_users_own(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"cache_folder=memory://cache is not on this machine's disk"):
        check_cache("memory://a", [], stream=STREAM.model_copy(update={"cache_folder": "memory://cache"}), num_lanes=1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert module.cache_folder(STREAM) == str(tmp_path / "wordlanes" / "shards")
