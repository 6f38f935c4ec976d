"""The course of a run: when each step was made, and points that are few and lose no spike."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.run_folders import event, group, record, start

from pipeline.reporting.course import step_hours, thinned

HOUR = 3600.0


def hours(steps, events):
    return [None if hour is None else round(hour, 3) for hour in step_hours(steps, events)]


def test_time_passes_evenly_between_two_signs_of_life():
    events = [
        start(0),
        group(HOUR),
        event("training", HOUR),
        event("progress", 3 * HOUR, step=20),
        event("end", 4 * HOUR, step=30),
    ]
    assert hours([1, 10, 20, 25, 30, 99], events) == [pytest.approx(1.1, abs=0.001), 2.0, 3.0, 3.5, 4.0, 4.0]


def test_of_a_step_that_is_made_again_the_last_making_counts():
    events = [
        start(0),
        group(0),
        event("training", 0),
        event("progress", 2 * HOUR, step=20),
        event("fault", 3 * HOUR, kind="worker", cause="killed", rank=1, fatal=True),
        group(4 * HOUR, step=10, reached=20),
        event("training", 5 * HOUR),
        event("progress", 6 * HOUR, step=20),
        event("progress", 9 * HOUR, attempt=0, step=25),  # of a worker that outlived its attempt
    ]
    assert hours([5, 10, 15, 20], events) == [0.5, 1.0, 5.5, 6.0]


def test_a_clock_that_is_set_back_turns_no_curve_back():
    events = [start(0), group(0), event("training", HOUR), event("progress", HOUR / 2, step=10)]
    assert hours([5, 10], events) == [1.0, 1.0]


@pytest.mark.parametrize("events", [[], [start(0)], [start(0), group(5)]])
def test_without_a_sign_of_life_no_time_is_made_up(events):
    assert step_hours([1, 2], events) == [None, None]


@given(st.lists(st.floats(-5, 50), min_size=1, max_size=300), st.integers(4, 60))
def test_points_are_few_and_have_the_first_the_last_and_the_extremes(values, most):
    records = [record(step, nats=value) for step, value in enumerate(values, start=1)]
    kept = thinned(records, "nats", most=most)
    assert len(kept) <= most
    assert [each["step"] for each in kept] == sorted({each["step"] for each in kept})
    assert (kept[0], kept[-1]) == (records[0], records[-1])
    assert {min(values), max(values)} <= {each["nats"] for each in kept}
    assert len(records) > most or kept == records
