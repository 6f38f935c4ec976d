"""`python -m jobs plan`: what a run will take, before a machine is paid for.

In: what `train` would be given, and the keys of `plan`. Out: a table, or one JSON object; with `run=` it is kept there
as `plan.json`. Refuses what cannot be or does not fit, with the nearest value that does.
"""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from pipeline.config import PlanConfig, load
from pipeline.planning import plan
from pipeline.run.plan import Forecast, Parameters, shown_bytes


def main(arguments: Sequence[str]) -> None:
    """Plans the run and prints the plan."""
    config = load(PlanConfig, [each for each in arguments if each != "--json"], name="plan")
    forecast = plan(config)
    if "--json" in arguments:
        print(forecast.model_dump_json())
    else:
        Console().print(_table(forecast))


def _table(found: Forecast) -> Table:
    table = Table(show_header=False)
    for name, value in _rows(found):
        table.add_row(name, value)
    return table


def _rows(found: Forecast) -> list[tuple[str, str]]:
    """What is known, a name and a text each."""
    memory = found.memory_bytes
    parts = ", ".join(f"{name} {shown_bytes(size)}" for name, size in memory if name != "total")
    of_device = "" if found.device_memory_bytes is None else f" of {shown_bytes(found.device_memory_bytes)}"
    free = "not known" if found.free_bytes is None else shown_bytes(found.free_bytes)
    each = f"{found.world_size:,} devices, {found.lanes_per_rank:,} on each"
    devices = "1 device" if found.world_size == 1 else each
    rows = [
        ("steps", f"{found.total_steps:,}, {found.steps_per_epoch:,} an epoch, {found.epochs:.4g} epochs"),
        ("lanes", f"{found.num_lanes:,} on {devices}"),
        ("parameters", _parameters(found.parameters)),
        ("memory of a device", f"{shown_bytes(memory.total)}{of_device}: {parts}"),
        (
            "checkpoint",
            f"{shown_bytes(found.checkpoint_bytes)}, every {found.checkpoint_every_steps:,} steps or sooner",
        ),
        ("disk", f"{shown_bytes(found.disk_bytes)} for {found.num_checkpoints} checkpoints; free: {free}"),
        ("words/s", "not known" if found.words_per_second is None else f"{found.words_per_second:,.0f}"),
        ("hours", "not known" if found.hours is None else f"{found.hours:,.2f}"),
    ]
    if found.price_per_hour is not None:
        cost = "not known" if found.cost is None else f"{found.cost:,.2f}"
        rows.append(("cost", f"{cost} at {found.price_per_hour:g} an hour and device"))
    return [*rows, ("known by", found.measured)]


def _parameters(found: Parameters) -> str:
    parts = ", ".join(f"{name} {number:,}" for name, number in found if name != "total")
    return f"{found.total:,}: {parts}"
