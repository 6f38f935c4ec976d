"""What a process makes of the environment that a launcher set, without any launcher."""

from functools import cache
from typing import Any

import pytest
import torch

from pipeline.cluster.environment import KnownEnvironment
from pipeline.cluster.launched import devices_for
from pipeline.cluster.launchers import Rank, find_rank
from pipeline.config import ClusterConfig, Config, load
from pipeline.errors import ClusterError

MEETING = {"MASTER_ADDR": "head", "MASTER_PORT": "2345"}


@cache
def cluster(*overrides: str) -> ClusterConfig:
    return load(Config, list(overrides)).cluster


def told(*overrides: str, **environment: object) -> Rank | None:
    return find_rank({name: str(value) for name, value in environment.items()}, cluster(*overrides))


def refusal(*overrides: str, **environment: object) -> str:
    with pytest.raises(ClusterError) as raised:
        told(*overrides, **environment)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def srun(rank: int = 0, **other: object) -> dict[str, object]:
    """What srun tells the tasks of a step of four: three on the machine n3, one on n4."""
    node, local = divmod(rank, 3)
    return {
        "SLURM_JOB_ID": 4711,
        "SLURM_JOB_NAME": "bash",
        "SLURM_JOB_NODELIST": "n[1-4]",
        "SLURM_NTASKS": 4,
        "SLURM_STEP_ID": 0,
        "SLURM_STEP_NUM_TASKS": 4,
        "SLURM_STEP_NODELIST": "n[3-4]",
        "SLURM_STEP_TASKS_PER_NODE": "3,1",
        "SLURM_PROCID": rank,
        "SLURM_LOCALID": local,
        "SLURM_NODEID": node,
        **other,
    }


ALONE: list[dict[str, object]] = [
    {},
    {"MASTER_ADDR": "head", "MASTER_PORT": 2345},  # of a shell's profile
    {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, **MEETING, "TORCHELASTIC_RUN_ID": "one"},
    {"WORLD_SIZE": 1, "RANK": ""},
    {"OMPI_COMM_WORLD_SIZE": 1, "PMI_SIZE": 1},
    {"SLURM_NTASKS": 4},  # which is what srun is to start by default
    {"SLURM_JOB_ID": 1, "SLURM_NTASKS": 1, "SLURM_PROCID": 0, "SLURM_JOB_NAME": "mine"},
    srun(SLURM_NTASKS=1, SLURM_STEP_NUM_TASKS=1, SLURM_STEP_TASKS_PER_NODE=1),  # such as a shell by `srun --pty`
]


@pytest.mark.parametrize("environment", ALONE)
def test_one_process_is_alone(environment: dict[str, object]) -> None:
    assert told(**environment) is None


def test_the_place_of_a_task_is_that_of_its_step() -> None:
    last = told(**srun(3))
    assert last is not None
    assert (last.rank, last.world_size, last.local_rank, last.ranks_here) == (3, 4, 0, 1)
    assert (last.node_rank, last.num_nodes, last.main_address) == (1, 2, "n3")
    places = [told(**srun(rank)) for rank in range(3)]
    assert [(place.rank, place.local_rank, place.ranks_here) for place in places if place] == [
        (0, 0, 3),
        (1, 1, 3),
        (2, 2, 3),
    ]


@pytest.mark.parametrize(
    ("tasks", "node", "expected"), [("2(x3),1", 2, (2, 4)), ("2(x3),1", 3, (1, 4)), ("1(x4)", 3, (1, 4))]
)
def test_tasks_of_each_machine_are_counted(tasks: str, node: int, expected: tuple[int, int]) -> None:
    place = told(**srun(SLURM_STEP_TASKS_PER_NODE=tasks, SLURM_NODEID=node))
    assert place is not None
    assert (place.ranks_here, place.num_nodes) == expected


def test_tasks_of_one_machine_meet_there_whatever_its_name() -> None:
    place = told(**srun(SLURM_STEP_TASKS_PER_NODE=4, SLURM_STEP_NODELIST="n3"))
    assert place is not None
    assert place.main_address == "127.0.0.1"


def test_steps_meet_at_ports_of_their_own() -> None:
    steps = [(job, step) for job in (1, 2, 4711, 10**9) for step in range(9)]
    places = [told(**srun(SLURM_JOB_ID=job, SLURM_STEP_ID=step)) for job, step in steps]
    ports = {place.main_port for place in places if place is not None}
    assert len(ports) == len(steps)
    assert all(1024 <= port < 32768 for port in ports)  # of which Linux hands none out by itself
    assert told(**srun(0)) is not None
    one, other = told(**srun(0)), told(**srun(3))
    assert one is not None and other is not None
    assert one.main_port == other.main_port


def test_where_a_script_of_slurm_says_where_to_meet_that_counts() -> None:
    place = told(**srun(2), **MEETING, WORLD_SIZE=4)
    assert place is not None
    assert (place.main_address, place.main_port, place.rank) == ("head", 2345, 2)


WITHOUT_SRUN: dict[str, dict[str, object]] = {
    "sbatch": {"SLURM_JOB_ID": 1, "SLURM_NTASKS": 2, "SLURM_PROCID": 0},
    "salloc": {"SLURM_JOB_ID": 1, "SLURM_NTASKS": 2, "SLURM_JOB_NAME": "mine"},
    "salloc, which starts its shell by a step": {
        "SLURM_JOB_ID": 1,
        "SLURM_NTASKS": 2,
        "SLURM_PROCID": 0,
        "SLURM_STEP_ID": 4294967290,
        "SLURM_STEP_NUM_TASKS": 1,
    },
    "sbatch, for srun": {"SLURM_JOB_ID": 1, "SLURM_NTASKS": 2, "WORLD_SIZE": 2, **MEETING},
}


@pytest.mark.parametrize("environment", WITHOUT_SRUN.values(), ids=WITHOUT_SRUN.keys())
def test_tasks_that_no_srun_started_are_refused_unless_the_command_says_what_it_does(
    environment: dict[str, object],
) -> None:
    assert refusal(**environment).startswith("SLURM_NTASKS=2 tasks were asked for and no srun started them; call `srun")
    del environment["SLURM_NTASKS"]
    environment.pop("WORLD_SIZE", None)
    assert told(**environment) is None
    environment["SLURM_NTASKS"] = 2
    for override in ("cluster.num_workers=1", "cluster.num_workers=2", "cluster=local", "cluster=ray"):
        assert told(override, **environment) is None


def test_the_variables_of_any_launcher_count() -> None:
    place = told(RANK=5, WORLD_SIZE=8, **MEETING)
    assert place is not None
    assert (place.rank, place.world_size, place.local_rank, place.ranks_here, place.num_nodes) == (5, 8, 0, 1, 8)
    assert (place.main_address, place.main_port, place.parent) == ("head", 2345, None)
    place = told(RANK=5, WORLD_SIZE=8, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4, **MEETING)
    assert place is not None
    assert (place.local_rank, place.ranks_here, place.node_rank, place.num_nodes) == (1, 4, 1, 2)
    place = told(RANK=5, WORLD_SIZE=8, LOCAL_RANK=3, **MEETING)
    assert place is not None
    assert (place.local_rank, place.ranks_here) == (3, 4)
    place = told(RANK=5, WORLD_SIZE=8, LOCAL_WORLD_SIZE=4, **MEETING)
    assert place is not None
    assert (place.local_rank, place.ranks_here) == (1, 4)


def test_a_task_of_srun_that_starts_others_itself_is_not_one_of_two() -> None:
    place = told(**srun(1), RANK=3, LOCAL_RANK=1, LOCAL_WORLD_SIZE=2, WORLD_SIZE=8, TORCHELASTIC_RUN_ID="x", **MEETING)
    assert place is not None
    assert (place.launcher, place.rank, place.world_size) == ("torchrun", 3, 8)


HALVES: list[tuple[dict[str, object], str]] = [
    ({"RANK": 0}, "RANK=0 of a launcher, and no WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
    ({"RANK": 0, "WORLD_SIZE": 2}, "RANK=0, WORLD_SIZE=2 of a launcher, and no MASTER_ADDR, MASTER_PORT"),
    ({"WORLD_SIZE": 2, **MEETING}, "and no RANK"),
    ({"RANK": 2, "WORLD_SIZE": 2, **MEETING}, "do not fit"),
    ({"RANK": 3, "WORLD_SIZE": 1, **MEETING}, "do not fit"),
    ({"RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 4, **MEETING}, "do not fit"),
    ({"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 2, "LOCAL_WORLD_SIZE": 2, **MEETING}, "do not fit"),
    ({"RANK": "first", "WORLD_SIZE": 2, **MEETING}, "RANK=first is no number"),
    ({"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "head", "MASTER_PORT": 70000}, "MASTER_PORT=70000 is no port"),
    ({"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "head", "MASTER_PORT": 0}, "MASTER_PORT=0 is no port"),
    ({"OMPI_COMM_WORLD_SIZE": 2}, "OMPI_COMM_WORLD_SIZE=2 tells of 2 processes and not where they meet"),
    ({"PMI_SIZE": 2}, "PMI_SIZE=2 tells of 2 processes"),
    ({"OMPI_COMM_WORLD_SIZE": 4, "SLURM_JOB_ID": 1}, "OMPI_COMM_WORLD_SIZE=4"),
    ({**srun(), "OMPI_COMM_WORLD_SIZE": 8}, "OMPI_COMM_WORLD_SIZE=8"),  # what mpirun has srun start is not the ranks
    ({**srun(), "WORLD_SIZE": 8}, "WORLD_SIZE=8 and srun started 4 tasks"),
    ({**srun(), "WORLD_SIZE": 1, "RANK": 0}, "WORLD_SIZE=1 and srun started 4 tasks"),
    ({**srun(), "SLURM_STEP_TASKS_PER_NODE": "many"}, "SLURM_STEP_TASKS_PER_NODE=many is not of the form"),
]


@pytest.mark.parametrize(("environment", "beginning"), HALVES)
def test_a_place_that_is_not_told_in_full_is_refused(environment: dict[str, object], beginning: str) -> None:
    assert beginning in refusal(**environment)


def test_mpi_beside_a_launcher_that_says_the_same_is_no_matter() -> None:
    assert told(**srun(1), PMI_SIZE=4, PMI_RANK=1) is not None
    assert told(RANK=1, WORLD_SIZE=2, OMPI_COMM_WORLD_SIZE=2, **MEETING) is not None


@pytest.mark.parametrize("kind", ["local", "ray"])
def test_processes_of_a_launcher_do_not_train_by_ray(kind: str) -> None:
    found = refusal(f"cluster={kind}", RANK=1, WORLD_SIZE=2, **MEETING)
    assert found.startswith(f"cluster={kind} trains by Ray's workers and a launcher started 2 processes; use")


def test_srun_may_have_started_a_ray_cluster_but_not_many_on_their_own_machines() -> None:
    assert told("cluster=ray", **srun()) is None
    assert refusal("cluster=local", **srun()).startswith("cluster=local trains by Ray's workers and srun started 4")


def test_restarts_that_torchrun_cannot_make_are_refused() -> None:
    torchrun = {"RANK": 0, "WORLD_SIZE": 2, "TORCHELASTIC_RUN_ID": "one", **MEETING}
    restarts = {"TORCHELASTIC_MAX_RESTARTS": 1, "TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert "--max-restarts=1 cannot restart ranks that share its store" in refusal(**torchrun, **restarts)
    found: Any = told(**torchrun, TORCHELASTIC_MAX_RESTARTS=1)
    assert found.launcher == "torchrun"


def test_lightning_is_told_what_is_known() -> None:
    place = told(RANK=5, WORLD_SIZE=8, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4, **MEETING)
    assert place is not None
    known = KnownEnvironment(place)
    known.set_global_rank(1)
    known.set_world_size(1)
    assert (known.global_rank(), known.world_size(), known.local_rank(), known.node_rank()) == (5, 8, 1, 1)
    assert (known.main_address, known.main_port) == ("head", 2345)
    assert known.creates_processes_externally
    assert not known.detect()


@pytest.mark.parametrize(
    ("num_gpus", "accelerator", "expected"),
    [(0, "auto", 4), (4, "auto", 4), (8, "cuda", 4), (1, "auto", 1), (2, "cpu", 4)],  # 1: bound to a GPU of its own
)
def test_a_process_sees_the_devices_of_its_machine_or_its_own(
    num_gpus: int, accelerator: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = told(RANK=5, WORLD_SIZE=8, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4, **MEETING)
    assert place is not None
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    assert devices_for(place, accelerator=accelerator) == expected


def test_processes_that_would_share_a_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    place = told(RANK=5, WORLD_SIZE=8, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4, **MEETING)
    assert place is not None
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(ClusterError, match="started 4 processes on a machine with 3 GPUs; start one for each"):
        devices_for(place, accelerator="auto")
