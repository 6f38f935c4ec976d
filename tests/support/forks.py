"""A command as a fork of a process that has imported what training imports: it starts in no time.

More than half of what a short command costs are the imports of torch and Lightning. What happens to a run that trains
does not depend on them, so only tests of the start begin with a new Python.
"""

import os
import runpy
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from multiprocessing import forkserver, get_context
from pathlib import Path
from subprocess import TimeoutExpired

from pipeline.cluster.processes import prepare
from pipeline.runner import WORKER


class Fork:
    """A Python in a session of its own, to be used as a `subprocess.Popen`.

    Args:
        arguments: of Python: a script, or `-m` and a module, and theirs.
        log: where it tells what it has to tell.
        folder: in which it works.
        environment: all of it.
        ignored: signals that it is to ignore, as a shell has its background jobs and nohup do it.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        log: Path,
        folder: Path,
        environment: Mapping[str, str],
        ignored: Collection[int] = (),
    ) -> None:
        prepare(modules=[WORKER])
        self._process = get_context("forkserver").Process(
            target=_as_python, args=(list(arguments), str(log), str(folder), dict(environment), ignored)
        )
        self._process.start()
        self.pid = self._process.pid
        while self.poll() is None and os.getsid(self.pid) != self.pid:
            time.sleep(0.001)

    def poll(self) -> int | None:
        """The exit code; negative: the signal that ended it; None: it goes on."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end; returns the exit code."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutExpired("a fork", timeout)
        return self._process.exitcode


def minding(ignored: Collection[int]) -> None:
    """Signals are as a Python that a terminal starts has them, whatever those of the tests are; but for some."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])


def _as_python(
    arguments: list[str], log: str, folder: str, environment: dict[str, str], ignored: Collection[int]
) -> None:
    os.setsid()
    minding(ignored)
    told = os.open(log, os.O_RDWR | os.O_APPEND)  # where it is a terminal, it is this session's from now on
    os.dup2(told, 1)
    os.dup2(told, 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ |= environment
    forkserver._forkserver.__init__()  # the command's workers are forks of a process of its own
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
