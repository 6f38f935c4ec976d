"""What a worker hears of whoever started it: a wish to stop, or that nobody waits for it any more.

In: a call that waits for the word. Out: the answer to the training, which asks at each agreement of the ranks, and the
end of this process where the training does not ask, or does not end in time. No signal is needed for it: signals may be
ignored, blocked, or come at a moment at which nobody minds them.
"""

import os
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

GONE = "SIGHUP"  # by its definition also the death of the process in control
LOOK_SECONDS = 1.0  # between two looks at a parent
UNTRAINED = 0  # exit code of a worker that had not begun when it was to stop
LATE = 1  # of one that did not end in time


class Starter:
    """Whoever started this worker, heard by a thread; the first word counts.

    Args:
        hear: waits for the word, and gives the cause to stop.
        grace_seconds: from the word on, for a training that has begun.
    """

    def __init__(self, hear: Callable[[], str], *, grace_seconds: float) -> None:
        self._hear = hear
        self._grace_seconds = grace_seconds
        self._word: str | None = None
        self._asked = False  # whether a training has begun, and will ask again
        threading.Thread(target=self._listen, name="starter", daemon=True).start()

    def stop_request(self) -> str | None:
        """The cause to stop, if there is one; for the training of this rank to ask again and again."""
        self._asked = True
        return self._word

    def _listen(self) -> None:
        self._word = self._hear()
        if not self._asked:
            os._exit(UNTRAINED)  # there is nothing to save, and it may be waiting for ranks that never come
        time.sleep(self._grace_seconds)
        os._exit(LATE)


def word_of(command: Connection) -> Callable[[], str]:
    """Waits for what a command sends, or for its end, which closes the connection however it came."""

    def hear() -> str:
        try:
            return str(command.recv())
        except (EOFError, OSError):
            return GONE

    return hear


def end_of(parent: int) -> Callable[[], str]:
    """Waits until this process has another parent: its own is gone."""

    def hear() -> str:
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        return GONE

    return hear
