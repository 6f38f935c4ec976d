"""What a run will take, told before it begins: steps, memory, hours, cost, disk.

In: the configuration that the run would have. Out: a `Forecast`; with `run=` it is kept there. Refuses what `train`
would refuse of corpus, workers, the run's own checkpoints and weights to begin with; and more memory than a device has
and more checkpoints than the disk has room for, each with the nearest value that can be.
"""

import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Callable
from math import ceil, lcm
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import storage
from pipeline.config import CheckpointConfig, PlanConfig
from pipeline.corpus.lanes import LanePlan
from pipeline.corpus.manifest import VOCABULARY_NAME, Manifest, read_manifest
from pipeline.corpus.vocabulary import read_vocabulary
from pipeline.errors import ConfigError
from pipeline.run import checkpoint
from pipeline.run.folder import check_run_folder
from pipeline.run.ledger import read_events
from pipeline.run.plan import GB, HOUR_SECONDS, Forecast, Memory, shown_bytes, write_plan
from pipeline.runner import begins_at, check_room, check_splits, check_workers, with_places
from pipeline.training.tiling import epoch_order, fitted_model, lane_plan, total_steps

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LIMIT_SECONDS = 8.0  # from the call on; Python's own start and the answer come on top
TRIAL_SECONDS = 3.0  # of these, for steps that are tried
TRIED_PARAMETERS = 30_000_000  # a CPU needs a second or more for a step of a larger model


def plan(config: PlanConfig) -> Forecast:
    """Plans a run, and keeps the plan in its folder if it has one.

    Raises:
        ConfigError: it cannot be, does not fit, or its folder holds another run.
        CorpusError: the corpus is missing or lacks a split.
        CheckpointError: none of its checkpoints is whole, or there is none to begin with.
    """
    began = time.monotonic()
    config = with_places(config, needed=("data",))
    data, run = str(config.data), config.run
    manifest = read_manifest(data)
    config = config.model_copy(update={"model": fitted_model(config.model, vocab_size=manifest.vocab_size)})
    if run is not None:
        check_run_folder(run, data=data)
    check_splits(config, manifest)
    tiling = lane_plan(config, manifest)
    epoch_order(config, manifest)  # which refuses blocks that do not fit
    check_workers(config, None)
    check_room(config, manifest, None)
    steps, events = total_steps(config, tiling), [] if run is None else read_events(run)
    begins_at(config, manifest, total_steps=steps, events=events)
    found = _forecast(config, manifest, tiling, run=run, began=began)
    if run is not None:
        write_plan(run, found)
    return found


def _forecast(config: PlanConfig, manifest: Manifest, tiling: LanePlan, *, run: str | None, began: float) -> Forecast:
    """The numbers; refuses what does not fit before it tries the model out."""
    from pipeline.training import footprint
    from pipeline.training.parts import settle_numerics

    device, bf16 = footprint.device_here(config.accelerator), config.precision == "bf16"
    settle_numerics(bf16=bf16 and device == "cpu")
    counts_V = read_vocabulary(storage.join(str(config.data), VOCABULARY_NAME)).counts
    steps, world_size = total_steps(config, tiling), config.cluster.num_workers or 1
    model = footprint.shapes_of(config.model, vocab_size=manifest.vocab_size)
    parameters = footprint.count_parameters(model)
    bptt = tiling.longest_window
    activations = footprint.activation_bytes(config.model, counts_V=counts_V, bptt=bptt, bf16=bf16, device=device)
    backward = footprint.backward_bytes(config.model, counts_V=counts_V, bptt=bptt, bf16=bf16)
    available = footprint.device_memory_bytes(device)
    if config.plan.device_memory_gb is not None:
        available = round(config.plan.device_memory_gb * GB)
    fixed = _fixed_memory(footprint.weight_bytes(model), footprint.optimizer_bytes(config.optim, model.parameters()))
    memory = _fitting(config, fixed, activations, backward, available=available)
    checkpoint_bytes = footprint.checkpoint_bytes(model, config.optim, num_lanes=tiling.num_lanes)
    num_checkpoints = _num_checkpoints(config.checkpoint, total_steps=steps, steps_per_epoch=tiling.num_windows)
    free = None if run is None else _free_bytes(run)
    _check_disk(config.checkpoint, num_checkpoints, checkpoint_bytes, free=free, run=run, total_steps=steps)
    speed, measured = _speed(config, counts_V, device=device, num_parameters=parameters.total, began=began)
    words = tiling.tokens_seen(steps)
    hours = None if speed is None else words / speed / HOUR_SECONDS
    price = config.plan.price_per_hour
    return Forecast(
        total_steps=steps,
        steps_per_epoch=tiling.num_windows,
        epochs=steps / tiling.num_windows,
        total_words=words,
        num_lanes=tiling.num_lanes,
        world_size=world_size,
        lanes_per_rank=tiling.num_lanes // world_size,
        parameters=parameters,
        memory_bytes=memory,
        device_memory_bytes=available,
        checkpoint_bytes=checkpoint_bytes,
        checkpoint_every_steps=_interval(config, speed),
        num_checkpoints=num_checkpoints,
        disk_bytes=num_checkpoints * checkpoint_bytes,
        free_bytes=free,
        words_per_second=speed,
        hours=hours,
        price_per_hour=price,
        cost=None if price is None or hours is None else price * hours * world_size,
        measured=f"{measured}; activations as a {device} keeps them",
    )


def _fixed_memory(weights: int, optimizer: int) -> Memory:
    """What a device holds whatever the number of lanes."""
    total = 2 * weights + optimizer
    return Memory(weights=weights, gradients=weights, optimizer=optimizer, activations=0, backward=0, total=total)


def _fitting(
    config: PlanConfig,
    fixed: Memory,
    activations: Callable[[int], int],
    backward: Callable[[int], int],
    *,
    available: int | None,
) -> Memory:
    """The memory of a device, with what its lanes take, once it is known that the device has it."""

    def total(lanes: int) -> int:
        return fixed.total + activations(lanes) + backward(lanes)

    num_lanes, world_size = config.stream.num_lanes, config.cluster.num_workers or 1
    lanes = num_lanes // world_size
    of_lanes = {"activations": activations(lanes), "backward": backward(lanes)}
    memory = fixed.model_copy(update={**of_lanes, "total": fixed.total + sum(of_lanes.values())})
    if available is None or memory.total <= available:
        return memory
    parts = ", ".join(f"{name} {shown_bytes(size)}" for name, size in memory if name != "total")
    needs = f"a device has {shown_bytes(available)} and the run needs {shown_bytes(memory.total)} of it ({parts})"
    most = bisect_right(range(1, lanes), available, key=total)
    if most == 0:
        one_lane = total(1)
        raise ConfigError(
            f"{needs}; one lane takes {shown_bytes(one_lane)} already: use devices of"
            f" plan.device_memory_gb={ceil(one_lane / GB * 100) / 100:g} or a smaller model"
        )
    sizes = (each for each in range(world_size, num_lanes + 1) if num_lanes % each == 0)
    workers = next(each for each in sizes if num_lanes // each <= most)
    raise ConfigError(f"{needs}; use stream.num_lanes={most * world_size} or cluster.num_workers={workers}")


def _num_checkpoints(section: CheckpointConfig, *, total_steps: int, steps_per_epoch: int) -> int:
    """The most that lie on the disk at once, the one that is being written among them.

    Those that come by minutes may stand at any step.
    """
    validated = section.validate_every_steps or steps_per_epoch
    rhythms = (section.every_steps, validated, total_steps)
    spaced, validations = 0, (total_steps - 1) // validated  # that of the end is of the newest checkpoint
    if (every := section.keep_every_steps) is not None:
        spaced = _num_multiples(*(lcm(each, every) for each in rhythms), up_to=total_steps)
        validations -= (total_steps - 1) // lcm(validated, every)  # which are kept anyway
    saved = total_steps if section.every_minutes is not None else _num_multiples(*rhythms, up_to=total_steps)
    return min(section.keep_last + spaced + min(section.keep_best, validations) + 1, saved)


def _num_multiples(a: int, b: int, c: int, *, up_to: int) -> int:
    """How many numbers up to one are multiples of any of three."""
    one = sum(up_to // each for each in (a, b, c))
    two = sum(up_to // lcm(*each) for each in ((a, b), (a, c), (b, c)))
    return one - two + up_to // lcm(a, b, c)


def _check_disk(
    section: CheckpointConfig,
    num_checkpoints: int,
    size_bytes: int,
    *,
    free: int | None,
    run: str | None,
    total_steps: int,
) -> None:
    """Refuses more checkpoints than there is room for.

    Raises:
        ConfigError: names what would fit.
    """
    if free is None or num_checkpoints * size_bytes <= free:
        return
    room = free // size_bytes - 1  # one more is written before another is removed
    few = section.keep_last + section.keep_best
    needs = (
        f"run={run} has room for {shown_bytes(free)}, and {num_checkpoints} checkpoints of {shown_bytes(size_bytes)}"
        f" take {shown_bytes(num_checkpoints * size_bytes)}"
    )
    if room > few and section.keep_every_steps is not None:
        raise ConfigError(f"{needs}; use checkpoint.keep_every_steps={ceil(total_steps / (room - few))} or more")
    if room < 1:
        raise ConfigError(f"{needs}; use another run=FOLDER with room for {shown_bytes(2 * size_bytes)} at least")
    spaced = "checkpoint.keep_every_steps=null " if section.keep_every_steps is not None else ""
    best = min(section.keep_best, room - 1)
    raise ConfigError(f"{needs}; use {spaced}checkpoint.keep_last={room - best} checkpoint.keep_best={best}")


def _free_bytes(run: str) -> int | None:
    """What a run has room for: what is free, and what its checkpoints take already; of an object store nobody knows."""
    if not storage.is_local(run):
        return None
    there = next(path for path in (Path(run), *Path(run).parents) if path.exists())
    own = storage.list_files(storage.join(run, checkpoint.FOLDER))
    return shutil.disk_usage(there).free + sum(storage.size_bytes(path) for path in own)


def _speed(
    config: PlanConfig, counts_V: "NDArray[np.int64]", *, device: str, num_parameters: int, began: float
) -> tuple[float | None, str]:
    """Words per second of all ranks, and how they are known."""
    from pipeline.training import trial

    if config.plan.words_per_second is not None:
        return config.plan.words_per_second, "words/s as given"
    mend = "give plan.words_per_second="
    if config.accelerator == "cuda" and device != "cuda":
        return None, f"words/s are not known, as no GPU is here: {mend}"
    if device == "cpu" and num_parameters > TRIED_PARAMETERS:
        return None, f"words/s are not known, as the model is too large to be tried on this CPU: {mend}"
    world_size, cores = config.cluster.num_workers or 1, len(os.sched_getaffinity(0))
    here = world_size if config.cluster.kind != "ray" else 1  # workers that share the cores of this machine
    threads = config.cluster.cpus_per_worker or max(1, cores // here)
    lanes = config.stream.num_lanes // world_size
    left = LIMIT_SECONDS - (time.monotonic() - began)
    tried = trial.try_steps(
        config,
        counts_V=counts_V,
        lanes=lanes,
        device=device,
        num_threads=threads,
        budget_seconds=min(TRIAL_SECONDS, left),
        limit_seconds=left,
    )
    if tried is None:
        return None, f"words/s are not known, as this {device} has not the time or the memory to try some steps: {mend}"
    at_once = min(world_size, cores) if device == "cpu" and here > 1 else world_size
    speed = lanes * config.stream.bptt / tried.seconds * at_once
    return speed, f"words/s by steps of {tried.tried_lanes} of {lanes} lanes on this {device}"


def _interval(config: PlanConfig, speed: float | None) -> int:
    """Steps between checkpoints: as configured, or as many as the minutes allow."""
    section = config.checkpoint
    if speed is None or section.every_minutes is None:
        return section.every_steps
    steps_per_second = speed / (config.stream.num_lanes * config.stream.bptt)
    return max(1, min(section.every_steps, ceil(section.every_minutes * 60 * steps_per_second)))
