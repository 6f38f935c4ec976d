"""Hands jobs to Kubernetes as RayJobs of KubeRay: a cluster of Ray is made for each, and removed after it.

In: an order. Out: a RayJob (ray.io/v1, KubeRay 1.7), given to `kubectl create` where there is one. Refuses names that
Kubernetes cannot take, an image whose content may change, pods into which the ranks do not fit, and folders that the
pods would not see.
"""

import json
import math
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

from pipeline.config import KubeRayConfig, ViaConfig
from pipeline.errors import ConfigError, reason_of
from pipeline.submission.adaptors import ASK_SECONDS, JobStatus, Order, Rendered, client, last_line, places, section_of
from pipeline.submission.manifests import as_yaml
from pipeline.submission.rayjob import ranks_per_pod, ray_job
from pipeline.submission.record import Submission, file_as_typed

CLUSTER = "ray"

KIND = "rayjobs.ray.io"
REQUEST_SECONDS = 15  # for one request of kubectl, of which a command may make some
LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"  # RFC 1123
LONGEST_NAME = 253  # characters
NAMES = {"namespace": LABEL, "volume_claim": rf"{LABEL}(\.{LABEL})*", "token_secret": rf"{LABEL}(\.{LABEL})*"}


def check(order: Order) -> None:
    """Refuses what Kubernetes could not take or would never start.

    Raises:
        ConfigError: one line.
    """
    section = _section(order)
    _check_image(section.image)
    for key, pattern in NAMES.items():
        _check_name(key, getattr(section, key), pattern)
    for secret in section.secrets or ():
        if not re.fullmatch(NAMES["token_secret"], secret):  # which may be a secret itself, so it is not shown
            raise ConfigError("via.secrets holds what is no name of a Kubernetes Secret; give names alone, as [wandb]")
    _check_pods(order, section)
    _check_places(order, section)


def render(order: Order) -> Rendered:
    """The RayJob."""
    section, file = _section(order), file_as_typed(order.submission, ".yaml")
    command = ["kubectl", *_place(section), "create", "--filename", file]
    return Rendered(text=as_yaml(ray_job(order, section)), ending=".yaml", command=command)


def settled(section: ViaConfig) -> ViaConfig:
    """With the context that kubectl has now, so that the job is looked for there whatever it becomes."""
    assert isinstance(section, KubeRayConfig)
    if section.context is not None or (kubectl := shutil.which("kubectl")) is None:
        return section
    command = [kubectl, "config", "current-context"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return section  # whatever it is asked next says so
    return section.model_copy(update={"context": done.stdout.strip() or None})


def submit(order: Order, rendered: Rendered, file: str) -> str | None:
    """Creates the RayJob; one of this name that is there already, created by another at once, is the same.

    Raises:
        ConfigError: Kubernetes refuses it, or does not answer.
    """
    if shutil.which("kubectl") is None:
        return None
    done = _kubectl(_section(order), "create", "--filename=-", given=rendered.text)
    if done.returncode and "(AlreadyExists)" not in done.stderr:
        raise ConfigError(f"{order.submission.id} is not submitted: {_complaint(done)}; mend it and submit again")
    if done.returncode and status(order.submission).state == "ended":
        raise ConfigError(
            f"Kubernetes has had a job {order.submission.id}, of a run folder that was removed since; submit again,"
            " which takes the next number"
        )
    return order.submission.id


def status(submission: Submission) -> JobStatus:
    """Where the RayJob stands; one that waits tells what its pods wait for."""
    try:
        section = _section_of(submission)
        text = _answer(section, "get", KIND, submission.id, "--output=json", "--ignore-not-found")
        if not text.strip():
            return JobStatus(state="gone")
        found = _of_ray_job(json.loads(text), name=submission.id)
        if found.state == "queued" and (waits := _pods_wait_for(section, json.loads(text))):
            return JobStatus(state="queued", name=found.name, reason=waits)
    except (ConfigError, ValueError) as error:
        return JobStatus(state="silent", reason=reason_of(error))
    return found


def cancel(submission: Submission) -> None:
    """Deletes the RayJob, which is there until its pods are gone; an ended one stays, with its log.

    Raises:
        ConfigError: Kubernetes does not answer.
    """
    found = status(submission)
    if found.state == "silent":
        raise ConfigError(f"{submission.id} is not cancelled: {found.reason}; try again where kubectl reaches it")
    if found.alive:
        options = ("--ignore-not-found", "--wait=false", "--cascade=foreground")
        _answer(_section_of(submission), "delete", KIND, submission.id, *options)


def logs(submission: Submission, *, follow: bool) -> Iterator[str]:
    """What the job printed since KubeRay started it last.

    Raises:
        ConfigError: Kubernetes does not answer, or has nothing of this job.
    """
    found = status(submission)
    if found.state == "silent":
        raise ConfigError(f"Kubernetes gives no log of {submission.id}: {found.reason}")
    section = _section_of(submission)
    options = ["--selector", f"job-name={submission.id}", "--tail=-1", "--max-log-requests=20"]
    command = [*_command(section), "logs", *options, *(["--follow"] if follow else [])]
    empty = True
    with (
        tempfile.TemporaryFile("w+", errors="replace") as complaints,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True, errors="replace") as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                empty = False
                yield line
            code = process.wait()
        finally:
            process.terminate()  # of one that has ended, nothing
        complaints.seek(0)
        if code or empty:
            told = last_line(complaints.read()) or found.reason or found.state
            raise ConfigError(f"Kubernetes gives no {'more ' * (not empty)}log of {submission.id}: {told}")


def _section(order: Order) -> KubeRayConfig:
    assert isinstance(order.section, KubeRayConfig)
    return order.section


def _section_of(submission: Submission) -> KubeRayConfig:
    section = section_of(submission)
    assert isinstance(section, KubeRayConfig)
    return section


# what is refused


def _check_image(image: str | None) -> None:
    if image is None:
        raise ConfigError("via.image=null is not given; use via.image=REGISTRY/NAME:TAG, built by infra/Dockerfile")
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    if re.search(r"\s|://", image) or not re.fullmatch(r"(sha256:[0-9a-f]{64})?", digest):
        raise ConfigError(f"via.image={image} is no image's name; use REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:DIGEST")
    if not digest and tag in ("", "latest"):
        raise ConfigError(
            f"via.image={image} may be another image when the job is started anew; give it a tag of its own, as"
            f" {image.removesuffix(':latest')}:1.0, or a digest"
        )


def _check_name(key: str, name: str | None, pattern: str) -> None:
    if name is not None and not (re.fullmatch(pattern, name) and len(name) <= LONGEST_NAME):
        raise ConfigError(
            f"via.{key}={name} is no name that Kubernetes takes; use small letters, digits and -, as"
            f" {re.sub('[^a-z0-9-]+', '-', name.lower()).strip('-') or 'wordlanes'}"
        )


def _check_pods(order: Order, section: KubeRayConfig) -> None:
    config, ranks = order.config, ranks_per_pod(section)
    num_workers = config.cluster.num_workers or 1
    if num_workers % ranks:
        raise ConfigError(
            f"cluster.num_workers={num_workers} is not divisible by via.gpus_per_pod={ranks}, a rank for each GPU;"
            f" use cluster.num_workers={math.ceil(num_workers / ranks) * ranks}"
        )
    num_cpus = ranks * (config.cluster.cpus_per_worker or 1)
    if num_cpus > section.cpus_per_pod:
        raise ConfigError(
            f"via.cpus_per_pod={section.cpus_per_pod} is too few for {ranks} ranks of cluster.cpus_per_worker="
            f"{config.cluster.cpus_per_worker or 1}, and the job would wait for ever; use via.cpus_per_pod={num_cpus}"
        )
    if order.submission.verb == "train":
        if config.accelerator == "cuda" and not section.gpus_per_pod:
            raise ConfigError("via.gpus_per_pod=0 has no GPU for accelerator=cuda; use via.gpus_per_pod=1")
        if config.accelerator == "cpu" and section.gpus_per_pod:
            raise ConfigError(
                f"via.gpus_per_pod={section.gpus_per_pod} asks for GPUs that accelerator=cpu leaves idle;"
                " use via.gpus_per_pod=0"
            )


def _check_places(order: Order, section: KubeRayConfig) -> None:
    mount = PurePosixPath(normpath(section.mount))
    if not mount.is_absolute() or mount == PurePosixPath("/"):
        raise ConfigError(f"via.mount={section.mount} is no folder's full path; use one as /mnt/wordlanes")
    for key, place in places(order):
        path = place.removeprefix("file://")
        if not path.startswith("/"):
            continue
        if section.volume_claim is None:
            raise ConfigError(
                f"{key}={place} is on no disk that the pods have; use an object store's URI, or give"
                f" via.volume_claim=NAME and a folder below via.mount={mount}"
            )
        if mount not in PurePosixPath(normpath(path)).parents:
            raise ConfigError(
                f"{key}={place} is not below via.mount={mount}, where the pods have the volume; move it there"
            )
        if key == "run" and not Path(mount).is_dir():
            raise ConfigError(
                f"via.mount={mount} is not here, so run={place} would be another folder than the pods'; submit where"
                " the volume is mounted, or use an object store's URI"
            )


# what kubectl is asked


def _command(section: KubeRayConfig) -> list[str]:
    return [client("kubectl", via="kuberay"), *_place(section)]


def _place(section: KubeRayConfig) -> list[str]:
    return [*([] if section.context is None else ["--context", section.context]), "--namespace", section.namespace]


def _kubectl(section: KubeRayConfig, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Runs kubectl.

    Raises:
        ConfigError: it is not here, or does not end in time.
    """
    command = [*_command(section), f"--request-timeout={REQUEST_SECONDS}s", *arguments]
    try:
        return subprocess.run(
            command, input=given, capture_output=True, text=True, errors="replace", timeout=ASK_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"kubectl has no answer from its cluster after {ASK_SECONDS:g} s; see `kubectl cluster-info`"
        ) from error


def _answer(section: KubeRayConfig, *arguments: str) -> str:
    """What kubectl prints.

    Raises:
        ConfigError: it fails.
    """
    done = _kubectl(section, *arguments)
    if done.returncode:
        raise ConfigError(_complaint(done))
    return done.stdout


def _complaint(done: subprocess.CompletedProcess[str]) -> str:
    """Why kubectl failed; what comes before its last line is its client library's own log."""
    return f"kubectl says {last_line(done.stderr) or f'nothing and ends with {done.returncode}'!r}"


def _of_ray_job(tree: dict[str, Any], *, name: str) -> JobStatus:
    """What a RayJob's status says; where KubeRay and Ray differ, the job goes on until KubeRay has concluded."""
    told = tree.get("status", {})
    stage, job = told.get("jobDeploymentStatus", ""), told.get("jobStatus", "")
    reason = ": ".join(
        each for each in (stage, job if job != stage else "", told.get("reason"), told.get("message")) if each
    )
    reason = " ".join(reason.split())
    if stage in ("Complete", "Failed"):
        return JobStatus(state="ended", name=name, reason=reason)
    if "deletionTimestamp" in tree["metadata"]:
        return JobStatus(state="running", name=name, reason="is being deleted")
    if stage == "Running" and job not in ("", "PENDING"):
        return JobStatus(state="running", name=name, reason="" if job == "RUNNING" else reason)
    return JobStatus(state="queued", name=name, reason=reason or "KubeRay has not looked at it; is its operator there?")


def _pods_wait_for(section: KubeRayConfig, tree: dict[str, Any]) -> str:
    """Why pods of the RayJob's cluster are not placed or do not start; empty: nothing is told.

    Raises:
        ConfigError: Kubernetes does not answer.
    """
    cluster = tree.get("status", {}).get("rayClusterName")
    if not cluster:
        return ""
    pods = json.loads(_answer(section, "get", "pods", "--selector", f"ray.io/cluster={cluster}", "--output=json"))
    told = {reason: None for pod in pods["items"] for reason in _pod_waits_for(pod.get("status", {}))}
    return "; ".join(told)


def _pod_waits_for(status: dict[str, Any]) -> Iterator[str]:
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield " ".join(str(condition.get("message") or condition.get("reason")).split())
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("message"):  # as of ImagePullBackOff; one that just starts has none
            yield f"{waiting.get('reason')}: {' '.join(waiting['message'].split())}"
