"""Windows: every target once, the input is the word before, and the same for any start and any world size."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sequences import Ids

from pipeline.corpus import stream
from pipeline.corpus.lanes import LanePlan, rank_lanes
from pipeline.corpus.stream import EOS, read_window, read_windows


def counting(num_targets):
    """Token i is i + 1: each names its own place, and none is `<eos>`."""
    return Ids(np.arange(1, num_targets + 1))


@st.composite
def plans(draw, lanes=range(1, 13), drawn=True):
    """Half of them with windows whose lengths are drawn, unless `drawn` is false."""
    num_lanes = draw(st.sampled_from(lanes))
    num_targets = draw(st.integers(num_lanes, 120))
    bptt, window_seed = draw(st.integers(1, 20)), draw(st.none() | st.integers(0, 9)) if drawn else None
    return LanePlan(num_targets=num_targets, num_lanes=num_lanes, bptt=bptt, window_seed=window_seed)


def places_there(window):
    """Which places of the window are targets."""
    mask = np.ones(window.inputs_TL.shape, dtype=bool)
    if window.short_L is not None:
        mask[-1] = ~window.short_L
    return mask


def assert_equal(one, other):
    for field in fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)


def test_golden():
    plan = LanePlan(num_targets=7, num_lanes=2, bptt=3)
    first, last = read_windows(counting(7), plan, start=0, stop=2, lanes=range(2))
    assert first.inputs_TL.tolist() == [[EOS, 3], [1, 4], [2, 5]]
    assert first.targets_N.tolist() == [1, 4, 2, 5, 3, 6]
    assert (first.rows_N, first.short_L) == (None, None)
    assert (first.step, first.starts_epoch, first.num_targets) == (0, True, 6)
    assert last.inputs_TL.tolist() == [[EOS, 6]]
    assert last.targets_N.tolist() == [7]
    assert last.rows_N.tolist() == [1]
    assert last.short_L.tolist() == [True, False]
    assert (last.step, last.starts_epoch, last.num_targets) == (1, False, 1)
    assert {first.inputs_TL.dtype, first.targets_N.dtype, last.rows_N.dtype} == {np.dtype(np.int64)}


def test_a_short_lane_in_a_longer_window_lacks_its_last_step_only():
    plan = LanePlan(num_targets=11, num_lanes=2, bptt=10)  # lanes of 5 and 6
    window = read_window(counting(11), plan, step=0, lanes=range(2))
    assert window.inputs_TL.tolist() == [[EOS, 5], [1, 6], [2, 7], [3, 8], [4, 9], [EOS, 10]]
    assert window.targets_N.tolist() == [1, 6, 2, 7, 3, 8, 4, 9, 5, 10, 11]
    assert window.rows_N.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11]
    assert window.short_L.tolist() == [True, False]


def test_a_rank_all_of_whose_lanes_are_short_keeps_the_windows_height():
    plan = LanePlan(num_targets=7, num_lanes=2, bptt=3)
    alone = read_window(counting(7), plan, step=1, lanes=[0])
    assert alone.inputs_TL.tolist() == [[EOS]]
    assert alone.targets_N.tolist() == []
    assert alone.rows_N.tolist() == []
    assert alone.short_L.tolist() == [True]
    assert alone.num_targets == 1
    full = read_window(counting(7), plan, step=1, lanes=[1])
    assert full.targets_N.tolist() == [7]
    assert (full.rows_N, full.short_L) == (None, None)


@settings(deadline=None)
@given(plans())
def test_every_token_is_a_target_exactly_once_in_an_epoch(plan):
    windows = list(
        read_windows(counting(plan.num_targets), plan, start=0, stop=plan.num_windows, lanes=range(plan.num_lanes))
    )
    targets = np.concatenate([window.targets_N for window in windows])
    assert sorted(targets.tolist()) == list(range(1, plan.num_targets + 1))
    assert [window.num_targets for window in windows] == [len(window.targets_N) for window in windows]
    assert [window.starts_epoch for window in windows] == [True] + [False] * (plan.num_windows - 1)


@settings(deadline=None)
@given(plans(), st.integers(0, 3))
def test_the_input_of_a_target_is_the_token_before_it_across_every_joint(plan, epoch):
    start = epoch * plan.num_windows
    for window in read_windows(
        counting(plan.num_targets), plan, start=start, stop=start + plan.num_windows, lanes=range(plan.num_lanes)
    ):
        mask_TL = places_there(window)
        np.testing.assert_array_equal(window.inputs_TL[mask_TL], window.targets_N - 1)  # token i is i + 1, <eos> is 0
        assert (window.inputs_TL[~mask_TL] == EOS).all()
        rows_N = np.flatnonzero(mask_TL)
        np.testing.assert_array_equal(np.arange(mask_TL.size) if window.rows_N is None else window.rows_N, rows_N)
        assert window.short_L is None or window.short_L.any()


@settings(deadline=None)
@given(plans())
def test_a_lane_reads_its_own_stretch_in_order(plan):
    for lane in range(plan.num_lanes):
        read = [
            token
            for window in read_windows(counting(plan.num_targets), plan, start=0, stop=plan.num_windows, lanes=[lane])
            for token in window.targets_N.tolist()
        ]
        assert read == list(range(plan.lane_start(lane) + 1, plan.lane_start(lane + 1) + 1))


@settings(deadline=None)
@given(st.data())
def test_the_ranks_batches_together_are_the_global_batch_for_every_world_size(data):
    plan = data.draw(plans(lanes=(1, 2, 3, 4, 6, 8, 12)))
    tokens = Ids(data.draw(st.lists(st.integers(0, 50), min_size=plan.num_targets, max_size=plan.num_targets)))
    step = data.draw(st.integers(0, 4 * plan.num_windows))
    whole = read_window(tokens, plan, step=step, lanes=range(plan.num_lanes))
    whole_mask_TL = places_there(whole)
    whole_targets_TL = np.full(whole.inputs_TL.shape, -1)
    whole_targets_TL[whole_mask_TL] = whole.targets_N
    for world_size in [each for each in range(1, 13) if plan.num_lanes % each == 0]:
        parts = [
            read_window(tokens, plan, step=step, lanes=rank_lanes(plan.num_lanes, world_size=world_size, rank=rank))
            for rank in range(world_size)
        ]
        np.testing.assert_array_equal(np.concatenate([part.inputs_TL for part in parts], axis=1), whole.inputs_TL)
        targets_TL = np.full(whole.inputs_TL.shape, -1)
        for part, lanes_TL in zip(parts, np.split(targets_TL, world_size, axis=1), strict=True):
            lanes_TL[places_there(part)] = part.targets_N  # a view
        np.testing.assert_array_equal(targets_TL, whole_targets_TL)
        assert {part.num_targets for part in parts} == {len(whole.targets_N)}
        assert {(part.step, part.starts_epoch) for part in parts} == {(step, whole.starts_epoch)}


@settings(deadline=None)
@given(plans(), st.integers(0, 30), st.integers(0, 12))
def test_a_start_at_any_step_gives_the_same_windows(plan, start, more):
    tokens = counting(plan.num_targets)
    whole = list(read_windows(tokens, plan, start=0, stop=start + more, lanes=range(plan.num_lanes)))
    late = list(read_windows(tokens, plan, start=start, stop=start + more, lanes=range(plan.num_lanes)))
    assert len(late) == more
    for one, other in zip(whole[start:], late, strict=True):
        assert_equal(one, other)


@settings(deadline=None)
@given(plans(drawn=False), st.integers(0, 20), st.integers(1, 3))
def test_epochs_repeat(plan, step, epochs):
    tokens = counting(plan.num_targets)
    one = read_window(tokens, plan, step=step, lanes=range(plan.num_lanes))
    other = read_window(tokens, plan, step=step + epochs * plan.num_windows, lanes=range(plan.num_lanes))
    assert other.step == one.step + epochs * plan.num_windows
    np.testing.assert_array_equal(one.inputs_TL, other.inputs_TL)
    np.testing.assert_array_equal(one.targets_N, other.targets_N)


@pytest.mark.parametrize("lanes", [[3, 0, 2], (1,), np.array([2, 3])])
def test_lanes_come_in_the_order_asked_for(lanes):
    plan = LanePlan(num_targets=23, num_lanes=4, bptt=4)
    tokens = counting(23)
    for step in range(plan.num_windows):
        whole = read_window(tokens, plan, step=step, lanes=range(4))
        some = read_window(tokens, plan, step=step, lanes=lanes)
        np.testing.assert_array_equal(some.inputs_TL, whole.inputs_TL[:, list(lanes)])


def test_windows_are_read_when_they_are_asked_for():
    class Counted(Ids):
        reads = 0

        def read(self, start, stop):
            self.reads += 1
            return super().read(start, stop)

    tokens = Counted(np.arange(100))
    windows = read_windows(tokens, LanePlan(num_targets=100, num_lanes=2, bptt=5), start=3, stop=9, lanes=range(2))
    assert tokens.reads == 0
    assert next(windows).step == 3
    assert tokens.reads == 2


# --- windows that are read together


@settings(deadline=None)
@given(plans(), st.integers(0, 30), st.integers(0, 40), st.sampled_from([1, 300, 4000, 1 << 23]))
def test_windows_read_together_are_those_read_alone(plan, start, more, group_bytes):
    tokens, lanes = counting(plan.num_targets), range(plan.num_lanes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "GROUP_BYTES", group_bytes)
        together = list(read_windows(tokens, plan, start=start, stop=start + more, lanes=lanes))
    assert [window.step for window in together] == list(range(start, start + more))
    for window in together:
        assert_equal(window, read_window(tokens, plan, step=window.step, lanes=lanes))


def test_what_is_read_before_it_is_needed_is_bounded():
    """By the bytes of a group, by the end of the steps, and at first by the one window that is wanted."""

    class Counted(Ids):
        num_read = 0

        def read(self, start, stop):
            self.num_read += stop - start
            return super().read(start, stop)

    plan = LanePlan(num_targets=100_000, num_lanes=4, bptt=5)
    tokens = Counted(np.arange(100_000))
    windows = read_windows(tokens, plan, start=3, stop=5003, lanes=range(1, 3))
    given = ahead = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "GROUP_BYTES", 80 * 50)  # 50 windows of two lanes
        for window in windows:
            given += window.inputs_TL.size
            if given == 10:
                assert tokens.num_read == 2 * 6
            ahead = max(ahead, tokens.num_read - given)
    assert 49 * 10 <= ahead <= 50 * 10 + 2 * (5000 // 50 + 8)  # each group reads a lane's first input again
    assert given == 5000 * 10
    assert tokens.num_read <= given + 2 * (5000 // 50 + 8)  # and nothing beyond the last step


@pytest.mark.parametrize("step", range(4))
def test_what_is_written_into_a_window_is_seen_in_no_other(step):
    plan = LanePlan(num_targets=23, num_lanes=2, bptt=3)
    expected = list(read_windows(counting(23), plan, start=0, stop=4, lanes=range(2)))
    found = list(read_windows(counting(23), plan, start=0, stop=4, lanes=range(2)))
    found[step].inputs_TL[:] = found[step].targets_N[:] = -1
    for each in {*range(4)} - {step}:
        assert_equal(found[each], expected[each])
    assert found[step].inputs_TL.flags.c_contiguous


def test_how_far_is_read_ahead():
    def ahead(num_lanes, bptt):
        plan = LanePlan(num_targets=10**9, num_lanes=num_lanes, bptt=bptt)
        return stream.windows_at_once(plan, num_lanes=num_lanes)

    assert ahead(128, 70) == ahead(1, 1) == ahead(20, 35) == 64
    assert ahead(1024, 70) == 14
    assert ahead(100_000, 70) == 1
