"""Law 7 for checkpoints: whole or absent, refused by name; which are kept, which is the best."""

import fcntl
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.config import Config
from pipeline.errors import CheckpointError, ConfigError
from pipeline.training.checkpoint import (
    best_step,
    check_identity,
    checkpoint_path,
    committed_steps,
    load_checkpoint,
    remove_uncommitted,
    save_checkpoint,
)
from pipeline.training.restore import load_trained
from pipeline.training.trainer import train

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree"),  # Lightning 2.6, every fit
]


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = checkpoint_path(str(tmp_path), 12)
    save_checkpoint({"weights": torch.arange(5), "step": 12}, path)
    assert path == f"{tmp_path}/checkpoints/step-12.ckpt"
    loaded = load_checkpoint(path)
    assert loaded["step"] == 12
    assert torch.equal(loaded["weights"], torch.arange(5))
    assert sorted(each.name for each in Path(tmp_path, "checkpoints").iterdir()) == [
        "step-12.ckpt",
        "step-12.ckpt.sha256",
    ]


def test_a_checkpoint_without_its_digest_is_not_committed(tmp_path: Path) -> None:
    for step in (3, 20, 100):
        save_checkpoint({"step": step}, checkpoint_path(str(tmp_path), step))
    Path(f"{checkpoint_path(str(tmp_path), 100)}.sha256").unlink()
    Path(tmp_path, "checkpoints", "step-7.ckpt.tmp").write_bytes(b"half")
    assert committed_steps(str(tmp_path)) == [3, 20]
    assert committed_steps(str(tmp_path / "nowhere")) == []
    with pytest.raises(CheckpointError, match=r"step-100\.ckpt\.sha256 does not exist"):
        load_checkpoint(checkpoint_path(str(tmp_path), 100))
    with pytest.raises(CheckpointError, match=r"step-8\.ckpt does not exist"):
        load_checkpoint(checkpoint_path(str(tmp_path), 8))


def test_what_a_kill_left_behind_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for step in (3, 20):
        save_checkpoint({"step": step}, checkpoint_path(str(tmp_path), step))
    folder = tmp_path / "checkpoints"
    Path(f"{checkpoint_path(str(tmp_path), 20)}.sha256").unlink()
    (folder / "step-21.ckpt.tmp").write_bytes(b"half")
    (folder / "notes.txt").write_text("the user's")
    remove_uncommitted(str(tmp_path))
    assert sorted(each.name for each in folder.iterdir()) == ["notes.txt", "step-3.ckpt", "step-3.ckpt.sha256"]
    remove_uncommitted(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: bytes([data[0] ^ 1]) + data[1:]])
def test_a_damaged_checkpoint_is_refused_by_name(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = checkpoint_path(str(tmp_path), 5)
    save_checkpoint({"weights": torch.zeros(100)}, path)
    Path(path).write_bytes(damage(Path(path).read_bytes()))
    with pytest.raises(CheckpointError, match=r"step-5\.ckpt is damaged: found sha256 .* needed .*; remove it"):
        load_checkpoint(path)


def test_what_is_not_tensors_and_plain_values_is_not_unpickled(tmp_path: Path) -> None:
    path = checkpoint_path(str(tmp_path), 5)
    save_checkpoint({"folder": tmp_path}, path)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load_checkpoint(path)


def test_a_checkpoint_stands_at_every_nth_step_at_each_validation_and_at_the_end(
    make_corpus: Callable[..., str], small_config: Callable[..., Config], tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    often = ("checkpoint.every_steps=8", "checkpoint.validate_every_steps=12", "checkpoint.keep_last=100")
    train(small_config(f"data={make_corpus()}", f"run={run}", "max_steps=30", *often))
    assert committed_steps(run) == [8, 12, 16, 24, 30]


def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = checkpoint_path(str(tmp_path), 5)
    save_checkpoint({"step": 5}, path)
    before = Path(path).read_bytes()
    with pytest.raises((AttributeError, TypeError)):
        save_checkpoint({"step": lambda: None}, path)
    assert Path(path).read_bytes() == before
    assert load_checkpoint(path) == {"step": 5}
    assert not Path(f"{path}.tmp").exists()


def test_what_defines_a_run_must_be_equal() -> None:
    check_identity({"a": "1", "b": "2"}, {"b": "2", "a": "1"}, path="p")
    with pytest.raises(ConfigError, match=r"p is of another run: a was 1 and is 3, c was 5 and is None; set it back"):
        check_identity({"a": "1", "b": "2", "c": "5"}, {"b": "2", "a": "3"}, path="p")


def test_the_best_is_the_first_of_the_lowest() -> None:
    validations = {10: 3.0, 20: 2.0, 30: 2.0, 40: 1.0}
    assert best_step(validations, [10, 20, 25, 30]) == 20
    assert best_step(validations, [25, 26]) is None
    assert best_step({}, []) is None
    assert best_step({10: math.nan, 20: 4.5, 30: math.nan}, [10, 20, 30]) == 20
    assert best_step({10: math.nan}, [10]) is None


def test_the_last_ones_and_the_best_are_kept(
    make_corpus: Callable[..., str], small_config: Callable[..., Config], tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    train(
        small_config(
            f"data={make_corpus()}",
            f"run={run}",
            "max_steps=50",
            "optim.lr=0.5",
            "optim.schedule.kind=constant",
            "checkpoint.every_steps=8",
            "checkpoint.validate_every_steps=12",
            "checkpoint.keep_last=2",
            "checkpoint.keep_best=1",
        )
    )
    validations = load_checkpoint(checkpoint_path(run, 50))["wordlanes"]["validations"]
    assert sorted(validations) == [12, 24, 36, 48, 50]
    best = min(validations, key=lambda step: (validations[step], step))
    assert best not in (48, 50), "the case must keep a best that is not among the last"
    assert committed_steps(run) == sorted({best, 48, 50})
    assert (load_trained(run, "best").step, load_trained(run, "best").chosen) == (best, "the best of 3 validated")
    assert (load_trained(run, "last").step, load_trained(run, "last").chosen) == (50, "the last")
    weights = load_checkpoint(checkpoint_path(run, best))["state_dict"]
    restored = load_trained(run, "best").model.state_dict()
    assert all(torch.equal(weights[f"model.{name}"], tensor) for name, tensor in restored.items())


def test_without_a_validation_the_best_is_the_last(
    make_corpus: Callable[..., str], small_config: Callable[..., Config], tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    data = make_corpus(train=400)
    train(small_config(f"data={data}", f"run={run}", "max_steps=3"))
    trained = load_trained(run, "best")
    assert (trained.step, trained.chosen) == (3, "the last, since none is validated")


def test_a_run_folder_is_named_literally_and_held_by_one_process(
    make_corpus: Callable[..., str], small_config: Callable[..., Config], tmp_path: Path
) -> None:
    run = str(tmp_path / "lr[1]*${x")
    config = small_config(f"data={make_corpus()}", f"run={run}", "max_steps=3")
    train(config)
    assert committed_steps(run) == [3]
    longer = config.model_copy(update={"max_steps": 5})
    with Path(run, ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="is being trained by another process"):
            train(longer)
    assert train(longer).first_step == 3
    assert load_trained(run, "last").config.run == run


def test_plateau_needs_validations(
    make_corpus: Callable[..., str], small_config: Callable[..., Config], tmp_path: Path
) -> None:
    data = make_corpus(train=300, test=50)
    overrides = (f"data={data}", f"run={tmp_path / 'run'}", "max_steps=3", "optim.schedule.kind=plateau")
    with pytest.raises(ConfigError, match="has no split valid; prepare one or use"):
        train(small_config(*overrides))


def test_a_run_without_a_checkpoint_is_refused(
    make_corpus: Callable[..., str], small_config: Callable[..., Config], tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    train(small_config(f"data={make_corpus()}", f"run={run}", "max_steps=2"))
    for path in Path(run, "checkpoints").glob("*.sha256"):
        path.unlink()
    with pytest.raises(CheckpointError, match="holds no committed checkpoint"):
        load_trained(run, "last")
