"""How the weights move: the optimizer, and as pure functions the learning rate and when their averaging begins.

In: the `optim` section, a step, and the validations so far. Out: a torch optimizer; a learning rate; a step. Nothing is
kept between steps, so a resumed run has the rate of an undisturbed one.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

import torch
from torch import nn

from pipeline.config import OptimConfig, ScheduleConfig


def build_optimizer(parameters: Iterable[nn.Parameter], optim: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer that the section names; each is torch's own, with torch's defaults where the section is silent."""
    weights = list(parameters)
    lr, weight_decay = optim.lr, optim.weight_decay
    match optim.name:
        case "sgd":
            return torch.optim.SGD(weights, lr=lr, weight_decay=weight_decay, momentum=optim.momentum, fused=True)
        case "adagrad":
            # fused Adagrad is tried on the CPU only
            return torch.optim.Adagrad(
                weights, lr=lr, weight_decay=weight_decay, fused=all(each.device.type == "cpu" for each in weights)
            )
        case "adam":
            return torch.optim.Adam(weights, lr=lr, weight_decay=weight_decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(weights, lr=lr, weight_decay=weight_decay, fused=True)


def learning_rate(
    optim: OptimConfig, *, step: int, epoch: int, total_steps: int, validations: Sequence[float]
) -> float:
    """The rate at which a step updates.

    Args:
        optim: the section.
        step: updates made before this one.
        epoch: the epoch that the step reads, from 0.
        total_steps: steps of the whole run; the cosine ends there.
        validations: nats per token of every validation so far, in order.
    """
    schedule = optim.schedule
    if step < schedule.warmup_steps:
        return optim.lr * (step + 1) / schedule.warmup_steps
    match schedule.kind:
        case "constant":
            return optim.lr
        case "step":
            return optim.lr / schedule.divide_by ** max(0, epoch + 1 - schedule.hold_epochs)
        case "plateau":
            return max(schedule.min_lr, optim.lr / schedule.divide_by ** _plateaus(validations, schedule))
        case "cosine":
            share = (step - schedule.warmup_steps) / max(1, total_steps - schedule.warmup_steps)
            return schedule.min_lr + (optim.lr - schedule.min_lr) * (1 + math.cos(math.pi * min(1.0, share))) / 2


def averages_from(optim: OptimConfig, validations: Mapping[int, float]) -> int | None:
    """The step after which the weights of each update enter their mean; None: not yet, or never.

    With `nonmonotone` it is the step of the first validation that is worse than the best of those that are older than
    the last `averaging_patience` before it.

    Args:
        optim: the section.
        validations: nats per token of every validation so far, by step; one that is no number is worse than any.

    Source: Merity et al. 2018, arXiv:1708.02182, section 3, algorithm 1.
    """
    match optim.averaging:
        case "none":
            return None
        case "start":
            return 0
        case "nonmonotone":
            steps = sorted(validations)
            nats = [math.inf if math.isnan(validations[step]) else validations[step] for step in steps]
            judged = zip(steps, nats, strict=True)
            late, best = list(judged)[optim.averaging_patience + 1 :], accumulate(nats, min)
            return next((step for (step, now), before in zip(late, best, strict=False) if now > before), None)


def _plateaus(validations: Sequence[float], schedule: ScheduleConfig) -> int:
    """How often `patience` validations in a row brought none better than the best before."""
    best, waited, plateaus = math.inf, 0, 0
    for nats in validations:
        if nats < best:
            best, waited = nats, 0
            continue
        waited += 1
        if waited == schedule.patience:
            plateaus, waited = plateaus + 1, 0
    return plateaus
