"""Lanes: the closed forms equal a count by hand at sizes that divide nothing evenly."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.lanes import LanePlan, check_world_size, rank_lanes
from pipeline.errors import ConfigError


@st.composite
def plans(draw):
    """Half of them with windows whose lengths are drawn; some of those have more than one stretch."""
    num_lanes = draw(st.integers(1, 12))
    window_seed = draw(st.none() | st.integers(0, 9))
    most = 150 if window_seed is None else 1500
    return LanePlan(
        num_targets=draw(st.integers(num_lanes, most)),
        num_lanes=num_lanes,
        bptt=draw(st.integers(1, 40)),
        window_seed=window_seed,
    )


def plan_of(num_targets, num_lanes, bptt):
    return LanePlan(num_targets=num_targets, num_lanes=num_lanes, bptt=bptt)


def refused(message):
    return pytest.raises(ConfigError, match=f"^{re.escape(message)}$")


def test_golden():
    plan = plan_of(7, 2, 3)
    assert [plan.lane_start(lane) for lane in range(3)] == [0, 3, 7]
    assert plan.num_windows == 2
    assert [plan.lengths(window).tolist() for window in range(2)] == [[3, 3], [0, 1]]
    assert [plan.lane_ranges(window) for window in range(2)] == [[(0, 3), (3, 6)], [(3, 3), (6, 7)]]
    assert [plan.targets_in(window) for window in range(2)] == [6, 1]
    assert [plan.tokens_seen(step) for step in range(6)] == [0, 6, 7, 13, 14, 20]
    assert [plan.position(step) for step in range(5)] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert plan.lengths(0).dtype == np.int64


@pytest.mark.parametrize(
    ("num_targets", "num_lanes", "bptt", "num_windows"),
    [(6, 2, 3, 1), (7, 2, 3, 2), (8, 2, 3, 2), (12, 2, 3, 2), (13, 2, 3, 3), (5, 5, 1, 1), (1, 1, 1, 1), (6, 5, 1, 2)],
)
def test_windows_of_an_epoch_at_the_boundaries(num_targets, num_lanes, bptt, num_windows):
    assert plan_of(num_targets, num_lanes, bptt).num_windows == num_windows


@settings(deadline=None)
@given(plans())
def test_lanes_tile_the_targets_and_differ_by_one_at_most(plan):
    starts = [plan.lane_start(lane) for lane in range(plan.num_lanes + 1)]
    sizes = np.diff(starts)
    assert (starts[0], starts[-1]) == (0, plan.num_targets)
    assert set(sizes) <= {plan.num_targets // plan.num_lanes, -(-plan.num_targets // plan.num_lanes)}
    assert starts == [b * plan.num_targets // plan.num_lanes for b in range(plan.num_lanes + 1)]


@settings(deadline=None)
@given(plans(), st.integers(0, 2))
def test_windows_tile_each_lane(plan, epoch):
    steps = range(epoch * plan.num_windows, (epoch + 1) * plan.num_windows)
    lengths = np.array([plan.lengths(step) for step in steps])
    assert lengths.sum(axis=0).tolist() == [
        plan.lane_start(lane + 1) - plan.lane_start(lane) for lane in range(plan.num_lanes)
    ]
    assert (lengths[:-1] == lengths[:-1, :1]).all()  # every window but the last is full
    assert plan.window_seed is not None or (lengths[:-1] == plan.bptt).all()
    assert lengths.max() <= plan.longest_window
    assert lengths.min() >= 0
    assert lengths[-1].max() > 0  # and none is empty
    assert lengths[-1].max() - lengths[-1].min() <= 1
    assert [plan.targets_in(step) for step in steps] == lengths.sum(axis=1).tolist()
    shares = [plan.share_of_bptt(step) for step in steps]
    assert shares == [1.0 if plan.window_seed is None else each.max() / plan.bptt for each in lengths]


@settings(deadline=None)
@given(plans(), st.integers(0, 2))
def test_the_ranges_of_an_epoch_tile_the_targets(plan, epoch):
    first = epoch * plan.num_windows
    windows = [plan.lane_ranges(first + window) for window in range(plan.num_windows)]
    read = [target for ranges in windows for start, stop in ranges for target in range(start, stop)]
    assert sorted(read) == list(range(plan.num_targets))  # each exactly once
    for window, ranges in enumerate(windows):
        assert [stop - start for start, stop in ranges] == plan.lengths(first + window).tolist()
    for lane, ranges in enumerate(zip(*windows, strict=True)):  # each goes on where the lane stopped
        bounds = [bound for each in ranges for bound in each]
        assert bounds[1:-1:2] == bounds[2::2]
        assert (bounds[0], bounds[-1]) == (plan.lane_start(lane), plan.lane_start(lane + 1))
    assert {type(bound) for ranges in windows for each in ranges for bound in each} == {int}


@settings(deadline=None)
@given(plans(), st.integers(0, 60))
def test_tokens_seen_is_the_sum_over_the_steps_before(plan, step):
    assert plan.tokens_seen(step) == sum(plan.targets_in(each) for each in range(step))


@settings(deadline=None)
@given(plans(), st.integers(0, 500))
def test_position_counts_windows_within_epochs(plan, step):
    epoch, window = plan.position(step)
    assert 0 <= window < plan.num_windows
    assert epoch * plan.num_windows + window == step


def test_bounds_do_not_overflow_at_the_size_of_a_web_crawl():
    plan = plan_of(10**13 + 7, 4096, 35)
    assert plan.lane_start(4096) == 10**13 + 7
    assert plan.lane_ranges(plan.num_windows - 1)[-1][1] == 10**13 + 7
    assert plan.lengths(plan.num_windows - 1).sum() == plan.targets_in(plan.num_windows - 1)


def test_as_many_lanes_as_targets_is_allowed():
    plan = plan_of(5, 5, 35)
    assert plan.lengths(0).tolist() == [1] * 5


@pytest.mark.parametrize(
    ("num_targets", "num_lanes", "bptt", "mend"),
    [(19, 20, 3, 6), (19, 20, 1, 19), (19, 20, 19, 1), (2, 20, 35, 1), (0, 1, 1, 1)],
)
def test_more_lanes_than_targets_are_refused(num_targets, num_lanes, bptt, mend):
    with refused(
        f"stream.num_lanes={num_lanes} is more than the corpus has targets, {num_targets};"
        f" use stream.num_lanes={mend} or a larger corpus"
    ):
        plan_of(num_targets, num_lanes, bptt)
    if num_targets:
        plan_of(num_targets, mend, bptt)  # the mend mends


@settings(deadline=None)
@given(st.integers(1, 40), st.data())
def test_ranks_hold_stretches_of_the_lanes_that_differ_by_one_at_most(num_lanes, data):
    world_size = data.draw(st.integers(1, num_lanes))
    held = [rank_lanes(num_lanes, world_size=world_size, rank=rank) for rank in range(world_size)]
    assert [lane for lanes in held for lane in lanes] == list(range(num_lanes))
    assert {len(lanes) for lanes in held} == {num_lanes // world_size, -(-num_lanes // world_size)}  # 1 at least
    assert [lanes.stop for lanes in held] == [(rank + 1) * num_lanes // world_size for rank in range(world_size)]


def test_a_group_that_lost_a_node_deals_the_lanes_anew():
    dealt = {
        world_size: [rank_lanes(8, world_size=world_size, rank=rank) for rank in range(world_size)]
        for world_size in (4, 3)
    }
    assert dealt[4] == [range(2), range(2, 4), range(4, 6), range(6, 8)]
    assert dealt[3] == [range(2), range(2, 5), range(5, 8)]


@pytest.mark.parametrize(("num_lanes", "world_size"), [(3, 8), (1, 2), (7, 8)])
def test_more_ranks_than_lanes_are_refused(num_lanes, world_size):
    for rank in range(world_size):  # on every rank, not only where the lanes run out
        with refused(
            f"world_size={world_size} leaves ranks without a lane, as stream.num_lanes={num_lanes};"
            f" use world_size={num_lanes} or fewer, or stream.num_lanes={world_size} or more"
        ):
            rank_lanes(num_lanes, world_size=world_size, rank=rank)
    rank_lanes(num_lanes, world_size=num_lanes, rank=0)  # either mend mends
    rank_lanes(world_size, world_size=world_size, rank=0)


@pytest.mark.parametrize(
    ("num_lanes", "world_size", "nearest"),
    [(100, 8, "5 or 10"), (20, 3, "2 or 4"), (101, 8, "1 or 101"), (9, 8, "3 or 9"), (12, 5, "4 or 6"),
     (3, 8, "3"), (1, 2, "1"), (20, 21, "20"), (20, 400, "20")],
)  # fmt: skip
def test_a_world_size_that_does_not_divide_the_lanes_is_refused(num_lanes, world_size, nearest):
    with refused(
        f"cluster.num_workers={world_size} does not divide stream.num_lanes={num_lanes};"
        f" use cluster.num_workers={nearest}"
    ):
        check_world_size(num_lanes, world_size, name="cluster.num_workers")
    for mend in nearest.split(" or "):
        check_world_size(num_lanes, int(mend), name="cluster.num_workers")


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 80))
def test_a_world_size_passes_if_and_only_if_the_shares_are_equal(num_lanes, world_size):
    if world_size <= num_lanes:
        shares = {len(rank_lanes(num_lanes, world_size=world_size, rank=rank)) for rank in range(world_size)}
    else:
        shares = {0, 1}
    if len(shares) == 1:
        check_world_size(num_lanes, world_size, name="w")
        return
    with pytest.raises(ConfigError, match=f"^w={world_size} does not divide") as caught:
        check_world_size(num_lanes, world_size, name="w")
    named = [int(each) for each in str(caught.value).rpartition("use w=")[2].split(" or ")]
    assert all(num_lanes % each == 0 for each in named)
    between = range(named[0] + 1, named[1] if len(named) == 2 else world_size)
    assert world_size not in named
    assert not [each for each in between if num_lanes % each == 0]  # none is nearer
    assert len(named) == (2 if world_size < num_lanes else 1)
