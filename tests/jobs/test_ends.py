"""How a command ends that is asked to, or whose terminal or reader has gone: in one line, by the code of the cause."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest

from pipeline.console import NO_READER, NO_TERMINAL, Lasting

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 120.0
SLOW = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
swallows = "swallow" in sys.argv
for name in sys.argv[1 + swallows:]:
    signal.signal(signal.Signals[name], signal.SIG_IGN)
import jobs.__main__, jobs.verify
def verify(arguments):
    try:
        try:
            exec("os.write(1, b'here\\\\n'); time.sleep(3600)")
        except KeyboardInterrupt:
            if not swallows:
                raise
        time.sleep(3600)
    finally:
        print("in order", flush=True)
        for _ in range(20):
            time.sleep(0.1)
jobs.verify.main = verify
jobs.__main__._set_up(["verify"])
sys.exit(jobs.__main__._answer(["verify"]))
"""


SlowCommand = Callable[..., AbstractContextManager[subprocess.Popen[str]]]


@pytest.fixture
def slow_command(tmp_path: Path) -> SlowCommand:
    """A verb that takes long, and then some time to put its things in order: (what is ignored) → the process."""
    (tmp_path / "slow_verb.py").write_text(SLOW)
    return partial(started, tmp_path)


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """By `python -m`, as the commands themselves."""
    command = subprocess.Popen(
        [sys.executable, "-m", "slow_verb", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with command:
        assert command.stdout is not None
        assert command.stdout.readline() == "here\n"
        yield command
        command.kill()


@pytest.mark.parametrize("numbers", [["SIGTERM"], ["SIGHUP"], ["SIGHUP", "SIGHUP", "SIGTERM"]])
def test_a_verb_that_is_asked_to_end_puts_its_things_in_order(numbers: list[str], slow_command: SlowCommand) -> None:
    with slow_command() as command:
        for name in numbers:
            command.send_signal(signal.Signals[name])
            time.sleep(0.1)
        found, told = command.communicate(timeout=PATIENCE_SECONDS)
    assert found == "in order\n"
    assert told == "interrupted; the same command goes on from what is finished\n"
    assert command.returncode == 128 + signal.Signals[numbers[0]]


def test_a_signal_that_something_swallows_comes_again(slow_command: SlowCommand) -> None:
    with slow_command("swallow") as command:
        command.send_signal(signal.SIGTERM)
        _, told = command.communicate(timeout=PATIENCE_SECONDS)
    assert told == "interrupted; the same command goes on from what is finished\n"
    assert command.returncode == 128 + signal.SIGTERM


def test_under_nohup_the_terminals_end_is_no_matter(slow_command: SlowCommand) -> None:
    with slow_command("SIGHUP") as command:
        command.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert command.poll() is None
        command.send_signal(signal.SIGTERM)
        command.communicate(timeout=PATIENCE_SECONDS)
    assert command.returncode == 128 + signal.SIGTERM


def pipe_without_reader() -> int:
    """Writes fail with EPIPE."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def terminal_that_is_gone() -> int:
    """Writes fail with EIO."""
    ours, theirs = pty.openpty()
    os.close(ours)
    return theirs


@pytest.mark.parametrize(
    ("gone", "code"), [(pipe_without_reader, NO_READER), (terminal_that_is_gone, NO_TERMINAL)], ids=["pipe", "terminal"]
)
@pytest.mark.parametrize("passed", [{NO_TERMINAL}, {NO_TERMINAL, NO_READER}], ids=str)
def test_what_nobody_can_read_goes_nowhere(gone: Callable[[], int], code: int, passed: Collection[int]) -> None:
    descriptor = gone()
    try:
        with Lasting(descriptor, passed=passed) as stream:
            if code in passed:
                assert stream.write(b"one") == 3
                assert os.write(descriptor, b"two") == 3  # of a library that writes by itself
            else:
                with pytest.raises(OSError, match="Broken pipe"):
                    stream.write(b"one")
    finally:
        os.close(descriptor)


def test_a_command_tells_its_end_to_a_terminal_that_is_gone() -> None:
    terminal = terminal_that_is_gone()
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "status"], cwd=ROOT, stdout=terminal, stderr=terminal, check=False
    )
    os.close(terminal)
    assert done.returncode == 2
