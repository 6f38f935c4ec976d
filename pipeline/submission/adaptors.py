"""The ways to get a job onto a cluster, and what each must be able to do.

In: an order, that is a verb with its arguments and the section `via` of the configuration. Out: what the cluster's tool
is given, and what it says of the job later. An adaptor starts and ends processes, and nothing more: where a run stands
is told by its folder. A new way is one file, one section of the configuration and one row of the table.
"""

import math
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, Protocol, cast

from pipeline.config import KINDS, SubmitConfig, ViaConfig, validated
from pipeline.errors import ConfigError
from pipeline.submission.record import Submission

ASK_SECONDS = 60.0  # for a cluster's client to answer
END_SECONDS = 30  # for a command to end, beyond what its workers have

# queued, running: the client has the job; ended: it had it; gone: it knows none of this name;
# silent: the client is not here, or does not answer
State = Literal["queued", "running", "ended", "gone", "silent"]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be run where.

    Attributes:
        submission: its record.
        config: of the verb; run and data are absolute.
        section: of `via`.
    """

    submission: Submission
    config: SubmitConfig
    section: ViaConfig

    def command(self, python: str, *, module: str = "jobs") -> list[str]:
        """What runs on the nodes.

        Args:
            python: the interpreter.
            module: that takes the verb.
        """
        return [python, "-m", module, self.submission.verb, *self.submission.arguments]


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """What the cluster's tool is given.

    Attributes:
        text: a script or a manifest, whole.
        ending: of its file in the run folder.
        command: for people: how it is handed over.
    """

    text: str
    ending: str
    command: list[str]

    @property
    def shown(self) -> str:
        """What `--dry-run` prints."""
        return f"{self.text.rstrip()}\n\n# submitted by: {shlex.join(self.command)}"


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """What the client says of a job.

    Attributes:
        state: see `State`.
        name: the client's own name or number of the job; None: it has none.
        reason: why it waits, how it ended, or why the client says nothing; may be empty.
    """

    state: State
    name: str | None = None
    reason: str = ""

    @property
    def alive(self) -> bool:
        """Whether the job waits or runs."""
        return self.state in ("queued", "running")


class Adaptor(Protocol):
    """A module that hands jobs to one kind of cluster."""

    CLUSTER: str
    """The choice of the group `cluster` by which a run trains there."""

    def check(self, order: Order) -> None:
        """Refuses, before anything is written, what the client could not take.

        Raises:
            ConfigError: one line.
        """

    def render(self, order: Order) -> Rendered:
        """What the client is to be given; pure, and without a secret."""

    def settled(self, section: ViaConfig) -> ViaConfig:
        """The section with the cluster written out that the environment of this machine names now."""

    def submit(self, order: Order, rendered: Rendered, file: str) -> str | None:
        """Hands the job over.

        Args:
            order: the order.
            rendered: of it.
            file: where the text lies in the run folder.

        Returns:
            the client's name of the job; None: the client is not here, and the file is all there is.

        Raises:
            ConfigError: the client refuses it, or does not answer.
        """

    def status(self, submission: Submission) -> JobStatus:
        """Where the job stands; raises nothing for a client that does not answer."""

    def cancel(self, submission: Submission) -> None:
        """Ends the job; one that has ended is left as it is.

        Raises:
            ConfigError: the client does not answer.
        """

    def logs(self, submission: Submission, *, follow: bool) -> Iterator[str]:
        """What the job printed, in pieces; with `follow` also what it prints until it ends.

        Raises:
            ConfigError: the client does not answer, or keeps nothing of this job.
        """


def places(order: Order) -> list[tuple[str, str]]:
    """The folders and files that a job reads and writes, with their keys."""
    return places_of(order.config, verb=order.submission.verb)


def places_of(config: SubmitConfig, *, verb: str) -> list[tuple[str, str]]:
    """The folders and files that a verb reads and writes, with their keys."""
    found = [("data", config.data), ("run", config.run), ("init_from", config.init_from)]
    if verb == "prepare" and config.corpus.source == "files":
        splits = ("train", "valid", "test")
        found += [(f"corpus.{split}", each) for split in splits for each in getattr(config.corpus, split) or ()]
    return [(key, place) for key, place in found if place is not None]


def grace_seconds(order: Order) -> int:
    """For a job to save and end, between a request to stop and its being killed."""
    return math.ceil(order.config.cluster.grace_seconds) + END_SECONDS


def last_line(text: str) -> str:
    """The last line of a message that says something; empty: none does."""
    return next((" ".join(line.split()) for line in text.splitlines()[::-1] if line.strip(" .")), "")


ADAPTORS: dict[str, str] = {  # kind of `via` → its module
    "ray": "pipeline.submission.ray_jobs",
    "slurm": "pipeline.submission.slurm",
    "kuberay": "pipeline.submission.kuberay",
    "sky": "pipeline.submission.sky",
}


def adaptor_of(kind: str) -> Adaptor:
    """The adaptor of a kind of `via`."""
    return cast(Adaptor, import_module(ADAPTORS[kind]))


def section_of(submission: Submission) -> ViaConfig:
    """The section that a job was submitted by.

    Raises:
        ConfigError: it is none of this version.
    """
    import json

    return cast(ViaConfig, validated(KINDS["via"][submission.kind], json.dumps(submission.via)))


def client(name: str, *, via: str) -> str:
    """The path of a cluster's command.

    Raises:
        ConfigError: it is not here.
    """
    found = shutil.which(name)
    if found is None:
        raise ConfigError(f"via={via} needs the command {name}, which is not on PATH here; submit where it is")
    return found
