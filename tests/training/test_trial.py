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
    assert extrapolated(trial, lanes=20, budget_seconds=2.0) == (pytest.approx(0.2), 20)
    assert tried[:4] == [1, 1, 4, 16]
    assert set(tried[4:]) == {20}
    assert len(tried[4:]) > 5
    assert sum(trial(each) for each in [*tried]) <= 2.0


@pytest.mark.parametrize("budget_seconds", [-1.0, 0.0, 6.0, 20.0])
def test_where_there_is_not_the_rest_is_a_straight_line(budget_seconds):
    trial, tried = clock(1.0, 0.1)
    seconds, tried_lanes = extrapolated(trial, lanes=128, budget_seconds=budget_seconds)
    assert seconds == pytest.approx(1.0 + 12.8)
    assert tried_lanes == max(tried) == (64 if budget_seconds == 20 else 4)
    assert tried[:3] == [1, 1, 4]


def test_one_lane_and_a_step_that_grows_faster_with_fewer_lanes():
    assert extrapolated(lambda lanes: 3.0, lanes=1, budget_seconds=0.0) == (3.0, 1)
    assert extrapolated(lambda lanes: 5.0 - lanes, lanes=64, budget_seconds=0.0) == (1.0, 4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_of_a_real_model(small_config, precision):
    config = small_config(f"precision={precision}")
    config = config.model_copy(update={"stream": config.stream.model_copy(update={"num_lanes": 6})})
    threads = torch.get_num_threads()
    trial = try_steps(config, counts_V=np.arange(60, 0, -1), lanes=6, device="cpu", num_threads=1, budget_seconds=3.0)
    assert trial.tried_lanes == 6
    assert 0 < trial.seconds < 3.0
    assert torch.get_num_threads() == threads
