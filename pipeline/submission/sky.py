"""Writes a run as SkyPilot's YAML, for a person to hand to `sky jobs launch`; nothing is submitted, and nothing asked.

In: an order. Out: a task, on each of whose machines torchrun starts one rank for each GPU (no Ray of ours). Refuses
folders of this machine, for the job's machines are fresh each time, and a secret's value where its name belongs.
"""

import re
import shlex
from collections.abc import Iterator
from typing import Any

from pipeline.config import SkyConfig, ViaConfig
from pipeline.errors import ConfigError
from pipeline.submission.adaptors import JobStatus, Order, Rendered, places
from pipeline.submission.manifests import as_yaml
from pipeline.submission.record import Submission, file_as_typed

CLUSTER = "none"

PORT = 29500  # at which the ranks meet, on the first machine
PYTHON = "python"


def check(order: Order) -> None:
    """Refuses what would not run on fresh machines.

    Raises:
        ConfigError: one line.
    """
    section = _section(order)
    if order.submission.verb != "train" and section.nodes > 1:
        raise ConfigError(f"via.nodes={section.nodes} and {order.submission.verb} runs on one machine; use via.nodes=1")
    if section.image is None and section.workdir is None:
        raise ConfigError(
            "via.image=null and via.workdir=null leave the machines without this package; give"
            " via.image=REGISTRY/NAME:TAG, or via.workdir=CHECKOUT to have it copied and installed"
        )
    for key, place in places(order):
        if place.startswith("/") or place.startswith("file:"):
            raise ConfigError(
                f"{key}={place} is on no disk of machines that are new each time; use an object store's URI"
            )
    for name in section.secrets or ():
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ConfigError("via.secrets holds what is no variable's name; give names alone, as [WANDB_API_KEY]")
    _check_ranks(order, section)


def render(order: Order) -> Rendered:
    """The task."""
    file = file_as_typed(order.submission, ".yaml")
    secrets = [word for name in _section(order).secrets or () for word in ("--secret", name)]
    return Rendered(text=as_yaml(_task(order)), ending=".yaml", command=["sky", "jobs", "launch", *secrets, file])


def settled(section: ViaConfig) -> ViaConfig:
    """As it is: which cloud SkyPilot takes is its own to find."""
    return section


def submit(order: Order, rendered: Rendered, file: str) -> str | None:
    """Does nothing more: the file is all there is."""
    return None


def status(submission: Submission) -> JobStatus:
    """Always silent: the run folder tells how the run goes, `sky jobs queue` what SkyPilot does."""
    return JobStatus(state="silent", reason="via=sky only writes a file; `sky jobs queue` tells what became of it")


def cancel(submission: Submission) -> None:
    """Says what to type.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(f"via=sky only writes a file; type `sky jobs cancel --name {submission.id}`")


def logs(submission: Submission, *, follow: bool) -> Iterator[str]:
    """Says what to type.

    Raises:
        ConfigError: always.
    """
    option = "" if follow else " --no-follow"
    raise ConfigError(f"via=sky only writes a file; type `sky jobs logs{option} --name {submission.id}`")


def _section(order: Order) -> SkyConfig:
    assert isinstance(order.section, SkyConfig)
    return order.section


def _gpus_per_node(section: SkyConfig) -> int:
    """As `accelerators` has it: H100:8 are eight, H100 is one."""
    if section.accelerators is None:
        return 0
    number = section.accelerators.partition(":")[2]
    if not re.fullmatch(r"[\w.-]+(:[1-9][0-9]*)?", section.accelerators):
        raise ConfigError(f"via.accelerators={section.accelerators} is not NAME:NUMBER; use one as H100:8")
    return int(number or 1)


def _check_ranks(order: Order, section: SkyConfig) -> None:
    gpus, num_workers = _gpus_per_node(section), order.config.cluster.num_workers
    if order.submission.verb != "train" or num_workers is None:
        return
    if gpus and num_workers != gpus * section.nodes:
        raise ConfigError(
            f"cluster.num_workers={num_workers} differs from the GPUs, via.nodes={section.nodes} of"
            f" via.accelerators={section.accelerators}; use cluster.num_workers={gpus * section.nodes}"
        )
    if num_workers % section.nodes:
        raise ConfigError(
            f"cluster.num_workers={num_workers} is not divisible by via.nodes={section.nodes};"
            f" use cluster.num_workers={-(-num_workers // section.nodes) * section.nodes}"
        )


def _task(order: Order) -> dict[str, Any]:
    section = _section(order)
    setup = None
    if section.workdir is not None:
        setup = f"{_python(section)} -m pip install --constraint constraints.txt '.[s3]'\n"
    task = {
        "name": order.submission.id,
        "workdir": section.workdir,
        "num_nodes": section.nodes,
        "resources": _resources(order, section),
        "secrets": dict.fromkeys(section.secrets) if section.secrets else None,
        "setup": setup,
        "run": _script(order, section),
    }
    return {key: value for key, value in task.items() if value is not None}


def _resources(order: Order, section: SkyConfig) -> dict[str, Any]:
    resources = {
        "infra": section.infra,
        "accelerators": section.accelerators,
        "use_spot": section.spot,
        "disk_size": section.disk_gb,
        "image_id": None if section.image is None else f"docker:{section.image}",
        # SkyPilot starts the task again where machines were taken away, and this often where it failed
        "job_recovery": {"max_restarts_on_errors": order.config.cluster.max_failures},
    }
    return {key: value for key, value in resources.items() if value is not None}


def _python(section: SkyConfig) -> str:
    return shlex.quote(section.python or PYTHON)


def _script(order: Order, section: SkyConfig) -> str:
    """What each machine runs, in bash."""
    words = [shlex.quote(each) for each in order.command(section.python or PYTHON)]
    start = "export WORDLANES_JOB_START=1  # nobody types a job's start\n"
    if order.submission.verb != "train":
        return f"{start}exec {' '.join(words)}\n"
    ranks = '"$SKYPILOT_NUM_GPUS_PER_NODE"'
    if section.accelerators is None:
        ranks = str((order.config.cluster.num_workers or section.nodes) // section.nodes)
    launcher = [
        f"exec {words[0]} -m torch.distributed.run",
        f'--nnodes {section.nodes} --nproc-per-node {ranks} --node-rank "$SKYPILOT_NODE_RANK"',
        f'--master-addr "$(head -n 1 <<< "$SKYPILOT_NODE_IPS")" --master-port {PORT}',
        " ".join(words[1:]),
    ]
    return start + " \\\n  ".join(launcher) + "\n"
