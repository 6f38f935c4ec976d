"""The ledger of a run, `events.jsonl`, and the account of where its time went.

In: what happens, one JSON object a line: `event`, `time` (unix seconds), `attempt`, and the fields below (`FIELDS` has
their types; there may be more). Out: an `Account`. A line that was cut or lacks a field is passed over.

    start       command_step, total_steps, cluster       an attempt begins: a call of the train command
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
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args

from pipeline import storage

log = logging.getLogger(__name__)

Event = dict[str, Any]  # one line; `COMMON` and `FIELDS` say what is in it
EVENTS_NAME = "events.jsonl"
PARTS = "events"  # in an object store, where each ledger that is being written has its object
STORE_SECONDS = 30.0  # between two signs of life in an object store
LAST_TIME = 250_000_000_000.0  # unix seconds, in the year 9892: what lies beyond is no date
SILENT_SECONDS = 120.0  # without an event, after which nobody can say that a run goes on

State = Literal["running", "stopped", "finished", "silent"]
Category = Literal["productive", "replaying", "checkpoints", "validating", "starting", "down"]
ENTERED: dict[str, Category] = {"group": "starting", "training": "productive", "stop": "down", "end": "down"}
ENDED: dict[str, State] = {"stop": "stopped", "end": "finished"}
FOUND_LATER = ("worker", "hang", "silent")  # the others are told by the workers themselves
TAKEN_OUT: dict[str, Category] = {"checkpoint": "checkpoints", "validation": "validating", "replayed": "replaying"}

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
        self._path = storage.join(run, EVENTS_NAME)
        self._before = [json.dumps(event) for event in before]
        self._lost = lost
        self._lines: list[str] = []
        self._last = ""  # the name of the last event
        self._told = False
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
        record = {"event": event, "time": time.time(), "attempt": self._attempt, **fields}
        try:
            if misfits := _misfits(record):
                raise ValueError(f"an event {event} with {', '.join(misfits)} missing or of another type")
            line = json.dumps(record, allow_nan=False)
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
            self._tell(error)

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
                self._tell(error)

    def _store(self) -> None:
        """Publishes this ledger's object if it lacks an event."""
        if (num_written := self._num_written) == self._num_stored:
            return
        self._part = self._part or _new_part(self._run)
        storage.publish_bytes(self._part, "".join(f"{line}\n" for line in [*self._lines]).encode())
        self._num_stored = num_written

    def _tell(self, error: Exception) -> None:
        if not self._told:
            log.warning("%s lacks an event, training goes on: %s", self._path, error)
        self._told = True


def read_events(run: str) -> list[Event]:
    """The whole events of a run folder, in file order; none if there is no ledger.

    A kill or a full disk may have cut a line, and the next event then stands on the same one. So objects are looked
    for wherever one can begin: a cut object is no JSON, and within a JSON text no quote follows a brace unescaped.

    Raises:
        ConfigError: something is there that cannot be read.
    """
    return [event for _, event in _read(run)[0]]


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


def next_attempt(events: Iterable[Event]) -> int:
    """The number of the attempt that begins after these events."""
    return max((event["attempt"] for event in events), default=0) + 1


def saved_steps(events: Iterable[Event]) -> set[int]:
    """The steps of which a checkpoint was committed at some time."""
    return {event["step"] for event in events if event["event"] == "checkpoint"}


def _event(text: str) -> Event | None:
    try:
        record = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and not _misfits(record) else None


def _refuse_constant(name: str) -> None:
    """NaN and the infinities are no JSON, though Python reads them."""
    raise ValueError(name)


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


@dataclass(frozen=True, kw_only=True)
class Failure:
    """As the event `fault`, at its step or the last one known; of a silent death, `time` is the last sign of life."""

    time: float
    step: int
    kind: str
    cause: str
    rank: int | None
    fatal: bool


@dataclass(frozen=True, kw_only=True)
class Account:
    """Where a run stands and where its time went.

    Attributes:
        state: `silent` if it neither stopped nor ended and gave no sign of life for `SILENT_SECONDS`.
        step: the highest one told of the last group; while steps are made again, below that of the run.
        total_steps, world_size: None if not told yet.
        last_time: the last sign of life, unix seconds.
        seconds: of the wall time from the first event to the last, or to now if it is running, by category.
        checkpoint_seconds: of all; `seconds` has those within training.
        skips, resizes: the events; of a window that is skipped again while it is made again, the last.
    """

    state: State
    step: int
    total_steps: int | None
    world_size: int | None
    num_attempts: int
    last_time: float
    seconds: dict[Category, float]
    num_checkpoints: int
    checkpoint_seconds: float
    largest_checkpoint_seconds: float
    steps_replayed: int
    tokens_replayed: int
    tokens_skipped: int
    skips: tuple[Event, ...]
    failures: tuple[Failure, ...]
    resizes: tuple[Event, ...]

    @property
    def shares(self) -> dict[Category, float]:
        """Each category's part of the wall time; all are 0 where none has passed."""
        wall_seconds = sum(self.seconds.values()) or 1.0
        return {category: seconds / wall_seconds for category, seconds in self.seconds.items()}


def account(events: Sequence[Event], *, now: float) -> Account:
    """Walks through the events in file order; `now` is in unix seconds.

    The time before an event goes to what the run was doing. But what followed the last sign of life of workers that
    were then found dead or hung, or died without a word, is `down`. A clock that was set back costs nothing.
    """
    walk = _Walk(begin=events[0]["time"] if events else now)
    for event in events:
        walk.take(event)
    last_time, state = walk.time, walk.state
    if state == "running" and now - last_time < SILENT_SECONDS:
        walk.spend(until=now, on=walk.category)
    elif state == "running":
        state = "silent"
    walk.enter(walk.category)
    blocked_seconds = [event["seconds"] for event in events if event["event"] == "checkpoint"]
    replayed = [event for event in events if event["event"] == "replayed"]
    skips = {(event["epoch"], event["window"]): event for event in events if event["event"] == "skip"}
    return Account(
        state=state,
        step=walk.step,
        total_steps=walk.total_steps,
        world_size=walk.world_size,
        num_attempts=walk.num_attempts,
        last_time=last_time,
        seconds=walk.seconds,
        num_checkpoints=len(blocked_seconds),
        checkpoint_seconds=math.fsum(blocked_seconds),
        largest_checkpoint_seconds=max(blocked_seconds, default=0.0),
        steps_replayed=sum(event["num_steps"] for event in replayed),
        tokens_replayed=sum(event["num_tokens"] for event in replayed),
        tokens_skipped=sum(event["num_tokens"] for event in skips.values()),
        skips=tuple(skips.values()),
        failures=tuple(walk.failures),
        resizes=tuple(event for event in events if event["event"] == "resize"),
    )


class _Walk:
    """The state machine of `account`."""

    def __init__(self, *, begin: float) -> None:
        self.time = begin  # the last sign of life
        self.state: State = "stopped"
        self.category: Category = "down"  # what time is spent on now
        self.announced: Literal["fault", "resize"] | None = None  # why these workers end
        self.attempt = self.num_attempts = self.step = 0
        self.total_steps: int | None = None
        self.world_size: int | None = None
        self.seconds: dict[Category, float] = dict.fromkeys(get_args(Category), 0.0)
        self.stretch_seconds = 0.0  # of this training, less what was taken out of it
        self.failures: list[Failure] = []

    def take(self, event: Event) -> None:
        """Goes one event on."""
        name, attempt = event["event"], event["attempt"]
        begins = name == "start" or attempt > self.attempt  # the line of a start may be lost
        if attempt < self.attempt and not begins:
            return  # a worker that outlived its attempt
        self._spend_before(event, begins=begins)
        if begins:
            self.attempt, self.num_attempts, self.state = attempt, self.num_attempts + 1, "running"
            self.enter("starting")
        if name == "start":
            self.step, self.total_steps = event["command_step"], event["total_steps"]
        elif name == "group":
            self.step, self.world_size = event["step"], event["world_size"]
        self.step = max(self.step, event.get("step", 0))  # a checkpoint that is written meanwhile is of an earlier one
        if name in TAKEN_OUT:
            taken_seconds = min(event["seconds"], self.stretch_seconds)
            self.stretch_seconds -= taken_seconds
            self.seconds[TAKEN_OUT[name]] += taken_seconds
        elif name in ENTERED:
            self.state = ENDED.get(name, "running")
            self.enter(ENTERED[name])
        elif name == "resize":
            self.announced = self.announced or "resize"
        elif name == "fault":
            self._fail(event, time=event["time"], step=event.get("step", self.step))
            if event["fatal"]:
                self.enter("starting" if self.state == "running" else "down")
                self.announced = "fault"

    def _spend_before(self, event: Event, *, begins: bool) -> None:
        """Gives the time since the last sign of life to what it was spent on, as this event shows."""
        on, silent = self.category, False
        if begins and self.state == "running":
            on, silent = "down", self.announced != "fault"
        elif on == "productive" and event["event"] == "group":
            on, silent = ("starting", False) if self.announced else ("down", True)
        elif on == "productive" and event["event"] == "resize":
            on = "starting"
        elif on == "productive" and event["event"] == "fault" and event["fatal"] and event["kind"] in FOUND_LATER:
            on = "down"
        if silent:
            cause = f"ended without a word after step {self.step} (killed, or the machine was lost)"
            fault = {"kind": "silent", "cause": cause, "rank": None, "fatal": True}
            self._fail(fault, time=self.time, step=self.step)
        self.spend(until=event["time"], on=on)

    def _fail(self, fault: Event, *, time: float, step: int) -> None:
        about = {name: fault[name] for name in FIELDS["fault"]}
        self.failures.append(Failure(time=time, step=step, **about))

    def spend(self, *, until: float, on: Category) -> None:
        """Gives the time since the last sign of life to a category."""
        seconds = max(until - self.time, 0.0)
        self.time = max(until, self.time)
        if on == "productive":
            self.stretch_seconds += seconds
        else:
            self.seconds[on] += seconds

    def enter(self, category: Category) -> None:
        """From here on time is spent on this; what is left of a stretch of training was productive."""
        self.seconds["productive"] += self.stretch_seconds
        self.stretch_seconds = 0.0
        self.category = category
        self.announced = None
