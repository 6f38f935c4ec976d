"""What a launcher told this process: which of several processes it is, and where they meet.

In: the environment that torchrun, srun or another launcher set. Out: a `Rank`, or None for a process that stands alone.
Refuses an environment that tells of several processes and not of this one's place among them: each would train alone,
or wait for ever.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.config import ClusterConfig
from pipeline.errors import ClusterError
from pipeline.run.meeting import HERE

Environment = Mapping[str, str]  # of this process

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # by which torch lets processes find each other
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "JSM_NAMESPACE_SIZE")
JOB_START = "WORDLANES_JOB_START"  # which start of a submitted job it is, from 1: nobody types those
RESTARTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT", JOB_START)
SRUNS_STEPS = 1 << 31  # ids above are those of Slurm's own steps, such as the shell of salloc
FIRST_PORT, NUM_PORTS = 12_000, 20_000  # below those that Linux gives to whoever asks for any
PORTS_OF_JOB = 97


@dataclass(frozen=True, kw_only=True)
class Rank:
    """The place of this process among those that a launcher started.

    Attributes:
        launcher: its name, for people.
        rank, world_size: among all.
        local_rank, ranks_here: among those of this machine; where nobody tells how many they are, the least number.
        node_rank, num_nodes: this machine among all; where the machines have not equally many, as if they had.
        main_address, main_port: where the first rank listens.
        parent: process id of a launcher without which nobody waits for the ranks; None: it may go.
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    ranks_here: int
    node_rank: int
    num_nodes: int
    main_address: str
    main_port: int
    parent: int | None = None


def find_rank(environment: Environment, cluster: ClusterConfig) -> Rank | None:
    """The place of this process among those that were started together; None if it stands alone.

    Raises:
        ClusterError: the place is not told in full, is at odds with the section, or torchrun is to restart ranks and
            cannot.
    """
    given = {name: value for name, value in environment.items() if value}
    step = _step_of_srun(given)
    if "RANK" not in given and step is None:
        _refuse_tasks_without_srun(given, cluster)
    by_variables = "RANK" in given or ("WORLD_SIZE" in given and step is None)  # which scripts of Slurm export for srun
    found = (_by_variables(given) if by_variables else None) or step
    num_ranks = found.world_size if found is not None else 1
    if found is step and (size := _number(given, "WORLD_SIZE", num_ranks)) != num_ranks:
        raise ClusterError(f"WORLD_SIZE={size} and srun started {num_ranks} tasks; unset WORLD_SIZE")
    for name in MPI_SIZES:
        if (size := _number(given, name, 1)) not in (1, num_ranks):
            raise ClusterError(
                f"{name}={size} tells of {size} processes and not where they meet; start them by torchrun or srun,"
                f" or give each {', '.join(VARIABLES)}"
            )
    if found is None or num_ranks == 1 or (found is step and cluster.kind == "ray"):
        return None  # where srun started a Ray cluster, the command is one of its tasks
    _refuse_another_way(found, cluster)
    _refuse_torn_restarts(given)
    return found


def started_by_machine(environment: Environment) -> bool:
    """Whether this is a start that nobody typed: that of a submitted job, a requeue by Slurm, a restart by torchrun."""
    return any(_number(environment, name, 0) > 0 for name in RESTARTS)


def _by_variables(given: Environment) -> Rank | None:
    """As torch's own `env://` has it: torchrun, and launchers that do as it does."""
    name = "torchrun" if "TORCHELASTIC_RUN_ID" in given else "a launcher"
    if (_number(given, "WORLD_SIZE", 0), _number(given, "RANK", 0)) == (1, 0):
        return None
    if missing := [each for each in VARIABLES if each not in given]:
        there = ", ".join(f"{each}={given[each]}" for each in VARIABLES if each in given)
        raise ClusterError(
            f"{there} of {name}, and no {', '.join(missing)}: it is not known which process this is of how many;"
            f" give all of {', '.join(VARIABLES)}, or unset them to train alone"
        )
    rank, world_size = _number(given, "RANK"), _number(given, "WORLD_SIZE")
    ranks_here = _number(given, "LOCAL_WORLD_SIZE", _number(given, "LOCAL_RANK", 0) + 1)
    local_rank = _number(given, "LOCAL_RANK", rank % max(ranks_here, 1))
    if not (rank < world_size and local_rank < ranks_here <= world_size):
        raise ClusterError(
            f"RANK={rank}, WORLD_SIZE={world_size}, LOCAL_RANK={local_rank} and LOCAL_WORLD_SIZE={ranks_here} of {name}"
            " do not fit; ranks count from 0 to below their number"
        )
    return Rank(
        launcher=name,
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        ranks_here=ranks_here,
        node_rank=_number(given, "GROUP_RANK", rank // ranks_here),
        num_nodes=-(-world_size // ranks_here),
        main_address=given["MASTER_ADDR"],
        main_port=_port(given, default=None),
        parent=os.getppid() if name == "torchrun" else None,
    )


def _step_of_srun(given: Environment) -> Rank | None:
    """The step that an srun is, of one task or more; None where no srun started this process."""
    step_id = _number(given, "SLURM_STEP_ID", SRUNS_STEPS)
    if step_id >= SRUNS_STEPS:
        return None
    world_size = _number(given, "SLURM_STEP_NUM_TASKS", _number(given, "SLURM_NTASKS", 1))
    if world_size == 1:
        here = [1]
    else:
        here = _tasks_by_node(_first(given, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE") or str(world_size))
    node_rank = _number(given, "SLURM_NODEID", 0)
    address = given.get("MASTER_ADDR")
    if address is None:
        nodes = _first(given, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
        address = HERE if nodes is None or len(here) == 1 else _first_host(nodes)
    return Rank(
        launcher="srun",
        rank=_number(given, "SLURM_PROCID", 0),
        world_size=world_size,
        local_rank=_number(given, "SLURM_LOCALID", 0),
        ranks_here=here[min(node_rank, len(here) - 1)],
        node_rank=node_rank,
        num_nodes=len(here),
        main_address=address,
        main_port=_port(given, default=_port_of(job=_number(given, "SLURM_JOB_ID", 0), step=step_id)),
    )


def _tasks_by_node(text: str) -> list[int]:
    """How many tasks each machine of a step has: `2(x3),1` is [2, 2, 2, 1]."""
    counts = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if found is None:
            raise ClusterError(f"SLURM_STEP_TASKS_PER_NODE={text} is not of the form 2(x3),1; let srun set it")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts


def _first_host(nodes: str) -> str:
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    return SLURMEnvironment.resolve_root_node_address(nodes)


def _port_of(*, job: int, step: int) -> int:
    """A port of this step's own: not that of another of the job, nor of a job that began at about the same time."""
    return FIRST_PORT + (job * PORTS_OF_JOB + step) % NUM_PORTS


def _refuse_another_way(rank: Rank, cluster: ClusterConfig) -> None:
    """Each of the processes would have Ray train the same run."""
    if cluster.kind != "none":
        raise ClusterError(
            f"cluster={cluster.kind} trains by Ray's workers and {rank.launcher} started {rank.world_size} processes;"
            " use cluster=none, or start one process"
        )


def _refuse_torn_restarts(given: Environment) -> None:
    """What torchrun starts again finds in its store where the ranks before could be reached, and fails for it."""
    restarts = given.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if restarts != "0" and given.get("TORCHELASTIC_USE_AGENT_STORE") == str(True):
        raise ClusterError(
            f"torchrun's --max-restarts={restarts} cannot restart ranks that share its store (pytorch/pytorch#135712);"
            " set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment, or leave --max-restarts out"
        )


def _refuse_tasks_without_srun(given: Environment, cluster: ClusterConfig) -> None:
    """A job script, or the shell of salloc, runs once, however many tasks were asked for."""
    num_tasks = _number(given, "SLURM_NTASKS", 1)
    if "SLURM_JOB_ID" in given and num_tasks > 1 and cluster.kind == "none" and cluster.num_workers is None:
        raise ClusterError(
            f"SLURM_NTASKS={num_tasks} tasks were asked for and no srun started them; call `srun python -m jobs train"
            " ...`, or give cluster.num_workers=1 to train in this process alone"
        )


def _port(given: Environment, *, default: int | None) -> int:
    port = _number(given, "MASTER_PORT", default)
    if not 0 < port < 1 << 16:
        raise ClusterError(f"MASTER_PORT={port} is no port; use one of 1024 to 65535")
    return port


def _first(given: Environment, *names: str) -> str | None:
    return next((given[name] for name in names if name in given), None)


def _number(given: Environment, name: str, default: int | None = None) -> int:
    value = given.get(name, default)
    if isinstance(value, int):
        return value
    if value is None or not value.isdecimal():
        raise ClusterError(f"{name}={value} is no number; let the launcher set it")
    return int(value)
