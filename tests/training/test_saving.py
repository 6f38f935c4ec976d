"""When a checkpoint is waited for, in which order things reach the disk, and what a failure beside training costs."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import storage
from pipeline.config import CheckpointConfig, Config, load
from pipeline.errors import CheckpointError, ConfigError
from pipeline.run.checkpoint import checkpoint_path, committed_steps, load_checkpoint, save_checkpoint
from pipeline.run.job import Place
from pipeline.run.ledger import Event, read_events
from pipeline.run.records import MetricsFile
from pipeline.runner import train
from pipeline.training import saving
from pipeline.training.saving import BackgroundIO, Checkpointer, _tidy
from pipeline.training.sync import Sync

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree"),  # Lightning 2.6, every fit
]

SmallConfig = Callable[..., Config]
MakeCorpus = Callable[..., str]


def events(run: str, name: str) -> list[Event]:
    return [event for event in read_events(run) if event["event"] == name]


@pytest.fixture
def config(make_corpus: MakeCorpus, small_config: SmallConfig, tmp_path: Path) -> Config:
    return small_config(f"data={make_corpus()}", f"run={tmp_path / 'run'}", "max_steps=30", "checkpoint.every_steps=5")


def reasons(monkeypatch: pytest.MonkeyPatch, **asked: int) -> None:
    """Has the ranks agree on a notice, a time to save or a stop in these steps."""

    def settle(self: Sync, module: Any, step: int, sound: Any = Sync._settle) -> None:
        sound(self, module, step)
        self.save = next((name for name in ("time", "notice") if asked.get(name) == step), None)
        self.stop = "SIGTERM" if asked.get("stop") == step else self.stop

    monkeypatch.setattr(Sync, "_settle", settle)


@pytest.mark.parametrize(("reason", "waited"), [("stop", True), ("notice", True), ("time", False)])
def test_a_checkpoint_is_waited_for_where_the_process_may_end(
    reason: str, waited: bool, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_alone = []

    def batch_end(self: Any, trainer: Any, *arguments: Any, sound: Any = Checkpointer.on_train_batch_end) -> None:
        sound(self, trainer, *arguments)
        if trainer.global_step == 12:
            left_alone.append(self.io._writing is not None)

    reasons(monkeypatch, **{reason: 12})
    monkeypatch.setattr(Checkpointer, "on_train_batch_end", batch_end)
    assert config.run is not None
    if reason == "stop":
        with pytest.raises(Exception, match="is saved at step 12"):
            train(config)
    else:
        train(config)
    assert [event["reason"] for event in events(config.run, "checkpoint") if event["step"] == 12] == [reason]
    assert left_alone == [not waited]


def test_the_last_checkpoint_is_waited_for_and_its_failure_is_the_runs(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(checkpoint: Any, path: str, **known: Any) -> int:
        if "step-30" in path:
            raise ConfigError("no room")
        return save_checkpoint(checkpoint, path, **known)

    assert config.run is not None
    with monkeypatch.context() as patched:
        patched.setattr(saving, "save_checkpoint", fail)
        with pytest.raises(CheckpointError, match="the last checkpoint is not written: no room"):
            train(config)
    assert committed_steps(config.run) == [20, 25]
    assert [(each["kind"], each["cause"], each["step"]) for each in events(config.run, "fault")] == [
        ("disk", "no room", 30)
    ]
    assert train(config).first_step == 25


def test_a_checkpoint_that_fails_is_told_of_and_costs_nothing_else(
    config: Config, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def fail(checkpoint: Any, path: str, **known: Any) -> int:
        if "step-15" in path:
            raise ConfigError("no room")
        return save_checkpoint(checkpoint, path, **known)

    monkeypatch.setattr(saving, "save_checkpoint", fail)
    assert config.run is not None
    train(config)
    assert committed_steps(config.run) == [25, 30]
    assert "checkpoint of step 15 is not written, training goes on: no room" in caplog.text
    assert [event["step"] for event in events(config.run, "checkpoint")] == [5, 10, 20, 25, 30]
    assert [(each["cause"], each["step"], each["fatal"]) for each in events(config.run, "fault")] == [
        ("no room", 15, False)
    ]


def test_the_ledger_tells_what_each_checkpoint_cost(config: Config) -> None:
    train(config)
    assert config.run is not None
    told = events(config.run, "checkpoint")
    assert [(event["step"], event["reason"]) for event in told] == [
        *((step, "steps") for step in range(5, 30, 5)),
        (30, "end"),
    ]
    assert told[-1]["size_bytes"] == storage.size_bytes(checkpoint_path(config.run, 30))
    assert all(event["seconds"] > 0 and event["write_seconds"] > 0 for event in told)


def test_records_are_on_the_disk_before_the_checkpoint_that_knows_of_them(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def flush(self: MetricsFile, descriptor: int, sound: Any = MetricsFile._flush) -> None:
        sound(self, descriptor)
        order.append(f"records by {threading.current_thread().name}")

    def save(checkpoint: Any, path: str, **more: Any) -> int:
        assert config.run is not None
        lines = Path(config.run, "metrics.jsonl").read_text().splitlines()
        (known,) = (each["num_records"] for each in checkpoint["callbacks"].values())
        order.append("checkpoint")
        assert known == checkpoint["global_step"] <= len(lines)
        return save_checkpoint(checkpoint, path, **more)

    monkeypatch.setattr(MetricsFile, "_flush", flush)
    monkeypatch.setattr(saving, "save_checkpoint", save)
    train(config)
    assert order == ["records by checkpoint_0", "checkpoint"] * 6 + ["records by MainThread"]


def test_nothing_is_saved_of_a_loss_out_of_order(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def settle(self: Sync, module: Any, step: int, sound: Any = Sync._settle) -> None:
        sound(self, module, step)
        self.bad = (step, "loss is bad") if step == 15 else None

    monkeypatch.setattr(Sync, "_settle", settle)
    assert config.run is not None
    with pytest.raises(Exception, match="loss is bad; step 10 is saved"):
        train(config)
    assert committed_steps(config.run) == [5, 10]


def test_a_checkpoint_of_a_step_that_was_never_reached_is_not_named(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be something else, which was passed over."""
    assert config.run is not None
    foreign = Path(checkpoint_path(config.run, 1000))
    save_checkpoint({"global_step": 1000}, str(foreign))
    foreign.write_bytes(b"something else")
    save_checkpoint(torch.load(_made(config), weights_only=True), checkpoint_path(config.run, 5))
    reasons(monkeypatch, stop=12)
    with pytest.raises(Exception, match="is saved at step 12; the same command goes on"):
        train(config)
    assert committed_steps(config.run) == [5, 10, 12, 1000]  # of which 5 is the best


def _made(config: Config) -> str:
    """A checkpoint of step 5 of another run of the same kind."""
    other = config.model_copy(update={"run": f"{config.run}-other", "max_steps": 5})
    train(other)
    return checkpoint_path(str(other.run), 5)


# --- beside the training


def test_one_write_at_a_time_and_each_outcome_is_told_once(tmp_path: Path) -> None:
    io, order = BackgroundIO(world_size=1), []
    io.before, io.after = lambda: order.append("before"), lambda: order.append("after")
    path = checkpoint_path(str(tmp_path), 1)
    assert io.outcome(wait=True) is None
    weights = torch.zeros(3)
    io.save_checkpoint({"weights": [weights], "step": 1}, path)
    weights.fill_(7.0)  # training goes on
    written = io.outcome(wait=True)
    assert written is not None
    assert (written.error, written.note, written.size_bytes) == (None, None, storage.size_bytes(path))
    assert io.outcome(wait=True) is None
    assert torch.equal(io.load_checkpoint(path)["weights"][0], torch.zeros(3))
    assert order == ["before", "after"]
    io.teardown()


def test_a_write_that_is_under_way_is_not_waited_for(tmp_path: Path) -> None:
    io, go_on = BackgroundIO(world_size=1), threading.Event()
    io.before = lambda: None if go_on.wait(60) else pytest.fail("the caller waited")
    io.save_checkpoint({"step": 1}, checkpoint_path(str(tmp_path), 1))
    assert io.outcome(wait=False) is None
    go_on.set()
    assert io.outcome(wait=True) is not None
    io.teardown()


def test_what_follows_a_write_is_not_done_where_it_failed(tmp_path: Path) -> None:
    io = BackgroundIO(world_size=1)
    io.after = lambda: pytest.fail("it is not written")
    (tmp_path / "checkpoints").write_text("a file")
    io.save_checkpoint({"step": 1}, checkpoint_path(str(tmp_path), 1))
    written = io.outcome(wait=True)
    assert written is not None and written.error is not None
    assert "cannot be written" in written.error
    assert written.size_bytes == 0
    io.teardown()


def test_a_checkpoint_at_hand_is_handed_out_once(tmp_path: Path) -> None:
    path = checkpoint_path(str(tmp_path), 1)
    save_checkpoint({"step": 1}, path)
    io = BackgroundIO(world_size=1)
    io.at_hand[path] = {"step": "at hand"}
    assert [io.load_checkpoint(path), io.load_checkpoint(path)] == [{"step": "at hand"}, {"step": 1}]
    io.teardown()


def keeping(**more: int | None) -> CheckpointConfig:
    section = load(Config, []).checkpoint
    return section.model_copy(update={"keep_last": 1, "keep_best": 0, "keep_every_steps": None, **more})


@pytest.fixture
def run(tmp_path: Path) -> str:
    """With checkpoints of steps 10 to 40."""
    for step in (10, 20, 30, 40):
        save_checkpoint({"step": step}, checkpoint_path(str(tmp_path), step))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("newest", "more", "kept"),
    [
        (40, {}, [40]),
        (30, {}, [30, 40]),
        (40, {"keep_last": 3}, [20, 30, 40]),
        (40, {"keep_best": 1}, [20, 40]),
        (40, {"keep_every_steps": 15}, [30, 40]),
    ],
)
def test_what_need_not_be_kept_is_removed(newest: int, more: Any, kept: list[int], run: str) -> None:
    assert _tidy(run, newest, {10: 3.0, 20: 1.0, 30: 2.0}, keeping(**more), expected=None) is None
    assert committed_steps(run) == kept
    for step in kept:
        load_checkpoint(checkpoint_path(run, step))


@pytest.mark.parametrize(("expected", "told"), [(30, False), (10, False), (35, True), (None, False)])
def test_that_the_one_before_is_gone_is_told(expected: int | None, told: bool, run: str) -> None:
    path = None if expected is None else checkpoint_path(run, expected)
    note = _tidy(run, 40, {}, keeping(), expected=path)
    assert note == (f"{path} was removed by something else" if told else None)


@pytest.mark.parametrize("error", [ConfigError("nobody answers"), PermissionError(13, "Permission denied")])
def test_what_cannot_be_removed_is_told_and_costs_nothing(
    error: Exception, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> None:
        raise error

    monkeypatch.setattr(saving, "remove_checkpoint", fail)
    train(config)
    assert config.run is not None
    causes = {(each["kind"], each["cause"], each["fatal"]) for each in events(config.run, "fault")}
    assert causes == {("disk", f"checkpoints that need not be kept are not removed: {error}", False)}
    assert committed_steps(config.run) == [5, 10, 15, 20, 25, 30]


def test_nobody_asks_a_single_process_to_stop() -> None:
    assert (Place().stop_cause(), Place().preempted()) == (None, False)
