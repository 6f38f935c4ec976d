"""The ledger of a run, `events.jsonl`.

In: what happens. Out: one JSON object a line: `event`, `time` (unix seconds), `attempt`, and the fields below (`FIELDS`
has their types; there may be more). A line that was cut or lacks a field is passed over.

    start       command_step, total_steps, cluster       an attempt begins: a call of the train command; also
                                                         code and environment, as pipeline/provenance.py tells them
    group       step, reached_step, world_size,          workers begin at `step`; what was made from there to
                checkpoint                               `reached_step` is made again
    training                                             the first step of this group is about to run
    progress    step                                     every few seconds, so that a silent death is dated
    checkpoint  step, seconds, size_bytes, reason        steps|time|validation|notice|stop|end; seconds it blocked
    validation  step, seconds
    replayed    step, num_steps, num_tokens, seconds     made again, in pieces or at once; without the two above
    resize      from_size, to_size                       told before the group of the new size
    fault       kind, cause, rank, fatal                 worker|hang|checkpoint|disk|loss|tracker|preemption|silent;
                                                         fatal: the group ended by it
    skip        step, epoch, window, num_tokens, tokens  not trained on; tokens: [start, stop) of each lane's targets
    stop        step, cause                              a clean stop with a checkpoint
    end         step                                     the run is trained to its end
"""

import json
import logging
import math
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Any

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.masking import masked_tree
from pipeline.run.tail import Tail

log = logging.getLogger(__name__)

Event = dict[str, Any]  # one line; `COMMON` and `FIELDS` say what is in it
EVENTS_NAME = "events.jsonl"
PARTS = "events"  # in an object store, where each ledger that is being written has its object
STORE_SECONDS = 30.0  # between two signs of life in an object store
LAST_TIME = 250_000_000_000.0  # unix seconds, in the year 9892: what lies beyond is no date


def _refuse_constant(name: str) -> None:
    """NaN and the infinities are no JSON, though Python reads them."""
    raise ValueError(name)


DECODER = json.JSONDecoder(parse_constant=_refuse_constant)  # made once: a ledger has many lines

FIELDS: dict[str, dict[str, type | UnionType]] = {
    "start": {"command_step": int, "total_steps": int, "cluster": str},
    "group": {"step": int, "reached_step": int, "world_size": int, "checkpoint": str | None},
    "training": {},
    "progress": {"step": int},
    "checkpoint": {"step": int, "seconds": int | float, "size_bytes": int, "reason": str},
    "validation": {"step": int, "seconds": int | float},
    "replayed": {"step": int, "num_steps": int, "num_tokens": int, "seconds": int | float},
    "resize": {"from_size": int, "to_size": int},
    "fault": {"kind": str, "cause": str, "rank": int | None, "fatal": bool},
    "skip": {"step": int, "epoch": int, "window": int, "num_tokens": int, "tokens": list},
    "stop": {"step": int, "cause": str},
    "end": {"step": int},
}
COMMON: dict[str, type | UnionType] = {"event": str, "time": int | float, "attempt": int}


class Ledger:
    """Writes the events of one attempt.

    On a local disk each is a line at the end of `events.jsonl` at once. An object store knows no appending, and two
    processes that replace one object lose each other's lines: so there each ledger has an object of its own below
    `events/`, of which it replaces the whole, and `gather` brings these together when nobody writes.

    Args:
        run: the run folder, which is there.
        attempt: its number, from 1.
        background: a thread talks to the store, so that `write` never waits for it; `close` does. Signs of life then
            reach the store every `STORE_SECONDS`, all else at once.
        before: what the ledger held already; only to write it anew where something removes the file.
        lost: whether the whole folder is gone or another one; then events wait for `move`.

    Attributes:
        heard: called with each event, by whichever thread writes it.
    """

    def __init__(
        self,
        run: str,
        *,
        attempt: int,
        background: bool = False,
        before: Sequence[Event] = (),
        lost: Callable[[], bool] = bool,
    ) -> None:
        self._run, self._attempt = run, attempt
        self.heard: Callable[[Event], object] = lambda event: None
        self._path = storage.join(run, EVENTS_NAME)
        self._before = [json.dumps(event) for event in before]
        self._lost = lost
        self._lines: list[str] = []
        self._last = ""  # the name of the last event
        self._warned = False
        self._there: os.stat_result | None = None
        self._part: str | None = None  # in a store, the object of this ledger
        self._num_written = self._num_stored = 0
        self._news, self._ended = threading.Event(), False
        self._thread: threading.Thread | None = None
        if background and not storage.is_local(run):
            self._thread = threading.Thread(target=self._store_on, name="ledger", daemon=True)
            self._thread.start()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def write(self, event: str, /, **fields: object) -> None:
        """Adds an event of now; what cannot be written is told once and never stops training."""
        record = {"event": event, "time": time.time(), "attempt": self._attempt, **masked_tree(fields)}
        try:
            if misfits := _misfits(record):
                raise ValueError(f"an event {event} with {', '.join(misfits)} missing or of another type")
            line = json.dumps(record, allow_nan=False)
            self.heard(record)
            if event == self._last == "progress":
                self._lines.pop()  # of a stretch of training the last sign of life says it all
            self._lines.append(line)
            self._last = event
            self._num_written += 1
            if storage.is_local(self._run):
                self._append(line)
            elif self._thread is None:
                self._store()
            elif event != "progress":
                self._news.set()
        except Exception as error:  # noqa: BLE001 whatever a store raises, training goes on; it is told below
            self._warn(error)

    def close(self) -> None:
        """No event follows; those of before are in the store, or it is told that they are not."""
        if self._thread is not None:
            self._ended = True
            self._news.set()
            self._thread.join()
            self._thread = None

    def move(self, run: str) -> None:
        """Goes on in another local folder, with the events of before: the folder is gone, or another stands there."""
        self._run, self._path, self._there = run, storage.join(run, EVENTS_NAME), None
        storage.append_line(self._path, "\n".join([*self._before, *self._lines]))

    def _append(self, line: str) -> None:
        """Adds a line; where something else has removed the file, all that is known of it."""
        there = None
        with suppress(FileNotFoundError, NotADirectoryError):
            there = Path(storage.resolve(self._path)[1]).stat()
        if self._there is not None and (there is None or not os.path.samestat(there, self._there)):
            if self._lost():
                return
            what = "removed and is written anew" if there is None else "replaced"
            log.warning("%s was %s; training goes on", self._path, what)
            fault = {"kind": "disk", "cause": f"{self._path} was {what}", "rank": None, "fatal": False}
            told = json.dumps({"event": "fault", "time": time.time(), "attempt": self._attempt, **fault})
            self._lines.insert(-1, told)
            line = "\n".join([*self._before, *self._lines] if there is None else [told, line])
        storage.append_line(self._path, line)
        self._there = Path(storage.resolve(self._path)[1]).stat()

    def _store_on(self) -> None:
        """In the thread: events reach the store at once, signs of life alone after a while."""
        ended = False
        while not ended:
            self._news.wait(STORE_SECONDS)
            self._news.clear()
            ended = self._ended
            try:
                self._store()
            except Exception as error:  # noqa: BLE001 as in `write`; the events wait
                self._warn(error)

    def _store(self) -> None:
        """Publishes this ledger's object if it lacks an event."""
        if (num_written := self._num_written) == self._num_stored:
            return
        self._part = self._part or _new_part(self._run)
        storage.publish_bytes(self._part, "".join(f"{line}\n" for line in [*self._lines]).encode())
        self._num_stored = num_written

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            log.warning("%s lacks an event, training goes on: %s", self._path, error)
        self._warned = True


def read_events(run: str) -> list[Event]:
    """The whole events of a run folder, in file order; none if there is no ledger.

    A kill or a full disk may have cut a line, and the next event then stands on the same one. So objects are looked
    for wherever one can begin: a cut object is no JSON, and within a JSON text no quote follows a brace unescaped.

    Raises:
        ConfigError: something is there that cannot be read.
    """
    return [event for _, event in _read(run)[0]]


def events_tail(run: str) -> Tail[Event]:
    """The events of a run folder, as they come."""
    return Tail(storage.join(run, EVENTS_NAME), parse=_events_of, read=lambda: read_events(run))


def _events_of(content: bytes) -> list[Event]:
    return [event for line in _split(content) if (event := _event(line)) is not None]


def gather(run: str) -> None:
    """Brings the parts of a ledger in an object store together in `events.jsonl`; to be called while nobody writes.

    Raises:
        ConfigError: the store does not serve; nothing is lost.
    """
    if storage.is_local(run):
        return
    found, parts = _read(run)
    if parts:
        text = "".join(f"{line}\n" for line, _ in found)
        storage.publish_bytes(storage.join(run, EVENTS_NAME), text.encode())
        for part in parts:
            storage.remove(part)


def _read(run: str) -> tuple[list[tuple[str, Event]], list[str]]:
    """(line, event) of each event of a run, and the parts that were found in a store.

    The parts are read first: what `gather` moves meanwhile is then found in `events.jsonl`, or in both. A writer whose
    part was gathered while it lived puts it there again, so a line that is known already counts once.
    """
    path = storage.join(run, EVENTS_NAME)
    parts = [] if storage.is_local(path) else _parts(run)
    texts = [storage.read_or_nothing(part) for part in parts]
    lines = _split(storage.read_or_nothing(path))
    known = set(lines) if parts else set()
    for text in texts:
        lines += (own := [line for line in _split(text) if line not in known])
        known.update(own)
    return [(line, event) for line in lines if (event := _event(line)) is not None], parts


def _split(content: bytes) -> list[str]:
    return re.split(r'\n|(?=\{"event":)', content.decode(errors="replace"))


def _parts(run: str) -> list[str]:
    """In the order in which their ledgers began, which their names begin with: no two clocks are compared for it."""
    return [path for path in storage.list_files(storage.join(run, PARTS)) if re.search(r"/\d{6}-[^/]*\.jsonl$", path)]


def _new_part(run: str) -> str:
    """A name for the object of a ledger that begins, after all that are there."""
    parts = _parts(run)
    number = int(parts[-1].rpartition("/")[2][:6]) + 1 if parts else 1
    return storage.join(run, PARTS, f"{number:06}-{time.time_ns()}-{secrets.token_hex(4)}.jsonl")


def events_of_run(run: str) -> list[Event]:
    """The events of a run folder that has some.

    Raises:
        ConfigError: it has none, so it is none of a run.
    """
    if events := read_events(run):
        return events
    there = storage.exists(storage.join(run, EVENTS_NAME))
    raise ConfigError(
        f"run={run} holds {f'no whole event in {EVENTS_NAME}' if there else f'no {EVENTS_NAME}'};"
        " give the folder that `python -m jobs train` wrote"
    )


def next_attempt(events: Iterable[Event]) -> int:
    """The number of the attempt that begins after these events."""
    return max((event["attempt"] for event in events), default=0) + 1


def saved_steps(events: Iterable[Event]) -> set[int]:
    """The steps of which a checkpoint was committed at some time."""
    return {event["step"] for event in events if event["event"] == "checkpoint"}


def _event(text: str) -> Event | None:
    if not text:
        return None
    try:
        record = DECODER.decode(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and not _misfits(record) else None


def _misfits(record: Event) -> list[str]:
    """The fields that are not there or not of their type; a number is finite, not negative, and a time can be told."""
    needed = COMMON | FIELDS.get(str(record.get("event")), {})
    if "step" in record:
        needed |= {"step": int}
    return [
        name
        for name, kind in needed.items()
        if not isinstance(value := record.get(name, ...), kind)
        or (isinstance(value, int | float) and not 0 <= value < (LAST_TIME if name == "time" else math.inf))
    ]
