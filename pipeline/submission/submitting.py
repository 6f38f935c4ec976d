"""Submitting a run: one job, however often and from wherever it is pressed.

In: a verb, what was typed for it, and the way onto the cluster. Out: the job's id. The record in the run folder comes
first, then the client is called; so whatever is lost on the way, the next try finds the record and asks the client for
the job by its id. A job that the client knows is not submitted again; one that it does not know is, under the same id.
A new number is given once the job of the last one has ended, or never was and something else is asked for.
"""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline import storage
from pipeline.config import SubmitConfig, given, load
from pipeline.errors import ConfigError
from pipeline.masking import holds_secret
from pipeline.provenance import code_version
from pipeline.run.account import account
from pipeline.run.ledger import next_attempt, read_events
from pipeline.run.stop import USER, remove_request, stop_request
from pipeline.submission.adaptors import ADAPTORS, JobStatus, Order, Rendered, adaptor_of, places_of, section_of
from pipeline.submission.asking import job_status
from pipeline.submission.record import (
    Submission,
    age_seconds,
    digest_of,
    job_id,
    last_submission,
    record,
    record_path,
    via_of,
)

SETTLE_SECONDS = 30.0  # after a record was written, in which whoever wrote it may still be calling the client
LOOK_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a call.

    Attributes:
        submission: the job's record.
        status: what the client says of the job; its name is None where only a file was written.
        again: whether the job was there already.
        file: where what the client was given lies.
        command: how it is, or is to be, handed over.
    """

    submission: Submission
    status: JobStatus
    again: bool
    file: str
    command: list[str]


def order_of(verb: str, typed: Sequence[str]) -> Order:
    """The order that a call makes, numbered as if nothing had been submitted.

    The way onto the cluster decides `cluster`, where that is not typed: so one line goes by each way.

    Args:
        verb: `train` or `prepare`.
        typed: `key=value`, with `via=` and its keys.

    Raises:
        ConfigError: it cannot be submitted.
    """
    chosen = dict(each.partition("=")[::2] for each in typed)
    if "via" not in chosen:
        raise ConfigError(f"via= is not given; use {', '.join(f'via={kind}' for kind in ADAPTORS)}")
    if chosen["via"] in ADAPTORS and not chosen.keys() & {"cluster", "cluster.kind"}:
        typed = [*typed, f"cluster={adaptor_of(chosen['via']).CLUSTER}"]
    config = load(SubmitConfig, typed, name="submit")
    _check(config, verb=verb, typed=typed)
    arguments = tuple(each for each in typed if not each.startswith(("via=", "via.")))
    adaptor = adaptor_of(config.via.kind)
    adaptor.check(_order(config, verb=verb, arguments=arguments))
    return _order(config.model_copy(update={"via": adaptor.settled(config.via)}), verb=verb, arguments=arguments)


def _order(config: SubmitConfig, *, verb: str, arguments: tuple[str, ...]) -> Order:
    submission = _numbered(config, number=1, verb=verb, arguments=arguments)
    return Order(submission=submission, config=config, section=config.via)


def render(order: Order) -> Rendered:
    """What the client would be given."""
    return adaptor_of(order.submission.kind).render(order)


def foreseen(order: Order) -> Rendered:
    """What the client would be given after all that was submitted before; writes nothing and asks nobody."""
    last = last_submission(order.submission.run)
    number = 1 if last is None else last.number + 1
    return render(Order(submission=_numbered_again(order, number), config=order.config, section=order.section))


def submit(order: Order, *, wait: Callable[[float], None] = time.sleep) -> Outcome:
    """Hands an order to its cluster, unless a job of the run is there already.

    Args:
        order: as `order_of` made it.
        wait: for seconds.

    Raises:
        ConfigError: the client refuses it, or another job of this run waits or runs.
    """
    while True:
        last = last_submission(order.submission.run)
        if last is None:
            new = order.submission
        else:
            status = _settled(last, wait=wait)
            if status.alive or status.state == "silent":
                return _there_already(order, last, status)
            lost = status.state == "gone" and not _begun(last) and _unchanged(order, last)
            new = last if lost else _numbered_again(order, last.number + 1)
        if new == last or record(new):
            return _hand_over(Order(submission=new, config=order.config, section=order.section))


def _hand_over(order: Order) -> Outcome:
    rendered = render(order)
    file = record_path(order.submission, rendered.ending)
    remove_request(order.submission.run)  # a person goes on; what is asked for from here on holds for the job
    storage.publish_bytes(file, rendered.text.encode())
    name = adaptor_of(order.submission.kind).submit(order, rendered, file)
    return Outcome(
        submission=order.submission,
        status=JobStatus(state="gone" if name is None else "queued", name=name),
        again=False,
        file=file,
        command=rendered.command,
    )


def _settled(last: Submission, *, wait: Callable[[float], None]) -> JobStatus:
    """What the client says of a job, once whoever wrote its record has had the time to call the client."""
    deadline = time.monotonic() + SETTLE_SECONDS - age_seconds(last)
    while (status := job_status(last)).state == "gone" and time.monotonic() < deadline:
        wait(LOOK_SECONDS)
    if status.state == "silent" and _over(last):
        return JobStatus(state="ended")
    return status


def _begun(last: Submission) -> bool:
    """Whether the ledger tells of a start since the job was submitted: then a job that is not known any more ended."""
    return any(event["event"] == "start" and event["time"] >= last.time for event in read_events(last.run))


def _over(last: Submission) -> bool:
    """Whether the folder tells that no job goes on with the run: it ended, or its user has stopped it since."""
    events = read_events(last.run)
    since = [event for event in events if event["time"] >= last.time]
    if since and (since[-1]["event"] == "end" or since[-1].get("cause") == USER):
        return True
    request = stop_request(last.run, attempt=next_attempt(events))
    asked = request is not None and request.cause == USER and request.time >= last.time
    return asked and account(events, now=time.time()).state != "running"


def _there_already(order: Order, last: Submission, status: JobStatus) -> Outcome:
    """The job that is there, if it is what is asked for; of one whose client does not answer nobody knows.

    Raises:
        ConfigError: it is another.
    """
    new = order.submission
    if (last.kind, last.verb, last.configuration) != (new.kind, new.verb, new.configuration):
        state = f"{status.state} already" if status.alive else "submitted"
        raise ConfigError(
            f"run={last.run} is {state} as {last.id}, by `submit {last.verb} via={last.kind}"
            f" {shlex.join(last.arguments)}`; wait for it, or `python -m jobs stop run={last.run}` first"
        )
    rendered = render(Order(submission=last, config=order.config, section=section_of(last)))
    file = record_path(last, rendered.ending)
    return Outcome(submission=last, status=status, again=True, file=file, command=rendered.command)


def _unchanged(order: Order, last: Submission) -> bool:
    new = order.submission
    return (last.verb, last.configuration, last.via) == (new.verb, new.configuration, new.via)


def _numbered(config: SubmitConfig, *, number: int, verb: str, arguments: tuple[str, ...]) -> Submission:
    run, code = given("run", config.run), code_version()
    return Submission(
        id=job_id(run, number=number),
        number=number,
        via=via_of(config.via),
        verb=verb,
        run=run,
        arguments=arguments,
        time=time.time(),
        configuration=digest_of(config),
        version=code.version,
        commit=code.commit,
        dirty=code.dirty,
    )


def _numbered_again(order: Order, number: int) -> Submission:
    submission = order.submission
    return _numbered(order.config, number=number, verb=submission.verb, arguments=submission.arguments)


def _check(config: SubmitConfig, *, verb: str, typed: Sequence[str]) -> None:
    """Refuses what no job may have: folders that would be others where it runs, secrets, another cluster.

    Raises:
        ConfigError: one line.
    """
    for name, folder in (("data", config.data), ("run", config.run)):
        if folder is None:
            raise ConfigError(f"{name}=null is not given; use {name}=FOLDER, a full path or an object store's URI")
    for name, place in places_of(config, verb=verb):
        if not place.startswith("/") and "://" not in place:
            raise ConfigError(
                f"{name}={place} is relative, and the job's working folder is another;"
                f" use {name}={storage.absolute(place)}"
            )
    if config.via.python is not None and not config.via.python.startswith("/"):
        raise ConfigError(f"via.python={config.via.python} is no full path; give one that holds on the nodes")
    for argument in typed:
        if holds_secret(argument):
            raise ConfigError(
                f"{argument.partition('=')[0]} holds a secret, which everybody would read in the job's record;"
                " leave it out and let the nodes have it, in ~/.netrc, ~/.aws/credentials or a Secret"
            )
    cluster = adaptor_of(config.via.kind).CLUSTER
    on_one_machine = verb == "prepare" and config.cluster.kind == "local"
    if config.cluster.kind != cluster and not on_one_machine:
        raise ConfigError(
            f"via={config.via.kind} runs with cluster={cluster}, and cluster={config.cluster.kind} is given;"
            " leave it out"
        )
