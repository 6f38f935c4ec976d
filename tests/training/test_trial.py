"""How long a step takes, told from steps of few lanes."""

import numpy as np
import pytest
import torch

from pipeline.training.trial import extrapolated, try_steps


def clock(fixed, of_a_lane):
    """A step that takes so many seconds, and what was tried."""
    tried = []

    def trial(lanes):
        tried.append(lanes)
        return fixed + of_a_lane * lanes

    return trial, tried


def test_where_there_is_time_all_lanes_are_tried():
    trial, tried = clock(0.0, 0.01)
    assert extrapolated(trial, lanes=20, budget_seconds=2.0, limit_seconds=2.0) == (pytest.approx(0.2), 20)
    assert tried[:4] == [1, 1, 4, 16]
    assert set(tried[4:]) == {20}
    assert len(tried[4:]) > 5
    assert sum(trial(each) for each in [*tried]) <= 2.0


@pytest.mark.parametrize("budget_seconds", [0.0, 6.0, 20.0])
def test_where_there_is_not_the_rest_is_a_straight_line(budget_seconds):
    trial, tried = clock(1.0, 0.1)
    limit_seconds = max(7.0, budget_seconds)  # the fewest steps are given 1.1 + 1.1 + 4.4
    seconds, tried_lanes = extrapolated(trial, lanes=128, budget_seconds=budget_seconds, limit_seconds=limit_seconds)
    assert seconds == pytest.approx(1.0 + 12.8)
    assert tried_lanes == max(tried) == (64 if budget_seconds == 20 else 4)
    assert tried[:3] == [1, 1, 4]


def test_one_lane_and_a_step_that_grows_faster_with_fewer_lanes():
    assert extrapolated(lambda lanes: 3.0, lanes=1, budget_seconds=0.0, limit_seconds=9.0) == (3.0, 1)
    assert extrapolated(lambda lanes: 5.0 - lanes, lanes=64, budget_seconds=0.0, limit_seconds=99.0) == (1.0, 4)


@pytest.mark.parametrize("fixed", [0.001, 0.1, 0.9, 1.5, 2.5, 9.0])
@pytest.mark.parametrize("of_a_lane", [0.0, 0.001, 0.3, 2.0])
@pytest.mark.parametrize("limit_seconds", [-1.0, 0.0, 2.0, 5.0])
def test_no_more_time_is_taken_than_there_is(fixed, of_a_lane, limit_seconds):
    """Of steps that take the same each time, a first one at the most is too long: nobody knows its time before."""
    trial, tried = clock(fixed, of_a_lane)
    budget_seconds = min(3.0, limit_seconds)
    found = extrapolated(trial, lanes=64, budget_seconds=budget_seconds, limit_seconds=limit_seconds)
    spent = sum(fixed + of_a_lane * each for each in tried)
    assert spent <= max(0.0, limit_seconds) or tried == [1]
    assert found is None or found.seconds == pytest.approx(fixed + of_a_lane * 64)
    assert (found is None) == (len({*tried}) < 2)


@pytest.mark.parametrize(("room", "tried_lanes"), [(0, None), (3, None), (4, 4), (63, 16), (64, 64)])
def test_memory_that_is_not_there_ends_the_trials_and_not_the_plan(room, tried_lanes):
    def trial(lanes):
        if lanes > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return lanes / 10

    found = extrapolated(trial, lanes=64, budget_seconds=60.0, limit_seconds=60.0)
    assert found == (None if tried_lanes is None else (pytest.approx(6.4), tried_lanes))


def test_a_model_that_the_device_has_no_room_for_is_not_tried(small_config, monkeypatch):
    def build_model(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("pipeline.training.trial.build_model", build_model)
    limits = {"budget_seconds": 3.0, "limit_seconds": 3.0}
    assert try_steps(small_config(), counts_V=np.ones(9), lanes=1, device="cpu", num_threads=1, **limits) is None


@pytest.mark.parametrize(
    "overrides",
    [
        ["precision=fp32"],
        ["precision=bf16"],
        ["model.softmax.kind=blackout", "model.input.kind=adaptive", "model.input.cutoffs=[20]"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_steps_of_a_real_model(small_config, overrides):
    config = small_config(*overrides)
    config = config.model_copy(update={"stream": config.stream.model_copy(update={"num_lanes": 6})})
    threads = torch.get_num_threads()
    limits = {"budget_seconds": 3.0, "limit_seconds": 3.0}
    trial = try_steps(config, counts_V=np.arange(60, 0, -1), lanes=6, device="cpu", num_threads=1, **limits)
    assert trial.tried_lanes == 6
    assert 0 < trial.seconds < 3.0
    assert torch.get_num_threads() == threads
