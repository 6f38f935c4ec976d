"""A request that a run stop: `stop-request`, a file of its folder, so that whoever sees the folder can ask.

In: signals, and the file. Out: a cause to stop. The first rank looks for the file when the ranks agree anyway. What a
user asked for holds until a person starts the run again: restarts and requeues by a machine honour it. What a signal
asked for belongs to the attempt that it reached.
"""

import json
import logging
import signal
import threading
import time
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

from pipeline import storage
from pipeline.errors import PipelineError

log = logging.getLogger(__name__)

REQUEST_NAME = "stop-request"
ATTEMPT_NAME = "attempt"  # a file of the run folder: the number of the newest start
USER = "user"  # the cause of a request that a person made by `stop`, or by a file of this name with anything in it
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")
LOOK_SECONDS, LOOK_STORE_SECONDS = 1.0, 10.0  # between two looks on a local disk, in an object store
SAME_SECONDS = 1.0  # a terminal and a supervisor may both pass on one Ctrl-C


@dataclass(frozen=True, kw_only=True)
class StopRequest:
    """What the file holds.

    Attributes:
        cause: the signal's name, or `USER`.
        time: unix seconds; 0: not known.
        attempt: the one that is to stop; None: whichever it is.
    """

    cause: str = USER
    time: float = 0.0
    attempt: int | None = None


def request_stop(run: str, *, cause: str, attempt: int | None) -> StopRequest:
    """Leaves a request in a run folder; another that stood there is replaced.

    Args:
        run: the folder, which is there.
        cause: the signal's name, or `USER`.
        attempt: the one that is to stop; None: whichever it is.

    Raises:
        ConfigError: it cannot be written.
    """
    request = StopRequest(cause=cause, time=time.time(), attempt=attempt)
    storage.publish_bytes(_path(run), json.dumps(asdict(request)).encode() + b"\n")
    return request


def stop_newest_attempt(run: str) -> None:
    """Asks the attempt that goes on to save and stop, as by SIGTERM, and no later one.

    A signal to all processes of a job would end those of its dashboard too, with what they have not sent.

    Raises:
        ConfigError: the request cannot be written.
    """
    found = storage.read_or_nothing(storage.join(run, ATTEMPT_NAME)).decode()
    if found.isdecimal():
        request_stop(run, cause="SIGTERM", attempt=int(found))


def stop_request(run: str, *, attempt: int) -> StopRequest | None:
    """The request that holds for an attempt; None if there is none.

    Raises:
        ConfigError: something is there that cannot be read.
    """
    path = _path(run)
    if not storage.exists(path):
        return None
    try:
        request = StopRequest(**json.loads(storage.read_or_nothing(path)))
    except (ValueError, TypeError):
        request = StopRequest()  # made by hand, as by `touch`
    return request if request.attempt in (None, attempt) else None


def remove_request(run: str) -> None:
    """A person starts the run again."""
    storage.remove(_path(run))


def _path(run: str) -> str:
    return storage.join(run, REQUEST_NAME)


class RequestWatch:
    """Looks for the file: on a local disk when it is asked, in an object store by a thread, so that nobody waits.

    Args:
        run: the run folder.
        attempt: the one that goes on.
    """

    def __init__(self, run: str, *, attempt: int) -> None:
        self._run, self._attempt = run, attempt
        self._looked = float("-inf")
        self._cause: str | None = None
        self._ended = threading.Event()
        self._local = storage.is_local(run)
        if not self._local:
            threading.Thread(target=self._look_on, name="stop request", daemon=True).start()

    def cause(self) -> str | None:
        """The cause of a request, once there was one; None before."""
        if self._local and self._cause is None and time.monotonic() - self._looked >= LOOK_SECONDS:
            self._look()
        return self._cause

    def close(self) -> None:
        """Looks no more."""
        self._ended.set()

    def _look(self) -> None:
        try:
            request = stop_request(self._run, attempt=self._attempt)
        except PipelineError as error:  # a place that does not serve; it is asked again
            log.warning("no look for a request to stop: %s", error)
            request = None
        self._cause = None if request is None else request.cause
        self._looked = time.monotonic()

    def _look_on(self) -> None:
        while self._cause is None and not self._ended.wait(LOOK_STORE_SECONDS):
            self._look()


class StopSignals:
    """Takes SIGTERM, Ctrl-C and the terminal's end for requests to stop; a second Ctrl-C, later, ends at once.

    SIGHUP stays ignored where it is, as under nohup; SIGINT, which shells have their background jobs ignore, counts
    again. In another thread than the main one, which receives no signals, it does nothing.

    Args:
        grace_seconds: from the first request on, for those who are to stop.

    Attributes:
        cause: the name of the last signal; None: there was none.
    """

    def __init__(self, *, grace_seconds: float = float("inf")) -> None:
        self.cause: str | None = None
        self._grace_seconds = grace_seconds
        self._since = 0.0
        self._deadline = float("inf")
        self._left: str | None = None  # the cause that stands in a run folder
        self._before: dict[int, Any] = {}

    @property
    def late(self) -> bool:
        """Whether the time to stop is over."""
        return time.monotonic() > self._deadline

    def leave_request(self, run: str, *, attempt: int) -> None:
        """Leaves a request of the last signal in a run folder, once for each cause; to be called again and again.

        A place that does not serve is told of and tried again, for the workers are still there.

        Args:
            run: the folder.
            attempt: the one that is to stop.
        """
        if self.cause in (None, self._left):
            return
        try:
            request_stop(run, cause=str(self.cause), attempt=attempt)
        except PipelineError as error:
            log.warning("the request to stop is not written down yet: %s", error)
        else:
            self._left = self.cause

    def catch(self) -> None:
        """From now on."""
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                number = signal.Signals[name]
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._before[number] = signal.signal(number, self._receive)

    def release(self) -> None:
        """Puts the handlers back that stood there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def __enter__(self) -> "StopSignals":
        self.catch()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if self.cause == name == "SIGINT" and now - self._since > SAME_SECONDS:
            raise KeyboardInterrupt
        self.cause, self._since = name, now
        self._deadline = min(self._deadline, now + self._grace_seconds)
