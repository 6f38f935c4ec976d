"""The plan of a run, `plan.json` in its folder: what the run was to take, told before it began, and how it came to be.

In: the numbers that `pipeline/planning.py` works out. Out: the file, the numbers again, and plan beside fact as rows of
text. Refuses a file that is no plan.
"""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from pipeline import storage
from pipeline.config import Section, validated
from pipeline.errors import ConfigError
from pipeline.run.account import Account
from pipeline.run.ledger import Event
from pipeline.run.records import Record

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

    `activations` is what the backward pass needs of the forward pass, logits included. What lives shorter, as the
    gradient of the logits, comes on top.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
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


def compared(forecast: Forecast, *, found: Account, events: Sequence[Event], records: Sequence[Record]) -> list[Row]:
    """Plan and fact side by side.

    Args:
        forecast: the plan.
        found: the account of the run.
        events: its ledger, for the sizes of checkpoints.
        records: its metrics, for the speed.
    """
    speeds = [speed for record in records if (speed := record.get("speed/tokens_per_second"))]
    speed = median(speeds) if speeds else None
    hours = sum(found.seconds.values()) / HOUR_SECONDS
    left = _hours_left(forecast, found, speed)
    sizes = [event["size_bytes"] for event in events if event["event"] == "checkpoint"]
    rows = [
        Row("steps", f"{forecast.total_steps:,}", f"{found.step:,} of {found.total_steps or forecast.total_steps:,}"),
        Row("workers", f"{forecast.world_size}", _or_unknown(found.world_size, "{}")),
        Row("words/s", _or_unknown(forecast.words_per_second, "{:,.0f}"), _or_unknown(speed, "{:,.0f}")),
        Row(
            "hours", _or_unknown(forecast.hours, "{:,.2f}"), f"{hours:,.2f} so far, {_or_unknown(left, '{:,.2f}')} left"
        ),
        Row("checkpoint", shown_bytes(forecast.checkpoint_bytes), shown_bytes(max(sizes)) if sizes else "none yet"),
    ]
    if forecast.price_per_hour is not None:
        cost = forecast.price_per_hour * (found.world_size or forecast.world_size) * hours
        rows.append(Row("cost", _or_unknown(forecast.cost, "{:,.2f}"), f"{cost:,.2f} so far"))
    return rows


def shown_bytes(num_bytes: float) -> str:
    """A size as people read it: decimal, as disks and GPUs are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.0f} TB" if num_bytes >= 1000 else f"{num_bytes:.3g} TB"


def _hours_left(forecast: Forecast, found: Account, speed: float | None) -> float | None:
    """Hours that the steps that are left take at the speed so far, or at the planned one."""
    speed = speed or forecast.words_per_second
    total_steps = found.total_steps or forecast.total_steps
    if speed is None:
        return None
    words_per_step = forecast.total_words / forecast.total_steps
    return max(0, total_steps - found.step) * words_per_step / speed / HOUR_SECONDS


def _or_unknown(value: float | None, shown: str) -> str:
    return "not known" if value is None else shown.format(value)
