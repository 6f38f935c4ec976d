"""A worker and whoever started it, in this process: no signal, and an end that is only noted."""

import threading
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from queue import Queue

import pytest

from pipeline.cluster import starter
from pipeline.cluster.starter import GONE, LATE, UNTRAINED, Starter, end_of, word_of

PATIENCE_SECONDS = 60.0


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Queue[int]:
    """The exit codes with which the process would have ended."""
    ends: Queue[int] = Queue()
    monkeypatch.setattr(starter.os, "_exit", ends.put)
    return ends


@pytest.fixture
def say() -> Iterator[tuple[Callable[[str], None], Callable[[], str]]]:
    """To say a word, and to wait for it."""
    words: Queue[str] = Queue()
    yield words.put, words.get
    words.put("the test is over")


def test_a_worker_that_trains_is_asked_to_stop_and_given_time(
    ends: Queue[int], say: tuple[Callable[[str], None], Callable[[], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept, awake = Queue[float](), threading.Event()
    monkeypatch.setattr(starter.time, "sleep", lambda seconds: (slept.put(seconds), awake.wait(PATIENCE_SECONDS)))
    speak, hear = say
    command = Starter(hear, grace_seconds=7.0)
    assert command.stop_request() is None
    speak("SIGTERM")
    assert slept.get(timeout=PATIENCE_SECONDS) == 7.0
    assert command.stop_request() == "SIGTERM"
    assert ends.empty()
    awake.set()
    assert ends.get(timeout=PATIENCE_SECONDS) == LATE


def test_a_worker_that_does_not_train_yet_ends_at_once(
    ends: Queue[int], say: tuple[Callable[[str], None], Callable[[], str]]
) -> None:
    speak, hear = say
    Starter(hear, grace_seconds=PATIENCE_SECONDS * 1000)
    speak("SIGTERM")
    assert ends.get(timeout=PATIENCE_SECONDS) == UNTRAINED


def test_the_word_of_a_command_is_what_it_sends_or_its_end() -> None:
    hearing, speaking = Pipe(duplex=False)
    hear = word_of(hearing)
    speaking.send("SIGINT")
    assert hear() == "SIGINT"
    speaking.close()
    assert hear() == GONE


def test_a_parent_that_is_another_one_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = [4711, 4711, 1]
    monkeypatch.setattr(starter.os, "getppid", lambda: parents.pop(0))
    monkeypatch.setattr(starter.time, "sleep", lambda seconds: None)
    assert end_of(4711)() == GONE
    assert parents == []
