"""`python -m jobs.again VERB key=value ...`: `train` or `prepare`, started again while it gets on: a cluster's job.

In: what `python -m jobs` takes. Out: the verb's own output, a line for each start but the first, and the exit code of
the last one. `train` is started again if a step was saved since it began; `prepare`, which keeps what is finished, if
it was killed. A signal is passed on, waited for, and ends the loop. If the loop itself is killed, the verb saves its
state and stops.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import count
from types import FrameType
from typing import Any

from pipeline import console, storage
from pipeline.cluster.launchers import JOB_START
from pipeline.cluster.parent import LOOP
from pipeline.config import Config, load, nearest
from pipeline.errors import ConfigError, PipelineError
from pipeline.run.checkpoint import committed_steps
from pipeline.run.folder import LOCK_NAME, held
from pipeline.run.stop import SIGNALS

VERBS = ("train", "prepare")
COMMAND = [sys.executable, "-m", "jobs"]
PREPARE_RESTARTS = 3
LOOK_SECONDS = 0.2  # between two looks whether the run folder is free
USER_MISTAKE = 2


class Child:
    """The verb's process, to which this one's signals are passed on, within the context.

    Attributes:
        received: the last signal; None: there was none.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Child":
        for number in (signal.Signals[name] for name in SIGNALS):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as it is under nohup
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, arguments: Sequence[str], *, told: Mapping[str, str], output: int | None = None) -> int:
        """Runs a verb to its end; returns its exit code, below 0 for a signal that killed it.

        If this process is killed, the verb saves its state and stops.

        Args:
            arguments: the verb and its `key=value`.
            told: of its environment, what this process does not have.
            output: a file descriptor that gets its standard output; None: that of this process.
        """
        environment = os.environ | {LOOP: str(os.getpid()), **told}
        self._process = subprocess.Popen([*COMMAND, *arguments], env=environment, stdout=output)
        if self.received is not None:  # it came while the process was started
            self._process.send_signal(self.received)
        return self._process.wait()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if self._process is not None:
            self._process.send_signal(number)


def again(arguments: Sequence[str]) -> int:
    """Runs a verb until it ends well or does not get on; returns the exit code.

    Raises:
        PipelineError: it is none of `VERBS`, or the configuration cannot be.
    """
    verb = next(iter(arguments), "")
    if verb not in VERBS:
        raise ConfigError(f"again {verb}: it starts train or prepare{nearest(verb, VERBS)}")
    config = load(Config, arguments[1:])
    with Child() as child:
        return _until_the_end(child, arguments, config)


def _until_the_end(child: Child, arguments: Sequence[str], config: Config) -> int:
    verb = arguments[0]
    run = config.run if verb == "train" else None
    for restarts in count():
        _await_free(run, child, seconds=config.cluster.grace_seconds)
        if child.received is not None:
            return 128 + child.received
        before = _saved(run)
        code = child.run(arguments, told={JOB_START: str(restarts + 1)})
        gets_on = _saved(run) > before if verb == "train" else code < 0 and restarts < PREPARE_RESTARTS
        if code == 0 or child.received is not None or not gets_on:
            return code if code >= 0 else 128 - code
        kept = f"step {_saved(run)} is saved" if run else "what is finished is kept"
        print(f"again: {verb} ended with {code}, {kept}; start {restarts + 2}", file=sys.stderr, flush=True)
    raise AssertionError


def _saved(run: str | None) -> int:
    return max(committed_steps(run), default=0) if run else 0


def _await_free(run: str | None, child: Child, *, seconds: float) -> None:
    """Waits for the command of a loop that was killed to save its state and let go of the run folder.

    If that takes too long, the verb itself says who holds the folder.
    """
    deadline = time.monotonic() + seconds
    while run and storage.exists(storage.join(run, LOCK_NAME)) and child.received is None:
        try:
            with held(run, name=LOCK_NAME, patience_seconds=0.0, taken="is held"):
                return
        except ConfigError:
            if time.monotonic() > deadline:
                return
            time.sleep(LOOK_SECONDS)


def main(arguments: Sequence[str]) -> int:
    """`again`, whose errors are a line."""
    try:
        return again(arguments)
    except PipelineError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_MISTAKE


if __name__ == "__main__":
    console.set_up()
    sys.exit(main(sys.argv[1:]))
