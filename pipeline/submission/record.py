"""Submissions of a run, `submissions/<id>.json` in its folder: what was handed to which cluster.

In: a run folder. Out: its records, in the order of their numbers. A record is written before the cluster's client is
called, and created exclusively: of two who submit at once, from whichever machines, one gets the number. It never
changes: where a job stands is asked of the client, by the record's id.
"""

import hashlib
import json
import re
import time
from dataclasses import asdict, dataclass
from typing import Any, Self

from pipeline import storage
from pipeline.config import SubmitConfig, ViaConfig
from pipeline.errors import ConfigError

FOLDER = "submissions"
LOGS = "logs"  # folder of a run: what its jobs printed, where the cluster writes it to a file
LONGEST_ID = 40  # characters; a RayJob's name may have 47
UNNAMED = "run"


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One job that was handed to a cluster, or was about to be.

    Attributes:
        id: the job's name for the cluster.
        number: of the submission, from 1.
        via: the section that it was submitted by: `kind` and that kind's keys.
        verb: `train` or `prepare`.
        run: the run folder.
        arguments: of the verb, as typed.
        time: unix seconds.
        configuration: digest of the whole configuration.
        version: of this package.
        commit: of the checkout that it was submitted from; None: it was none.
        dirty: whether that checkout had changes of its own; None: not known.
    """

    id: str
    number: int
    via: dict[str, Any]
    verb: str
    run: str
    arguments: tuple[str, ...]
    time: float
    configuration: str
    version: str
    commit: str | None
    dirty: bool | None

    @property
    def kind(self) -> str:
        """The cluster's tool."""
        return str(self.via["kind"])

    @classmethod
    def of_json(cls, text: bytes) -> Self:
        """What `as_json` gave.

        Raises:
            ValueError, TypeError, KeyError: it is none.
        """
        tree = json.loads(text)
        found = cls(**tree | {"arguments": tuple(tree["arguments"])})
        if found.id != job_id(found.run, number=found.number):
            raise ValueError(f"id {found.id!r}")
        return found

    def as_json(self) -> bytes:
        """The record's file."""
        return json.dumps(asdict(self), indent=1).encode() + b"\n"


def job_id(run: str, *, number: int) -> str:
    """A job's name: `<last name>-<8 hex of the run's URI>-a<number>`, of [a-z0-9-], at most 40 characters.

    It begins with a letter, as Kubernetes has it.

    Args:
        run: the run folder, absolute.
        number: of the submission.
    """
    place = storage.canonical(run).rstrip("/")
    tail = f"-{hashlib.sha256(place.encode()).hexdigest()[:8]}-a{number}"
    name = re.sub(r"[^a-z0-9]+", "-", place.rpartition("/")[2].lower()).strip("-")
    if not re.match("[a-z]", name):
        name = f"{UNNAMED}-{name}".rstrip("-")
    return name[: LONGEST_ID - len(tail)].rstrip("-") + tail


def digest_of(config: SubmitConfig) -> str:
    """A digest of what a job computes and how it runs, whichever way it gets onto a cluster."""
    places = {name: storage.canonical(str(getattr(config, name))).rstrip("/") for name in ("data", "run")}
    text = config.model_copy(update=places).model_dump_json(exclude={"via"})
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def via_of(section: ViaConfig) -> dict[str, Any]:
    """A section as a record keeps it."""
    return section.model_dump(mode="json")


def submissions(run: str) -> list[Submission]:
    """The submissions of a run, the oldest first; those of the run that this folder was copied from are another's.

    Raises:
        ConfigError: a record cannot be read.
    """
    paths = storage.list_files(storage.join(run, FOLDER))
    found = [_read(path) for path in paths if path.endswith(".json")]
    return sorted((each for each in found if each.id == job_id(run, number=each.number)), key=lambda each: each.number)


def last_submission(run: str) -> Submission | None:
    """The newest submission of a run; None: it was not submitted.

    Raises:
        ConfigError: a record cannot be read.
    """
    return next(iter(submissions(run)[::-1]), None)


def record(submission: Submission) -> bool:
    """Writes a submission down.

    Returns:
        whether it is ours; False: there is one of this number already.

    Raises:
        ConfigError: the run folder cannot be written to, or not exclusively.
    """
    return storage.create_bytes(record_path(submission, ".json"), submission.as_json())


def record_path(submission: Submission, ending: str) -> str:
    """A file of a submission in the run folder: its record, or what was rendered for it."""
    return storage.join(submission.run, FOLDER, submission.id + ending)


def file_as_typed(submission: Submission, ending: str) -> str:
    """A file of a submission for a client that reads only local files: of one in an object store, its name."""
    path = record_path(submission, ending)
    return path if submission.run.startswith("/") else path.rpartition("/")[2]


def age_seconds(submission: Submission) -> float:
    """How long ago it was written down."""
    return max(time.time() - submission.time, 0.0)


def _read(path: str) -> Submission:
    try:
        return Submission.of_json(storage.read_or_nothing(path))
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} is no record of a submission ({error!r}); remove it if its job has ended") from error
