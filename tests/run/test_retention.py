"""Which checkpoints are kept: by hand, and what holds whatever is configured."""

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.run.retention import steps_to_keep


class Case(TypedDict):
    """The arguments of a call, by name."""

    steps: list[int]
    validations: dict[int, float]
    keep_last: int
    keep_best: int
    keep_every_steps: int | None


def kept(
    steps: Sequence[int],
    *,
    validations: Mapping[int, float] | None = None,
    keep_last: int = 1,
    keep_best: int = 0,
    keep_every_steps: int | None = None,
) -> list[int]:
    found = steps_to_keep(
        steps,
        validations=validations or {},
        keep_last=keep_last,
        keep_best=keep_best,
        keep_every_steps=keep_every_steps,
    )
    return sorted(found)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Steps and validations that overlap in part, with ties, NaN and infinity among the nats."""
    nats = st.sampled_from([1.0, 2.0, 3.0, math.inf, math.nan]) | st.floats(0, 12)
    return Case(
        steps=sorted(draw(st.sets(st.integers(0, 40), max_size=15))),
        validations=draw(st.dictionaries(st.integers(0, 40), nats, max_size=20)),
        keep_last=draw(st.integers(0, 6)),
        keep_best=draw(st.integers(0, 6)),
        keep_every_steps=draw(st.none() | st.integers(1, 12)),
    )


# --- by hand


@pytest.mark.parametrize(
    ("keep_last", "expected"), [(1, [50]), (2, [40, 50]), (4, [20, 30, 40, 50]), (5, [10, 20, 30, 40, 50]), (9, None)]
)
def test_the_last_ones(keep_last: int, expected: list[int] | None) -> None:
    steps = [10, 20, 30, 40, 50]
    assert kept(steps, keep_last=keep_last) == (expected or steps)


@pytest.mark.parametrize("keep_last", [0, -1])
def test_the_newest_is_kept_even_if_none_is_asked_for(keep_last: int) -> None:
    assert kept([10, 20, 30], keep_last=keep_last) == [30]


@pytest.mark.parametrize(
    ("keep_best", "expected"),
    [(0, [60]), (1, [20, 60]), (2, [20, 30, 60]), (3, [20, 30, 50, 60]), (9, [20, 30, 50, 60])],
)
def test_the_best_ones_of_equals_the_earlier(keep_best: int, expected: list[int]) -> None:
    steps = [10, 20, 30, 40, 50, 60]
    validations = {20: 2.0, 25: 1.0, 30: 2.0, 40: math.nan, 50: 3.0, 70: 0.5}  # 25 and 70 have no checkpoint
    assert kept(steps, validations=validations, keep_best=keep_best) == expected


def test_an_infinite_validation_is_the_worst_but_one() -> None:
    validations = {10: math.nan, 20: math.inf, 30: 5.0}
    assert kept([10, 20, 30, 40], validations=validations, keep_best=1) == [30, 40]
    assert kept([10, 20, 30, 40], validations=validations, keep_best=3) == [20, 30, 40]


def test_validations_of_nothing_but_nan_keep_none() -> None:
    assert kept([10, 20, 30], validations={10: math.nan, 20: math.nan}, keep_best=2) == [30]


@pytest.mark.parametrize(
    ("keep_every_steps", "expected"),
    [(None, [36]), (1, [0, 8, 12, 16, 24, 36]), (12, [0, 12, 24, 36]), (16, [0, 16, 36]), (50, [0, 36])],
)
def test_multiples(keep_every_steps: int | None, expected: list[int]) -> None:
    assert kept([0, 8, 12, 16, 24, 36], keep_every_steps=keep_every_steps) == expected


def test_the_reasons_add_up() -> None:
    steps, validations = list(range(10, 110, 10)), {20: 3.0, 40: 1.0, 70: 2.0, 100: 9.0}
    assert kept(steps, validations=validations, keep_last=2, keep_best=2, keep_every_steps=30) == [
        30, 40, 60, 70, 90, 100,
    ]  # fmt: skip


# --- whatever is configured


@settings(deadline=None)
@given(cases())
def test_only_what_is_there_is_kept_and_always_the_newest(case: Case) -> None:
    found = steps_to_keep(**case)
    assert found <= set(case["steps"])
    assert set(case["steps"][-1:]) <= found  # so it is empty only of nothing


@settings(deadline=None)
@given(cases(), st.integers(0, 3), st.integers(0, 3), st.integers(1, 4))
def test_asking_for_more_never_keeps_less(case: Case, more_last: int, more_best: int, times: int) -> None:
    found = steps_to_keep(**case)
    assert found <= steps_to_keep(**case | {"keep_last": case["keep_last"] + more_last})
    assert found <= steps_to_keep(**case | {"keep_best": case["keep_best"] + more_best})
    if case["keep_every_steps"] is None:
        assert found <= steps_to_keep(**case | {"keep_every_steps": times})
    else:
        assert found >= steps_to_keep(**case | {"keep_every_steps": case["keep_every_steps"] * times})
        assert found >= steps_to_keep(**case | {"keep_every_steps": None})


@settings(deadline=None)
@given(cases())
def test_every_step_is_kept_for_a_reason(case: Case) -> None:
    """Told of each step by counting, not by sorting."""
    validations = {
        step: nats for step, nats in case["validations"].items() if step in case["steps"] and not math.isnan(nats)
    }

    def is_kept(step: int) -> bool:
        newer = sum(other > step for other in case["steps"])
        better = sum((nats, other) < (validations.get(step, -math.inf), step) for other, nats in validations.items())
        is_multiple = case["keep_every_steps"] is not None and step % case["keep_every_steps"] == 0
        return newer < max(1, case["keep_last"]) or (step in validations and better < case["keep_best"]) or is_multiple

    assert steps_to_keep(**case) == {step for step in case["steps"] if is_kept(step)}


@settings(deadline=None)
@given(cases())
def test_to_remove_the_others_and_ask_again_removes_nothing(case: Case) -> None:
    found = steps_to_keep(**case)
    assert steps_to_keep(**case | {"steps": sorted(found)}) == found
