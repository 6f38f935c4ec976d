"""Law 7 for checkpoints: whole or absent, refused by name; which are kept, which is the best."""

import fcntl
import hashlib
import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from support.checkpoints import change_mark, mark, mark_as_before

from pipeline import storage
from pipeline.config import Config
from pipeline.errors import CheckpointError, ConfigError
from pipeline.run import checkpoint
from pipeline.run.checkpoint import (
    best_step,
    check_identity,
    checkpoint_path,
    committed_steps,
    load_checkpoint,
    looks_whole,
    mark_path,
    newest_sound,
    read_mark,
    remove_checkpoint,
    remove_uncommitted,
    save_checkpoint,
    uncommitted_steps,
)
from pipeline.runner import Conclusion, train
from pipeline.training.restore import load_trained

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
        "step-12.json",
    ]


def test_a_checkpoint_without_its_digest_is_not_committed(tmp_path: Path) -> None:
    for step in (3, 20, 100):
        save_checkpoint({"step": step}, checkpoint_path(str(tmp_path), step))
    Path(mark_path(checkpoint_path(str(tmp_path), 100))).unlink()
    Path(tmp_path, "checkpoints", "step-7.ckpt.tmp").write_bytes(b"half")
    assert committed_steps(str(tmp_path)) == [3, 20]
    assert committed_steps(str(tmp_path / "nowhere")) == []
    with pytest.raises(CheckpointError, match=r"step-100\.json does not exist"):
        load_checkpoint(checkpoint_path(str(tmp_path), 100))
    with pytest.raises(CheckpointError, match=r"step-8\.ckpt does not exist"):
        load_checkpoint(checkpoint_path(str(tmp_path), 8))


def test_what_a_kill_left_behind_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for step in (3, 20):
        save_checkpoint({"step": step}, checkpoint_path(str(tmp_path), step))
    folder = tmp_path / "checkpoints"
    Path(mark_path(checkpoint_path(str(tmp_path), 20))).unlink()
    (folder / "step-21.ckpt.tmp").write_bytes(b"half")
    (folder / "notes.txt").write_text("the user's")
    remove_uncommitted(str(tmp_path))
    assert sorted(each.name for each in folder.iterdir()) == ["notes.txt", "step-3.ckpt", "step-3.json"]
    remove_uncommitted(str(tmp_path / "nowhere"))


def test_files_of_other_names_are_the_users(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (folder / "old").mkdir(parents=True)
    names = [
        "best.ckpt",
        "best.ckpt.tmp",
        "step-03.ckpt",
        "step-03.ckpt.sha256",
        "step-03.json",
        "step-3.json.bak",
        "step-٣.ckpt.sha256",
        "my-step-3.ckpt",
        "step-3.ckpt.bak",
        "step-3.ckpt.bak.tmp",
        "notes.tmp",
        "old/step-7.ckpt",
        "old/step-7.ckpt.sha256",
        "old/step-7.json",
        "old/step-8.ckpt.tmp",
    ]
    for name in names:
        (folder / name).write_text("mine")
    assert committed_steps(str(tmp_path)) == uncommitted_steps(str(tmp_path)) == []
    remove_uncommitted(str(tmp_path))
    assert {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()} == {*names}
    assert newest_sound(str(tmp_path), finite=True) is None


def test_all_that_a_kill_may_leave_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("step-7.ckpt.tmp", "step-8.ckpt", "step-8.ckpt.sha256.tmp", "step-9.json.tmp", "step-0.ckpt"):
        (folder / name).write_text("half")
    assert uncommitted_steps(str(tmp_path)) == [0, 8]
    remove_uncommitted(str(tmp_path))
    assert list(folder.iterdir()) == []


def test_a_mark_goes_before_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a kill comes between, what is left is an uncommitted checkpoint, not a mark without one."""
    path, removed = checkpoint_path(str(tmp_path), 5), []
    save_checkpoint({"step": 5}, path)
    monkeypatch.setattr(storage, "remove", removed.append)
    remove_checkpoint(path)
    assert removed == [path.replace(".ckpt", ".json"), f"{path}.sha256", path]


def test_a_checkpoint_goes_to_the_disk_before_its_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, there = checkpoint_path(str(tmp_path), 5), []
    monkeypatch.setattr(storage, "publish_bytes", lambda name, data: there.append((name, Path(path).exists())))
    assert save_checkpoint({"step": 5}, path) == Path(path).stat().st_size
    assert there == [(path.replace(".ckpt", ".json"), True)]


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
    with pytest.raises(CheckpointError, match=r"step-5\.ckpt is no checkpoint: .* \(UnpicklingError\); remove it and"):
        load_checkpoint(path)


def packed(value: object, **more: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **more)
    return file.getvalue()


class Trap:
    """Whoever unpickles it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


UNLOADABLE: dict[str, Callable[[Path], bytes]] = {
    "nothing": lambda trap: b"",
    "text": lambda trap: b"these are no tensors\n",
    "zeros": lambda trap: b"\0" * 4096,
    "json": lambda trap: b'{"global_step": 5}',
    "half an archive": lambda trap: packed({"weights": torch.zeros(100)})[:700],
    "another archive": lambda trap: zipped("a.txt"),
    "arrays": lambda trap: zipped("a.npy"),
    "a tape": lambda trap: b"ustar" * 300,
    "a trap": lambda trap: packed(Trap(trap)),
    "a bare trap": lambda trap: pickle.dumps(Trap(trap)),
    "an old trap": lambda trap: packed({"a": Trap(trap)}, _use_new_zipfile_serialization=False),
    "a list": lambda trap: packed([1, 2]),
}


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "content")
    return file.getvalue()


@pytest.mark.parametrize("made", UNLOADABLE.values(), ids=UNLOADABLE.keys())
def test_what_is_no_checkpoint_is_refused_in_a_line_and_not_run(made: Callable[[Path], bytes], tmp_path: Path) -> None:
    path = checkpoint_path(str(tmp_path), 5)
    mark(path, made(tmp_path / "trap"))
    with pytest.raises(CheckpointError, match=rf"^{path} is no checkpoint: .*; remove it and {path}\.sha256 to go on"):
        load_checkpoint(path)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("seed", range(40))
def test_bytes_that_are_wrong_anywhere_are_refused_or_loaded(seed: int, tmp_path: Path) -> None:
    """Whatever torch stumbles over: there is no other error than ours."""
    random, path = Random(seed), checkpoint_path(str(tmp_path), 5)
    content = bytearray(packed({"weights": torch.arange(9), "name": "a"}, _use_new_zipfile_serialization=seed % 2 == 0))
    for _ in range(random.choice([1, 5])):
        content[random.randrange(min(len(content), 500))] = random.randrange(256)
    mark(path, bytes(content))
    with suppress(CheckpointError):
        load_checkpoint(path)


@pytest.mark.parametrize("name", ["step-5.ckpt", "step-5.json"])
def test_a_folder_in_a_checkpoints_place_is_refused(name: str, tmp_path: Path) -> None:
    path = checkpoint_path(str(tmp_path), 5)
    save_checkpoint({}, path)
    (tmp_path / "checkpoints" / name).unlink()
    (tmp_path / "checkpoints" / name).mkdir()
    with pytest.raises(CheckpointError, match=r"step-5\.ckpt cannot be read \(Is a directory\); mend it, or remove it"):
        load_checkpoint(path)


@pytest.fixture
def trained(make_corpus: Callable[..., str], small_config: Callable[..., Config], tmp_path: Path) -> Config:
    """Of a run with checkpoints of steps 4 and 8, that is to go on to 12."""
    config = small_config(
        f"data={make_corpus()}",
        f"run={tmp_path / 'run'}",
        "max_steps=12",
        "checkpoint.every_steps=4",
        "checkpoint.keep_last=9",
    )
    train(config.model_copy(update={"max_steps": 8}))
    return config


def put(run: str, checkpoint: object, *, step: int = 8) -> None:
    mark(checkpoint_path(run, step), packed(checkpoint))


def without(*keys: str) -> Callable[[Any], object]:
    def change(checkpoint: Any) -> object:
        node = checkpoint
        for key in keys[:-1]:
            node = node[key]
        del node[keys[-1]]
        return checkpoint

    return change


def with_value(value: object, *keys: str) -> Callable[[Any], object]:
    def change(checkpoint: Any) -> object:
        node = checkpoint
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value
        return checkpoint

    return change


FOREIGN: dict[str, tuple[Callable[[Any], object], str, bool]] = {  # and whether its weights are of use
    "nothing": (lambda checkpoint: {}, "found nothing at state_dict", False),
    "weights alone": (lambda checkpoint: {"state_dict": checkpoint["state_dict"]}, "nothing at global_step", False),
    "plain Lightning's": (without("wordlanes"), "found nothing at wordlanes", False),
    "our key a list": (with_value([], "wordlanes"), "found list at wordlanes", False),
    "no weights": (without("state_dict"), "found nothing at state_dict", False),
    "no embedding": (without("state_dict", "model.embedding_VE"), "nothing at state_dict.model.embedding_VE", False),
    "no identity": (without("wordlanes", "identity"), "found nothing at wordlanes.identity", False),
    "no vocabulary": (without("wordlanes", "identity", "vocabulary"), "wordlanes.identity.vocabulary", False),
    "another step": (with_value(7, "global_step"), "is of step 7, not of 8", False),
    "no optimizer": (without("optimizer_states"), "found nothing at optimizer_states", True),
    "no loops": (without("loops"), "found nothing at loops", True),
    "no progress": (
        without("loops", "fit_loop", "epoch_loop.batch_progress"),
        "nothing at loops.fit_loop.epoch_loop.batch_progress",
        True,
    ),
    "no version": (without("pytorch-lightning_version"), "nothing at pytorch-lightning_version", True),
    **{
        f"no {key}": (without("wordlanes", key), f"found nothing at wordlanes.{key}", True)
        for key in ("hidden_KLP", "cell_KLH", "interval_nats", "interval_targets", "loss_history", "skipped")
    },
}


@pytest.mark.parametrize(("change", "named", "of_use"), FOREIGN.values(), ids=FOREIGN.keys())
def test_a_checkpoint_of_something_else_is_passed_over_or_refused_in_a_line(
    change: Callable[[Any], object], named: str, of_use: bool, trained: Config, caplog: Any
) -> None:
    assert trained.run is not None
    path = checkpoint_path(trained.run, 8)
    put(trained.run, change(load_checkpoint(path)))
    if of_use:
        assert load_trained(trained.run, "last").step == 8
    else:
        with pytest.raises(CheckpointError) as caught:
            load_trained(trained.run, "last")
        assert named in str(caught.value)
    assert train(trained).first_step == 4
    assert f"{path} is " in caplog.text
    assert named in caplog.text
    assert "going on from step 4, which is whole" in caplog.text


def test_where_all_checkpoints_are_of_something_else_nothing_is_begun(trained: Config) -> None:
    assert trained.run is not None
    for step in (4, 8):
        put(trained.run, {"state_dict": {}, "global_step": step}, step=step)
    before = {path: path.read_bytes() for path in Path(trained.run, "checkpoints").iterdir()}
    with pytest.raises(
        CheckpointError, match=r"step-8\.ckpt is no checkpoint of a run of this pipeline: found nothing"
    ):
        train(trained)
    assert {path: path.read_bytes() for path in Path(trained.run, "checkpoints").iterdir()} == before


def bent(weights: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    name = "model.softmax.head_CH" if "model.softmax.head_CH" in weights else list(weights)[-1]
    tensor = weights.pop(name)
    if how == "another shape":
        weights[name] = torch.zeros(3, 3)
    elif how == "another name":
        weights["model.other"] = tensor
    elif how == "one more":
        weights |= {name: tensor, "model.other": tensor}
    elif how == "no tensor":
        weights[name] = "text"  # type: ignore[assignment]
    return weights


@pytest.mark.parametrize("how", ["another shape", "another name", "one more", "missing", "no tensor"])
def test_weights_that_do_not_fit_the_model_are_refused_in_a_line(how: str, trained: Config) -> None:
    assert trained.run is not None
    checkpoint = load_checkpoint(checkpoint_path(trained.run, 8))
    checkpoint["state_dict"] = bent(dict(checkpoint["state_dict"]), how)
    put(trained.run, checkpoint)
    for call in (lambda: train(trained), lambda: load_trained(str(trained.run), "last")):
        with pytest.raises(
            CheckpointError, match=r"step-8\.ckpt does not fit the model: model\..* is .*, needed .*; rem"
        ):
            call()


def test_marks_that_are_missing_are_told_and_their_checkpoints_stay(trained: Config) -> None:
    """As in a folder that was copied without them: to begin anew would remove the checkpoints."""
    assert trained.run is not None
    for each in Path(trained.run, "checkpoints").glob("*.json"):
        each.unlink()
    with pytest.raises(
        CheckpointError, match=r"step-8\.json is missing, .*; restore it, or remove .*step-8.ckpt to begin"
    ):
        train(trained)
    assert uncommitted_steps(trained.run) == [4, 8]


def test_marks_that_are_missing_count_where_one_is_left(tmp_path: Path) -> None:
    for step in (4, 8):
        save_checkpoint({"step": step}, checkpoint_path(str(tmp_path), step))
        Path(mark_path(checkpoint_path(str(tmp_path), step))).unlink()
    assert newest_sound(str(tmp_path), finite=True, saved={3}) is None
    with pytest.raises(CheckpointError, match=r"step-4\.json is missing"):
        newest_sound(str(tmp_path), finite=True, saved={3, 4})


def test_a_first_checkpoint_that_a_kill_cut_short_begins_anew(trained: Config) -> None:
    assert trained.run is not None
    folder = Path(trained.run, "checkpoints")
    for path in folder.iterdir():
        path.unlink()
    (folder / "step-3.ckpt").write_bytes(b"half")  # the ledger knows of no such checkpoint
    assert train(trained).first_step == 0
    assert committed_steps(trained.run) == [4, 8, 12]


@pytest.mark.parametrize(
    ("harm", "whole"),
    [
        (lambda path: None, True),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), False),
        (lambda path: path.write_bytes(b""), False),
        (lambda path: path.unlink(), False),
        (lambda path: path.with_suffix(".json").unlink(), False),
        (lambda path: path.with_suffix(".json").write_text(""), False),
        (lambda path: path.with_suffix(".json").write_text('{"step": 5}'), False),
        (lambda path: change_mark(path, sha256="x" * 64), False),
        (lambda path: change_mark(path, size_bytes=1), False),
        (lambda path: change_mark(path, step=6), False),
        (lambda path: change_mark(path, sha256="a" * 64), True),
        (lambda path: mark_as_before(path, "a" * 64), True),
        (lambda path: mark_as_before(path, "a" * 63), False),
        (lambda path: mark_as_before(path, ""), False),
    ],
)
def test_what_looks_whole_has_its_size_and_a_mark(harm: Callable[[Path], object], whole: bool, tmp_path: Path) -> None:
    path = Path(checkpoint_path(str(tmp_path), 5))
    save_checkpoint({"global_step": 5}, str(path))
    harm(path)
    assert looks_whole(str(tmp_path), 5, size_bytes=None) == whole


def test_a_mark_says_what_need_be_known_without_a_tensor(trained: Config) -> None:
    assert trained.run is not None
    path = Path(checkpoint_path(trained.run, 8))
    found, own = read_mark(trained.run, 8), load_checkpoint(str(path))["wordlanes"]
    assert (found.step, found.size_bytes, found.world_size) == (8, path.stat().st_size, 1)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.identity, found.validations, found.tokens_seen) == (
        own["identity"],
        own["validations"],
        own["tokens_seen"],
    )
    mark_as_before(path)
    before = read_mark(trained.run, 8)
    assert before == replace(found, size_bytes=0, world_size=None)
    assert train(trained).first_step == 8


def test_a_finished_run_is_known_without_reading_a_tensor(trained: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    train(trained)
    monkeypatch.setattr(checkpoint, "load_checkpoint", pytest.fail)
    assert train(trained) == Conclusion(run=str(trained.run), step=12, first_step=12)


def test_each_damaged_checkpoint_that_is_passed_over_is_told_of(trained: Config, caplog: Any) -> None:
    assert trained.run is not None
    train(trained)
    for step in (8, 12):
        path = Path(checkpoint_path(trained.run, step))
        path.write_bytes(path.read_bytes()[:-9])
    put(trained.run, {}, step=20)
    told: list[tuple[int, str]] = []
    found = newest_sound(trained.run, finite=True, on_damaged=lambda step, why: told.append((step, why)))
    assert found is not None
    assert found[0] == 4
    assert [(step, why.split()[0].rpartition("/")[2]) for step, why in told] == [
        (4, "step-20.ckpt"),
        (4, "step-12.ckpt"),
        (4, "step-8.ckpt"),
    ]
    assert all(";" not in why for _, why in told)


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
    for path in Path(run, "checkpoints").glob("*.json"):
        path.unlink()
    with pytest.raises(CheckpointError, match="holds no committed checkpoint"):
        load_trained(run, "last")
