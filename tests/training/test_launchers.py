"""Runs whose processes torchrun or srun starts are those that the command starts by itself."""

import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.faulty_runs import (
    JOBS,
    PATIENCE_SECONDS,
    TOTAL,
    Command,
    Draw,
    World,
    assert_last_line,
    assert_same_run,
    assert_sound,
    await_end,
    children,
    command_line,
    gone,
    kill,
    made_again,
    recorded,
    saved,
    status,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),  # a CPU's way
]


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def ranks_of(command: Command) -> list[int]:
    """The process ids of what torchrun started."""
    return [pid for pid in children(command.process.pid) if " train " in command_line(pid)]


def test_torchrun_starts_and_stops_and_restarts_it(world: World, draw: Draw) -> None:
    first, second = draw.steps((20, 50), (70, 110))
    command = world.train(program=[*TORCHRUN, *JOBS])
    reached = command.reach(first)
    ranks = ranks_of(command)
    kill(command.process.pid, signal.SIGTERM)
    command.process.wait(PATIENCE_SECONDS)
    assert all(gone(pid) for pid in ranks)
    assert command.told.count("stopped: ") == 2
    assert reached <= saved(world.run()) == recorded(world.run())
    restarting = [*TORCHRUN, "--max-restarts=1", *JOBS]
    told = world.train(program=restarting).end(1)
    assert "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment" in told
    command = world.train(program=restarting, environment={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})
    command.reach(second)
    kill(draw.one(ranks_of(command)), signal.SIGKILL)
    command.end()
    assert_same_run(world.run(), world.reference(workers=2))
    found = status(world.run())
    assert found["state"] == "finished"
    assert found["num_attempts"] == 3
    assert found["tokens_replayed"] == made_again(world.run(), world.plan)


def test_ranks_of_a_torchrun_that_is_killed_do_not_train_on(world: World, draw: Draw) -> None:
    command = world.train(program=[*TORCHRUN, *JOBS])
    reached = command.reach(draw.step(20, 70))
    ranks = ranks_of(command)
    kill(command.process.pid, signal.SIGKILL)
    await_end(ranks)
    assert reached <= saved(world.run()) < TOTAL
    assert "Traceback" not in command.told, command.told
    world.train(workers=2).end()
    assert_same_run(world.run(), world.reference(workers=2))


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def srun(
    world: World,
    num_tasks: int,
    *overrides: str,
    wait_seconds: float = 0.0,
    step: int = 0,
    run: str | None = None,
    program: Sequence[str] = JOBS,
) -> list[Command]:
    """The processes that `srun --ntasks` starts on one machine; the later ones a little later."""
    commands = []
    for rank in range(num_tasks):
        environment = {
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NAME": "interactive",
            "SLURM_NTASKS": str(num_tasks),
            "SLURM_STEP_ID": str(step),
            "SLURM_STEP_NODELIST": "machine",
            "SLURM_STEP_NUM_TASKS": str(num_tasks),
            "SLURM_STEP_TASKS_PER_NODE": str(num_tasks),
            "SLURM_NODEID": "0",
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
        }
        commands.append(world.train(*overrides, run=run, program=program, environment=environment))
        time.sleep(wait_seconds)
    return commands


def by_variables(world: World, num_processes: int, *, port: int) -> list[Command]:
    """What a launcher starts that no one has heard of."""
    meeting = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [world.train(environment={**meeting, "RANK": str(rank)}) for rank in range(num_processes)]


def test_srun_starts_and_stops_it(world: World, draw: Draw) -> None:
    commands = srun(world, 2, wait_seconds=3.0, program=world.unhurried())
    reached = commands[0].reach(draw.step(20, 100))
    for command in commands:
        kill(command.process.pid, signal.SIGTERM)
    for command in commands:
        assert_last_line(command.end(128 + signal.SIGTERM), f"stopped: run={world.run()} is saved at step ")
    assert reached <= saved(world.run()) == recorded(world.run())
    others = srun(world, 2, run=world.run("other"), step=1)  # of the same job, at the same time
    for command in [*srun(world, 2), *others]:
        command.end()
    assert_same_run(world.run(), world.reference(workers=2))
    assert_same_run(world.run("other"), world.reference(workers=2))
    assert assert_sound(world.run(), world.plan, faults=[])["tokens_replayed"] == 0


@pytest.mark.each_commit
def test_any_launcher_starts_it(world: World) -> None:
    for command in by_variables(world, 2, port=free_port()):
        command.end()
    assert_same_run(world.run(), world.reference(workers=2))


def test_ranks_that_cannot_meet_are_told_in_a_line(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first, _ = by_variables(world, 2, port=taken.getsockname()[1])
        assert_last_line(first.end(2), f"error: MASTER_ADDR=127.0.0.1, MASTER_PORT={taken.getsockname()[1]}: ")
    nowhere = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "2345"}
    told = world.train(environment=nowhere).end(2)
    assert_last_line(told, "error: MASTER_ADDR=nowhere.invalid, MASTER_PORT=2345: ")
    assert told.strip().endswith("give an address that every machine resolves")


@pytest.mark.parametrize("workers", [1, 2])
def test_an_installed_slurm_and_stray_variables_are_no_matter(workers: int, world: World) -> None:
    srun = world.folder / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    stray = {"NODE_RANK": "1", "GROUP_RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "nowhere.invalid"}
    environment = {"PATH": f"{srun.parent}:{os.environ['PATH']}", **stray}
    told = world.train("guard.hang_seconds=60", workers=workers, environment=environment).end()
    assert "srun" not in told
    assert_same_run(world.run(), world.reference(workers=workers))


def test_numbers_of_workers_that_do_not_share_the_lanes_are_refused(world: World) -> None:
    of_command = world.train(workers=3)
    of_torchrun = world.train(program=[*TORCHRUN[:-1], "--nproc-per-node=3", *JOBS])
    of_srun = srun(world, 3)
    assert_last_line(of_command.end(2), "error: cluster.num_workers=3 does not divide stream.num_lanes=4; use")
    assert of_command.told.strip().endswith("use cluster.num_workers=2 or 4")
    for command in of_srun:
        assert_last_line(command.end(2), "error: the number of processes started=3 does not divide stream.num_lanes=4")
    assert of_torchrun.process.wait(PATIENCE_SECONDS) != 0
    assert "does not divide stream.num_lanes=4; use the number of processes started=2 or 4" in of_torchrun.told
    assert not Path(world.run()).exists()
