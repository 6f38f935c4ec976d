"""The loop around `train`, with real runs: the command is killed, the loop is killed, and a user asks to stop."""

import os
import signal

import pytest
from support.faulty_runs import Command, World, assert_same_run, assert_sound, await_end, kill, saved, status
from support.processes import children, gone

from jobs.__main__ import main
from pipeline.run.ledger import read_events

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),  # a CPU's way
]
LOOP = """
import sys, jobs.again
jobs.again.COMMAND = [sys.executable, {script!r}]
sys.exit(jobs.again.main(sys.argv[1:]))
"""


def looped(world: World) -> Command:
    """A run in the loop, whose steps take long."""
    path = world.folder / "loop.py"
    path.write_text(LOOP.format(script=world.unhurried()[0]))
    return world.train(workers=1, program=[str(path)], afresh=True)


def verb_of(loop: Command) -> int:
    """The process of `train`."""
    [pid] = [pid for pid in children(loop.process.pid) if not gone(pid)]
    return pid


@pytest.mark.each_commit
def test_a_command_that_is_killed_goes_on_from_what_is_saved(world: World) -> None:
    loop = looped(world)
    loop.await_that("step 12 is saved", lambda: saved(world.run()) >= 12)
    kill(verb_of(loop), signal.SIGKILL)
    told = loop.end()
    assert "again: train ended with -9, step " in told
    assert told.count("; start ") == 1
    starts = [event for event in read_events(world.run()) if event["event"] == "start"]
    assert [event["attempt"] for event in starts] == [1, 2]
    assert starts[1]["command_step"] >= 12
    assert_same_run(world.run(), world.reference())


def test_where_the_loop_is_killed_the_command_saves_and_the_next_loop_goes_on(world: World) -> None:
    loop = looped(world)
    loop.await_that("step 6 is saved", lambda: saved(world.run()) >= 6)
    pids = [verb_of(loop), *loop.survivors()]
    os.kill(loop.process.pid, signal.SIGKILL)
    following = world.train(workers=1, program=["-m", "jobs.again"], afresh=True)  # at once: it waits for the folder
    await_end(pids)
    following.end()
    assert [event["cause"] for event in read_events(world.run()) if event["event"] == "stop"] == ["SIGTERM"]
    assert_same_run(world.run(), world.reference())
    assert assert_sound(world.run(), world.plan, faults=[])["tokens_replayed"] == 0


def test_what_a_user_asked_for_ends_the_loop_and_holds_for_a_restart(world: World) -> None:
    loop = looped(world)
    loop.await_that("step 6 is saved", lambda: saved(world.run()) >= 6)
    assert main(["stop", f"run={world.run()}"]) == 0
    loop.end(0)
    assert status(world.run())["state"] == "stopped"
    step = saved(world.run())
    world.train(environment={"WORDLANES_JOB_START": "1"}).end(0)
    assert saved(world.run()) == step
