"""A run's numbers of this moment as Prometheus takes them: one set of names, whoever hands them on.

In: a record, and where the run stands. Out: samples; and a text file for node-exporter's textfile collector. Ray's own
way out is in the Ray backend. Refuses nothing: a folder that cannot be written to is for the caller to tell of.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.run.account import Standing
from pipeline.run.records import SAMPLED_LOSS, SPEED, Record

log = logging.getLogger(__name__)

PREFIX = "wordlanes_"
REFRESH_SECONDS = 10.0  # between two looks at steps that are not recorded

GAUGES: dict[str, str] = {  # name, without the prefix → what it says
    "step": "Updates made.",
    "total_steps": "Updates at the end of the run.",
    "tokens_seen": "Targets that these updates were made of.",
    "last_step_timestamp_seconds": "When this worker last was between two steps, unix time.",
    "checkpoint_timestamp_seconds": "When the newest checkpoint was written, or later its workers began, unix time.",
    "attempt": "Number of this call of the train command.",
    "failures_total": "Worker groups that this run has lost, over all attempts.",
    "skipped_windows_total": "Windows of text that were passed over for a bad loss.",
    "goodput_ratio": "Share of the run's time, without that after a clean stop, spent on steps that count.",
    "perplexity": "Of the steps since the last record.",
    "sampled_loss": "Of a target since the last record, of an output layer that trains on some words alone.",
    "gradient_norm": "Of the last step, before clipping.",
    "not_finite": "How many of loss, perplexity, gradient norm and validation were not finite when last recorded.",
    "learning_rate": "Of the last step.",
    "tokens_per_second": "Targets a second since the last record, validations left out.",
    "valid_perplexity": "Of the last validation.",
    "cluster_nats": "Nats of a target, by cluster of the softmax.",
    "cluster_share": "Share of the targets, by cluster of the softmax.",
}
MEASURED = {  # key of a record → name
    "train/perplexity": "perplexity",
    SAMPLED_LOSS: "sampled_loss",
    "train/gradient_norm": "gradient_norm",
    "train/learning_rate": "learning_rate",
    SPEED: "tokens_per_second",
    "valid/perplexity": "valid_perplexity",
}
BY_CLUSTER = {"train/cluster_nats": "cluster_nats", "train/cluster_share": "cluster_share"}


class Sample(NamedTuple):
    """One number.

    Attributes:
        name: of `GAUGES`.
        labels: which run it is of, and for some names which cluster of the softmax.
        value: finite.
    """

    name: str
    labels: Mapping[str, str]
    value: float


Sink = Callable[[Sequence[Sample]], None]  # takes all samples of a moment


def samples(values: Mapping[str, float], record: Record, *, labels: Mapping[str, str]) -> list[Sample]:
    """The samples of a moment, in the order of `GAUGES`.

    Args:
        values: where the run stands, by name.
        record: the newest value of each key that was recorded; None is no sample: Ray drops NaN.
        labels: of the run.
    """
    values = dict(values) | {"not_finite": sum(record.get(key, 0) is None for key in MEASURED)}
    found = [Sample(name, labels, value) for name, value in values.items()]
    for key, value in record.items():
        prefix, _, cluster = key.rpartition("/")
        if value is not None and (name := MEASURED.get(key)):
            found.append(Sample(name, labels, value))
        elif value is not None and (name := BY_CLUSTER.get(prefix)):
            found.append(Sample(name, {**labels, "cluster": cluster}, value))
    order = [*GAUGES]
    return sorted(found, key=lambda sample: order.index(sample.name))


def exposition(found: Sequence[Sample]) -> str:
    """Samples, sorted by name, in Prometheus' text format; without times of their own, which node-exporter refuses."""
    lines, last = [], ""
    for name, labels, value in found:
        if name != last:
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP {PREFIX}{name} {GAUGES[name]}", f"# TYPE {PREFIX}{name} {kind}"]
        written = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        lines.append(f"{PREFIX}{name}{{{written}}} {float(value)!r}")
        last = name
    return "".join(f"{line}\n" for line in lines)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class TextFile:
    """`wordlanes-<identity>.prom` in node-exporter's folder: written whole, readable by all, removed at the end.

    It is written anew every some seconds, so nothing is flushed to the disk. node-exporter reads `*.prom` alone, and so
    never the temporary file.

    Args:
        folder: of node-exporter's textfile collector.
        identity: of the run; two runs that report to one folder have two.
    """

    def __init__(self, folder: str, *, identity: str) -> None:
        self._path = Path(folder, f"wordlanes-{identity}.prom")
        self._temporary = self._path.with_suffix(f".{os.getpid()}")

    def __call__(self, found: Sequence[Sample]) -> None:
        """Replaces the file; raises OSError where the folder is not there or cannot be written to."""
        self._temporary.write_text(exposition(found), encoding="utf-8")
        self._temporary.chmod(0o644)
        self._temporary.replace(self._path)

    def remove(self) -> None:
        """Leaves nothing: the run has ended, or its next group of workers writes a file of its own."""
        for path in (self._path, self._temporary):
            path.unlink(missing_ok=True)


class Gauges:
    """Hands a run's numbers on with each record, and now and then between two of them. The first rank has it.

    Args:
        sinks: who takes them; one that fails is told of once, and gets the next ones all the same.
        labels: of the run.
        total_steps, attempt: of the run.
        standing: what its ledger tells.
        on_failure: told why a sink failed.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        *,
        labels: Mapping[str, str],
        total_steps: int,
        attempt: int,
        standing: Standing,
        on_failure: Callable[[str], None],
    ) -> None:
        self._sinks = sinks
        self._labels = labels
        self._constant = {"total_steps": total_steps, "attempt": attempt}
        self._standing = standing
        self._on_failure = on_failure
        self._warned = False
        self._newest: Record = {}
        self._due = 0.0

    def show(self, step: int, record: Record, *, tokens_seen: int) -> None:
        """Hands on where the run stands after a step; `record` is empty where the step is not logged."""
        if not self._sinks or (not record and time.monotonic() < self._due):
            return
        self._due = time.monotonic() + REFRESH_SECONDS
        self._newest |= record
        now, standing = time.time(), self._standing
        values = self._constant | {
            "step": step,
            "tokens_seen": tokens_seen,
            "last_step_timestamp_seconds": now,
            "checkpoint_timestamp_seconds": standing.unsaved_since(),
            "failures_total": standing.num_failures(),
            "skipped_windows_total": standing.num_skips(),
            "goodput_ratio": standing.goodput(now=now),
        }
        found = samples(values, self._newest, labels=self._labels)
        for sink in self._sinks:
            self._tried(lambda sink=sink: sink(found))  # type: ignore[misc]

    def close(self) -> None:
        """Leaves no file behind."""
        for sink in self._sinks:
            if isinstance(sink, TextFile):
                self._tried(sink.remove)

    def _tried(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 whatever Ray or a disk raises, training goes on; it is told below
            if not self._warned:
                cause = f"monitoring lacks this run's numbers: {type(error).__name__}: {error}"
                log.warning("%s; training goes on", cause)
                self._on_failure(cause)
            self._warned = True
