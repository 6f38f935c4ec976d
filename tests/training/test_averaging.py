"""Averaged weights in whole runs: what their mean is, when it begins, and who takes it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import assert_same_end, records, ruin_gradients, skips, train_killed
from support.same import assert_same
from torch import Tensor

from pipeline.config import Config, EvaluateConfig, PlanConfig, load
from pipeline.corpus.manifest import read_manifest
from pipeline.errors import ConfigError, LossError
from pipeline.evaluation import evaluate_split
from pipeline.planning import plan
from pipeline.run.checkpoint import checkpoint_path, committed_steps, load_checkpoint, own_part
from pipeline.runner import plan_run, train
from pipeline.scoring.perplexity import score_tokens
from pipeline.training.footprint import checkpoint_bytes, shapes_of
from pipeline.training.module import LanguageModelModule
from pipeline.training.optimization import averages_from
from pipeline.training.parts import open_split
from pipeline.training.restore import load_trained
from pipeline.training.state import TrainState
from pipeline.training.tiling import run_identity

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree")

Make = Callable[..., Config]
Weights = dict[str, Tensor]
START = ["optim.averaging=start"]
# a rate at which validations get worse now and then; patience that is soon used up
NONMONOTONE = ["optim=sgd", "optim.lr=30", "optim.averaging=nonmonotone", "optim.averaging_patience=1"]


@pytest.fixture
def config(make_corpus: Callable[..., str], small_config: Make, tmp_path: Path) -> Make:
    """A run of 30 steps that is validated, and so saved, every four: (run, overrides) → Config."""
    data = make_corpus()

    def make(run: str, *overrides: str) -> Config:
        common = [f"data={data}", f"run={tmp_path / run}", "max_steps=30", "checkpoint.keep_last=99"]
        return small_config(*common, "checkpoint.validate_every_steps=4", *overrides)

    return make


def trained_by_steps(config: Config, patch: pytest.MonkeyPatch) -> dict[int, Weights]:
    """Trains, and gives the weights after each update."""
    found: dict[int, Weights] = {}
    real = LanguageModelModule.on_train_batch_end

    def noted(self: LanguageModelModule, *arguments: Any) -> None:
        real(self, *arguments)
        found[self.global_step] = {name: each.detach().clone() for name, each in self.model.named_parameters()}

    with patch.context() as patched:
        patched.setattr(LanguageModelModule, "on_train_batch_end", noted)
        train(config)
    return found


def mean_of(weights: list[Weights]) -> Weights:
    return {name: torch.stack([each[name].double() for each in weights]).mean(0).float() for name in weights[0]}


def own(config: Config, step: int) -> dict[str, Any]:
    return own_part(load_checkpoint(checkpoint_path(str(config.run), step)))


def raw_weights(config: Config, step: int) -> Weights:
    found: Weights = load_checkpoint(checkpoint_path(str(config.run), step))["state_dict"]
    return found


def test_the_mean_is_that_of_the_weights_after_each_update(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    here = config("here", *START)
    weights = trained_by_steps(here, monkeypatch)
    for step in (4, 12, 30):
        expected = mean_of([weights[each] for each in range(1, step + 1)])
        assert own(here, step)["num_averaged"] == step
        torch.testing.assert_close(own(here, step)["averaged"], expected, rtol=1e-6, atol=1e-7)
    assert_same({f"model.{name}": each for name, each in weights[30].items()}, raw_weights(here, 30))


def test_training_goes_on_from_the_weights_and_not_from_their_mean(config: Make) -> None:
    plain, here = config("plain"), config("here", *START)
    train(plain)
    train(here)
    left, right = (load_checkpoint(checkpoint_path(str(each.run), 30)) for each in (plain, here))
    assert_same(left["state_dict"], right["state_dict"])
    assert_same(left["optimizer_states"], right["optimizer_states"])
    assert own(plain, 30)["averaged"] == {}
    pairs = zip(records(str(plain.run)), records(str(here.run)), strict=True)
    for one, other in pairs:
        assert one["train/nats_per_token"] == other["train/nats_per_token"]
        assert ("valid/perplexity" in one) == (one["step"] % 4 == 0 or one["step"] == 30)
        assert one.get("valid/nats_per_token") != other.get("valid/nats_per_token") or "valid/perplexity" not in one


def test_validations_and_all_that_is_taken_from_a_checkpoint_are_of_the_mean(
    config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = config("here", *START)
    train(here)
    best = min(own(here, 30)["validations"].items(), key=lambda item: item[1])[0]
    for which, step in (("best", best), ("last", 30), (8, 8)):
        trained = load_trained(str(here.run), which)  # type: ignore[arg-type]
        assert trained.step == step
        assert trained.chosen.endswith(f", the mean of {step} updates")
        assert_same(dict(trained.model.state_dict()), own(here, step)["averaged"])
        valid = open_split(str(here.data), read_manifest(str(here.data)), "valid")
        found = score_tokens(trained.model, valid).nats_per_token
        assert found == own(here, 30)["validations"][step]
    scored = evaluate_split(load(EvaluateConfig, [f"run={here.run}", "split=valid", "checkpoint=8"], name="evaluate"))
    assert scored.score.nats_per_token == own(here, 30)["validations"][8]

    tuned = config("tuned", f"init_from={checkpoint_path(str(here.run), 8)}", *START, "optim=sgd", "optim.lr=1e-9")
    train(tuned)
    torch.testing.assert_close(own(tuned, 4)["averaged"], own(here, 8)["averaged"], rtol=1e-6, atol=1e-7)
    assert own(tuned, 4)["num_averaged"] == 4  # a mean of its own


def test_it_begins_after_the_validation_that_is_worse(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    here = config("here", *NONMONOTONE, "max_steps=60")
    weights = trained_by_steps(here, monkeypatch)
    validations = own(here, 60)["validations"]
    begin = averages_from(here.optim, validations)
    assert begin is not None and 8 < begin < 50, "the test must see steps before and after it"
    for step in committed_steps(str(here.run)):
        assert own(here, step)["num_averaged"] == max(0, step - begin)
    expected = mean_of([weights[each] for each in range(begin + 1, 61)])
    torch.testing.assert_close(own(here, 60)["averaged"], expected, rtol=1e-6, atol=1e-7)
    assert load_trained(str(here.run), begin).chosen == "as asked for"
    assert_same(
        {f"model.{name}": each for name, each in load_trained(str(here.run), begin).model.state_dict().items()},
        raw_weights(here, begin),
    )


def test_a_run_that_is_made_longer_averages_as_if_it_had_been_so_from_the_start(config: Make) -> None:
    """A validation at an earlier end has no part in when it begins."""
    whole, grown = config("whole", *NONMONOTONE, "max_steps=60"), config("grown", *NONMONOTONE)
    train(whole)
    for limit in (9, 10, 11, 31, 60):
        train(config("grown", *NONMONOTONE, f"max_steps={limit}"))
    assert own(grown, 60)["num_averaged"] == own(whole, 60)["num_averaged"] > 0
    assert_same(own(grown, 60)["averaged"], own(whole, 60)["averaged"])
    assert_same(raw_weights(grown, 60), raw_weights(whole, 60))


def test_tied_weights_are_averaged_once_and_found_under_both_names(config: Make) -> None:
    here = config("here", *START, "model.tied=true", "model.embedding_size=5", "model.softmax.div_value=1")
    train(here)
    averaged = own(here, 30)["averaged"]
    assert {f"model.{name}" for name in averaged} == raw_weights(here, 30).keys()
    assert torch.equal(averaged["embedding_VE"], averaged["softmax.embedding_VH"])
    trained = load_trained(str(here.run), "last")
    assert torch.equal(trained.model.embedding_VE, averaged["embedding_VE"])
    assert not torch.equal(averaged["embedding_VE"], raw_weights(here, 30)["model.embedding_VE"])


def test_windows_that_are_passed_over_add_nothing(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    here = config("here", *START, "guard.on_bad_loss=skip")
    with monkeypatch.context() as patch:
        ruin_gradients({3, 17}, patch)
        weights = trained_by_steps(here, monkeypatch)
    assert skips(here.run) == [3, 17]
    assert own(here, 30)["num_averaged"] == 28
    expected = mean_of([weights[each] for each in range(1, 31) if each not in (3, 17)])
    torch.testing.assert_close(own(here, 30)["averaged"], expected, rtol=1e-6, atol=1e-7)


def test_a_mean_that_is_not_finite_is_never_saved(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    here = config("here", *START)
    real = LanguageModelModule.optimizer_step

    def ruined(self: LanguageModelModule, *arguments: Any) -> None:
        real(self, *arguments)
        if self.global_step == 10:
            self.state.averaged["embedding_VE"][-1] = math.inf

    monkeypatch.setattr(LanguageModelModule, "optimizer_step", ruined)
    with pytest.raises(LossError, match="not finite after step 12: mean of the weights; step 8 is saved"):
        train(here)
    assert committed_steps(str(here.run)) == [4, 8]


def test_a_validation_that_fails_leaves_the_weights_as_they_were() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))

    module = LanguageModelModule.__new__(LanguageModelModule)
    torch.nn.Module.__init__(module)
    module.model = Model()  # type: ignore[assignment]
    module.state = TrainState(averaged={"weight": torch.tensor([5.0, 6.0])}, num_averaged=2)
    with pytest.raises(KeyboardInterrupt), module.evaluated():
        assert module.model.weight.tolist() == [5.0, 6.0]
        raise KeyboardInterrupt
    assert module.model.weight.tolist() == [1.0, 2.0]
    assert module.state.averaged["weight"].tolist() == [5.0, 6.0]


def test_twice_killed_within_a_mean_it_ends_as_if_undisturbed(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, torn = (config(run, *START, "checkpoint.every_steps=3") for run in ("whole", "torn"))
    train(whole)
    for kill in (8, 14, 23):
        train_killed(torn, kill, monkeypatch)
    assert train(torn).first_step == 21
    assert_same_end(str(whole.run), str(torn.run), 30)


# --- what it is part of, what is planned, what is refused


def test_it_is_part_of_what_a_run_is(config: Make) -> None:
    train(config("here", *START))
    with pytest.raises(ConfigError, match='averaging was "start" and is "none"'):
        train(config("here", "max_steps=40"))
    manifest = read_manifest(str(config("here").data))
    names = [run_identity(config("x", *more), manifest, total_steps=9).keys() for more in ([], START, NONMONOTONE)]
    assert ["checkpoint.validate_every_steps" in each for each in names] == [False, False, True]


def test_the_mean_is_planned(config: Make, small_config: Make) -> None:
    plain, here = (config(run, *more) for run, more in (("plain", []), ("here", START)))
    sizes = {}
    for each in (plain, here):
        train(each)
        sizes[each.run] = Path(checkpoint_path(str(each.run), 30)).stat().st_size
        shapes = shapes_of(each.model, vocab_size=read_manifest(str(each.data)).vocab_size)
        planned = checkpoint_bytes(shapes, each.optim, num_lanes=3)
        assert planned == pytest.approx(sizes[each.run], rel=0.1)
    assert sizes[here.run] > sizes[plain.run] + 4 * sum(each.numel() for each in shapes.parameters())
    found = [
        plan(load(PlanConfig, [f"data={here.data}", "accelerator=cpu", "plan.words_per_second=1", *more], name="plan"))
        for more in ([], ["optim.averaging=start"])
    ]
    without, averaged = (each.memory_bytes for each in found)
    assert averaged.optimizer == without.optimizer + without.weights
    assert averaged.total == without.total + without.weights


@pytest.mark.parametrize("averaging", ["start", "nonmonotone"])
@pytest.mark.parametrize("schedule", ["step", "plateau", "cosine"])
def test_a_rate_that_is_not_constant_is_refused(averaging: str, schedule: str, small_config: Make) -> None:
    with pytest.raises(ConfigError) as refusal:
        small_config(f"optim.averaging={averaging}", f"optim.schedule.kind={schedule}")
    assert str(refusal.value) == (
        f"optim.averaging={averaging} needs a constant rate, and optim.schedule.kind={schedule} changes it; use"
        " optim.schedule.kind=constant or optim.averaging=none"
    )


def test_a_corpus_that_cannot_be_validated_never_begins_to_be_averaged_and_is_refused(
    make_corpus: Callable[..., str], small_config: Make, tmp_path: Path
) -> None:
    data = make_corpus("unvalidated", train=500)
    common = [f"data={data}", f"run={tmp_path / 'run'}", "max_steps=3"]
    with pytest.raises(ConfigError) as refusal:
        plan_run(small_config(*common, "optim.averaging=nonmonotone"), {})
    assert str(refusal.value) == (
        f"optim.averaging=nonmonotone waits for validations and data={data} has no split valid; prepare one or use"
        " optim.averaging=start"
    )
    train(small_config(*common, "optim.averaging=start"))
