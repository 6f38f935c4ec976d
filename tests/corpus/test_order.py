"""The order of an epoch: a permutation of whole blocks, found by arithmetic at any place."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sequences import Places

from pipeline.corpus.lanes import LanePlan, rank_lanes
from pipeline.corpus.order import Order, lane_places, stored_ranges
from pipeline.corpus.stream import EOS, read_window, read_windows

TRILLION = 10**12
GOLDEN_BLOCKS = [[0, 8, 1, 3, 7, 4, 2, 5, 6, 9], [6, 2, 4, 0, 3, 7, 9, 1, 8, 5], [3, 4, 0, 6, 9, 8, 7, 2, 1, 5]]
GOLDEN_RANGES = [(5, 10), (80, 90), (10, 15)]
GOLDEN_PLACES = [626562564096, 550418762240, 366720515728, 409327304704, 583193184768, 783961292432]
GOLDEN_MANY = "c39651a5a4335cfad326a6bafdde31b782c5632fb5f040fc5435d6659be1959a"


def tokens_in(order, epoch):
    """The stored tokens in the order in which an epoch reads them."""
    return [token for start, stop in order.stored(epoch, 0, order.num_tokens) for token in range(start, stop)]


def blocks_in(order, epoch):
    """The numbers of the whole blocks in the order in which an epoch reads them."""
    size = order.block_tokens
    return [start // size for start, _ in order.stored(epoch, 0, order.num_blocks * size)]


@st.composite
def plans_and_orders(draw):
    num_lanes = draw(st.integers(1, 6))
    num_tokens = draw(st.integers(num_lanes, 90))
    window_seed = draw(st.none() | st.integers(0, 5))
    plan = LanePlan(num_targets=num_tokens, num_lanes=num_lanes, bptt=draw(st.integers(1, 12)), window_seed=window_seed)
    block_tokens = draw(st.one_of(st.none(), st.integers(1, num_tokens)))
    return plan, Order(num_tokens=num_tokens, block_tokens=block_tokens, seed=draw(st.integers(0, 5)))


# --- the permutation


@pytest.mark.parametrize("num_tokens", range(1, 61))
def test_every_order_is_a_permutation_that_leaves_blocks_whole_and_the_rest_last(num_tokens):
    """All sizes of blocks and three epochs."""
    for block_tokens in range(1, num_tokens + 1):
        order = Order(num_tokens=num_tokens, block_tokens=block_tokens, seed=7)
        num_blocks = num_tokens // block_tokens
        for epoch in range(3):
            read = tokens_in(order, epoch)
            assert sorted(read) == list(range(num_tokens))
            for block in range(num_blocks):
                inside = read[block * block_tokens : (block + 1) * block_tokens]
                assert inside[0] % block_tokens == 0
                assert inside == list(range(inside[0], inside[0] + block_tokens))
            assert read[num_blocks * block_tokens :] == list(range(num_blocks * block_tokens, num_tokens))


def test_without_blocks_and_with_fewer_than_two_tokens_are_read_as_they_lie():
    for block_tokens in (None, 6, 10, 11, 2**62):
        order = Order(num_tokens=10, block_tokens=block_tokens, seed=1)
        assert [tokens_in(order, epoch) for epoch in range(3)] == [list(range(10))] * 3
        assert order.stored(0, 3, 8) == [(3, 8)]


@settings(deadline=None)
@given(plans_and_orders(), st.data())
def test_a_part_of_the_order_is_that_part_of_the_whole(plan_and_order, data):
    _, order = plan_and_order
    epoch = data.draw(st.integers(0, 3))
    start = data.draw(st.integers(0, order.num_tokens))
    stop = data.draw(st.integers(start, order.num_tokens))
    found = [token for begin, end in order.stored(epoch, start, stop) for token in range(begin, end)]
    assert found == tokens_in(order, epoch)[start:stop]


def test_golden():
    """What a seed and an epoch draw may never change: runs are resumed with it."""
    order = Order(num_tokens=103, block_tokens=10, seed=1)
    assert [blocks_in(order, epoch) for epoch in range(3)] == GOLDEN_BLOCKS
    assert order.stored(0, 5, 25) == GOLDEN_RANGES
    large = Order(num_tokens=TRILLION, block_tokens=65_536, seed=2**63 - 1)
    starts = [
        large.stored(epoch, place, place + 1)[0][0] for epoch in (0, 7) for place in (0, 10**9, TRILLION - 70_000)
    ]
    assert starts == GOLDEN_PLACES
    many = Order(num_tokens=10**5, block_tokens=1, seed=3)
    drawn = np.array(many.stored(2, 0, 10**5))[:, 0]
    assert hashlib.sha256(drawn.astype("<i8").tobytes()).hexdigest() == GOLDEN_MANY


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {
        (seed, epoch): tuple(blocks_in(Order(num_tokens=1000, block_tokens=10, seed=seed), epoch))
        for seed in range(10)
        for epoch in range(10)
    }
    assert len(set(orders.values())) == len(orders)
    assert all(order != tuple(range(100)) for order in orders.values())


def test_few_blocks_come_in_every_order_about_equally_often():
    """Of 4 blocks there are 24 orders: each is drawn 125 times of 3000, give or take 5 standard deviations."""
    for num_blocks, drawn in ((2, 1000), (3, 1500), (4, 3000)):
        counts: dict[tuple[int, ...], int] = {}
        for epoch in range(drawn):
            order = tuple(blocks_in(Order(num_tokens=num_blocks, block_tokens=1, seed=0), epoch))
            counts[order] = counts.get(order, 0) + 1
        expected = drawn / math.factorial(num_blocks)
        assert len(counts) == math.factorial(num_blocks)
        assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in counts.values()), counts


def test_neighbours_are_parted_and_no_block_has_a_favourite_place():
    num_blocks, epochs = 100, 400
    orders = np.array([blocks_in(Order(num_tokens=num_blocks, block_tokens=1, seed=4), each) for each in range(epochs)])
    still_neighbours = (np.diff(orders, axis=1) == 1).mean()
    assert abs(still_neighbours - 1 / num_blocks) < 0.003
    stay = (orders == np.arange(num_blocks)).mean()
    assert abs(stay - 1 / num_blocks) < 0.003
    means = orders.mean(axis=0)  # of the block at each place: 49.5, with a deviation of 29 / sqrt(epochs)
    assert np.abs(means - 49.5).max() < 5 * 29 / math.sqrt(epochs)


# --- what lanes read


@settings(deadline=None)
@given(plans_and_orders(), st.integers(0, 2))
def test_an_epoch_reads_every_token_once_and_after_the_one_before_it_in_the_order(plan_and_order, epoch):
    plan, order = plan_and_order
    read = tokens_in(order, epoch)
    before = dict(zip(read, [EOS - 1, *read[:-1]], strict=True))  # tokens are shown as token + 1
    start = epoch * plan.num_windows
    targets = []
    windows = read_windows(
        Places(plan.num_targets),
        plan,
        start=start,
        stop=start + plan.num_windows,
        lanes=range(plan.num_lanes),
        order=order,
    )
    for window in windows:
        inputs_N = (
            window.inputs_TL.reshape(-1) if window.rows_N is None else window.inputs_TL.reshape(-1)[window.rows_N]
        )
        assert [before[target - 1] + 1 for target in window.targets_N.tolist()] == inputs_N.tolist()
        targets += window.targets_N.tolist()
    assert sorted(targets) == list(range(1, plan.num_targets + 1))


@settings(deadline=None)
@given(plans_and_orders(), st.integers(0, 2))
def test_a_lane_reads_its_share_of_the_order_in_order(plan_and_order, epoch):
    plan, order = plan_and_order
    read = tokens_in(order, epoch)
    for lane in range(plan.num_lanes):
        start = epoch * plan.num_windows
        windows = read_windows(
            Places(plan.num_targets), plan, start=start, stop=start + plan.num_windows, lanes=[lane], order=order
        )
        found = [target - 1 for window in windows for target in window.targets_N.tolist()]
        assert found == read[plan.lane_start(lane) : plan.lane_start(lane + 1)]


@settings(deadline=None)
@given(plans_and_orders(), st.data())
def test_ranks_read_together_what_one_would(plan_and_order, data):
    plan, order = plan_and_order
    tokens, step = Places(plan.num_targets), data.draw(st.integers(0, 3 * plan.num_windows))
    whole = read_window(tokens, plan, step=step, lanes=range(plan.num_lanes), order=order)
    for world_size in range(1, plan.num_lanes + 1):
        parts = [
            read_window(
                tokens,
                plan,
                step=step,
                lanes=rank_lanes(plan.num_lanes, world_size=world_size, rank=rank),
                order=order,
            )
            for rank in range(world_size)
        ]
        assert np.concatenate([part.inputs_TL for part in parts], axis=1).tolist() == whole.inputs_TL.tolist()
        assert sorted(each for part in parts for each in part.targets_N.tolist()) == sorted(whole.targets_N.tolist())


@settings(deadline=None)
@given(plans_and_orders(), st.data())
def test_stored_ranges_are_what_the_windows_read(plan_and_order, data):
    plan, order = plan_and_order
    epoch = data.draw(st.integers(0, 2))
    window_start = data.draw(st.integers(0, plan.num_windows - 1))
    window_stop = data.draw(st.integers(window_start + 1, plan.num_windows))
    lanes = range(*sorted(data.draw(st.lists(st.integers(0, plan.num_lanes), min_size=2, max_size=2, unique=True))))
    found = stored_ranges(plan, order, lanes=lanes, epoch=epoch, window_start=window_start, window_stop=window_stop)
    assert len(found) == len(lanes)
    first = epoch * plan.num_windows
    for lane, ranges in zip(lanes, found, strict=True):
        windows = read_windows(
            Places(plan.num_targets),
            plan,
            start=first + window_start,
            stop=first + window_stop,
            lanes=[lane],
            order=order,
        )
        read: list[int] = []
        for window in windows:
            targets = window.targets_N.tolist()
            read += [*(window.inputs_TL[:1, 0].tolist() if targets and not read else []), *targets]
        assert [token + 1 for start, stop in ranges for token in range(start, stop)] == [each for each in read if each]


# --- a trillion tokens


@pytest.mark.parametrize("num_lanes", [128, 4096])
def test_a_trillion_tokens_are_read_from_any_step_without_being_counted_up(num_lanes):
    plan = LanePlan(num_targets=TRILLION, num_lanes=num_lanes, bptt=70)
    order = Order(num_tokens=TRILLION, block_tokens=65_536, seed=1)
    steps = [0, 1, plan.num_windows - 1, plan.num_windows, 5 * plan.num_windows + plan.num_windows // 3]
    for step in [*steps, 10**6 * plan.num_windows + 12_345]:
        tokens = Places(TRILLION)
        window = read_window(tokens, plan, step=step, lanes=range(num_lanes), order=order)
        assert tokens.num_read <= num_lanes * 71
        epoch, number = plan.position(step)
        assert window.num_targets == plan.targets_in(step)
        places = {"epoch": epoch, "window_start": number, "window_stop": number + 1}
        starts, stops = lane_places(plan, lanes=range(num_lanes), **places)
        for lane in (0, 1, num_lanes // 2, num_lanes - 1):
            length = int(stops[lane] - starts[lane])
            assert int(starts[lane]) == min(plan.lane_start(lane) + number * 70, plan.lane_start(lane + 1))
            targets = column_of(window, lane)[:length]
            for row in {0, length // 2, length - 1} - {-1}:
                place = int(starts[lane]) + row
                assert order.stored(epoch, place, place + 1) == [(targets[row] - 1, targets[row])]
                before = order.stored(epoch, place - 1, place)[0][1] if place else EOS
                assert window.inputs_TL[row, lane] == before


def column_of(window, lane):
    """The targets of a lane, `<eos>` where it lacks one."""
    targets_TL = np.full(window.inputs_TL.shape, EOS)
    targets_TL.reshape(-1)[slice(None) if window.rows_N is None else window.rows_N] = window.targets_N
    return targets_TL[:, lane].tolist()
