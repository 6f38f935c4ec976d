"""A worker and whoever started it, in this process: an end that is only noted."""

import threading
from queue import Queue

import pytest

from pipeline.cluster import parent
from pipeline.cluster.parent import GONE, LATE, UNTRAINED, ParentWatch, await_launcher

PATIENCE_SECONDS = 60.0


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Queue[int]:
    """The exit codes with which the process would have ended."""
    ends: Queue[int] = Queue()
    monkeypatch.setattr(parent.os, "_exit", ends.put)
    return ends


def test_a_worker_that_trains_is_asked_to_stop_and_given_time(
    ends: Queue[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept, gone, awake = Queue[float](), threading.Event(), threading.Event()
    monkeypatch.setattr(parent.time, "sleep", lambda seconds: (slept.put(seconds), awake.wait(PATIENCE_SECONDS)))
    command = ParentWatch(lambda: gone.wait(PATIENCE_SECONDS), grace_seconds=7.0)  # type: ignore[arg-type, return-value]
    assert command.stop_cause() is None
    gone.set()
    assert slept.get(timeout=PATIENCE_SECONDS) == 7.0
    assert command.stop_cause() == GONE
    assert ends.empty()
    awake.set()
    assert ends.get(timeout=PATIENCE_SECONDS) == LATE


def test_a_worker_that_does_not_train_yet_ends_at_once(ends: Queue[int]) -> None:
    ParentWatch(lambda: None, grace_seconds=PATIENCE_SECONDS * 1000)
    assert ends.get(timeout=PATIENCE_SECONDS) == UNTRAINED


def test_a_parent_that_is_another_one_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = [4711, 4711, 1]
    monkeypatch.setattr(parent.os, "getppid", lambda: parents.pop(0))
    monkeypatch.setattr(parent.time, "sleep", lambda seconds: None)
    await_launcher(4711)
    assert parents == []
