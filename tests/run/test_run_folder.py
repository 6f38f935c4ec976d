"""The run folder: where it may stand, who holds it, and what becomes of a run whose folder is removed or replaced."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import records
from support.same import assert_same

from pipeline import storage
from pipeline.cluster import alone
from pipeline.config import Config
from pipeline.errors import CheckpointError, ConfigError
from pipeline.run.account import account
from pipeline.run.checkpoint import checkpoint_path, committed_steps, load_checkpoint
from pipeline.run.folder import FILES, LOCK_NAME, RunFolder, check_run_folder, held
from pipeline.run.ledger import Ledger, read_events
from pipeline.runner import train
from pipeline.training import sync
from pipeline.training.module import LanguageModelModule
from pipeline.training.saving import Checkpointer

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree"),  # Lightning 2.6, every fit
]

SmallConfig = Callable[..., Config]
MakeCorpus = Callable[..., str]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def warned(caplog: Any) -> list[str]:
    """What was told of this run, without Lightning's."""
    return [each.getMessage() for each in caplog.records if each.name.startswith("pipeline.")]


# --- where it may stand


def nested(tmp_path: Path, case: str) -> tuple[str, str]:
    """(run, data) of one folder, or one within the other, as a user may type them."""
    (tmp_path / "a" / "data").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "data")
    (tmp_path / "above").symlink_to(tmp_path / "a")
    return {
        "same": ("a/data", "a/data"),
        "same, by a link": ("link", "a/data"),
        "same, by two links": ("link", "above/data"),
        "same, by dots": ("a/../a/./data/", "a/data"),
        "run within": ("a/data/runs/1", "a/data"),
        "run within, by a link": ("link/run", "a/data"),
        "data within": ("a", "a/data"),
        "data within, by a link": ("above", "link"),
    }[case]


@pytest.mark.parametrize("case", ["same", "same, by a link", "same, by two links", "same, by dots"])
def test_a_run_has_another_folder_than_its_corpus(case: str, tmp_path: Path) -> None:
    run, data = (storage.absolute(str(tmp_path / name)) for name in nested(tmp_path, case))
    with pytest.raises(ConfigError, match=f"^run={run} is the same folder as data={data}; use a run="):
        check_run_folder(run, data=data)


def test_a_run_has_another_folder_than_its_corpus_in_an_object_store() -> None:
    with pytest.raises(ConfigError, match="; use a run=FOLDER of its own"):
        check_run_folder("memory://a/data", data="memory://a/data/")


@pytest.mark.parametrize("case", ["run within", "run within, by a link", "data within", "data within, by a link"])
def test_one_folder_may_lie_within_the_other(case: str, tmp_path: Path) -> None:
    run, data = (storage.absolute(str(tmp_path / name)) for name in nested(tmp_path, case))
    check_run_folder(run, data=data)


@pytest.mark.parametrize(
    ("run", "data"),
    [
        ("{}/runs/demo/run", "{}/runs/demo/data"),
        ("{}/data-run", "{}/data"),
        ("{}/a", "memory://a"),
        ("memory://ab/c", "memory://a"),
        ("memory://a/data/run", "memory://a/data"),
        ("memory://a", "memory://a/data"),
    ],
)
def test_other_folders_are_places_for_a_run(run: str, data: str, tmp_path: Path) -> None:
    check_run_folder(run.format(tmp_path), data=data.format(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_another_corpus_is_refused(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    other, before = make_corpus("other"), files(tmp_path)
    with pytest.raises(ConfigError, match=r"other holds a prepared corpus \(manifest\.json\); use a run=FOLDER"):
        check_run_folder(other, data=str(tmp_path / "data"))
    storage.publish_bytes("memory://corpus/manifest.json", b"{}")
    with pytest.raises(ConfigError, match="memory://corpus holds a prepared corpus"):
        check_run_folder("memory://corpus", data=str(tmp_path / "data"))
    assert files(tmp_path) == before


def test_train_asks_before_it_writes_anything(
    make_corpus: MakeCorpus, small_config: SmallConfig, tmp_path: Path
) -> None:
    data, before = make_corpus(), None
    (tmp_path / "link").symlink_to(data)
    before = files(tmp_path)
    for run in (data, str(tmp_path / "link"), f"{data}/../data"):
        with pytest.raises(ConfigError, match="use a run=FOLDER of its own"):
            train(small_config(f"data={data}", f"run={run}", "max_steps=2"))
    assert files(tmp_path) == before


@pytest.mark.parametrize("below", ["", "/run", "/runs/1"])
def test_a_file_where_a_folder_should_be_is_refused(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"cannot be written: .*/file is no folder; use another run=FOLDER"):
        check_run_folder(f"{tmp_path}/file{below}", data="/nowhere")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_where_a_file_should_be_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=rf"{name} is a folder, where a run has a file; remove it"):
        check_run_folder(str(tmp_path), data="/nowhere")


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere")])
def test_checkpoints_that_are_no_folder_are_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "checkpoints")
    with pytest.raises(ConfigError, match="checkpoints is no folder that can be written; mend it"):
        check_run_folder(str(tmp_path), data="/nowhere")


def test_a_loop_of_links_and_a_name_that_is_too_long_are_refused_in_a_line(
    make_corpus: MakeCorpus, small_config: SmallConfig, tmp_path: Path
) -> None:
    data = make_corpus()
    (tmp_path / "loop").symlink_to("loop")
    for run in (tmp_path / "loop", tmp_path / "loop" / "run", tmp_path / ("a" * 300)):
        with pytest.raises(ConfigError):
            train(small_config(f"data={data}", f"run={run}", "max_steps=2"))


RIGHTS = """
import os, sys
from pipeline.errors import ConfigError
from pipeline.run.folder import check_run_folder, held
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for run in sys.argv[1:]:
    try:
        check_run_folder(run, data="/nowhere")
        print("nothing")
    except ConfigError as error:
        print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_missing_rights_are_told_before_anything_is_written(tmp_path: Path) -> None:
    """As nobody: root is refused nothing."""
    for folder in (tmp_path, *tmp_path.parents):  # pytest's own alone
        folder.chmod(0o755)
        if folder.name.startswith("pytest-of-"):
            break
    for name in ("readable", "file", "sub", "open"):
        (tmp_path / name).mkdir(mode=0o755)
    for name in ("file", "sub", "open"):
        (tmp_path / name).chmod(0o777)
    (tmp_path / "file" / "metrics.jsonl").touch(mode=0o600)
    (tmp_path / "sub" / "checkpoints").mkdir(mode=0o555)
    before = files(tmp_path)
    runs = [
        tmp_path / "readable",
        tmp_path / "readable/new/run",
        tmp_path / "file",
        tmp_path / "sub",
        tmp_path / "open",
    ]
    done = subprocess.run(
        [sys.executable, "-c", RIGHTS, *map(str, runs)],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    mend = "mend it or use another run=FOLDER"
    assert done.stdout.splitlines() == [
        f"run={runs[0]} cannot be written: no right to write in {runs[0]}; {mend}",
        f"run={runs[1]} cannot be written: no right to write in {runs[0]}; {mend}",
        f"{runs[2]}/metrics.jsonl cannot be read and written; mend its rights or use another run=FOLDER",
        f"{runs[3]}/checkpoints is no folder that can be written; {mend}",
        "nothing",
    ]
    assert files(tmp_path) == before


# --- who holds it


def hold(run: str, **more: Any) -> Any:
    return held(run, name=LOCK_NAME, patience_seconds=0.0, taken="is taken", **more)


def test_it_is_held_by_one_and_then_by_the_next(tmp_path: Path) -> None:
    run = str(tmp_path / "new" / "run")
    with hold(run):
        with pytest.raises(ConfigError, match=f"^run={run} is taken$"), hold(run):
            pass
        with held(run, name="other", patience_seconds=0.0, taken=""):
            pass
    with hold(run) as still_held:
        assert still_held()


def test_one_that_waits_gets_it_when_the_other_lets_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hold(str(tmp_path))
    first.__enter__()
    naps = []

    def let_go(seconds: float) -> None:
        naps.append(seconds)
        first.__exit__(None, None, None)

    monkeypatch.setattr("pipeline.run.folder.time.sleep", let_go)
    with held(str(tmp_path), name=LOCK_NAME, patience_seconds=1e6, taken="is taken"):
        assert len(naps) == 1


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_where_there_are_no_locks_it_is_told_and_gone_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold(str(tmp_path)) as still_held:
        assert still_held()
    assert len(caplog.messages) == 1
    assert f"no locks there ({os.strerror(number)})" in caplog.text


def test_a_lock_that_fails_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match=r"\.lock cannot be locked \(Input/output error\)"), hold(str(tmp_path)):
        pass


def test_a_lock_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).mkdir()
    with (
        pytest.raises(ConfigError, match=r"\.lock cannot be written \(Is a directory\); mend the path"),
        hold(str(tmp_path)),
    ):
        pass


def test_a_folder_that_is_another_is_not_held(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with hold(str(run)) as still_held:
        run.rename(tmp_path / "elsewhere")
        assert not still_held()
        run.mkdir()
        assert not still_held()
        (run / LOCK_NAME).touch()
        assert not still_held()


# --- what becomes of a run that loses it


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def watched(run: Path) -> RunFolder:
    return RunFolder(str(run), spare=f"{run}-rescued-1")


def test_a_folder_that_stays_is_not_lost(run: Path, tmp_path: Path) -> None:
    with watched(run) as folder:
        assert not folder.is_lost()
        run.rename(tmp_path / "elsewhere")
        run.symlink_to(tmp_path / "elsewhere")  # it only lies elsewhere now
        assert not folder.is_lost()
        assert (folder.place(), folder.verdict()) == (str(run), None)


def test_a_file_system_that_does_not_answer_has_lost_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with watched(run) as folder, monkeypatch.context() as patched:
        patched.setattr(Path, "stat", fail)
        assert not folder.is_lost()


def test_a_folder_that_is_gone_is_made_anew(run: Path, caplog: Any) -> None:
    moves: list[str] = []
    with watched(run) as folder:
        folder.move = moves.append
        run.rmdir()
        assert folder.is_lost()
        assert folder.verdict() == (
            f"run={run} was removed while it was trained in; nothing is saved since: put it back, or begin anew with"
            " another run=FOLDER"
        )
        assert [folder.place(), folder.place()] == [str(run)] * 2
        assert run.is_dir()
        assert moves == [str(run)]
        assert folder.is_lost()
    assert caplog.messages == [f"run={run} was removed while it was trained in; saving what can be saved"]


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        ([], True),
        (["checkpoints/"], True),
        (["checkpoints/step-7.ckpt", "checkpoints/step-7.ckpt.sha256.tmp"], True),
        (["checkpoints/step-7.ckpt", "checkpoints/notes"], False),
        (["notes"], False),
        (["metrics.jsonl"], False),
    ],
)
def test_what_stands_there_now_is_left_alone(left: list[str], kept: bool, run: Path) -> None:
    with watched(run) as folder:
        run.rmdir()
        for name in left:
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).mkdir() if name.endswith("/") else (run / name).write_text("x")
        run.mkdir(exist_ok=True)
        assert folder.place() == (str(run) if kept else f"{run}-rescued-1")
        assert files(run) == {name: b"x" for name in left if not name.endswith("/")}


def test_a_name_beside_it_that_is_taken_is_not_used(run: Path) -> None:
    (run.parent / "run-rescued-1").mkdir()
    (run.parent / "run-rescued-1-2").symlink_to("nowhere")
    with watched(run) as folder:
        run.rmdir()
        run.write_text("a file")
        assert folder.place() == f"{run}-rescued-1-3"


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run=.*/run is no folder any more"):
        watched(tmp_path / "run")


def test_in_an_object_store_nothing_is_noticed() -> None:
    with RunFolder("memory://run", spare="memory://spare") as folder:
        assert not folder.is_lost()
        assert folder.place() == "memory://run"


def removed(run: Path) -> None:
    while run.exists():
        shutil.rmtree(run, ignore_errors=True)  # a checkpoint may be written or removed there just now


def replaced(run: Path) -> None:
    removed(run)
    run.mkdir()
    (run / "notes").write_text("mine")


def moved_and_replaced_by_a_run(run: Path) -> None:
    run.rename(run.parent / "elsewhere")
    run.mkdir()
    for name in ("events.jsonl", "metrics.jsonl", "config.yaml", ".lock"):
        (run / name).write_text("another's")


def train_harmed(config: Config, step: int, harm: Callable[[Path], None], patch: pytest.MonkeyPatch) -> None:
    """Trains; after a step, and before anything of it is recorded or saved, something happens to the run folder."""

    def once(self: LanguageModelModule, *arguments: Any, sound: Any = LanguageModelModule.optimizer_step) -> None:
        sound(self, *arguments)
        if self.global_step == step - 1:  # it counts the step when this returns
            writing = self.trainer.strategy.checkpoint_io._writing
            if writing is not None:  # what is being written at that moment goes by the folder's name
                writing.exception()
            harm(Path(str(config.run)))

    with patch.context() as patched:
        patched.setattr(sync, "SETTLE_SECONDS", 0.0)
        patched.setattr(LanguageModelModule, "optimizer_step", once)
        train(config)


@pytest.mark.parametrize("harm", [removed, replaced, moved_and_replaced_by_a_run], ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("step", [1, 17, 20, 30], ids=["at once", "between", "where it saves", "at the end"])
def test_a_run_that_loses_its_folder_is_saved_elsewhere_and_goes_on_from_there(
    step: int,
    harm: Callable[[Path], None],
    make_corpus: MakeCorpus,
    small_config: SmallConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:
    whole, run = str(tmp_path / "whole"), str(tmp_path / "run")
    common = [f"data={make_corpus()}", "checkpoint.every_steps=5", "max_steps=30"]
    train(small_config(*common, f"run={whole}"))
    caplog.clear()
    with pytest.raises(ConfigError) as caught:
        train_harmed(small_config(*common, f"run={run}"), step, harm, monkeypatch)
    what = "was removed" if harm is removed else "was replaced"
    place = run if harm is removed else f"{run}-rescued-1"
    ending = "there: the same command goes on" if harm is removed else f"in {place}: go on with run={place}"
    made = "it is made anew and " if harm is removed else ""
    said = f"run={run} {what} while it was trained in"
    assert str(caught.value) == f"{said}; {made}step {step} is saved {ending}"
    assert warned(caplog) == [f"{said}; saving what can be saved"]
    if harm is replaced:
        assert files(Path(run)) == {"notes": b"mine"}
    elif harm is moved_and_replaced_by_a_run:
        assert set(files(Path(run)).values()) == {b"another's"}
    assert committed_steps(place) == [step]
    events = read_events(place)
    assert [event["event"] for event in events][:3] == ["start", "group", "training"]
    assert [failure.kind for failure in account(events, now=0.0).failures] == ["disk"]
    told = [(event["step"], event["reason"]) for event in events if event["event"] == "checkpoint"]
    assert (step, "end" if step == 30 else "stop") in told
    assert account(events, now=0.0).state == ("stopped" if step < 30 else "finished")
    outcome = train(small_config(*common, f"run={place}"))
    assert (outcome.first_step, outcome.step) == (step, 30)
    left, right = (load_checkpoint(checkpoint_path(each, 30)) for each in (place, whole))
    assert_same(left["state_dict"], right["state_dict"])
    assert_same(left["wordlanes"], right["wordlanes"])
    assert records(place) == records(whole)


def test_where_it_cannot_be_made_anew_that_is_told_in_a_line(
    make_corpus: MakeCorpus, small_config: SmallConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harm(run: Path) -> None:
        removed(run.parent)
        run.parent.write_text("a file")

    config = small_config(f"data={make_corpus()}", f"run={tmp_path}/runs/run", "max_steps=30")
    with pytest.raises(ConfigError, match=r"runs/run.* cannot be written \(.*\); mend the path"):
        train_harmed(config, 10, harm, monkeypatch)
    assert (tmp_path / "runs").read_text() == "a file"


def test_a_bad_loss_in_a_lost_folder_is_told_as_that(
    make_corpus: MakeCorpus, small_config: SmallConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harm(run: Path) -> None:
        removed(run)
        monkeypatch.setattr(LanguageModelModule, "settle", settle)

    def settle(self: LanguageModelModule, also: Any, sound: Any = LanguageModelModule.settle) -> Any:
        self.unsettled_nats[-1] = torch.tensor(float("nan"))
        return sound(self, also)

    config = small_config(f"data={make_corpus()}", f"run={tmp_path}/run", "max_steps=30", "guard.on_bad_loss=skip")
    with pytest.raises(ConfigError, match="was removed while it was trained in; nothing is saved since"):
        train_harmed(config, 10, harm, monkeypatch)


def test_checkpoints_that_are_removed_meanwhile_are_told_of(
    make_corpus: MakeCorpus, small_config: SmallConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    config = small_config(f"data={make_corpus()}", f"run={tmp_path}/run", "max_steps=30", "checkpoint.every_steps=5")

    def harm(run: Path) -> None:
        while committed_steps(str(run)) != [10, 15]:
            time.sleep(0.01)  # they are written beside the training
        removed(run / "checkpoints")

    train_harmed(config, 18, harm, monkeypatch)
    gone = f"{tmp_path}/run/checkpoints/step-15.ckpt was removed by something else"
    assert warned(caplog) == [f"{gone}; training goes on"]
    faults = [event for event in read_events(str(config.run)) if event["event"] == "fault"]
    assert [(fault["kind"], fault["cause"], fault["fatal"]) for fault in faults] == [("disk", gone, False)]
    assert committed_steps(str(config.run)) == [25, 30]


def test_records_and_events_that_are_removed_meanwhile_are_written_anew(
    make_corpus: MakeCorpus, small_config: SmallConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(f"data={make_corpus()}", f"run={tmp_path}/run", "max_steps=30", "checkpoint.every_steps=5")

    def harm(run: Path) -> None:
        (run / "metrics.jsonl").unlink()
        (run / "events.jsonl").unlink()

    train_harmed(config, 18, harm, monkeypatch)
    assert [record["step"] for record in records(str(config.run))] == [*range(1, 31)]
    found = account(read_events(str(config.run)), now=0.0)
    assert (found.state, found.step, found.total_steps, found.world_size) == ("finished", 30, 30, 1)
    assert [failure.kind for failure in found.failures] == ["disk", "disk"]


def test_an_end_without_its_checkpoint_is_none(
    make_corpus: MakeCorpus, small_config: SmallConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(f"data={make_corpus()}", f"run={tmp_path}/run", "max_steps=30")

    def remove(self: Checkpointer, *arguments: Any, sound: Any = Checkpointer.on_train_end) -> None:
        sound(self, *arguments)
        shutil.rmtree(Path(self.run, "checkpoints"))

    with monkeypatch.context() as patched:
        patched.setattr(Checkpointer, "on_train_end", remove)
        with pytest.raises(CheckpointError, match=r"was trained to step 30, whose checkpoint was removed by something"):
            train(config)
    assert train(config).first_step == 0


def test_a_command_writes_nothing_to_a_folder_that_it_no_longer_holds(
    make_corpus: MakeCorpus, small_config: SmallConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(f"data={make_corpus()}", f"run={tmp_path}/run", "max_steps=3")

    def fail(*arguments: Any) -> Any:
        moved_and_replaced_by_a_run(tmp_path / "run")
        raise CheckpointError("something")

    monkeypatch.setattr(alone, "run", fail)
    with pytest.raises(CheckpointError, match="something"):
        train(config)
    assert set(files(tmp_path / "run").values()) == {b"another's"}


def test_a_ledger_waits_where_the_folder_is_lost(tmp_path: Path) -> None:
    lost = False
    ledger = Ledger(str(tmp_path), attempt=1, lost=lambda: lost)
    ledger.write("progress", step=1)
    (tmp_path / "events.jsonl").unlink()
    lost = True
    ledger.write("end", step=2)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "other").mkdir()
    ledger.move(str(tmp_path / "other"))
    ledger.write("end", step=3)
    assert [event["step"] for event in read_events(str(tmp_path / "other"))] == [1, 2, 3]
