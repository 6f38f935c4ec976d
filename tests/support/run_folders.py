"""Run folders that are written, not trained: a ledger, metrics and the mark of a checkpoint, as a run leaves them."""

import json
from collections.abc import Sequence
from typing import Any

from pipeline import storage

Line = dict[str, Any]
BEGIN = 1_700_000_000.0  # unix seconds of the first event


def event(name: str, seconds: float, /, *, attempt: int = 1, **fields: Any) -> Line:
    """An event of a ledger, some seconds after the first."""
    return {"event": name, "time": BEGIN + seconds, "attempt": attempt, **fields}


def start(seconds: float, *, attempt: int = 1, step: int = 0, total: int = 100, **more: Any) -> Line:
    return event("start", seconds, attempt=attempt, command_step=step, total_steps=total, cluster="none", **more)


def group(seconds: float, *, attempt: int = 1, step: int = 0, reached: int = 0, size: int = 1) -> Line:
    return event("group", seconds, attempt=attempt, step=step, reached_step=reached, world_size=size, checkpoint=None)


def record(step: int, **values: float | None) -> Line:
    """A record of a training step of 100 tokens, whose loss falls; `valid` adds a validation's nats per token."""
    train = {"train/nats_per_token": 6.0 - step / 1000, "speed/tokens_per_second": 1000.0}
    named = {"valid": "valid/nats_per_token"}
    return (
        {"step": step, "tokens_seen": 100 * step, "epoch": 0} | train | {named.get(k, k): v for k, v in values.items()}
    )


def write_run(
    run: str, *, events: Sequence[Line], records: Sequence[Line] = (), saved: Line | None = None, config: str = ""
) -> str:
    """Leaves the files of a run in a folder, on a disk or in an object store; returns the folder.

    Args:
        run: the folder.
        events, records: lines of the ledger and of the metrics.
        saved: values of the mark of a checkpoint of 4 bytes, by name; at least its step.
        config: text of its configuration; none: it has none.
    """
    for name, lines in (("events.jsonl", events), ("metrics.jsonl", records)):
        if lines:
            storage.publish_bytes(storage.join(run, name), "".join(json.dumps(line) + "\n" for line in lines).encode())
    if saved is not None:
        mark = {
            "sha256": "a" * 64,
            "size_bytes": 4,
            "identity": {"corpus": "1" * 64, "vocabulary": "2" * 64},
            "validations": {},
            "tokens_seen": 0,
            "world_size": 1,
        } | saved
        path = storage.join(run, "checkpoints", f"step-{mark['step']}")
        storage.publish_bytes(f"{path}.ckpt", b"ckpt")
        storage.publish_bytes(f"{path}.json", json.dumps(mark).encode())
    if config:
        storage.publish_bytes(storage.join(run, "config.yaml"), config.encode())
    return run
