"""Weights & Biases: a copy of what a run records, which may fail without the run noticing.

In: records, alerts, where files lie. Out: the run's page, sent or kept offline. `metrics.jsonl` is the truth; a tracker
that fails is dropped with a warning and never stops training.
"""

import logging
import math
import re
import shlex
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline import storage
from pipeline.config import TrackingConfig
from pipeline.masking import last_name, masked
from pipeline.run.records import SAMPLED_LOSS, Record
from pipeline.run.tracking import sync_line, tracking_id

log = logging.getLogger(__name__)

PROJECT = "wordlanes"  # on the dashboard, where nobody names another
SERVER_SECONDS = 60.0  # for its server, at a run's start and at its end
MOST_NAME = 128  # characters in the name of an artifact
# those of whose values the summary has the least of the whole run, as KEY_min, beside the last
BEST = (
    "train/nats_per_token",
    "train/perplexity",
    SAMPLED_LOSS,
    "valid/nats_per_token",
    "valid/perplexity",
)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Files that a run reads or leaves; they stay where they are, and nobody reads them to tell of them.

    Attributes:
        kind: what they are, such as `corpus`.
        name: of the whole; what a dashboard does not take in it is for the tracker to replace.
        files: place by name.
        metadata: with the sha256 that we know of each.
        aliases: by which this version of them is found.
    """

    kind: str
    name: str
    files: Mapping[str, str]
    metadata: dict[str, Any]
    aliases: tuple[str, ...] = ()


class Tracker(Protocol):
    """A dashboard."""

    def log(self, record: Record) -> None:
        """Takes a record."""

    def alert(self, title: str, text: str) -> None:
        """Tells whoever waits for the run that something is wrong with it."""

    def refer(self, files: Callable[[], Reference | None]) -> None:
        """Takes down where files lie; `files` is asked only where there is a dashboard."""

    def finish(self) -> None:
        """No record follows."""


class NoTracker:
    """No dashboard."""

    def log(self, record: Record) -> None:
        """Passes the record over."""

    def alert(self, title: str, text: str) -> None:
        """Passes the alert over."""

    def refer(self, files: Callable[[], Reference | None]) -> None:
        """Asks for nothing."""

    def finish(self) -> None:
        """Nothing to finish."""


class WandbTracker:
    """Weights & Biases, with `tokens_seen` as the axis: a resumed run may see a step twice, a token count is a place.

    What the configuration leaves null is wandb's own to find, from WANDB_MODE, WANDB_PROJECT and the like or from its
    settings files; without a mode it is online if a key is configured. Identity and folder are always the run's.
    Where the server does not answer, records are kept offline, for `wandb sync` to send later.

    Args:
        tracking: the section.
        run: the run folder; wandb's own files go there.
        config: what the run's page shows as its configuration.
        group: of runs, where neither the configuration nor wandb's own settings name one.
        before: the records of earlier attempts that this one goes on from.
        report: told why records that were to be sent are kept offline.
    """

    def __init__(
        self,
        tracking: TrackingConfig,
        *,
        run: str,
        config: dict[str, Any],
        group: str,
        before: Iterable[Record] = (),
        report: Callable[[str], None],
    ) -> None:
        import wandb

        quiet = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            init_timeout=SERVER_SECONDS,
            finish_timeout=SERVER_SECONDS,
            finish_timeout_raises=True,
        )
        settings = wandb.setup(quiet).settings
        mode = tracking.mode or (settings.mode if "mode" in settings.model_fields_set else None)
        self._elsewhere: str | None = None
        self._least: dict[str, float] = {}
        for record in before:
            self._lower(record)
        if mode == "disabled":
            self._run = wandb.init(mode=mode)
            return
        if not storage.is_local(run):
            self._elsewhere = tempfile.mkdtemp(prefix="wandb-")

        def start(mode: Any) -> wandb.Run:  # one of wandb's words
            return wandb.init(
                project=tracking.project or settings.project or PROJECT,
                name=settings.run_name or last_name(run),
                group=tracking.group or settings.run_group or group,
                tags=[*tracking.tags] or settings.run_tags,
                id=tracking_id(run),
                dir=self._elsewhere or run,
                mode=mode,
                resume="allow",  # offline too: else each part of a run would be sent as if it were the first
                config=config,
                settings=quiet,
            )

        started = None
        if mode not in ("offline", "dryrun"):
            try:
                if wandb.login(prompt=False):
                    started = start(mode or "online")
                elif mode is not None:
                    report("records are kept offline: no key of Weights & Biases is configured")
            except wandb.Error as error:
                report(f"records are kept offline: {' '.join(str(error).split())}")
                _leave_service()  # what has failed still holds the identity (wandb#9865)
        self._run = started or start("offline")
        self._run.define_metric("tokens_seen")
        self._run.define_metric("*", step_metric="tokens_seen")
        self._run.summary.update({f"{key}_min": value for key, value in self._least.items()})

    def log(self, record: Record) -> None:
        """Sends a record."""
        self._run.log({key: value for key, value in record.items() if value is not None})
        for key in self._lower(record):  # wandb's own minima begin anew with each attempt
            self._run.summary[f"{key}_min"] = self._least[key]

    def _lower(self, record: Record) -> list[str]:
        """The keys of which a record has the least value so far."""
        found = {key: value for key in BEST if (value := record.get(key)) is not None}
        lower = [key for key, value in found.items() if value < self._least.get(key, math.inf)]
        self._least |= {key: found[key] for key in lower}
        return lower

    def alert(self, title: str, text: str) -> None:
        """Sends an alert, which wandb hands on to e-mail or Slack as its user has set it up."""
        self._run.alert(title=title, text=text, level="ERROR")

    def refer(self, files: Callable[[], Reference | None]) -> None:
        """Leaves an artifact that names files where they lie, without secrets: wandb neither copies nor reads them.

        `use_artifact` would say that they were there before, but it needs the server.
        """
        import wandb

        if (found := files()) is None:
            return
        name = re.sub(r"[^\w.-]+", "-", found.name)[:MOST_NAME]
        artifact = wandb.Artifact(name=name, type=found.kind, metadata=found.metadata)
        for each, place in found.files.items():
            uri = Path(storage.resolve(place)[1]).as_uri() if storage.is_local(place) else masked(place)
            artifact.add_reference(uri, name=each, checksum=False)
        self._run.log_artifact(artifact, aliases=[*found.aliases, "latest"])

    def finish(self) -> None:
        """Flushes what is on the way.

        Raises:
            TimeoutError: the server does not take it; names the command that sends it later.
        """
        try:
            self._run.finish()
        except TimeoutError as error:
            _leave_service()
            raise TimeoutError(
                f"not all is sent yet; `wandb sync {shlex.quote(self._run.sync_dir)}` does it"
            ) from error
        if self._elsewhere is not None and (line := sync_line(self._elsewhere, identity=self._run.id)):
            log.info("%s", line)


def _leave_service() -> None:
    """Ends wandb's process; one that does not end is left alone, and ends with this process, which it watches."""
    import wandb

    ending = threading.Thread(target=wandb.teardown, name="wandb-teardown", daemon=True)
    ending.start()
    ending.join(SERVER_SECONDS)


class GuardedTracker:
    """A tracker whose failures end in a warning: after the first it is left alone, unless only an extra has failed."""

    def __init__(self, start: Callable[[], Tracker], *, on_failure: Callable[[str], None] = lambda cause: None) -> None:
        self._on_failure = on_failure
        self._tracker: Tracker = NoTracker()
        self._guarded(lambda: setattr(self, "_tracker", start()))

    def log(self, record: Record) -> None:
        """Passes a record on."""
        self._guarded(lambda: self._tracker.log(record))

    def alert(self, title: str, text: str) -> None:
        """Passes an alert on."""
        self._tried(lambda: self._tracker.alert(title, text))

    def refer(self, files: Callable[[], Reference | None]) -> None:
        """Passes on where files lie."""
        self._tried(lambda: self._tracker.refer(files))

    def finish(self) -> None:
        """No record follows."""
        self._guarded(self._tracker.finish)

    def _tried(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 as below; the records still reach the dashboard
            log.warning("the dashboard lacks something: %s: %s", type(error).__name__, error)

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 whatever a tracker raises, training goes on; it is told below
            log.warning("tracking stops, training goes on: %s: %s", type(error).__name__, error)
            self._tracker = NoTracker()
            self._on_failure(f"{type(error).__name__}: {' '.join(str(error).split())}")
