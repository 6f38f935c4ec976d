"""Windows whose lengths are drawn: each target once, as many windows in every epoch, found without counting them up."""

from collections import Counter

import numpy as np
import pytest
from support.sequences import Ids

from pipeline.corpus.drawn_windows import SHORT, SHORTEST, STRETCH, DrawnWindows, stretch_lengths
from pipeline.corpus.lanes import LanePlan, rank_lanes
from pipeline.corpus.order import Order
from pipeline.corpus.stream import read_window, read_windows


def lengths_of(windows, epoch):
    bounds = [windows.before(epoch, window) for window in range(windows.num_windows + 1)]
    return np.diff(bounds).tolist()


def test_golden():
    """The same on every machine and in every version: runs depend on it."""
    assert sorted(stretch_lengths(35)) == [
        *[11, 14, 17, 20, 22, 23, 24, 25, 26, 26, 27, 27, 27, 28, 28, 28, 29, 29, 29, 29],
        *[30] * 5, *[31] * 6, *[32] * 7, *[33] * 7, *[34] * 7, *[35] * 8, *[36] * 7, *[37] * 7, *[38] * 6, *[39] * 5,
        *[40, 40, 40, 40, 41, 41, 41, 42, 42, 42, 43, 43, 44, 45, 47],
    ]  # fmt: skip
    windows = DrawnWindows(lane_tokens=26_108, bptt=70, seed=1)  # WikiText-2 on 80 lanes
    assert (sum(stretch_lengths(70)), windows.num_windows) == (6776, 386)
    assert lengths_of(windows, 0)[:12] == [70, 76, 72, 63, 70, 70, 72, 79, 77, 67, 74, 65]
    assert lengths_of(windows, 7)[383:] == [72, 67, 61]


def test_most_are_about_bptt_and_one_in_twenty_about_half_of_it():
    for bptt in (20, 35, 70, 200):
        long, short = np.split(np.array(stretch_lengths(bptt)), [STRETCH - SHORT])
        assert abs(np.mean(long + 0.5) - bptt) < 0.1  # a length is rounded down
        assert abs(np.mean(short + 0.5) - bptt / 2) < 0.6
        assert 4.7 < np.std(long) < 5.1
        assert len(long) == STRETCH - SHORT
    assert min(stretch_lengths(10)) == min(stretch_lengths(1)) == SHORTEST == 5


@pytest.mark.parametrize("bptt", [1, 4, 10])
def test_every_length_of_a_lane_is_tiled_in_every_epoch_by_as_many_windows(bptt):
    """Each up to two stretches and a half; only the last window is shorter than the shortest that is drawn."""
    known = set(stretch_lengths(bptt))
    for lane_tokens in range(1, int(2.5 * sum(stretch_lengths(bptt)))):
        windows = DrawnWindows(lane_tokens=lane_tokens, bptt=bptt, seed=3)
        epochs = [lengths_of(windows, epoch) for epoch in range(2)]
        for lengths in epochs:
            assert sum(lengths) == lane_tokens
            assert min(lengths) > 0
            assert set(lengths[:-1]) <= known
        assert Counter(epochs[0]) == Counter(epochs[1])


def test_epochs_stretches_and_seeds_have_orders_of_their_own():
    windows, other = (DrawnWindows(lane_tokens=3 * 6776 + 3000, bptt=70, seed=seed) for seed in (1, 2))
    one, two = (lengths_of(windows, epoch) for epoch in range(2))
    parts = [one[:100], one[100:200], two[:100], lengths_of(other, 0)[:100]]
    assert len({tuple(each) for each in parts}) == 4
    assert [sorted(each) for each in parts] == [sorted(stretch_lengths(70))] * 4
    assert one[300:] != two[300:]
    assert one[-1] == two[-1]
    assert sorted(lengths_of(other, 0)[300:]) != sorted(one[300:])


def test_no_place_of_a_stretch_prefers_a_length():
    """Over 2000 epochs the mean at each place is that of all, within five standard deviations."""
    windows, num_epochs = DrawnWindows(lane_tokens=6776, bptt=70, seed=5), 2000
    found = np.array([lengths_of(windows, epoch) for epoch in range(num_epochs)])
    lengths = np.array(stretch_lengths(70))
    assert np.abs(found.mean(axis=0) - lengths.mean()).max() < 5 * lengths.std() / num_epochs**0.5


@pytest.mark.parametrize("block_tokens", [None, 7])
@pytest.mark.parametrize("num_lanes", range(1, 6))
def test_every_target_is_read_once_by_whatever_number_of_ranks(num_lanes, block_tokens):
    """Every corpus of up to 60 tokens, two epochs."""
    for num_targets in range(num_lanes, 61):
        plan = LanePlan(num_targets=num_targets, num_lanes=num_lanes, bptt=4, window_seed=num_targets)
        order = Order(num_tokens=num_targets, block_tokens=block_tokens, seed=1)
        tokens = Ids(np.arange(1, num_targets + 1))
        for epoch in range(2):
            read = []
            for step in range(epoch * plan.num_windows, (epoch + 1) * plan.num_windows):
                whole = read_window(tokens, plan, step=step, lanes=range(num_lanes), order=order)
                read += whole.targets_N.tolist()
                assert len(whole.targets_N) == whole.num_targets == plan.targets_in(step)
                for world_size in range(2, num_lanes + 1):
                    shares = [rank_lanes(num_lanes, world_size=world_size, rank=rank) for rank in range(world_size)]
                    parts = [read_window(tokens, plan, step=step, lanes=lanes, order=order) for lanes in shares]
                    np.testing.assert_array_equal(
                        np.concatenate([part.inputs_TL for part in parts], axis=1), whole.inputs_TL
                    )
            assert sorted(read) == list(range(1, num_targets + 1))


def test_windows_read_together_are_those_read_alone_over_the_joints_of_stretches():
    plan = LanePlan(num_targets=9000, num_lanes=3, bptt=10, window_seed=2)
    tokens, stop = Ids(np.random.default_rng(0).integers(0, 99, 9000)), 2 * plan.num_windows
    assert plan.num_windows > 2 * STRETCH
    for window in read_windows(tokens, plan, start=STRETCH - 3, stop=stop, lanes=range(3)):
        alone = read_window(tokens, plan, step=window.step, lanes=range(3))
        np.testing.assert_array_equal(window.inputs_TL, alone.inputs_TL)
        np.testing.assert_array_equal(window.targets_N, alone.targets_N)


def test_a_window_of_a_trillion_tokens_is_found_without_counting_up():
    plan = LanePlan(num_targets=10**12, num_lanes=128, bptt=70, window_seed=1)
    last = 10**6 * plan.num_windows - 1
    assert plan.tokens_seen(last) + plan.targets_in(last) == plan.tokens_seen(last + 1) == 10**18
    middle = last - plan.num_windows // 3
    assert plan.tokens_seen(middle + 1) - plan.tokens_seen(middle) == plan.targets_in(middle) > 0
