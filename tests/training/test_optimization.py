"""Learning rates as explicit numbers, and the optimizers that the section names."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.config import OptimConfig
from pipeline.training.optimization import averages_from, build_optimizer, learning_rate

SCHEDULE = {"kind": "constant", "warmup_steps": 0, "hold_epochs": 0, "divide_by": 2.0, "patience": 1, "min_lr": 0.0}
OPTIM = {
    "name": "sgd",
    "lr": 1.0,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "clip_norm": None,
    "averaging": "none",
    "averaging_patience": 5,
}


def optim_of(*, schedule=None, **changes):
    return OptimConfig(**OPTIM | changes, schedule=SCHEDULE | (schedule or {}))


def rate(optim, *, step=100, epoch=0, total_steps=1000, validations=()):
    return learning_rate(optim, step=step, epoch=epoch, total_steps=total_steps, validations=validations)


# --- schedules


def test_constant():
    optim = optim_of(lr=20.0)
    assert {rate(optim, step=step, epoch=epoch) for step in (0, 7, 5000) for epoch in (0, 9)} == {20.0}


def test_zarembas_small_model_holds_for_four_epochs_and_halves_from_then_on():
    optim = optim_of(schedule={"kind": "step", "hold_epochs": 4, "divide_by": 2.0})
    assert [rate(optim, epoch=epoch) for epoch in range(8)] == [1, 1, 1, 1, 0.5, 0.25, 0.125, 0.0625]


@pytest.mark.parametrize(
    ("hold_epochs", "expected"), [(0, [4, 2, 1, 0.5]), (1, [8, 4, 2, 1]), (2, [8, 8, 4, 2]), (9, [8, 8, 8, 8])]
)
def test_steps_begin_after_the_held_epochs(hold_epochs, expected):
    optim = optim_of(lr=8.0, schedule={"kind": "step", "hold_epochs": hold_epochs})
    assert [rate(optim, epoch=epoch) for epoch in range(4)] == expected


def test_steps_divide_by_the_given_number_whatever_the_step():
    optim = optim_of(schedule={"kind": "step", "hold_epochs": 1, "divide_by": 1.25})
    assert rate(optim, epoch=3, step=1) == rate(optim, epoch=3, step=999) == 1 / 1.25**3


@pytest.mark.parametrize("kind", ["constant", "step", "plateau", "cosine"])
def test_warmup_rises_in_equal_steps_before_the_rest(kind):
    optim = optim_of(lr=2.0, schedule={"kind": kind, "warmup_steps": 4, "hold_epochs": 5})
    assert [rate(optim, step=step, validations=[1, 2, 3]) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    after = rate(optim, step=4, validations=[1, 2, 3])
    assert after == (0.5 if kind == "plateau" else 2.0)


def test_no_warmup_starts_at_the_full_rate():
    assert rate(optim_of(lr=3.0), step=0) == 3.0


@pytest.mark.parametrize(
    ("patience", "validations", "divisions"),
    [
        (1, [], 0),
        (1, [5.0], 0),
        (1, [5.0, 4.0, 3.0], 0),
        (1, [5.0, 5.0], 1),  # an equal one is not better
        (1, [5.0, 6.0], 1),
        (1, [5.0, 6.0, 5.5], 2),  # better than the one before, not than the best
        (1, [5.0, 6.0, 4.0, 3.0], 1),
        (1, [5.0, 6.0, 4.0, 4.5], 2),
        (2, [5.0, 6.0], 0),
        (2, [5.0, 6.0, 6.0], 1),
        (2, [5.0, 6.0, 4.0, 6.0], 0),  # a better one ends the wait
        (2, [5.0, 6.0, 7.0, 8.0], 1),
        (2, [5.0, 6.0, 7.0, 8.0, 9.0], 2),  # and so does a division
        (2, [5.0, 6.0, 4.0, 6.0, 4.0], 1),
        (3, [5.0, 5.0, 5.0], 0),
        (3, [5.0, 5.0, 5.0, 5.0], 1),
        (1, [math.inf, 5.0], 1),
        (1, [5.0, math.nan, 4.0], 1),  # no number is not better
    ],
)
def test_plateau_divides_when_patience_is_used_up(patience, validations, divisions):
    optim = optim_of(lr=64.0, schedule={"kind": "plateau", "divide_by": 4.0, "patience": patience})
    assert rate(optim, validations=validations) == 64.0 / 4**divisions


def test_plateau_ends_at_the_smallest_rate():
    optim = optim_of(lr=8.0, schedule={"kind": "plateau", "min_lr": 1.5})
    assert [rate(optim, validations=[1.0] * (n + 1)) for n in range(6)] == [8, 4, 2, 1.5, 1.5, 1.5]


@settings(deadline=None)
@given(st.lists(st.floats(1, 9), max_size=20), st.integers(1, 4))
def test_plateau_never_raises_the_rate(validations, patience):
    optim = optim_of(schedule={"kind": "plateau", "patience": patience})
    rates = [rate(optim, validations=validations[:n]) for n in range(len(validations) + 1)]
    assert rates == sorted(rates, reverse=True)


def test_cosine_falls_from_the_full_rate_to_the_smallest():
    optim = optim_of(lr=5.0, schedule={"kind": "cosine", "min_lr": 1.0})
    found = [rate(optim, step=step, total_steps=8) for step in (0, 2, 4, 6, 8)]
    root = math.sqrt(0.5)
    assert found == pytest.approx([5.0, 1 + 4 * (1 + root) / 2, 3.0, 1 + 4 * (1 - root) / 2, 1.0])
    assert found[0] == 5.0
    assert found[-1] == 1.0


def test_cosine_begins_after_the_warmup():
    optim = optim_of(lr=4.0, schedule={"kind": "cosine", "warmup_steps": 10})
    assert [rate(optim, step=step, total_steps=30) for step in (9, 10, 20, 30)] == pytest.approx([4, 4, 2, 0])


def test_cosine_beyond_the_end_stays_there():
    optim = optim_of(schedule={"kind": "cosine", "min_lr": 0.25})
    assert rate(optim, step=12, total_steps=8) == 0.25


@pytest.mark.parametrize("total_steps", [1, 3, 4])
def test_cosine_of_a_run_no_longer_than_its_warmup_divides_by_nothing(total_steps):
    optim = optim_of(schedule={"kind": "cosine", "warmup_steps": 4})
    assert [rate(optim, step=step, total_steps=total_steps) for step in (0, 3, 4)] == [0.25, 1.0, 1.0]


def test_cosine_of_one_step_after_the_warmup():
    optim = optim_of(schedule={"kind": "cosine", "warmup_steps": 4})
    assert [rate(optim, step=step, total_steps=5) for step in (4, 5)] == [1.0, 0.0]


# --- when averaging begins


def begins(nats, *, patience=5, averaging="nonmonotone"):
    validations = {10 * (place + 1): each for place, each in enumerate(nats)}
    return averages_from(optim_of(averaging=averaging, averaging_patience=patience), validations)


FALLING = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]


@pytest.mark.parametrize(
    ("patience", "nats", "step"),
    [
        (5, [], None),
        (5, FALLING, None),
        (5, [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0], 70),  # worse than the only one that is old enough
        (5, [1.0, 2.0, 2.0, 2.0, 2.0, 2.0], None),  # no more than 5 before: none is old enough
        (5, [2.0, 1.0, 1.5, 1.5, 1.5, 1.5, 1.5], None),  # of those before the last five, 2.0 alone counts
        (5, [2.0, 1.0, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5], 80),
        (5, [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0], None),  # an equal one is not worse
        (5, [3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.5], 80),  # and better ones later change nothing
        (1, [3.0, 4.0, 2.9], None),
        (1, [3.0, 1.0, 3.5], 30),
        (2, [5.0, 4.0, 4.5, 4.4], None),
        (2, [5.0, 4.0, 4.5, 5.1], 40),
        (1, [3.0, 2.0, math.nan], 30),  # no number is worse
        (1, [math.nan, 2.0, 1.0], None),
        (1, [math.nan, 2.0, 1.0, 3.0], 40),
    ],
)
def test_averaging_begins_when_a_validation_is_worse_than_the_best_of_the_old_ones(patience, nats, step):
    assert begins(nats, patience=patience) == step


def test_averaging_begins_at_the_start_or_never():
    worse = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert begins(worse, averaging="start") == begins([], averaging="start") == 0
    assert begins(worse, averaging="none") is None
    assert begins(worse) == 70


@given(st.lists(st.floats(1, 9), max_size=20), st.integers(1, 6))
def test_averaging_begins_where_merity_and_others_switch(validations, patience):
    """Their code's own words, one validation after the other; and what came later changes nothing."""
    best_val_loss, switched = [], None
    for place, val_loss in enumerate(validations):
        if switched is None and len(best_val_loss) > patience and val_loss > min(best_val_loss[:-patience]):
            switched = 10 * (place + 1)
        best_val_loss.append(val_loss)
    assert begins(validations, patience=patience) == switched


# --- optimizers


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sgd", torch.optim.SGD),
        ("adagrad", torch.optim.Adagrad),
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
    ],
)
def test_the_optimizer_is_torchs_own(name, kind):
    weights = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
    optimizer = build_optimizer(iter(weights), optim_of(name=name, lr=0.3, momentum=0.7, weight_decay=0.01))
    assert type(optimizer) is kind
    [group] = optimizer.param_groups
    assert [id(each) for each in group["params"]] == [id(each) for each in weights]
    assert (group["lr"], group["weight_decay"], group["fused"]) == (0.3, 0.01, True)
    assert group.get("momentum") == (0.7 if name == "sgd" else None)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam", "adamw"])
def test_three_updates_are_those_of_torchs_plain_loop(name):
    def trained(build):
        weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        optimizer = build([weight])
        for target in (0.5, 1.5, -1.0):
            optimizer.zero_grad()
            ((weight - target) ** 2).sum().backward()
            optimizer.step()
        return weight.detach()

    plain = {
        "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.5, weight_decay=0.2, foreach=False),
        "adagrad": lambda weights: torch.optim.Adagrad(weights, lr=0.1, weight_decay=0.2, foreach=False),
        "adam": lambda weights: torch.optim.Adam(weights, lr=0.1, weight_decay=0.2, foreach=False),
        "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.1, weight_decay=0.2, foreach=False),
    }
    optim = optim_of(name=name, lr=0.1, momentum=0.5, weight_decay=0.2)
    torch.testing.assert_close(trained(lambda weights: build_optimizer(weights, optim)), trained(plain[name]))
