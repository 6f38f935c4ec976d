"""Training in one of the processes that a launcher started: torchrun, srun, or any that says where they meet."""

import os
import socket
from dataclasses import replace
from functools import partial

from pipeline import console
from pipeline.cluster.launchers import Rank
from pipeline.cluster.parent import ParentWatch, await_launcher
from pipeline.cluster.returns import one_line
from pipeline.errors import ClusterError
from pipeline.run.job import Job, Place, Result, Work, threads_of_each
from pipeline.run.meeting import LOOPBACK, stay_here


def prepare(*, modules: list[str]) -> None:
    """Nothing: this process imports what it needs when it needs it."""


def run(work: Work, job: Job, rank: Rank | None) -> Result:
    """Runs the worker's part here, with the other processes.

    Args:
        work: the worker's part.
        job: what each worker is given.
        rank: the place of this process, if a launcher started it as one of several.

    Raises:
        ClusterError: the ranks cannot meet where they were told to.
    """
    from torch.distributed import DistNetworkError

    from pipeline.cluster.environment import KnownEnvironment, MeetingHere, leave_group

    assert rank is not None
    console.set_up(rank.rank)
    launcher = None
    if rank.parent is not None:
        await_end = partial(await_launcher, rank.parent)
        launcher = ParentWatch(await_end, grace_seconds=job.config.cluster.grace_seconds)
    if rank.num_nodes == 1:
        stay_here()
    # where torchrun keeps the store, it is torchrun's; all ranks are told the same address
    by_us = rank.main_address in LOOPBACK and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)
    num_devices = devices_for(rank, accelerator=job.config.accelerator)
    place = Place(
        devices=num_devices,
        num_nodes=rank.num_nodes,
        distributed=True,
        strategy=MeetingHere if by_us else None,
        environment=KnownEnvironment(replace(rank, local_rank=rank.local_rank % num_devices)),
        num_threads=threads_of_each(job, rank.ranks_here),
        stop_cause=_no_cause if launcher is None else launcher.stop_cause,
    )
    meeting = f"MASTER_ADDR={rank.main_address}, MASTER_PORT={rank.main_port}"
    try:
        socket.getaddrinfo(rank.main_address, rank.main_port)
        result = work(place, job)
    except socket.gaierror as error:
        raise ClusterError(f"{meeting}: {error.strerror}; give an address that every machine resolves") from error
    except DistNetworkError as error:
        raise ClusterError(f"{meeting}: {one_line(error)}; give another MASTER_PORT, the same to all") from error
    leave_group()
    return result


def _no_cause() -> None:
    """Never a cause to stop: ranks of this launcher train on without it."""


def devices_for(rank: Rank, *, accelerator: str) -> int:
    """How many devices this process is to see: those of all ranks of the machine, or its own alone.

    Args:
        rank: the place of this process.
        accelerator: `auto`, `cpu` or `cuda`.

    Raises:
        ClusterError: some ranks would have to share a GPU.
    """
    from torch import cuda

    num_gpus = cuda.device_count() if accelerator != "cpu" else 0
    if num_gpus in (0, 1):
        return num_gpus or rank.ranks_here
    if num_gpus < rank.ranks_here:
        raise ClusterError(
            f"{rank.launcher} started {rank.ranks_here} processes on a machine with {num_gpus} GPUs; start one for"
            " each, or use accelerator=cpu"
        )
    return rank.ranks_here
