"""What tests of whole runs share: runs that are killed or harmed, and what two runs that ended alike have in common."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import Config
from pipeline.run.checkpoint import checkpoint_path, load_checkpoint, save_checkpoint
from pipeline.run.ledger import read_events
from pipeline.runner import train
from pipeline.training.module import LanguageModelModule
from support.checkpoints import mark_as_before
from support.same import assert_same


class Killed(BaseException):
    """Stands for a process that ends without warning; nothing catches it."""


def train_killed(config: Config, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains until `step` updates are made, checkpoints of that step included, then ends without any clean-up."""

    def die(self: LanguageModelModule, *arguments: Any) -> None:
        if self.global_step == step:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(LanguageModelModule, "on_train_batch_end", die)
        with pytest.raises(Killed):
            train(config)


def records(run: str) -> list[dict[str, Any]]:
    """The run's metrics without what the clock decides."""
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(("speed/", "run/"))} for line in lines]


def assert_same_end(run: str, other: str, step: int) -> None:
    """The two runs' last checkpoints hold the same bits, and their metrics the same numbers."""
    left, right = (load_checkpoint(checkpoint_path(each, step)) for each in (run, other))
    assert_same(left["state_dict"], right["state_dict"])
    assert_same(left["optimizer_states"], right["optimizer_states"])
    assert_same(left["wordlanes"], right["wordlanes"])
    assert records(run) == records(other)


def ruin_gradients(steps: set[int], patch: pytest.MonkeyPatch) -> None:
    """Makes the gradient of some steps NaN, though their loss is as it was."""
    sound = LanguageModelModule.training_step

    def training_step(self: LanguageModelModule, *arguments: Any) -> torch.Tensor:
        loss = sound(self, *arguments)
        return loss + (loss * 0).sqrt() if self.global_step + 1 in steps else loss

    patch.setattr(LanguageModelModule, "training_step", training_step)


def ruin(run: str, step: int) -> None:
    """Makes a weight of a saved checkpoint NaN, with the mark of an earlier version, which saved such."""
    path = checkpoint_path(run, step)
    checkpoint = load_checkpoint(path)
    next(iter(checkpoint["state_dict"].values())).view(-1)[3] = math.nan
    save_checkpoint(checkpoint, path)
    mark_as_before(path)


def skips(run: str | None) -> list[int]:
    return [event["step"] for event in read_events(str(run)) if event["event"] == "skip"]


def assert_killed_ends_as_undisturbed(
    make_config: Callable[..., Config],
    typed: Sequence[str],
    *,
    kills: Sequence[int],
    folder: Path,
    total: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that is killed at some steps, and goes on each time, ends to the bit as one that is not.

    Args:
        make_config: of a run, from what is typed.
        typed: for both runs, but for their folders.
        kills: the steps, rising.
        folder: for the runs.
        total: steps of a run.
    """
    whole, torn = str(folder / "whole"), str(folder / "torn")
    train(make_config(*typed, f"run={whole}"))
    for kill in kills:
        train_killed(make_config(*typed, f"run={torn}"), kill, monkeypatch)
    assert 0 < train(make_config(*typed, f"run={torn}")).first_step <= kills[-1]
    assert_same_end(whole, torn, total)
