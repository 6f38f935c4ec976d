"""Lanes: the closed forms equal a count by hand at sizes that divide nothing evenly."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.lanes import LanePlan, rank_lanes
from pipeline.errors import ConfigError


@st.composite
def plans(draw):
    num_lanes = draw(st.integers(1, 12))
    num_targets = draw(st.integers(num_lanes, 150))
    return LanePlan(num_targets=num_targets, num_lanes=num_lanes, bptt=draw(st.integers(1, 40)))


def plan_of(num_targets, num_lanes, bptt):
    return LanePlan(num_targets=num_targets, num_lanes=num_lanes, bptt=bptt)


def refused(message):
    return pytest.raises(ConfigError, match=f"^{re.escape(message)}$")


def test_golden():
    plan = plan_of(7, 2, 3)
    assert [plan.lane_start(lane) for lane in range(3)] == [0, 3, 7]
    assert plan.num_windows == 2
    assert [plan.lengths(window).tolist() for window in range(2)] == [[3, 3], [0, 1]]
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
@given(plans())
def test_windows_tile_each_lane(plan):
    lengths = np.array([plan.lengths(window) for window in range(plan.num_windows)])
    assert lengths.sum(axis=0).tolist() == [
        plan.lane_start(lane + 1) - plan.lane_start(lane) for lane in range(plan.num_lanes)
    ]
    assert (lengths[:-1] == plan.bptt).all()  # every window but the last is full
    assert lengths.min() >= 0
    assert lengths[-1].max() > 0  # and none is empty
    assert lengths[-1].max() - lengths[-1].min() <= 1
    assert [plan.targets_in(window) for window in range(plan.num_windows)] == lengths.sum(axis=1).tolist()


@settings(deadline=None)
@given(plans(), st.integers(0, 60))
def test_tokens_seen_is_the_sum_over_the_steps_before(plan, step):
    assert plan.tokens_seen(step) == sum(plan.targets_in(plan.position(each)[1]) for each in range(step))


@settings(deadline=None)
@given(plans(), st.integers(0, 500))
def test_position_counts_windows_within_epochs(plan, step):
    epoch, window = plan.position(step)
    assert 0 <= window < plan.num_windows
    assert epoch * plan.num_windows + window == step


def test_bounds_do_not_overflow_at_the_size_of_a_web_crawl():
    plan = plan_of(10**13 + 7, 4096, 35)
    assert plan.lane_start(4096) == 10**13 + 7
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
@given(st.integers(1, 8), st.integers(1, 8))
def test_ranks_hold_equal_stretches_of_the_lanes(world_size, lanes_each):
    held = [rank_lanes(world_size * lanes_each, world_size=world_size, rank=rank) for rank in range(world_size)]
    assert [lane for lanes in held for lane in lanes] == list(range(world_size * lanes_each))
    assert {len(lanes) for lanes in held} == {lanes_each}


@pytest.mark.parametrize(
    ("num_lanes", "world_size", "nearest"), [(100, 8, "96 or 104"), (20, 3, "18 or 21"), (3, 8, "8"), (9, 8, "8 or 16")]
)
def test_a_world_size_that_does_not_divide_the_lanes_is_refused(num_lanes, world_size, nearest):
    with refused(
        f"stream.num_lanes={num_lanes} is not divisible by world_size={world_size}; use stream.num_lanes={nearest}"
    ):
        rank_lanes(num_lanes, world_size=world_size, rank=0)
