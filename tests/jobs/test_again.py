"""The loop around `train` and `prepare`, with verbs that do as each test says."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

import jobs.again
from jobs.again import main
from pipeline.cluster.launchers import JOB_START
from pipeline.cluster.parent import LOOP
from pipeline.run.folder import LOCK_NAME, held
from pipeline.run.stop import SIGNALS

ROOT = Path(__file__).resolve().parents[2]
WORDS = {"data=/data", "cluster.grace_seconds=20"}
VERB = """
import os, signal, sys, time
from pathlib import Path

folder, restarts = Path({folder!r}), int(os.environ[{restarts!r}]) - 1
received = []
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, frame: received.append(number))

def save(step):
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / f"step-{{step}}.json").touch()

def await_signals(count):
    while len(received) < count:
        time.sleep(0.01)

with (folder / "starts").open("a") as file:
    file.write(f"{{restarts}} {{os.environ[{loop!r}]}} {{' '.join(sys.argv[1:])}}\\n")
{does}
"""

Loop = Callable[..., tuple[int, list[str]]]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Those of the tests' own process."""
    before = {signal.Signals[name]: signal.getsignal(signal.Signals[name]) for name in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[int, str]], list[str]]:
    """Has the loop run a small script: (what to do, by the number of restarts; afterwards: the last) → its command."""

    def make(does: Mapping[int, str]) -> list[str]:
        lines = "\n".join(f"if min(restarts, {max(does)}) == {number}:\n    {do}" for number, do in does.items())
        script = tmp_path / "verb.py"
        names = {"folder": str(tmp_path), "restarts": JOB_START, "loop": LOOP}
        script.write_text(VERB.format(**names, does=lines))
        command = [sys.executable, "-S", str(script)]
        monkeypatch.setattr(jobs.again, "COMMAND", command)
        return command

    return make


def arguments(folder: Path, *, verb: str = "train") -> list[str]:
    return [verb, *sorted(WORDS), f"run={folder}"]


def starts(folder: Path) -> list[str]:
    """What each start was told of restarts."""
    return [line.split()[0] for line in (folder / "starts").read_text().splitlines()]


KILL = "os.kill(os.getpid(), signal.SIGKILL)"


def test_a_verb_that_ends_well_runs_once_as_typed(verb, tmp_path, capfd):
    verb({0: "pass"})
    assert main(arguments(tmp_path)) == 0
    assert (tmp_path / "starts").read_text() == f"0 {os.getpid()} {' '.join(arguments(tmp_path))}\n"
    assert capfd.readouterr().err == ""


def test_train_is_started_again_while_its_saved_step_grows(verb, tmp_path, capfd):
    verb({0: f"save(3); {KILL}", 1: "save(8); sys.exit(2)", 2: "save(9); sys.exit(5)", 3: "sys.exit(7)"})
    assert main(arguments(tmp_path)) == 7
    assert starts(tmp_path) == ["0", "1", "2", "3"]
    assert capfd.readouterr().err.splitlines() == [
        "again: train ended with -9, step 3 is saved; start 2",
        "again: train ended with 2, step 8 is saved; start 3",
        "again: train ended with 5, step 9 is saved; start 4",
    ]


@pytest.mark.parametrize(("end", "code"), [(KILL, 137), ("sys.exit(2)", 2)])
def test_train_that_saves_nothing_more_is_not(verb, tmp_path, end, code):
    verb({0: f"save(3); {KILL}", 1: f"save(3); {end}"})
    assert main(arguments(tmp_path)) == code
    assert starts(tmp_path) == ["0", "1"]


@pytest.mark.parametrize(
    ("does", "code", "count"),
    [({0: KILL}, 137, 4), ({0: KILL, 1: "pass"}, 0, 2), ({0: "save(3); sys.exit(2)"}, 2, 1)],
)
def test_prepare_is_started_again_where_it_was_killed(verb, tmp_path, does, code, count):
    verb(does)
    assert main(arguments(tmp_path, verb="prepare")) == code
    assert len(starts(tmp_path)) == count


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on_waited_for_and_ends_the_loop(verb, tmp_path, number):
    command = verb({0: "save(3); await_signals(2); save(4); sys.exit(44)"})
    code = f"import sys, jobs.again; jobs.again.COMMAND = {command}; sys.exit(jobs.again.main(sys.argv[1:]))"
    loop = subprocess.Popen([sys.executable, "-c", code, *arguments(tmp_path)], cwd=ROOT, start_new_session=True)
    try:
        await_that((tmp_path / "checkpoints").exists)
        loop.send_signal(number)
        time.sleep(0.3)
        assert loop.poll() is None
        loop.send_signal(number)
        assert loop.wait(60) == 44
    finally:
        loop.kill()
    assert starts(tmp_path) == ["0"]


def test_a_signal_before_the_start_ends_the_loop_without_one(verb, tmp_path):
    verb({0: "pass"})
    with held(str(tmp_path), name=LOCK_NAME, patience_seconds=0, taken=""):
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert main(arguments(tmp_path)) == 143
    assert not (tmp_path / "starts").exists()


def test_a_start_waits_for_the_command_of_a_loop_that_was_killed(verb, tmp_path):
    verb({0: "(folder / 'begun').write_text(str(time.time()))"})
    is_held, let_go = threading.Event(), []

    def hold() -> None:
        with held(str(tmp_path), name=LOCK_NAME, patience_seconds=0, taken=""):
            is_held.set()
            time.sleep(3)
            let_go.append(time.time())

    threading.Thread(target=hold).start()
    assert is_held.wait(60)
    assert main(arguments(tmp_path)) == 0
    assert float((tmp_path / "begun").read_text()) >= let_go[0]


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["tain", "run=/run"], "error: again tain: it starts train or prepare; did you mean train?"),
        (["train", "max_stepps=3"], "error: unknown key max_stepps; did you mean max_steps?"),
    ],
)
def test_a_mistake_is_a_line(typed, line, capsys):
    assert main(typed) == 2
    assert capsys.readouterr().err.splitlines() == [line]


def await_that(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
