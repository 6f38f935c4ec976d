"""A new run that begins with the weights of another: these alone, and only where they fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from support.runs import Killed, assert_same_end, records, ruin, ruin_gradients, skips, train_killed

from pipeline.config import Config
from pipeline.errors import CheckpointError, ConfigError
from pipeline.run.checkpoint import checkpoint_path, committed_steps, load_checkpoint, own_part
from pipeline.runner import train
from pipeline.training.module import LanguageModelModule
from pipeline.training.restore import load_trained

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree"),  # Lightning 2.6, every fit
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),  # a CPU's way
]

Make = Callable[..., Config]


@pytest.fixture
def config(make_corpus: Callable[..., str], small_config: Make, tmp_path: Path) -> Make:
    """A run that is validated, and so saved, every ten steps: (run, overrides) → Config."""
    data = make_corpus()

    def make(run: str, *overrides: str) -> Config:
        place = run if "://" in run else str(tmp_path / run)
        common = [f"data={data}", f"run={place}", "checkpoint.validate_every_steps=10", "checkpoint.keep_last=9"]
        return small_config(*common, *overrides)

    return make


@pytest.fixture
def origin(config: Make) -> str:
    """The folder of a trained run."""
    trained = config("origin", "max_steps=30", "optim.lr=0.02")
    train(trained)
    return str(trained.run)


def first_weights(config: Config, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Those that a run begins with; it is then killed."""
    found: dict[str, torch.Tensor] = {}

    def look(self: LanguageModelModule) -> None:
        assert (self.global_step, self.state.carried, self.state.validations) == (0, None, {})
        assert not self.trainer.optimizers[0].state
        found.update({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModelModule, "on_train_start", look)
        with pytest.raises(Killed):
            train(config)
    return found


@pytest.mark.parametrize("step", [None, 10, 30])
def test_a_new_run_begins_with_those_weights_alone(
    step: int | None, origin: str, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = origin if step is None else checkpoint_path(origin, step)
    tuned = config("tuned", "max_steps=5", f"init_from={place}", "optim=sgd", "optim.lr=0.5", "model.dropout=0.1")
    expected = load_trained(origin, step or "best").model.state_dict()
    found = first_weights(tuned, monkeypatch)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    train(tuned)
    assert [line["step"] for line in records(str(tuned.run))] == [1, 2, 3, 4, 5]
    assert [line["tokens_seen"] for line in records(str(tuned.run))] == [21, 42, 63, 84, 105]


def test_the_best_are_taken_and_not_the_last(origin: str, config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    validations = own_part(load_checkpoint(checkpoint_path(origin, 30)))["validations"]
    monkeypatch.setattr("pipeline.training.origin.best_step", lambda found, steps: 10 if found == validations else None)
    found = first_weights(config("tuned", "max_steps=5", f"init_from={origin}"), monkeypatch)
    expected = load_trained(origin, 10).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_it_goes_on_without_its_origin_and_to_the_bit(
    origin: str, config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, torn = (config(run, "max_steps=25", f"init_from={origin}") for run in ("whole", "torn"))
    train(whole)
    train_killed(torn, 12, monkeypatch)
    shutil.rmtree(origin)
    assert train(torn).first_step == 10
    assert_same_end(str(whole.run), str(torn.run), 25)
    assert yaml.safe_load(Path(str(torn.run), "config.yaml").read_text())["init_from"] == origin
    assert own_part(load_checkpoint(checkpoint_path(str(torn.run), 25)))["identity"]["init_from"] == json.dumps(origin)
    with pytest.raises(ConfigError, match=f'init_from was "{origin}" and is null; set it back'):
        train(config("torn", "max_steps=30"))
    plain = config("plain", "max_steps=3")
    train(plain)
    with pytest.raises(ConfigError, match="init_from was null and is"):
        train(config("plain", "max_steps=5", f"init_from={whole.run}"))


def test_a_run_whose_first_step_is_passed_over_begins_with_them_again(
    origin: str, config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = config("tuned", "max_steps=5", f"init_from={origin}", "guard.on_bad_loss=skip")
    with monkeypatch.context() as patch:
        ruin_gradients({1, 2, 3, 4, 5}, patch)
        train(tuned)
    assert skips(tuned.run) == [1, 2, 3, 4, 5]
    expected = load_trained(origin, "best").model.state_dict()
    found = load_trained(str(tuned.run), "last").model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_both_may_be_in_an_object_store(s3_bucket: str, config: Make) -> None:
    first = config(f"{s3_bucket}/from/origin", "max_steps=10")
    train(first)
    second = config(f"{s3_bucket}/from/tuned", "max_steps=12", f"init_from={first.run}")
    assert train(second).step == 12
    third = config("here", "max_steps=2", f"init_from={checkpoint_path(str(second.run), 10)}")
    assert train(third).step == 2


REFUSED = {
    "another width": (["model.hidden_size=6"], "model.recurrence.hidden_size was 5 and is 6; set it back"),
    "other clusters": (
        ["model.softmax.cutoffs=[10,20]"],
        r"model.softmax.cutoffs was \[10, 30\] and is \[10, 20\]; set it back",
    ),
    "two of them": (
        ["model.num_layers=1", "model.embedding_size=7"],
        "model.embedding_size was 6 and is 7, model.recurrence.num_layers was 2 and is 1; set it back",
    ),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_weights_of_other_shapes_are_refused(overrides: list[str], message: str, origin: str, config: Make) -> None:
    tuned = config("tuned", "max_steps=5", f"init_from={origin}", *overrides)
    with pytest.raises(ConfigError, match=f"init_from={origin}/checkpoints/step-.* has weights of .*: {message}"):
        train(tuned)
    assert not Path(str(tuned.run)).exists()


def test_a_run_of_an_early_version_gives_its_weights(small_config: Make, tmp_path: Path) -> None:
    """Its configuration and its identity have keys of other names."""
    kept = Path(__file__).resolve().parents[1] / "kept"
    sizes = ["embedding_size=12", "recurrence.hidden_size=16", "recurrence.projection_size=8"]
    typed = [*(f"model.{each}" for each in sizes), "model.softmax.cutoffs=[40,120]", f"data={kept / 'corpus'}"]
    common = [*typed, f"init_from={kept / 'run'}", "stream.num_lanes=2", "max_steps=2"]
    assert train(small_config(*common, f"run={tmp_path / 'tuned'}")).step == 2
    with pytest.raises(ConfigError, match=r"other shapes: model\.recurrence\.projection_size was 8 and is null; set"):
        train(small_config(*common, f"run={tmp_path / 'other'}", "model.recurrence.projection_size=null"))


def test_weights_of_other_words_are_refused(origin: str, config: Make, make_corpus: Callable[..., str]) -> None:
    data = make_corpus("other", num_types=59)
    with pytest.raises(ConfigError, match=r"init_from=.* has vocabulary [0-9a-f]{12} and data=[0-9a-f]{12}; prep"):
        train(config("tuned", "max_steps=5", f"init_from={origin}", f"data={data}"))


def test_what_is_not_there_is_refused(origin: str, config: Make, tmp_path: Path) -> None:
    missing = {
        f"{tmp_path}/nowhere": "holds no committed checkpoint",
        checkpoint_path(origin, 11): "holds no checkpoint of step 11; use one of 10, 20, 30",
    }
    for place, why in missing.items():
        with pytest.raises(CheckpointError, match=f"init_from={place} has no weights to begin with: run=.* {why}"):
            train(config("tuned", "max_steps=5", f"init_from={place}"))
    ruin(origin, 20)
    with pytest.raises(CheckpointError, match="not finite; use that of another step: 10, 30"):
        train(config("tuned", "max_steps=5", f"init_from={checkpoint_path(origin, 20)}"))
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize("file", [False, True])
def test_a_run_is_not_its_own_origin(file: bool, origin: str, config: Make, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(origin)
    before = committed_steps(origin)
    for place in (origin, f"{origin}/", f"{tmp_path}/link", f"{tmp_path}/x/../origin"):
        own = checkpoint_path(place, 30) if file else place
        with pytest.raises(ConfigError, match=f"init_from={own} is the run itself; use another run=FOLDER"):
            train(config("origin", "max_steps=40", f"init_from={own}"))
    assert committed_steps(origin) == before
