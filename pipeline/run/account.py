"""The account of a run: where it stands and where its time went, told from its ledger alone."""

import math
from collections import deque
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.run.ledger import FIELDS, Event

SILENT_SECONDS = 120.0  # without an event, after which nobody can say that a run goes on

PACE_SECONDS = 1800.0  # of training, from which its pace is told

State = Literal["running", "stopped", "finished", "silent"]
Category = Literal["productive", "replaying", "checkpoints", "validating", "starting", "down"]
ENTERED: dict[str, Category] = {"group": "starting", "training": "productive", "stop": "down", "end": "down"}
ENDED: dict[str, State] = {"stop": "stopped", "end": "finished"}
FOUND_LATER = ("worker", "hang", "silent")  # the others are told by the workers themselves
TAKEN_OUT: dict[str, Category] = {"checkpoint": "checkpoints", "validation": "validating", "replayed": "replaying"}


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
        state: `silent` if it neither stopped nor ended and gave no sign of life for as long as a hang may take.
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


def account(events: Sequence[Event], *, now: float, hang_seconds: float | None = None) -> Account:
    """Walks through the events in file order.

    Args:
        events: of the ledger.
        now: unix seconds.
        hang_seconds: after which a step is taken to hang; where they are more than `SILENT_SECONDS`, they count.

    The time before an event goes to what the run was doing. But what followed the last sign of life of workers that
    were then found dead or hung, or died without a word, is `down`. A clock that was set back costs nothing.
    """
    walk = _Walk(begin=events[0]["time"] if events else now)
    for event in events:
        walk.take(event)
    last_time, state = walk.time, walk.state
    if state == "running" and now - last_time < max(SILENT_SECONDS, hang_seconds or 0.0):
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


def steps_per_second(events: Sequence[Event]) -> float | None:
    """How fast the last workers train, pauses for checkpoints and validations included; None: nothing tells it yet.

    Told from the last `PACE_SECONDS` of their training.
    """
    trained = []
    for event in reversed(events):
        if event["event"] in ("training", "group", "start"):
            break
        if "step" in event and event["event"] in ("progress", "checkpoint", "validation", "stop", "end"):
            trained.append((event["time"], event["step"]))
    recent = [point for point in trained if trained[0][0] - point[0] <= PACE_SECONDS]
    seconds, steps = (recent[0][each] - recent[-1][each] for each in (0, 1)) if recent else (0, 0)
    return steps / seconds if seconds > 0 and steps > 0 else None


class Standing:
    """Where a run that goes on stands, event by event, so that its ledger is read once however long it grows.

    Args:
        events: those so far.
        now: unix seconds, for a run that has no event yet.
    """

    def __init__(self, events: Sequence[Event], *, now: float) -> None:
        self._walk: _Walk | None = None
        self._saved = now
        self._skips: set[tuple[int, int]] = set()
        self._new = deque(events)

    def hear(self, event: Event) -> None:
        """Takes an event; any thread may call it."""
        self._new.append(event)

    def goodput(self, *, now: float) -> float:
        """The productive share of the time so far, as `account` tells it, but that after a clean stop is left out.

        A run that someone stopped for days would else be told of as one that loses its time.
        """
        if (known := self._catch_up()) is None:
            return 0.0
        walk = copy(known)
        walk.seconds = dict(walk.seconds)
        walk.spend(until=now, on=walk.category)
        walk.enter(walk.category)
        return walk.seconds["productive"] / ((sum(walk.seconds.values()) - walk.stopped_seconds) or 1.0)

    def unsaved_since(self) -> float:
        """Since when training would be lost, unix seconds: the newest checkpoint, or later the workers' own beginning.

        Workers begin with what is saved; where there is no event yet, it is when this was made.
        """
        self._catch_up()
        return self._saved

    def num_failures(self) -> int:
        """Worker groups that were lost."""
        walk = self._catch_up()
        return sum(failure.fatal for failure in walk.failures) if walk is not None else 0

    def num_skips(self) -> int:
        """Windows that are passed over."""
        self._catch_up()
        return len(self._skips)

    def _catch_up(self) -> "_Walk | None":
        while self._new:
            event = self._new.popleft()
            if self._walk is None:
                self._saved = event["time"]
                self._walk = _Walk(begin=event["time"])
            self._walk.take(event)
            if event["event"] in ("checkpoint", "group", "training"):
                self._saved = max(self._saved, event["time"])
            elif event["event"] == "skip":
                self._skips.add((event["epoch"], event["window"]))
        return self._walk


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
        self.stopped_seconds = 0.0  # those of `down` that follow a stop or the end
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
            if event["kind"] == "preemption" and not event["fatal"]:  # a notice: the group will end for it
                self.announced = "fault"
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
        if self.state != "running":
            self.stopped_seconds += seconds
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
