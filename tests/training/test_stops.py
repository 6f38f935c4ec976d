"""A run is asked to stop, by a signal or by its folder: it is saved, and goes on from there, whenever that comes."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support.faulty_runs import (
    JOBS,
    PATIENCE_SECONDS,
    ROOT,
    SIGNALS,
    Draw,
    World,
    assert_last_line,
    assert_same_run,
    assert_sound,
    await_end,
    recorded,
    saved,
    send,
    status,
)
from support.forks import Fork
from support.typed import over

from pipeline.run.ledger import read_events

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),  # a CPU's way
]


@pytest.mark.each_commit
@pytest.mark.parametrize("workers", [1, 2])
def test_a_request_to_stop_is_met_soon_and_costs_nothing(workers: int, world: World, draw: Draw) -> None:
    steps = draw.steps((8, 30), (50, 60), (80, 90))
    numbers = draw.order(sorted({number for number, _ in SIGNALS}))
    for step, number in zip(steps, numbers, strict=True):
        target = draw.one([target for _, target in SIGNALS])
        command = world.train(workers=workers, program=world.unhurried())
        reached = command.reach(step)
        send(command, number, target)
        assert_last_line(command.end(128 + number), f"stopped: run={world.run()} is saved at step ")
        assert reached <= saved(world.run()) == recorded(world.run())
        assert status(world.run())["state"] == "stopped"
        assert read_events(world.run())[-1]["cause"] == signal.Signals(number).name
    world.train(workers=workers).end()
    assert_same_run(world.run(), world.reference(workers=workers))
    assert assert_sound(world.run(), world.plan, faults=[])["tokens_replayed"] == 0


@pytest.mark.each_commit
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_is_asked_to_stop_from_anywhere_and_stays_so_until_a_person_starts_it(
    workers: int, world: World, draw: Draw
) -> None:
    command = world.train(workers=workers, program=world.unhurried())
    reached = command.reach(draw.step(8, 60))
    asked = [sys.executable, *JOBS, "stop", f"run={world.run()}", "--json"]
    told = json.loads(subprocess.run(asked, cwd=ROOT, capture_output=True, check=True, timeout=PATIENCE_SECONDS).stdout)
    assert_last_line(command.end(0), f"stopped: run={world.run()} is saved at step {told['saved_step']}; ")
    assert (told["state"], told["was_running"]) == ("stopped", True)
    assert reached <= told["saved_step"] == saved(world.run()) == recorded(world.run())
    events = len(read_events(world.run()))
    told = world.train(workers=workers, environment={"SLURM_RESTART_COUNT": "1"}).end(0)  # as a requeue starts it
    assert_last_line(told, f"stopped: run={world.run()} is saved at step ")
    assert len(read_events(world.run())) == events
    world.train(workers=workers).end()
    assert_same_run(world.run(), world.reference(workers=workers))
    assert assert_sound(world.run(), world.plan, faults=[])["tokens_replayed"] == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_request_to_stop_while_it_starts_leaves_nothing_behind(workers: int, world: World, draw: Draw) -> None:
    begun = ("start", "group") if workers > 1 else ("start",)
    for number, target in draw.order(SIGNALS)[:2]:
        command = world.train(workers=workers, afresh=True)
        events = len(read_events(world.run()))
        sign = draw.one(begun)
        command.await_that(f"the event {sign}", lambda sign=sign, since=events: sign in events_since(world, since))
        send(command, number, target)
        told = command.end((128 + number, -number))
        assert "Traceback" not in told, told
        await_end(command.survivors())
    world.train(workers=workers).end()
    assert_same_run(world.run(), world.reference(workers=workers))


def test_where_a_signal_is_ignored_it_stays_so_or_counts_again(world: World, draw: Draw) -> None:
    """SIGHUP as under nohup; SIGINT as in the background of a script, also before the training begins to listen."""
    step = draw.step(8, 40)
    command = world.train(workers=2, ignored=[signal.SIGHUP], program=world.unhurried())
    command.reach(step)
    send(command, signal.SIGHUP, "the whole group")
    command.reach(step + 10)
    send(command, signal.SIGTERM, "the command")
    command.end(128 + signal.SIGTERM)
    events = len(read_events(world.run()))
    command = world.train(workers=2, ignored=[signal.SIGINT], program=world.unhurried())
    command.await_that("training", lambda: "training" in events_since(world, events))
    send(command, signal.SIGINT, draw.one(["the command", "the whole group"]))
    assert_last_line(command.end(128 + signal.SIGINT), f"stopped: run={world.run()} is saved at step ")
    command = world.train(workers=2, ignored=[signal.SIGINT], afresh=True)
    command.await_that("two workers", lambda: len(command.workers()) == 2)
    time.sleep(draw.one([0.0, 0.3, 0.6, 1.0]))
    send(command, signal.SIGINT, "the command")
    command.end(128 + signal.SIGINT)
    world.train(workers=2).end()
    assert_same_run(world.run(), world.reference(workers=2))
    assert_sound(world.run(), world.plan, faults=[])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_terminal_that_closes_loses_nothing(workers: int, world: World, draw: Draw) -> None:
    """It takes what the command tells with it, and may tell of its end more than once."""
    ours, theirs = pty.openpty()
    arguments = [*JOBS, *over(world.verb(world.run()), f"cluster.num_workers={workers}", "logging.progress=true")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = Fork(arguments, log=Path(os.ttyname(theirs)), folder=ROOT, environment=environment)
    step, told = draw.step(20, 100), b""
    while recorded(world.run()) < step:
        assert command.poll() is None, told
        told += os.read(ours, 10_000)
    os.close(ours)
    os.close(theirs)
    with suppress(ProcessLookupError):
        os.killpg(command.pid, signal.SIGHUP)
    assert command.wait(PATIENCE_SECONDS) == 128 + signal.SIGHUP
    stop = read_events(world.run())[-1]
    assert (stop["event"], stop["cause"], stop["step"]) == ("stop", "SIGHUP", saved(world.run()))
    assert step <= saved(world.run()) == recorded(world.run())
    world.train(workers=workers).end()
    assert_same_run(world.run(), world.reference(workers=workers))


def events_since(world: World, since: int) -> list[str]:
    """The names of events that were added."""
    return [event["event"] for event in read_events(world.run())[since:]]


def test_a_request_to_stop_counts_where_lightning_would_take_it(world: World, draw: Draw) -> None:
    """It has a handler of its own for SIGTERM while it sets up, which broadcasts."""
    once = "    if once(f'{os.getppid()}{module.ranks.rank}'): os.kill(os.getpid(), signal.SIGTERM)\n"
    hook = draw.one(["configure_optimizers", "on_fit_start", "on_train_start", "on_train_end"])
    more = f"def hook(module, sound=LanguageModelModule.{hook}):\n{once}    return sound(module)\n"
    command = world.train(workers=2, program=world.script(more=f"{more}LanguageModelModule.{hook} = hook\n"))
    told = command.end((0, 128 + signal.SIGTERM))
    assert "Traceback" not in told, told
    world.train(workers=2).end()
    assert_same_run(world.run(), world.reference(workers=2))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_ctrl_c_does_not_wait_for_a_step_that_never_ends(workers: int, world: World, draw: Draw) -> None:
    step = draw.step(20, 100)
    program = world.script(f"time.sleep({PATIENCE_SECONDS} if step == {step} and once(str(rank)) else 0)")
    command = world.train(workers=workers, program=program)
    command.reach(step - 1)
    send(command, signal.SIGINT, "the whole group")
    time.sleep(1.5)
    assert command.process.poll() is None
    send(command, signal.SIGINT, "the whole group")
    assert_last_line(command.end(128 + signal.SIGINT), "interrupted; the same command goes on")
    world.train(workers=workers).end()
    assert_same_run(world.run(), world.reference(workers=workers))
