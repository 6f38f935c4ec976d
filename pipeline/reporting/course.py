"""The course of a run as rows for charts: what was measured, by step, by tokens and by hours since the first event.

In: records and events. Out: plain rows, few enough to draw; the time of a step is that of its last making, as the
ledger's signs of life tell it. Refuses nothing.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import numpy as np

from pipeline.run.account import Account
from pipeline.run.ledger import Event
from pipeline.run.plan import HOUR_SECONDS
from pipeline.run.records import SPEED, Record, step_of

Row = dict[str, str | int | float]

MOST_POINTS = 1000  # of a curve: more than a screen has
NATS, VALID_NATS = "train/nats_per_token", "valid/nats_per_token"
CLUSTER_NATS, CLUSTER_SHARE = "train/cluster_nats/", "train/cluster_share/"
LARGEST_NATS = 50.0  # beyond which a perplexity is no number that an axis can hold


def step_hours(steps: Sequence[int], events: Sequence[Event]) -> list[float | None]:
    """When each step was made, in hours since the first event; None where the ledger has no time of any step.

    A group that begins at a step makes what followed it anew, so only what was made last counts. Between two signs of
    life time passes evenly.
    """
    if not events or not (anchors := _anchors(events)):
        return [None] * len(steps)
    known, times = zip(*anchors, strict=True)
    begin = events[0]["time"]
    return [float(time - begin) / HOUR_SECONDS for time in np.interp(steps, known, times)]


def _anchors(events: Iterable[Event]) -> list[tuple[float, float]]:
    """(step, unix seconds) of each sign of life that still counts, rising in both."""
    anchors: list[tuple[float, float]] = []
    attempt = first_step = 0
    for event in events:
        name, time = event["event"], event["time"]
        if event["attempt"] < attempt:
            continue  # a worker that outlived its attempt
        attempt = event["attempt"]
        if name == "group":
            first_step = event["step"]
            anchors = _up_to(first_step, anchors)
        elif name == "training":
            anchors.append((first_step + 1e-3, time))  # the step itself was made before, by the group before
        elif name in ("progress", "validation", "stop", "end") and anchors and event["step"] >= anchors[-1][0]:
            anchors.append((event["step"], max(time, anchors[-1][1])))
    return anchors


def _up_to(step: int, anchors: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """What remains of the anchors when steps beyond one are made again, with the time of that step itself."""
    before = [each for each in anchors if each[0] < step]
    if len(before) == len(anchors):
        return before
    known, times = zip(*anchors, strict=True)
    return [*before, (step, float(np.interp(step, known, times)))]


def thinned(records: Sequence[Record], key: str, *, most: int = MOST_POINTS) -> list[Record]:
    """At most that many records, in their order, the first and the last among them.

    Of each stretch the records with the lowest and the highest value stay, so that no spike is lost.

    Args:
        records: each of which has the key.
        key: of the value that is drawn.
        most: at least 4.
    """
    if len(records) <= most:
        return list(records)
    inner = records[1:-1]
    bounds = [round(len(inner) * part / (most // 2 - 1)) for part in range(most // 2)]
    kept = {0, len(records) - 1}
    for start, stop in pairwise(bounds):
        stretch = sorted(range(start, stop), key=lambda place: _number(inner[place], key))
        kept |= {1 + stretch[0], 1 + stretch[-1]}
    return [records[place] for place in sorted(kept)]


def data_sets(
    name: str, *, records: Sequence[Record], events: Sequence[Event], found: Account, most: int = MOST_POINTS
) -> dict[str, list[Row]]:
    """The rows of a run, by name of data set; each has the field `run`.

    `training` and `validations` have step, tokens, hours and perplexity; `clusters` besides cluster, nats and share;
    `course` has hours and either speed and attempt or an event; `goodput` has seconds and share of each category. What
    is not known is left out of a row.

    Args:
        name: of the run.
        records: of the run.
        events: of its ledger, at least one.
        found: the account of it.
        most: rows of a curve.
    """

    def rows(key: str, values: Callable[[Record], Row]) -> list[Row]:
        kept = thinned([record for record in records if record.get(key) is not None], key, most=most)
        hours = step_hours([step_of(record) for record in kept], events)
        return [
            {"run": name, **({} if hour is None else {"hours": _short(hour)}), **values(record)}
            for record, hour in zip(kept, hours, strict=True)
        ]

    return {
        "training": rows(NATS, partial(_curve, key=NATS)),
        "validations": rows(VALID_NATS, partial(_curve, key=VALID_NATS)),
        "clusters": [
            row
            for each in _cluster_names(records)
            for row in rows(CLUSTER_NATS + each, partial(_cluster, cluster=each))
        ],
        "course": [*rows(SPEED, _speed), *_marks(name, found=found, events=events)],
        "goodput": list(_goodput(name, found)),
    }


def last_of_clusters(records: Sequence[Record]) -> Iterator[tuple[str, float, float | None]]:
    """Name, nats per target and share of the targets of each cluster of the softmax, where they were measured last."""
    for name in _cluster_names(records):
        last = next((each for each in reversed(records) if each.get(CLUSTER_NATS + name) is not None), None)
        if last is not None:
            yield name, _number(last, CLUSTER_NATS + name), last.get(CLUSTER_SHARE + name)


def _cluster_names(records: Sequence[Record]) -> list[str]:
    keys = {key for record in records for key in record if key.startswith(CLUSTER_NATS)}
    return sorted(key.removeprefix(CLUSTER_NATS) for key in keys)


def _curve(record: Record, *, key: str) -> Row:
    nats = _number(record, key)
    return _place(record) | ({"perplexity": _short(math.exp(nats))} if nats < LARGEST_NATS else {})


def _speed(record: Record) -> Row:
    return {"speed": _short(_number(record, SPEED)), "attempt": _number(record, "run/attempt")}


def _cluster(record: Record, *, cluster: str) -> Row:
    nats, share = record[CLUSTER_NATS + cluster], record.get(CLUSTER_SHARE + cluster)
    values = {"nats": nats, "share": share}
    return (
        _place(record) | {"cluster": cluster} | {key: _short(each) for key, each in values.items() if each is not None}
    )


def _place(record: Record) -> Row:
    return {"step": step_of(record), "tokens": _number(record, "tokens_seen")}


def _marks(name: str, *, found: Account, events: Sequence[Event]) -> list[Row]:
    """What happened to a run: starts of the command, faults, stops, resizes and skipped windows, by hours."""
    begin = events[0]["time"]

    def row(time: float, kind: str, what: str) -> Row:
        return {"run": name, "hours": _short(max(time - begin, 0.0) / HOUR_SECONDS), "event": kind, "what": what}

    return [
        *(row(fault.time, "fault", f"{fault.kind} at step {fault.step}: {fault.cause}") for fault in found.failures),
        *(row(event["time"], *told) for event in events if (told := _told(event)) is not None),
    ]


def _told(event: Event) -> tuple[str, str] | None:
    match event["event"]:
        case "start":
            return "start", f"attempt {event['attempt']} from step {event['command_step']}"
        case "stop":
            return "stop", f"at step {event['step']}: {event['cause']}"
        case "resize":
            return "resize", f"from {event['from_size']} to {event['to_size']} workers"
        case "skip":
            return "skip", f"{event['num_tokens']:,} tokens after step {event['step']}"
    return None


def _goodput(name: str, found: Account) -> Iterator[Row]:
    """Where the time of a run went: a row for each category, of seconds and share."""
    for order, (category, share) in enumerate(found.shares.items()):
        seconds = found.seconds[category]
        yield {"run": name, "category": category, "order": order, "seconds": _short(seconds), "share": _short(share)}


def _number(record: Record, key: str) -> float | int:
    value = record.get(key)
    return 0 if value is None else value


def _short(number: float) -> float:
    """Five digits: what a chart can show, at half the size of the page."""
    return float(f"{number:.5g}")
