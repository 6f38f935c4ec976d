"""The guard judges what it saves, and passes over the step whose update was bad, not the one that shows it."""

import json
import logging
import math
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import assert_same_end, records, ruin, ruin_gradients, skips, train_killed

from jobs.__main__ import main
from pipeline.config import Config
from pipeline.corpus.manifest import read_manifest
from pipeline.errors import CheckpointError, LossError, Stopped
from pipeline.run.checkpoint import (
    check_finite,
    checkpoint_path,
    committed_steps,
    load_checkpoint,
)
from pipeline.run.gauges import Sample, TextFile
from pipeline.run.ledger import Ledger, read_events
from pipeline.runner import train
from pipeline.training.module import LanguageModelModule
from pipeline.training.restore import load_trained
from pipeline.training.tiling import lane_plan

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree"),  # Lightning 2.6, every fit
]

WINDOWS, TOTAL = 52, 57  # of an epoch; of a run
Harm = Callable[[LanguageModelModule], None]
Train = Callable[..., Config]


@pytest.fixture
def config(make_corpus: Callable[..., str], small_config: Train, tmp_path: Path) -> Train:
    """A run of 57 steps, saved every 10, in which a bad step is passed over: (run, overrides) → Config."""
    data = make_corpus()

    def make(run: str, *overrides: str) -> Config:
        common = [f"data={data}", f"run={tmp_path / run}", f"max_steps={TOTAL}", "checkpoint.every_steps=10"]
        return small_config(*common, "stream.state=carry", "guard.on_bad_loss=skip", *overrides)

    return make


def after_updates(harms: dict[int, Harm], patch: pytest.MonkeyPatch) -> None:
    """Does harm to a module right after the update of some steps, whenever they are made."""
    sound = LanguageModelModule.optimizer_step

    def optimizer_step(self: LanguageModelModule, *arguments: Any, **named: Any) -> None:
        step, skipped = self.global_step + 1, self.global_step in self.state.skipped
        sound(self, *arguments, **named)
        if not skipped:
            harms.get(step, lambda module: None)(self)

    patch.setattr(LanguageModelModule, "optimizer_step", optimizer_step)


@torch.no_grad()
def make_weights_infinite(module: LanguageModelModule) -> None:
    module.model.softmax.head_weight[0, 0] = math.inf


@torch.no_grad()
def make_a_rare_word_nan(module: LanguageModelModule) -> None:
    """Of a word that is not read for some steps: until then all losses and gradients are in order."""
    module.model.embedding_VE[-1] = math.nan


@torch.no_grad()
def make_weights_overflow(module: LanguageModelModule) -> None:
    """They are finite, and what is computed with them is not."""
    for parameter in module.parameters():
        parameter.mul_(1e30)


def make_weights_infinite_and_ask_to_stop(module: LanguageModelModule) -> None:
    make_weights_infinite(module)
    os.kill(os.getpid(), signal.SIGTERM)


def make_the_optimizer_infinite(module: LanguageModelModule) -> None:
    """The weights stay finite, for ever: their updates are divided by infinity."""
    state = module.trainer.optimizers[0].state
    next(iter(state.values()))["exp_avg_sq"].fill_(math.inf)


def make_the_state_infinite(module: LanguageModelModule) -> None:
    """A cell that is infinite gives a finite output, and a gradient that is not."""
    assert module.state.carried is not None
    module.state.carried[1].fill_(math.inf)  # the cell


def told_beforehand(config: Config, *steps: int) -> str:
    """The folder of a run that nothing happens to, whose ledger says from the start what is passed over."""
    assert config.data is not None and config.run is not None
    plan = lane_plan(config, read_manifest(config.data))
    Path(config.run).mkdir()
    for step in steps:
        epoch, window = plan.position(step - 1)
        place = {"step": step, "epoch": epoch, "window": window}
        Ledger(config.run, attempt=1).write("skip", **place, num_tokens=plan.targets_in(window), tokens=[])
    train(config)
    return config.run


def faults(run: str | None) -> list[str]:
    return [event["cause"] for event in read_events(str(run)) if event["event"] == "fault"]


# the first, one within, of a checkpoint, an epoch's last and first, the run's last but one and last
PLACES = [1, 17, 20, WINDOWS, WINDOWS + 1, TOTAL - 1, TOTAL]


@pytest.mark.parametrize(("step", "every"), [(17, 1), *((step, 50) for step in PLACES)])
def test_a_gradient_that_is_not_finite_costs_its_own_window(
    step: int, every: int, config: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, reference = (config(run, f"logging.every_steps={every}") for run in ("here", "reference"))
    with monkeypatch.context() as patch:
        ruin_gradients({step}, patch)
        assert train(here).step == TOTAL
    assert skips(here.run) == [step]
    assert faults(here.run) == [f"gradient norm is not finite (nan) at step {step}"]
    if every == 1:  # what is passed over has no loss, and none of zero
        assert [line["step"] for line in records(str(here.run)) if line["train/nats_per_token"] is None] == [step]
    assert_same_end(str(here.run), told_beforehand(reference, step), TOTAL)


def test_a_window_that_is_passed_over_is_no_bad_loss_for_prometheus(
    config: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, float]] = []

    def take(file: TextFile, found: Sequence[Sample]) -> None:
        given.append({each.name: each.value for each in found})

    monkeypatch.setattr(TextFile, "__call__", take)
    ruin_gradients({17}, monkeypatch)
    train(config("run", "logging.every_steps=1", "max_steps=20", f"tracking.prometheus_folder={tmp_path}"))
    assert (given[-1]["step"], given[-1]["skipped_windows_total"]) == (20, 1)
    assert {each["not_finite"] for each in given} == {0}


HARMS = [
    make_weights_infinite,
    make_weights_overflow,
    make_a_rare_word_nan,
    make_the_optimizer_infinite,
    make_the_state_infinite,
]


@pytest.mark.parametrize(
    ("step", "harm"),
    [*((step, make_weights_infinite) for step in PLACES), *((17, harm) for harm in HARMS)],
)
def test_an_update_that_ruins_the_model_is_passed_over_whatever_shows_it(
    step: int, harm: Harm, config: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, reference = (config(run, "logging.every_steps=50") for run in ("here", "reference"))
    with monkeypatch.context() as patch:
        after_updates({step: harm}, patch)
        assert train(here).step == TOTAL
    assert skips(here.run) == [step]
    assert_same_end(str(here.run), told_beforehand(reference, step), TOTAL)


def test_each_of_several_bad_updates_is_passed_over(config: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    here, reference = config("here"), config("reference")
    with monkeypatch.context() as patch:
        ruin_gradients({1, 2, 31}, patch)
        after_updates({12: make_weights_infinite, 13: make_weights_overflow, 32: make_a_rare_word_nan}, patch)
        assert train(here).step == TOTAL
    assert sorted(skips(here.run)) == [1, 2, 12, 13, 31, 32]
    assert_same_end(str(here.run), told_beforehand(reference, 1, 2, 12, 13, 31, 32), TOTAL)


def test_what_was_passed_over_is_known_after_a_kill(config: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the checkpoint of the very step, and by the ledger beyond the checkpoint."""
    here, reference = config("here"), config("reference")
    ruined = {13, 20, 33}
    with monkeypatch.context() as patch:
        ruin_gradients(ruined, patch)
        train_killed(here, 24, monkeypatch)
        train_killed(here, 38, monkeypatch)
    assert train(here).first_step == 30
    assert skips(here.run) == sorted(ruined)
    assert_same_end(str(here.run), told_beforehand(reference, *ruined), TOTAL)


def test_windows_before_the_bad_one_are_passed_over_too(config: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them twice; and what may be passed over is counted in such groups."""
    overrides = ["guard.skip_steps=3", "guard.max_skips=2"]
    here, reference = (config(run, *overrides) for run in ("here", "reference"))
    with monkeypatch.context() as patch:
        ruin_gradients({2, 21, 22}, patch)
        train(here)
    assert skips(here.run) == [1, 2, 19, 20, 21, 22]
    assert_same_end(str(here.run), told_beforehand(reference, 1, 2, 19, 20, 21, 22), TOTAL)


@pytest.mark.parametrize(
    ("step", "saved", "harm"),
    [
        *((step, saved, make_weights_infinite) for step, saved in ((17, 10), (20, 10), (9, 0))),
        *((TOTAL, WINDOWS, harm) for harm in HARMS),
    ],
)
def test_a_ruined_model_is_never_saved_and_no_success(
    step: int, saved: int, harm: Harm, config: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = config("here", "guard.on_bad_loss=stop")
    after_updates({step: harm}, monkeypatch)
    is_saved = f"step {saved} is saved" if saved else "nothing is saved"
    with pytest.raises(LossError, match=f"not finite.*; {is_saved} in run=.*guard.on_bad_loss=skip"):
        train(here)
    assert committed_steps(str(here.run)) == {0: [], 10: [10], WINDOWS: [50, WINDOWS]}[saved]
    for each in committed_steps(str(here.run)):
        check_finite(load_checkpoint(checkpoint_path(str(here.run), each)), path="it")
    assert read_events(str(here.run))[-1]["event"] == "stop"


def test_a_checkpoint_that_is_due_by_the_clock_is_judged_too(config: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["guard.on_bad_loss=stop", "checkpoint.every_minutes=1e-9", "checkpoint.every_steps=1000"]
    here = config("here", *overrides)
    after_updates({17: make_the_optimizer_infinite}, monkeypatch)
    with pytest.raises(LossError, match="not finite after step 17: optimizer's state; step 16 is saved"):
        train(here)


def test_a_run_that_only_ruins_itself_ends_by_the_number_of_windows_it_may_pass_over(config: Train) -> None:
    here = config("here", "optim=sgd", "optim.lr=1e38", "optim.clip_norm=null", "guard.max_skips=3")
    with pytest.raises(LossError, match=r"not finite.*nothing is saved.*guard\.max_skips=3, as many are passed over"):
        train(here)
    assert skips(here.run) == [1, 2, 3]


def test_what_is_ignored_goes_on_and_is_never_the_best(
    config: Train, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here = config("here", "guard.on_bad_loss=ignore", "checkpoint.validate_every_steps=8")
    after_updates({17: make_weights_infinite}, monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert train(here).step == TOTAL
    assert faults(here.run) == skips(here.run) == []
    assert "validation at step 24 is not finite (nan): it is never the best" in caplog.messages
    found = {record["step"]: record for record in records(str(here.run))}
    assert found[24]["valid/nats_per_token"] is found[24]["valid/perplexity"] is None
    assert load_trained(str(here.run), "best").step == 16
    assert train(config("here", "guard.on_bad_loss=ignore", f"max_steps={TOTAL + 3}")).first_step == TOTAL


def test_a_request_to_stop_is_not_lost_to_a_bad_step(
    config: Train, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, before))
    here, reference = config("here"), config("reference")
    with monkeypatch.context() as patch:
        after_updates({17: make_weights_infinite_and_ask_to_stop}, patch)
        with pytest.raises(Stopped, match="is saved at step 10; the same command goes on"):
            train(here)
    with monkeypatch.context() as patch:
        after_updates({17: make_weights_infinite}, patch)
        assert train(here).first_step == 10
    assert skips(here.run) == [17]
    assert_same_end(str(here.run), told_beforehand(reference, 17), TOTAL)


def test_windows_are_passed_over_though_the_ledger_cannot_be_written(
    config: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = config("here", "checkpoint.every_steps=1000")
    with monkeypatch.context() as patch:
        ruin_gradients({3, 6}, patch)
        write = Ledger.write
        patch.setattr(Ledger, "write", lambda self, event, **fields: event == "skip" or write(self, event, **fields))
        assert train(here).step == TOTAL
    assert skips(here.run) == []
    own = load_checkpoint(checkpoint_path(str(here.run), TOTAL))["wordlanes"]
    assert own["skipped"] == [2, 5]
    with monkeypatch.context() as patch:
        ruin_gradients({3, 6}, patch)
        patch.setattr(Ledger, "write", lambda self, event, **fields: event == "skip" or write(self, event, **fields))
        with pytest.raises(LossError, match=r"at step 6; nothing is saved.*guard\.max_skips=1"):
            train(config("again", "checkpoint.every_steps=1000", "guard.max_skips=1"))


# --- runs of before, which saved what was ruined


def test_a_ruined_checkpoint_is_not_gone_on_from(config: Train, caplog: pytest.LogCaptureFixture) -> None:
    here, reference = config("here", "checkpoint.keep_last=9"), config("reference")
    train(here)
    for step in (WINDOWS, TOTAL):
        ruin(str(here.run), step)
    with caplog.at_level(logging.WARNING):
        assert train(here).first_step == 50
    assert f"step-{TOTAL}.ckpt holds weights that are not finite; going on from step 50" in caplog.text
    train(reference)
    assert_same_end(str(here.run), str(reference.run), TOTAL)


def test_a_ruined_model_is_not_evaluated(config: Train, capsys: pytest.CaptureFixture[str]) -> None:
    here = config("here", "checkpoint.validate_every_steps=1000")
    train(here)
    ruin(str(here.run), TOTAL)
    for which in ("best", "last", str(TOTAL)):
        assert main(["evaluate", f"run={here.run}", f"checkpoint={which}", "--json"]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err == (
            f"error: {checkpoint_path(str(here.run), TOTAL)} holds weights that are not finite;"
            " use that of another step: 50\n"
        )
    assert main(["evaluate", f"run={here.run}", "checkpoint=50", "--json"]) == 0
    assert math.isfinite(json.loads(capsys.readouterr().out)["perplexity"])


def test_of_nothing_but_ruined_checkpoints_none_is_taken(config: Train) -> None:
    here = config("here", "checkpoint.keep_last=1", "checkpoint.validate_every_steps=1000")
    train(here)
    ruin(str(here.run), TOTAL)
    with pytest.raises(CheckpointError, match=f"step-{TOTAL}.ckpt holds weights that are not finite; remove it and"):
        train(here)
