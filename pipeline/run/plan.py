"""The plan of a run, `plan.json` in its folder: what the run was to take, told before it began, and how it came to be.

In: the numbers that `pipeline/planning.py` works out. Out: the file, the numbers again, and plan beside fact as rows of
text. Refuses a file that is no plan.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from pipeline import storage
from pipeline.config import Section, validated
from pipeline.errors import ConfigError
from pipeline.run.account import Account, steps_per_second
from pipeline.run.ledger import Event
from pipeline.run.records import Record, speed_of, step_of

PLAN_NAME = "plan.json"
GB = 1e9
HOUR_SECONDS = 3600.0


class Parameters(Section):
    """How many parameters the parts of the model have; those of a tied softmax are counted as the embedding's."""

    embedding: int
    recurrence: int
    softmax: int
    total: int


class Memory(Section):
    """What a device holds during a step, in bytes.

    `activations` is what the backward pass needs of the forward pass, logits included; `backward` is what it adds while
    all of them are still there: the gradients of the largest logits and of their log-probabilities.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    backward: int
    total: int


class Forecast(Section):
    """What a run will take; None where it is not known."""

    total_steps: int
    """Optimizer steps of the whole run."""
    steps_per_epoch: int
    """Steps in which the training text is read once."""
    epochs: float
    """How often it is read."""
    total_words: int
    """Targets of all steps, over all ranks."""
    num_lanes: int
    """Rows of the global batch."""
    world_size: int
    """Training processes, one for each device."""
    lanes_per_rank: int
    """Rows of the batch on one device."""
    parameters: Parameters
    """By part of the model."""
    memory_bytes: Memory
    """Of one device."""
    device_memory_bytes: int | None
    """What a device has."""
    checkpoint_bytes: int
    """Size of one checkpoint."""
    checkpoint_every_steps: int
    """Steps between two of them, at most."""
    num_checkpoints: int
    """Checkpoints on the disk at once, at most: those that are kept, and the one that is being written."""
    disk_bytes: int
    """What these take."""
    free_bytes: int | None
    """What is free where the run folder lies."""
    words_per_second: float | None
    """Speed of all ranks together."""
    hours: float | None
    """Time of the steps; starts, validations and checkpoints come on top."""
    price_per_hour: float | None
    """Of one device."""
    cost: float | None
    """Price of all devices for these hours."""
    measured: str
    """How speed and activations are known."""


class Row(NamedTuple):
    """One thing that was planned, and what it came to so far; both as people read them."""

    name: str
    planned: str
    fact: str


def write_plan(run: str, forecast: Forecast) -> None:
    """Leaves the plan in a run folder, which is made if need be; an earlier plan is replaced."""
    storage.publish_bytes(storage.join(run, PLAN_NAME), forecast.model_dump_json(indent=2).encode() + b"\n")


def read_plan(run: str) -> Forecast | None:
    """The plan of a run folder; None if it was not planned.

    Raises:
        ConfigError: the file is no plan of this version.
    """
    path = storage.join(run, PLAN_NAME)
    text = storage.read_or_nothing(path)
    if not text:
        return None
    try:
        return validated(Forecast, text.decode(errors="replace"))
    except ConfigError as error:
        raise ConfigError(f"{path} is no plan ({error}); remove it, or plan again with run={run}") from error


def compared(
    forecast: Forecast,
    *,
    found: Account,
    events: Sequence[Event],
    words_per_second: float | None,
    hours_left: float | None,
) -> list[Row]:
    """Plan and fact side by side; the time that a run was down is none of its hours.

    Args:
        forecast: the plan.
        found: the account of the run.
        events: its ledger, for the sizes of checkpoints.
        words_per_second: of all ranks together; None: not known.
        hours_left: None: the run does not go on, or nothing tells it yet.
    """
    hours = (math.fsum(found.seconds.values()) - found.seconds["down"]) / HOUR_SECONDS
    left = "" if hours_left is None else f", {hours_left:,.2f} left"
    sizes = [event["size_bytes"] for event in events if event["event"] == "checkpoint"]
    planned_speed, speed = (_or_unknown(each, "{:,.0f}") for each in (forecast.words_per_second, words_per_second))
    rows = [
        Row("steps", f"{forecast.total_steps:,}", f"{found.step:,} of {found.total_steps or forecast.total_steps:,}"),
        Row("workers", f"{forecast.world_size}", _or_unknown(found.world_size, "{}")),
        Row("words/s", planned_speed, speed),
        Row("hours", _or_unknown(forecast.hours, "{:,.2f}"), f"{hours:,.2f} so far{left}"),
        Row("checkpoint", shown_bytes(forecast.checkpoint_bytes), shown_bytes(max(sizes)) if sizes else "none yet"),
    ]
    if forecast.price_per_hour is not None:
        cost = forecast.price_per_hour * (found.world_size or forecast.world_size) * hours
        rows.append(Row("cost", _or_unknown(forecast.cost, "{:,.2f}"), f"{cost:,.2f} so far"))
    return rows


def seconds_left(found: Account, *, events: Sequence[Event], records: Sequence[Record]) -> float | None:
    """Seconds that the remaining steps take at the pace of now; None: nothing tells it yet.

    By the pace that the ledger tells, else by the words of a step and the speed.

    Args:
        found: the account of a run that goes on.
        events: its ledger.
        records: of its metrics, for the speed.
    """
    if found.total_steps is None:
        return None
    pace = steps_per_second(events)
    if pace is None and (speed := speed_of(records)) and len(records) > 1:
        first, last = records[0], records[-1]
        steps, tokens = step_of(last) - step_of(first), (last.get("tokens_seen") or 0) - (first.get("tokens_seen") or 0)
        pace = speed * steps / tokens if steps > 0 and tokens > 0 else None
    return None if pace is None else max(found.total_steps - found.step, 0) / pace


def shown_bytes(num_bytes: float) -> str:
    """A size as people read it: decimal, as disks and GPUs are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.0f} TB" if num_bytes >= 1000 else f"{num_bytes:.3g} TB"


def _or_unknown(value: float | None, shown: str) -> str:
    return "not known" if value is None else shown.format(value)
