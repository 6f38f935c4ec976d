"""Where points and their names stand in a picture: no name on another, none outside; ticks that are round and apart."""

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.reporting.labels import LETTER_PIXELS, POINT_PIXELS, ROW_PIXELS, TICK_PIXELS, Axis, axis_of, labels

WIDTH = 270.0
NAMES = ["ngram", "window", "elman", "gru", "lstm", "minlstm", "transformer"]


def box(name, point, label):
    low, high = POINT_PIXELS, POINT_PIXELS + LETTER_PIXELS * len(name)
    x, _ = point
    across = (x + low, x + high) if label.side == "right" else (x - high, x - low)
    return *across, label.place - ROW_PIXELS / 2, label.place + ROW_PIXELS / 2


def overlap(one, other):
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


@given(st.lists(st.tuples(st.floats(20, WIDTH - 20), st.floats(24, 316)), min_size=1, max_size=len(NAMES)))
def test_no_name_stands_on_another(points):
    names = NAMES[: len(points)]
    found = [box(*each) for each in zip(names, points, labels(names, points, width_pixels=WIDTH), strict=True)]
    assert not [pair for pair in combinations(found, 2) if overlap(*pair)]
    assert all(low >= 0 and high <= WIDTH for low, high, _, _ in found)


def test_a_name_stands_beside_its_point_where_there_is_room():
    first, second, third = labels(["lstm", "gru", "elman"], [(30, 100), (250, 30), (44, 100)], width_pixels=WIDTH)
    assert (second.side, second.place) == ("left", 30)  # the panel ends at its right
    assert (third.side, third.place) == ("right", 100)
    assert first.place != 100  # there the third point stands at its right, and the panel's end at its left


def test_points_at_the_same_place_have_names_of_their_own():
    found = labels(NAMES, [(135.0, 170.0)] * len(NAMES), width_pixels=WIDTH)
    assert len({(label.side, label.place) for label in found}) == len(NAMES)


@given(
    st.lists(st.floats(1e-3, 1e12), min_size=1, max_size=8),
    st.sampled_from([270.0, 340.0]),
)
def test_an_axis_holds_its_values_and_round_ticks(values, pixels):
    axis = axis_of(values, pixels=pixels, margin_pixels=20)
    places = [axis.place(value) for value in values]
    assert min(places) >= 20 - 1e-6 and max(places) <= pixels - 20 + 1e-6
    assert axis.value(places[0]) == pytest.approx(values[0])
    ticks = [axis.place(tick) for tick in axis.ticks]
    assert ticks == sorted(ticks)
    assert all(0 <= tick <= pixels for tick in ticks)
    assert all(right - left >= TICK_PIXELS for left, right in pairwise(ticks))
    assert len(ticks) >= 2


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (120, 240, [120, 150, 170, 200, 220]),
        (7e6, 9.8e6, [7e6, 7.5e6, 8e6, 8.5e6, 9e6, 9.5e6]),
        (40, 1200, [100, 300, 1000]),
        (1e3, 1e7, [1e3, 1e4, 1e5, 1e6, 1e7]),
    ],
)
def test_ticks_are_as_round_as_can_be(low, high, ticks):
    assert Axis(low=low, high=high, pixels=300).ticks == pytest.approx(ticks)
