"""Verdicts on losses: golden lines, what is no spike, and equality over every way to cut a run."""

import json
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.training.losswatch import LEAST_DEVIATION, LossWatch, mean_and_deviation

LARGEST = float(np.finfo(np.float32).max)
WEIRD = [math.nan, math.inf, -math.inf]


def watch_of(
    history: Sequence[float] = (), *, deviations: float | None = 3.0, window_steps: int | None = None
) -> LossWatch:
    return LossWatch(deviations=deviations, window_steps=window_steps or len(history), history=history)


@st.composite
def runs(draw: st.DrawFn) -> list[float]:
    """Losses of a run: near one level, so that windows fill, with anything among them."""
    level = draw(st.floats(0, 12))
    near = st.floats(-1, 1).map(lambda off: level + 0.1 * off)
    return draw(st.lists(near | near | near | st.floats(0, LARGEST) | st.sampled_from(WEIRD), max_size=40))


def verdicts(watch: LossWatch, losses: Sequence[float]) -> list[str | None]:
    return [watch.check(step, nats) for step, nats in enumerate(losses)]


# --- the lines


def test_a_spike_says_what_was_found_where_and_against_what() -> None:
    watch = watch_of([4.72, 5.32] * 50)  # mean 5.02, deviation 0.3
    assert (
        watch.check(1234, 9.31)
        == "loss 9.31 at step 1234 is 14.3 deviations above the mean 5.02 of the 100 steps before"
    )


@pytest.mark.parametrize(
    ("nats", "named"), [(math.nan, "nan"), (-math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")]
)
@pytest.mark.parametrize("deviations", [None, 3.0])
@pytest.mark.parametrize("num_before", [0, 1, 4])
def test_a_loss_that_is_not_finite_is_always_refused(
    nats: float, named: str, deviations: float | None, num_before: int
) -> None:
    before = [5.0, 6.0, 5.0, 6.0][:num_before]
    watch = watch_of(before, deviations=deviations, window_steps=4)
    assert watch.check(7, nats) == f"loss is not finite ({named}) at step 7"
    assert watch.history == before


# --- what is a spike


def test_mean_and_deviation_by_hand() -> None:
    assert mean_and_deviation([4.0, 6.0]) == (5.0, 1.0)
    assert mean_and_deviation([1.0, 2.0, 3.0, 4.0]) == (2.5, math.sqrt(1.25))


def test_the_limit_itself_is_in_order_and_what_is_beyond_is_not() -> None:
    assert watch_of([4.0, 6.0]).check(2, 8.0) is None
    assert watch_of([4.0, 6.0]).check(2, 8.000001) is not None
    assert watch_of([4.0, 6.0], deviations=5.0).check(2, 10.0) is None


def test_only_a_rise_is_a_spike() -> None:
    watch = watch_of([5.0, 5.1] * 10)
    assert watch.check(20, 0.0) is None
    assert watch.history[-1] == 0.0


def test_no_spike_is_judged_before_the_window_is_full() -> None:
    watch = watch_of(window_steps=4)
    assert verdicts(watch, [1.0, 1.0, 1.0, 900.0]) == [None] * 4
    watch = watch_of(window_steps=4)
    *before, last = verdicts(watch, [1.0, 1.0, 1.0, 1.0, 900.0])
    assert before == [None] * 4
    assert last is not None


def test_only_the_window_counts() -> None:
    watch = watch_of([900.0] * 50 + [5.0, 5.1] * 2, window_steps=4)
    assert watch.history == [5.0, 5.1, 5.0, 5.1]
    assert watch.check(54, 6.0) is not None


def test_a_refused_loss_leaves_no_trace() -> None:
    watch = watch_of([5.0, 5.1] * 2)
    first = watch.check(4, 9.0)
    assert first is not None
    assert watch.history == [5.0, 5.1] * 2
    assert watch.check(4, 9.0) == first
    assert watch.check(5, 5.05) is None
    assert watch.history == [5.1, 5.0, 5.1, 5.05]


@settings(deadline=None)
@given(st.lists(st.floats(0, LARGEST), max_size=30), st.integers(2, 5))
def test_without_deviations_any_finite_loss_is_in_order_and_remembered(losses: list[float], window_steps: int) -> None:
    watch = watch_of(deviations=None, window_steps=window_steps)
    assert verdicts(watch, losses) == [None] * len(losses)
    assert watch.history == losses[-window_steps:]


# --- what is none


@settings(deadline=None)
@given(st.floats(0, 1e4), st.integers(2, 100), st.integers(0, 2**32))
def test_float_noise_on_a_constant_loss_is_no_spike(level: float, window_steps: int, seed: int) -> None:
    drawn = random.Random(seed)
    noise = 1e-6 * max(1.0, level)
    watch = watch_of([level] * window_steps, deviations=2.0)
    assert verdicts(watch, [level + drawn.uniform(-noise, noise) for _ in range(200)]) == [None] * 200
    assert watch_of([level] * window_steps, deviations=2.0).check(0, level + 30 * noise) is not None


@pytest.mark.parametrize("level", [0.0, 1e-9, 0.3, 5.0, 1e30])
def test_a_constant_loss_has_the_least_deviation(level: float) -> None:
    mean, deviation = mean_and_deviation([level] * 100)
    assert mean == pytest.approx(level, rel=1e-15)
    assert deviation == pytest.approx(LEAST_DEVIATION * max(1.0, level))


@settings(deadline=None)
@given(st.floats(0, 12), st.floats(-0.1, 10), st.integers(2, 200))
def test_a_steady_drift_is_no_spike(first: float, rise: float, window_steps: int) -> None:
    losses = [first + rise * step for step in range(window_steps + 1)]
    mean, deviation = mean_and_deviation(losses[:-1])
    bound = math.sqrt(3 * (window_steps + 1) / (window_steps - 1))
    assert (losses[-1] - mean) / deviation <= bound * (1 + 1e-9)
    longer = [first + rise * step for step in range(2 * window_steps)]
    assert verdicts(watch_of(deviations=3.01, window_steps=window_steps), longer) == [None] * len(longer)


@pytest.mark.parametrize("seed", range(5))
def test_a_noisy_run_that_learns_is_in_order_but_for_its_spike(seed: int) -> None:
    drawn = random.Random(seed)
    losses = [4 + 5 * math.exp(-step / 300) + drawn.gauss(0, 0.1) for step in range(2000)]
    losses[1500] += 3.0
    found = verdicts(watch_of(deviations=6.0, window_steps=100), losses)
    assert [step for step, verdict in enumerate(found) if verdict is not None] == [1500]


def test_losses_of_float32s_whole_range_are_judged() -> None:
    watch = watch_of([LARGEST, 0.0] * 50)
    assert watch.check(100, LARGEST) is None
    assert watch_of([5.0, 5.1]).check(2, LARGEST) is not None


# --- resume


@settings(deadline=None, max_examples=300)
@given(runs(), st.integers(2, 6), st.none() | st.floats(0.5, 10), st.data())
def test_a_resumed_run_is_judged_exactly_as_an_undisturbed_one(
    losses: list[float], window_steps: int, deviations: float | None, data: st.DataObject
) -> None:
    whole = watch_of(deviations=deviations, window_steps=window_steps)
    expected = verdicts(whole, losses)
    watch = watch_of(deviations=deviations, window_steps=window_steps)
    cuts = data.draw(st.sets(st.integers(0, len(losses))))
    found = []
    for step, nats in enumerate(losses):
        if step in cuts:
            stored = json.loads(json.dumps(watch.history))  # plain values
            watch = watch_of(stored, deviations=deviations, window_steps=window_steps)
        found.append(watch.check(step, nats))
    assert found == expected
    assert watch.history == whole.history


@settings(deadline=None, max_examples=300)
@given(runs(), st.integers(2, 6), st.floats(0.5, 10))
def test_a_verdict_is_a_function_of_the_window_alone(losses: list[float], window_steps: int, deviations: float) -> None:
    watch = watch_of(deviations=deviations, window_steps=window_steps)
    in_order: list[float] = []
    for step, nats in enumerate(losses):
        fresh = watch_of(in_order[-window_steps:], deviations=deviations, window_steps=window_steps)
        verdict = watch.check(step, nats)
        assert verdict == fresh.check(step, nats)
        if verdict is None:
            in_order.append(nats)
        assert watch.history == in_order[-window_steps:]


def test_the_history_is_plain_floats_and_a_copy() -> None:
    watch = watch_of(window_steps=3)
    assert watch.check(0, np.float64(5.0)) is None
    assert watch.check(1, 5) is None
    assert [type(each) for each in watch.history] == [float, float]
    watch.history.append(9.0)
    assert watch.history == [5.0, 5.0]
