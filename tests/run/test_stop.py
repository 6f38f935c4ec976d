"""A request that a run stop: what stands in its folder, and whom it holds for."""

import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.__main__ import main
from pipeline import storage
from pipeline.config import Config
from pipeline.errors import ConfigError, Stopped
from pipeline.run import stop
from pipeline.run.ledger import Ledger, read_events
from pipeline.run.stop import (
    ATTEMPT_NAME,
    REQUEST_NAME,
    USER,
    RequestWatch,
    StopRequest,
    StopSignals,
    remove_request,
    request_stop,
    stop_newest_attempt,
    stop_request,
)
from pipeline.runner import conclude, launch, plan_run, train
from pipeline.training.module import LanguageModelModule

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree"),  # Lightning 2.6, every fit
]


def test_a_request_of_a_signal_belongs_to_its_attempt_and_that_of_a_user_to_any(tmp_path: Path) -> None:
    run = str(tmp_path)
    assert stop_request(run, attempt=2) is None
    made = request_stop(run, cause="SIGTERM", attempt=2)
    assert stop_request(run, attempt=2) == made
    assert stop_request(run, attempt=3) is None
    made = request_stop(run, cause=USER, attempt=None)
    assert stop_request(run, attempt=2) == stop_request(run, attempt=9) == made
    remove_request(run)
    assert stop_request(run, attempt=2) is None
    remove_request(run)


@pytest.mark.parametrize("content", [b"", b"stop, please", b"[1]", b'{"cause": "SIGTERM", "more": 1}', b"\xff"])
def test_a_file_made_by_hand_is_a_users_request(content: bytes, tmp_path: Path) -> None:
    (tmp_path / REQUEST_NAME).write_bytes(content)
    assert stop_request(str(tmp_path), attempt=1) == StopRequest(cause=USER, time=0.0, attempt=None)


def test_a_look_at_a_local_folder_is_not_made_more_often_than_it_bears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(stop.time, "monotonic", lambda: clock[0])
    watch = RequestWatch(str(tmp_path), attempt=1)
    assert watch.cause() is None
    request_stop(str(tmp_path), cause=USER, attempt=None)
    assert watch.cause() is None
    clock[0] += stop.LOOK_SECONDS
    assert watch.cause() == USER


def test_nobody_waits_for_a_look_into_an_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    looked, answers = threading.Event(), threading.Event()

    def look(run: str, *, attempt: int) -> StopRequest | None:
        looked.set()
        answers.wait(60)
        return StopRequest()

    monkeypatch.setattr(stop, "LOOK_STORE_SECONDS", 0.01)
    monkeypatch.setattr(stop, "stop_request", look)
    watch = RequestWatch(f"memory:///{uuid.uuid4().hex}", attempt=1)
    assert looked.wait(60)
    assert watch.cause() is None
    answers.set()
    deadline = time.monotonic() + 60
    while watch.cause() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert watch.cause() == USER
    watch.close()


def test_a_place_that_does_not_serve_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(run: str, *, attempt: int) -> None:
        raise ConfigError("no way there")

    monkeypatch.setattr(stop, "LOOK_SECONDS", 0.0)
    watch = RequestWatch(str(tmp_path), attempt=1)
    with monkeypatch.context() as patch:
        patch.setattr(stop, "stop_request", fail)
        assert watch.cause() is None
    assert caplog.messages == ["no look for a request to stop: no way there"]
    request_stop(str(tmp_path), cause="SIGINT", attempt=1)
    assert watch.cause() == "SIGINT"


def test_signals_are_requests_and_a_second_ctrl_c_later_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(stop.time, "monotonic", lambda: clock[0])
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals(grace_seconds=10) as signals:
        assert (signals.cause, signals.late) == (None, False)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.cause == "SIGTERM"
        clock[0] += 8
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # a terminal and a supervisor
        assert (signals.cause, signals.late) == ("SIGINT", False)
        clock[0] += 3
        assert signals.late, "the time is that from the first request on"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_request_of_a_signal_is_left_once_and_tried_again_where_the_place_does_not_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(run: str, **how: object) -> None:
        raise ConfigError("no room")

    run, signals = str(tmp_path), StopSignals()
    signals.leave_request(run, attempt=3)
    assert list(tmp_path.iterdir()) == []
    signals.cause = "SIGTERM"
    with monkeypatch.context() as patch:
        patch.setattr(stop, "request_stop", fail)
        signals.leave_request(run, attempt=3)
    assert caplog.messages == ["the request to stop is not written down yet: no room"]
    signals.leave_request(run, attempt=3)
    request = stop_request(run, attempt=3)
    assert request is not None and request.cause == "SIGTERM"
    signals.leave_request(run, attempt=3)
    assert stop_request(run, attempt=3) == request
    signals.cause = "SIGINT"
    signals.leave_request(run, attempt=3)
    found = stop_request(run, attempt=3)
    assert found is not None and found.cause == "SIGINT"


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals.cause is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def config(make_corpus: Callable[..., str], small_config: Callable[..., Config], tmp_path: Path) -> Config:
    return small_config(f"data={make_corpus()}", f"run={tmp_path / 'run'}", "max_steps=40")


def asked_at(step: int, run: str, patch: pytest.MonkeyPatch) -> None:
    """A user asks for a stop while a step is made; the first rank looks at each sync."""
    sound = LanguageModelModule.on_train_batch_start

    def ask(self: LanguageModelModule, *arguments: object) -> None:
        if self.global_step == step:
            request_stop(run, cause=USER, attempt=None)
        sound(self, *arguments)  # type: ignore[arg-type]

    patch.setattr(LanguageModelModule, "on_train_batch_start", ask)
    patch.setattr("pipeline.training.sync.SETTLE_SECONDS", 0.0)
    patch.setattr(stop, "LOOK_SECONDS", 0.0)


def test_what_a_user_asked_for_holds_until_the_run_is_started_by_hand(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(config.run)
    with monkeypatch.context() as patch:
        asked_at(9, run, patch)
        with pytest.raises(Stopped, match="is saved at step 10; the same command goes on") as stopped:
            train(config)
    assert stopped.value.cause == USER
    assert (read_events(run)[-1]["event"], read_events(run)[-1]["cause"]) == ("stop", USER)
    events = len(read_events(run))
    for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT", "WORDLANES_JOB_START"):
        plan = plan_run(config, {name: "1"})
        with pytest.raises(Stopped, match="is saved at step 10"):
            conclude(plan, launch(plan))
    assert len(read_events(run)) == events
    assert Path(run, REQUEST_NAME).exists()
    found = train(config)
    assert (found.first_step, found.step) == (10, 40)
    assert not Path(run, REQUEST_NAME).exists()
    assert main(["stop", f"run={run}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "run": run,
        "state": "finished",
        "was_running": False,
        "saved_step": 40,
    }
    assert not Path(run, REQUEST_NAME).exists()


def began_anew(config: Config) -> Ledger:
    """A run of 40 steps that stands at 20, whose second attempt has begun."""
    train(config.model_copy(update={"max_steps": 20}))
    ledger = Ledger(str(config.run), attempt=2)
    ledger.write("start", command_step=20, total_steps=40, cluster="none")
    return ledger


def test_a_run_that_does_not_run_is_kept_from_restarts(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    began_anew(config).write("stop", step=20, cause="SIGTERM")
    assert main(["stop", f"run={config.run}"]) == 0
    assert capsys.readouterr().out == (
        f"run={config.run} does not run (stopped), step 20 is saved; a restart by a machine will not go on, the same"
        " command will\n"
    )
    assert stop_request(str(config.run), attempt=3) is not None


def test_a_run_that_does_not_stop_in_time_is_said_to_go_on(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    began_anew(config)
    clock = iter(range(0, 10_000, 30))
    monkeypatch.setattr("jobs.stop.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("jobs.stop.time.sleep", lambda seconds: None)
    assert main(["stop", f"run={config.run}"]) == 1
    assert "goes on still, step 20 is saved; the request stands" in capsys.readouterr().out


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", f"run={tmp_path}"]) == 2
    assert "holds no events.jsonl; give the folder that" in capsys.readouterr().err
    assert main(["stop"]) == 2
    assert "run=null is not given; use run=FOLDER" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_attempt_that_goes_on_is_asked_and_no_later_one(tmp_path):
    run = str(tmp_path)
    stop_newest_attempt(run)
    assert stop_request(run, attempt=1) is None, "nothing goes on"
    storage.publish_bytes(storage.join(run, ATTEMPT_NAME), b"3")
    stop_newest_attempt(run)
    assert stop_request(run, attempt=3).cause == "SIGTERM"
    assert stop_request(run, attempt=4) is None
