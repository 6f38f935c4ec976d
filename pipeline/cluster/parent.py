"""What a worker does once whoever started it is gone: it stops by itself, in time.

A thread waits for the end of whoever started this process. The training asks for the cause at each sync of the ranks;
where it does not ask yet, or does not end in time, the process ends. No signal is needed for it: signals may be
ignored, blocked, or come at a bad moment.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable

LOOP = "WORDLANES_LOOP"  # process id of a `python -m jobs.again` that started this command
GONE = "SIGHUP"  # by its definition also the death of the process in control
LOOK_SECONDS = 0.5  # between two looks
UNTRAINED = 0  # exit code of a worker that had not begun
LATE = 1  # of one that did not end in time


class ParentWatch:
    """Notices that whoever started this process is gone.

    Args:
        await_end: returns then.
        grace_seconds: from then on, for a training that has begun.
    """

    def __init__(self, await_end: Callable[[], None], *, grace_seconds: float) -> None:
        self._await_end = await_end
        self._grace_seconds = grace_seconds
        self._cause: str | None = None
        self._asked = False  # whether a training has begun, and will ask again
        threading.Thread(target=self._watch, name="parent", daemon=True).start()

    def stop_cause(self) -> str | None:
        """The cause to stop once the parent is gone; for the training of this rank to ask again and again."""
        self._asked = True
        return self._cause

    def _watch(self) -> None:
        self._await_end()
        self._cause = GONE
        if not self._asked:
            os._exit(UNTRAINED)  # there is nothing to save, and it may be waiting for ranks that never come
        time.sleep(self._grace_seconds)
        os._exit(LATE)


def await_command() -> None:
    """Waits for the end of the process that started this one by multiprocessing, however it comes."""
    command = multiprocessing.parent_process()
    assert command is not None
    command.join()


def await_launcher(parent: int) -> None:
    """Waits until this process has another parent than the launcher."""
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
