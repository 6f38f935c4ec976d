"""Ray's Jobs API: `train` or `prepare` as a job of a Ray cluster that is running.

In: an order. Out: the request, as JSON, and what Ray says of the job. The job runs `python -m jobs.again`, which starts
the verb again while it gets on. Refuses a folder of code that Ray could not take. Everybody who reaches the Jobs API
can read a request: it holds no secret. Ray's client finds its token as ever, by RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH.
"""

import json
import logging
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, cast

from pipeline import storage
from pipeline.config import RayJobsConfig, SubmitConfig, ViaConfig
from pipeline.errors import ConfigError
from pipeline.masking import holds_secret
from pipeline.submission.adaptors import JobStatus, Order, Rendered, State, grace_seconds, last_line, section_of
from pipeline.submission.record import Submission

CLUSTER = "ray"
REACH_SECONDS = 5.0  # for the cluster to answer at all
FOLLOW_SECONDS = 2.0  # between two looks at what a job prints
MOST_BYTES = 100 << 20  # that the Jobs API takes; Ray's own limit of a package, 512 MiB, is never reached
EXCLUDES = (".git", ".venv", "venv", "__pycache__")
CODE = "jobs/again.py"  # below a folder with the code
URL_VARIABLE = "RAY_API_SERVER_ADDRESS"  # whatever Ray's client is given, it follows this and then RAY_ADDRESS
CLIENT = threading.Lock()  # while one is made, which follows this process's environment
STATES: dict[str, State] = {"PENDING": "queued", "RUNNING": "running"}
REASON_LENGTH = 200  # characters, of a message that may hold a job's whole log

Answer = TypeVar("Answer")


class UnknownJobError(LookupError):
    """Ray answers, and knows no job of this name."""


def check(order: Order) -> None:
    """Refuses an address and a folder of code that Ray could not take.

    Raises:
        ConfigError: one line.
    """
    section = cast(RayJobsConfig, order.section)
    if section.address is not None:
        if holds_secret(section.address):
            raise ConfigError("via.address holds a password, which everybody could read; leave it out")
        if not section.address.startswith(("http://", "https://")):
            raise ConfigError(
                f"via.address={section.address} is no address of a dashboard; use via.address=http://HOST:8265"
            )
    if section.working_dir is not None:
        _check_folder(section.working_dir, order.config)


def render(order: Order) -> Rendered:
    """The request, and the command of Ray that would make the same."""
    section, submission = cast(RayJobsConfig, order.section), order.submission
    # without `exec`, what Ray takes for the job is a shell: the loop would outlive it
    command = ["exec", *order.command(section.python or sys.executable, module="jobs.again")]
    environment: dict[str, object] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(grace_seconds(order))}}
    if section.working_dir is not None:
        environment |= {"working_dir": section.working_dir, "excludes": [*EXCLUDES]}
    request = {
        "entrypoint": shlex.join(command),
        "submission_id": submission.id,
        "runtime_env": environment,
        "metadata": {
            "run": submission.run,
            "commit": (submission.commit or "unknown") + (" (dirty)" if submission.dirty else ""),
            "configuration": submission.configuration,
        },
    }
    typed = ["ray", "job", "submit", "--no-wait", f"--submission-id={submission.id}"]
    typed += [f"--address={section.address}"] if section.address is not None else []
    typed += [f"--runtime-env-json={json.dumps(environment)}", f"--metadata-json={json.dumps(request['metadata'])}"]
    return Rendered(text=json.dumps(request, indent=2) + "\n", ending=".request", command=[*typed, "--", *command])


def settled(section: ViaConfig) -> ViaConfig:
    """With the dashboard's address that the environment names, which Ray's client would take."""
    assert isinstance(section, RayJobsConfig)
    address = section.address or os.environ.get(URL_VARIABLE) or os.environ.get("RAY_ADDRESS") or ""
    return section.model_copy(update={"address": address if address.startswith("http") else None})


def submit(order: Order, rendered: Rendered, file: str) -> str:
    """Makes the request.

    Args:
        order: the order.
        rendered: of it.
        file: where the text lies in the run folder.

    Returns:
        the job's id.

    Raises:
        ConfigError: Ray refuses it, or does not answer.
    """
    try:
        _asked(cast(RayJobsConfig, order.section), lambda client: client.submit_job(**json.loads(rendered.text)))
    except ConfigError as error:
        found = status(order.submission)
        if found.state == "ended":
            raise ConfigError(
                f"Ray has had a job {order.submission.id}, of a run folder that was removed since; submit again, which"
                " takes the next number"
            ) from error
        if not found.alive:  # else somebody has just submitted it too
            raise
    return order.submission.id


def status(submission: Submission) -> JobStatus:
    """Where the job stands."""
    try:
        job = _asked(_section(submission), lambda client: client.get_job_info(submission.id))
    except UnknownJobError:
        return JobStatus(state="gone")
    except ConfigError as error:
        return JobStatus(state="silent", reason=str(error))
    word = str(job.status.value)
    reasons = {"PENDING": _shortened(job.message or ""), "RUNNING": ""}
    return JobStatus(
        state=STATES.get(word, "ended"),
        name=submission.id,
        reason=reasons[word] if word in reasons else _how_ended(job),
    )


def cancel(submission: Submission) -> None:
    """Ends the job: the run saves its state, and is killed if that takes longer than `cluster.grace_seconds`.

    Raises:
        ConfigError: Ray does not answer.
    """
    try:
        _asked(_section(submission), lambda client: client.stop_job(submission.id))
    except UnknownJobError:
        return


def logs(submission: Submission, *, follow: bool) -> Iterator[str]:
    """What the job printed, in pieces.

    Args:
        submission: its record.
        follow: also what it prints until it ends.

    Raises:
        ConfigError: Ray does not answer, or keeps nothing of this job.
    """
    length = 0
    while True:
        try:
            job = _asked(_section(submission), lambda client: client.get_job_info(submission.id))
            text = _asked(_section(submission), lambda client: client.get_job_logs(submission.id))
        except UnknownJobError as error:
            raise ConfigError(f"Ray keeps nothing of job {submission.id}; its cluster was started anew") from error
        yield text[length:]
        length = len(text)
        if not follow or job.status.is_terminal():
            return
        time.sleep(FOLLOW_SECONDS)


def _section(submission: Submission) -> RayJobsConfig:
    return cast(RayJobsConfig, section_of(submission))


def _asked(section: RayJobsConfig, question: Callable[[Any], Answer]) -> Answer:
    """What Ray's client answers.

    Raises:
        UnknownJobError: the question is of a job that Ray does not know.
        ConfigError: nobody answers, or not to us.
    """
    missing = [each for each in ("aiohttp", "requests") if find_spec(each) is None]
    if missing:
        raise ConfigError(f"via=ray needs {' and '.join(missing)}; run `pip install 'wordlanes[submit]'`")
    from ray.exceptions import AuthenticationError, RayError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.ERROR)  # what is packed is no news
    with CLIENT:
        address = section.address or os.environ.get(URL_VARIABLE) or os.environ.get("RAY_ADDRESS")
    name = f"Ray at {address or 'this machine'}"
    try:
        _knock(address)
        with CLIENT, _followed(section.address):
            client = JobSubmissionClient(address)
        return question(client)
    except AuthenticationError as error:
        raise ConfigError(
            f"{name} does not take the token that was found here; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE"
            " of the cluster's token"
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError, RayError) as error:
        if str(error).startswith("Request failed with status code 404"):
            raise UnknownJobError from error
        if str(error).startswith("Request failed"):
            raise ConfigError(f"{name} refuses what it is asked ({_shortened(str(error))})") from error
        raise ConfigError(
            f"{name} does not answer ({_shortened(str(error))}); give via.address=http://HOST:8265 of its dashboard"
        ) from error


def _knock(address: str | None) -> None:
    """Raises OSError or ValueError where nobody answers; Ray's client itself would wait for minutes, or for ever."""
    import requests

    if address is None or address == "auto":
        return  # the client looks for a Ray of this machine
    if "://" in address:
        requests.get(f"{address.rstrip('/')}/api/version", timeout=REACH_SECONDS)
    else:
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()


@contextmanager
def _followed(address: str | None) -> Iterator[None]:
    """Has Ray's client follow an address that was typed, and not what its environment names; None: its environment."""
    before = os.environ.get(URL_VARIABLE)
    if address is not None:
        os.environ[URL_VARIABLE] = address
    try:
        yield
    finally:
        if before is not None:
            os.environ[URL_VARIABLE] = before
        elif address is not None:
            del os.environ[URL_VARIABLE]


def _how_ended(job: Any) -> str:  # noqa: ANN401 (Ray's JobDetails)
    """In a line: Ray's word, the exit code of a failed job, and the end of what Ray says of it."""
    word = str(job.status.value).lower()
    if word != "failed":
        return word
    code = "" if job.driver_exit_code is None else f", exit code {job.driver_exit_code}"
    return f"{word}{code}: {_shortened(job.message or '')}"


def _shortened(text: str) -> str:
    return last_line(text)[:REASON_LENGTH] or "no message"


def _check_folder(folder: str, config: SubmitConfig) -> None:
    """Refuses a folder of code that is none, that would take data along, or that is too large.

    Raises:
        ConfigError: one line.
    """
    path = Path(folder)
    if not path.is_absolute():
        raise ConfigError(f"via.working_dir={folder} is relative; use via.working_dir={path.absolute()}")
    if not (path / CODE).is_file():
        raise ConfigError(
            f"via.working_dir={folder} holds no {CODE}; use a checkout of this package, or null where via.python has it"
        )
    for name, place in (("data", config.data), ("run", config.run)):
        if (
            place is not None
            and storage.is_local(place)
            and Path(storage.absolute(place)).is_relative_to(path.resolve())
        ):
            raise ConfigError(f"{name}={place} lies in via.working_dir={folder}, which Ray copies; use another folder")
    sizes = _sizes(path)
    if sizes.total() > MOST_BYTES:
        largest, size = sizes.most_common(1)[0]
        raise ConfigError(
            f"via.working_dir={folder} holds {sizes.total() >> 20} MiB, {size >> 20} of them in {largest}, and Ray"
            f" takes {MOST_BYTES >> 20} MiB; name what else is there in .gitignore, or use a clean checkout"
        )


def _sizes(folder: Path) -> Counter[str]:
    """Bytes that Ray would copy, by what stands in a folder; it leaves out what .gitignore names."""
    sizes: Counter[str] = Counter()
    for name in _listed_by_git(folder) or _below(folder):
        if not set(Path(name).parts) & set(EXCLUDES) and (folder / name).is_file():
            sizes[Path(name).parts[0]] += (folder / name).stat().st_size
    return sizes


def _listed_by_git(folder: Path) -> list[str]:
    """Files that are tracked, or new and not ignored; none where git does not tell."""
    command = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        return os.fsdecode(subprocess.run(command, capture_output=True, check=True).stdout).split("\0")[:-1]
    except (OSError, subprocess.CalledProcessError):
        return []


def _below(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*")]
