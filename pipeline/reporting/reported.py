"""What a report tells of one run: all that its folder and its corpus hold, read once.

In: run folders. Out: plain values; what cannot be reached is one line instead of its value. Refuses a folder without a
ledger, and one that is named twice. No tensor is read, but for a checkpoint of an earlier version.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipeline import storage
from pipeline.config import shown
from pipeline.corpus.manifest import Manifest, read_manifest
from pipeline.errors import ConfigError, PipelineError
from pipeline.run.account import Account, account
from pipeline.run.checkpoint import Mark, best_step, committed_steps, newest_mark, read_mark
from pipeline.run.folder import read_config
from pipeline.run.ledger import Event, events_of_run
from pipeline.run.plan import Forecast, read_plan
from pipeline.run.records import METRICS_NAME, Record, read_records

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Saved:
    """The marks of two checkpoints; the best by its validation, None without one."""

    last: Mark
    best: Mark | None


@dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """One run. Where a value could not be read, a line says why.

    Attributes:
        name: the last part of its folder, with as many before it as tell the runs of a report apart.
        folder: absolute where it is local.
        events: its ledger.
        records: its metrics, in file order.
        found: the account of its ledger.
        configuration: value by dotted key, as typed.
        manifest: of its corpus.
        saved: what it would go on from; None: nothing is saved.
        plan: what it was to take; None: it was not planned.
    """

    name: str
    folder: str
    events: list[Event]
    records: list[Record]
    found: Account
    configuration: dict[str, str] | str
    manifest: Manifest | str
    saved: Saved | str | None
    plan: Forecast | str | None

    @property
    def settings(self) -> dict[str, str]:
        """Its configuration; empty where that could not be read."""
        return {} if isinstance(self.configuration, str) else self.configuration

    @property
    def corpus(self) -> tuple[str, str] | None:
        """Fingerprints of its corpus and vocabulary: those of its checkpoints, else those of the corpus at hand."""
        if isinstance(self.saved, Saved):
            return self.saved.last.identity.get("corpus", ""), self.saved.last.identity.get("vocabulary", "")
        if isinstance(self.manifest, Manifest):
            return self.manifest.fingerprint, self.manifest.vocabulary_fingerprint
        return None


def read_runs(folders: Sequence[str], *, now: float) -> list[ReportedRun]:
    """Reads each run.

    Args:
        folders: of the runs, no two of them the same.
        now: unix seconds.

    Raises:
        ConfigError: a folder is named twice, or is none of a run.
    """
    return [_read(place, name=name, now=now) for name, place in named("runs", folders).items()]


def named(key: str, folders: Sequence[str]) -> dict[str, str]:
    """Folders of runs, absolute where they are local, by the shortest ends of their paths that differ.

    Args:
        key: that names them.
        folders: as typed.

    Raises:
        ConfigError: a folder is named twice.
    """
    places = [storage.absolute(folder).rstrip("/") for folder in folders]
    known: set[str] = set()
    for folder, place in zip(folders, places, strict=True):
        if (there := storage.canonical(place)) in known:
            raise ConfigError(f"{key}=[{','.join(folders)}] names {folder} twice; name each run once")
        known.add(there)
    return dict(zip(_names(places), places, strict=True))


def _names(places: Sequence[str]) -> list[str]:
    """The shortest ends of the paths that differ from each other."""
    parts = [place.split("/") for place in places]
    ends = (["/".join(each[-length:]) for each in parts] for length in range(1, max(map(len, parts)) + 1))
    return next(names for names in ends if len({*names}) == len(names))


def _read(folder: str, *, name: str, now: float) -> ReportedRun:
    events = events_of_run(folder)
    configuration = _or_why(lambda: shown(read_config(folder)))
    data = None if isinstance(configuration, str) else configuration["data"]
    return ReportedRun(
        name=name,
        folder=folder,
        events=events,
        records=read_records(storage.join(folder, METRICS_NAME)),
        found=account(events, now=now),
        configuration=configuration,
        manifest="its folder is not known" if data is None else _or_why(lambda: read_manifest(data)),
        saved=_or_why(lambda: _saved(folder)),
        plan=_or_why(lambda: read_plan(folder)),
    )


def _saved(folder: str) -> Saved | None:
    if (last := newest_mark(folder, finite=False, saved=())) is None:
        return None
    best = best_step(last.validations, committed_steps(folder))
    return Saved(last=last, best=None if best is None else read_mark(folder, best))


def _or_why(read: Callable[[], Value]) -> Value | str:
    try:
        return read()
    except PipelineError as error:
        return " ".join(str(error).split())
