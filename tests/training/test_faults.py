"""Whatever happens to a run, the same command goes on to the end that it would have had: with real processes and files.

Each run here is harmed, goes on, and is then compared with one that nothing happened to: bit for bit on the same number
of workers, to float tolerance on another. See `faulty_runs.py` for what is drawn, and from which seed.
"""

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.faulty_runs import (
    SIGNALS,
    TOTAL,
    Command,
    Draw,
    World,
    assert_close_run,
    assert_last_line,
    assert_same_run,
    assert_sound,
    await_end,
    gone,
    kill,
    made_again,
    recorded,
    saved,
    send,
    stands_still,
    status,
)
from support.runs import records

from pipeline.run.checkpoint import committed_steps
from pipeline.run.ledger import read_events
from pipeline.training.watchdog import HUNG

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),  # a CPU's way
]


@pytest.mark.each_commit
def test_workers_that_are_killed_are_started_again_by_the_command(world: World, draw: Draw) -> None:
    """Nobody looks while one is killed, so that all have fallen when someone does: the first to fall is named."""
    command = world.train(workers=2)
    ranks = draw.order([0, 1])
    for rank, step in zip(ranks, draw.steps((20, 45), (65, 95)), strict=True):
        command.reach(step)
        workers = command.workers()
        kill(command.process.pid, signal.SIGSTOP)
        command.await_that("nobody to look", lambda: stands_still(command.process.pid))
        kill(workers[rank], signal.SIGKILL)
        command.await_that("the other's end", lambda pids=workers: all(gone(pid) for pid in pids))
        kill(command.process.pid, signal.SIGCONT)
    told = command.end()
    assert_same_run(world.run(), world.reference(workers=2))
    found = assert_sound(world.run(), world.plan, faults=[("worker", rank) for rank in ranks])
    assert found["num_attempts"] == 1
    assert found["tokens_replayed"] > 0
    assert all(f"worker: rank {rank}: was killed by SIGKILL" in told for rank in ranks)
    assert "Traceback" not in told, told


def test_the_same_command_waits_for_the_workers_of_one_that_was_killed(world: World, draw: Draw) -> None:
    command = world.train(workers=2)
    command.reach(draw.step(20, 70))
    orphans = command.workers()
    kill(command.process.pid, signal.SIGKILL)
    world.train(workers=2).end()
    assert all(gone(pid) for pid in orphans)
    assert_same_run(world.run(), world.reference(workers=2))
    assert status(world.run())["state"] == "finished"


@pytest.mark.parametrize("ignored", [[], [signal.SIGINT]], ids=["", "in the background of a script"])
def test_workers_that_lose_their_command_while_they_start_end_too(ignored: list[int], world: World, draw: Draw) -> None:
    command = world.train(workers=2, afresh=True, ignored=ignored)
    command.await_that("two workers", lambda: len(command.workers()) == 2)
    orphans = command.workers()
    time.sleep(draw.one([0.0, 0.5, 1.0, 1.5, 2.0, 2.5]))
    kill(command.process.pid, signal.SIGKILL)
    await_end(orphans)
    assert recorded(world.run()) < TOTAL, command.told
    world.train(workers=2).end()
    assert_same_run(world.run(), world.reference(workers=2))


@pytest.mark.parametrize("begun", [False, True])
def test_a_worker_that_waits_for_one_that_never_comes_ends_with_its_command(
    begun: bool, world: World, draw: Draw
) -> None:
    """In the exchange of gradients, or before: nothing wakes it there."""
    command = world.train("cluster.grace_seconds=3", workers=2, afresh=not begun)
    if begun:
        command.reach(draw.step(20, 70))
    command.await_that("two workers", lambda: len(command.workers()) == 2)
    orphans = command.workers()
    absent = orphans.pop(draw.one([0, 1]))
    kill(absent, signal.SIGSTOP)
    time.sleep(draw.one([0.0, 0.5, 2.0]))
    kill(command.process.pid, signal.SIGKILL)
    await_end(orphans)
    kill(absent, signal.SIGKILL)
    world.train(workers=2).end()
    assert_same_run(world.run(), world.reference(workers=2))


@pytest.mark.each_commit
def test_a_single_process_that_is_killed_again_and_again(world: World, draw: Draw) -> None:
    steps, lost = draw.steps((10, 58), (75, 110)), 0
    for step in steps:
        command = world.train()
        command.reach(step)
        command.kill_all()
        lost += world.lost_tokens()
    world.train().end()
    assert_same_run(world.run(), world.reference())
    found = assert_sound(world.run(), world.plan, faults=[("silent", None)] * 2)
    assert found["tokens_replayed"] == lost
    assert found["num_attempts"] == 3


def test_a_run_is_killed_and_goes_on_with_another_number_of_workers(world: World, draw: Draw) -> None:
    steps, lost = draw.steps((15, 40), (57, 65), (85, 120)), 0
    zeroed = "stream.state=reset"
    for workers, step in zip((2, 1, 4), steps, strict=True):
        command = world.train(zeroed, workers=workers)
        command.reach(step)
        command.kill_all()
        lost += world.lost_tokens()
    world.train(zeroed, workers=2).end()
    assert_close_run(world.run(), world.reference(zeroed))
    found = assert_sound(world.run(), world.plan, faults=[("silent", None)] * 3)
    assert found["tokens_replayed"] == lost
    assert [(each["from_size"], each["to_size"]) for each in found["resizes"]] == [(2, 1), (1, 4), (4, 2)]


def truncated(path: Path) -> None:
    """Cuts the end off."""
    os.truncate(path, path.stat().st_size // 2)


def flipped(path: Path, draw: Draw) -> None:
    """Turns one bit round."""
    data = bytearray(path.read_bytes())
    place = draw.step(0, 8 * len(data) - 1)
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path, Draw], None]] = {
    "truncated": lambda path, draw: truncated(path),
    "a bit flipped": flipped,
    "gone": lambda path, draw: path.unlink(),
    "its mark not text": lambda path, draw: path.with_suffix(".json").write_bytes(b"\xff" * 64),
    "its mark empty": lambda path, draw: path.with_suffix(".json").write_bytes(b""),
}


def newest_file(run: str) -> Path:
    """The newest checkpoint."""
    return Path(run, "checkpoints", f"step-{saved(run)}.ckpt")


@pytest.mark.each_commit
def test_a_damaged_checkpoint_is_told_of_and_passed_over_for_the_one_before(world: World, draw: Draw) -> None:
    command = world.train()
    command.reach(draw.step(40, 110))
    command.kill_all()
    reached = recorded(world.run())
    runs = {}
    for kind, damage in DAMAGES.items():
        run = world.run(kind.replace(" ", "-"))
        shutil.copytree(world.run(), run)
        path = newest_file(run)
        damage(path, draw)
        runs[kind] = run, path.name, world.train(run=run)
    for run, name, command in runs.values():
        told = command.end()
        assert f"{name}" in told
        assert "going on from step" in told
        assert_same_run(run, world.reference())
        assert_sound(run, world.plan, faults=[("silent", None), ("checkpoint", 0)])
        assert name in status(run)["failures"][1]["cause"]
        assert reached > 0


def test_where_all_checkpoints_are_damaged_nothing_is_begun_and_nothing_lost(world: World, draw: Draw) -> None:
    command = world.train()
    command.reach(draw.step(30, 110))
    command.kill_all()
    kinds = [kind for kind in DAMAGES if "gone" not in kind]
    for path in Path(world.run(), "checkpoints").glob("*.ckpt"):
        DAMAGES[draw.one(kinds)](path, draw)
    before = contents(world.run())
    assert_last_line(world.train().end(2), "error: ")
    assert contents(world.run()) == before


def contents(folder: str) -> dict[Path, bytes]:
    """Every file with its bytes."""
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


@pytest.mark.each_commit
@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
def test_a_run_folder_that_is_lost_is_told_of_and_what_can_be_saved_is(
    replaced: bool, world: World, draw: Draw
) -> None:
    run = Path(world.run())
    command = world.train(workers=2)
    command.reach(draw.step(20, 110))
    run.rename(run.with_name("aside"))  # all of it at once
    if replaced:
        run.mkdir()
        (run / "notes").write_text("mine")
    told = command.end(2)
    what = f"error: run={run} was {'replaced' if replaced else 'removed'} while it was trained in; "
    assert_last_line(told, what)
    place = f"{run}-rescued-1" if replaced else str(run)
    assert f"step {saved(place)} is saved" in told.splitlines()[-1]
    assert saved(place) >= saved(str(run.with_name("aside")))
    if replaced:
        assert contents(str(run)) == {run / "notes": b"mine"}
    world.train(workers=2, run=place).end()
    assert_same_run(place, world.reference(workers=2))
    assert_sound(place, world.plan, faults=[("disk", 0)])


def test_an_unreadable_line_of_the_records_costs_no_worker(world: World, draw: Draw) -> None:
    command = world.train(workers=2)
    command.reach(draw.step(40, 90))
    command.kill_all()
    metrics = Path(world.run(), "metrics.jsonl")
    lines = metrics.read_bytes().splitlines(keepends=True)
    place = draw.step(5, saved(world.run()) - 1)
    lines[place] = draw.one([lines[place][:20] + b"\n", b"\0" * 50 + b"\n", b"\xff" * 20 + b"\n", b'{"step": "9"}\n'])
    metrics.write_bytes(b"".join(lines))
    told = world.train(workers=2).end()
    assert f"{metrics} held 1 line that is no record, dropped now" in told
    assert f"{metrics} lacks 1 of {saved_records(world)} records up to step" in told
    found = assert_sound(world.run(), world.plan, faults=[("silent", None), ("disk", 0), ("disk", 0)])
    assert found["num_attempts"] == 2
    steps = [record["step"] for record in records(world.run())]
    assert steps == [step for step in range(1, TOTAL + 1) if step != place + 1]


def saved_records(world: World) -> int:
    """How many the second group of a run found to be told of: one for each step that was saved."""
    groups = [event for event in read_events(world.run()) if event["event"] == "group"]
    return int(groups[1]["step"])


class Limit:
    """No file of the command may grow beyond 42 kB: a checkpoint does, its records and events do not."""

    def fill(self, command: Command) -> None:
        """From now on."""
        resource.prlimit(command.process.pid, resource.RLIMIT_FSIZE, (42_000, resource.RLIM_INFINITY))

    def empty(self, command: Command) -> None:
        """As before."""
        if command.process.poll() is None:
            resource.prlimit(command.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


class Disk:
    """A disk of its own under a folder, which this process may fill up."""

    def __init__(self, folder: Path) -> None:
        self.ballast = folder / ".ballast"

    def fill(self, command: Command) -> None:
        """To the last byte."""
        with self.ballast.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"0" * 1000)

    def empty(self, command: Command) -> None:
        """As before."""
        self.ballast.unlink()


@contextmanager
def scarce_room(what: str, run: str) -> Iterator[Limit | Disk]:
    """Room that can be taken away from a run."""
    if what == "a limit":
        yield Limit()
        return
    folder = Path(run) if what == "the whole disk" else Path(run, "checkpoints")
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("may not mount a disk here")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("what", ["a limit", "the checkpoints' disk", "the whole disk"])
def test_a_full_disk_is_told_of_and_costs_checkpoints_only(what: str, world: World, draw: Draw) -> None:
    full, empty, full_again = draw.steps((15, 30), (55, 75), (100, 120))
    with scarce_room(what, world.run()) as room:
        command = world.train()
        command.reach(full)
        room.fill(command)
        command.await_that("its word", lambda: "training goes on" in command.told)
        saved_step = saved(world.run())
        if what == "the whole disk":
            time.sleep(0.1)
        else:
            command.reach(empty)
        assert saved(world.run()) == saved_step
        room.empty(command)
        command.reach(full_again)
        assert saved(world.run()) > saved_step
        room.fill(command)
        assert_last_line(command.end(2), "error: the last checkpoint is not written: ")
        room.empty(command)
        assert saved(world.run()) < TOTAL
        world.train().end()
        assert_same_run(world.run(), world.reference())
        found = status(world.run())
        assert found["state"] == "finished"
        if what != "the whole disk":  # where the ledger has no room either
            faults = [(failure["kind"], failure["rank"]) for failure in found["failures"]]
            assert len(faults) > 1
            assert set(faults) == {("disk", 0)}
            assert found["tokens_replayed"] == made_again(world.run(), world.plan)


def test_ranks_that_hang_are_named_and_the_group_started_again(world: World, draw: Draw) -> None:
    """One is stopped by a signal, another by its own code."""
    step, last_step = draw.steps((20, 50), (65, 115))
    rank, last_rank = draw.order([0, 1])
    stand_still = f"time.sleep(3600 if (step, rank) == ({last_step}, {last_rank}) and once() else 0)"
    command = world.train("guard.hang_seconds=4", workers=2, program=world.script(stand_still))
    command.reach(step)
    kill(command.workers()[rank], signal.SIGSTOP)
    began = time.time()
    command.await_that("word of it", lambda: status(world.run())["failures"])
    assert status(world.run())["failures"][0]["time"] - began < 2 * 4 + 30  # a busy machine
    told = command.end()
    assert_same_run(world.run(), world.reference(workers=2))
    found = assert_sound(world.run(), world.plan, faults=[("hang", rank), ("hang", last_rank)])
    first, second = (failure["cause"] for failure in found["failures"])
    assert first.startswith(f"rank {rank} was not heard of")
    assert second.startswith(f"rank {last_rank} stood still for 4 s, computing, after step {last_step - 1}")
    assert first in told
    assert second in told


@pytest.mark.each_commit
def test_a_single_process_that_hangs_ends_by_itself(world: World, draw: Draw) -> None:
    step = draw.step(20, 120)
    program = world.script(f"time.sleep(3600 if step == {step} and once() else 0)")
    command = world.train("guard.hang_seconds=3", program=program)
    assert "Traceback" not in command.end(HUNG)
    world.train().end()
    assert_same_run(world.run(), world.reference())
    found = assert_sound(world.run(), world.plan, faults=[("hang", 0)])
    assert f"stood still for 3 s, computing, after step {step - 1}" in found["failures"][0]["cause"]


TRACKERS = {
    "at its start": "def track(*arguments, **more): raise ConnectionError('nobody answers')",
    "at a record": """
class track(dashboards.NoTracker):
    def __init__(self, *arguments, **more): pass
    def log(self, record):
        if record["step"] >= {step}: raise ConnectionError("nobody answers")
""",
    "at the end": """
class track(dashboards.NoTracker):
    def __init__(self, *arguments, **more): pass
    def finish(self): raise ConnectionError("nobody answers")
""",
}


@pytest.mark.each_commit
def test_a_tracker_that_is_gone_is_told_of_and_missed_no_more(world: World, draw: Draw) -> None:
    commands = []
    for when, track in TRACKERS.items():
        more = track.replace("{step}", str(draw.step(1, TOTAL))) + "\nworker.WandbTracker = track\n"
        run = world.run(when.replace(" ", "-"))
        commands.append(world.train("tracking.kind=wandb", run=run, program=world.script(more=more)))
    for command in commands:
        told = command.end()
        assert told.count("tracking stops, training goes on: ConnectionError: nobody answers") == 1
        assert_same_run(command.run, world.reference())
        assert_sound(command.run, world.plan, faults=[("tracker", 0)])


def test_checkpoints_are_written_by_time_and_some_are_kept_for_good(world: World, draw: Draw) -> None:
    overrides = [
        "checkpoint.every_steps=1000",
        "checkpoint.every_minutes=0.005",
        "checkpoint.keep_every_steps=26",
        "checkpoint.keep_last=1",
        "checkpoint.keep_best=0",
    ]
    slowly = world.script("time.sleep(0.02)")
    command = world.train(*overrides, program=slowly)
    command.reach(draw.step(60, 110))
    command.kill_all()
    assert saved(world.run()) > 0
    world.train(*overrides, program=slowly).end()
    assert_same_run(world.run(), world.reference())
    assert_sound(world.run(), world.plan, faults=[("silent", None)])
    reasons = [event["reason"] for event in read_events(world.run()) if event["event"] == "checkpoint"]
    assert reasons.count("time") > 2
    assert committed_steps(world.run()) == [*range(26, TOTAL, 26), TOTAL]


def damaged_while_it_restarts(world: World, draw: Draw) -> list[tuple[str, int | None]]:
    """A worker is killed, and the newest checkpoint is damaged before the next ones read it."""
    command = world.train(workers=2)
    command.reach(draw.step(40, 110))
    workers, rank = command.workers(), draw.one([0, 1])
    kill(workers[rank], signal.SIGKILL)
    await_end(workers)
    kind = draw.one(list(DAMAGES))
    DAMAGES[kind](newest_file(world.run()), draw)
    told = command.end()
    assert "going on from step" in told
    return [("worker", rank), ("checkpoint", 0)]


def stopped_while_it_restarts(world: World, draw: Draw) -> list[tuple[str, int | None]]:
    """A worker is killed, and while others are started a signal asks for the end."""
    command = world.train(workers=2, program=world.unhurried())
    command.reach(draw.step(20, 100))
    workers, rank, (number, target) = command.workers(), draw.one([0, 1]), draw.one(SIGNALS)
    kill(workers[rank], signal.SIGKILL)
    await_end(workers)
    time.sleep(draw.one([0.0, 0.1, 0.2, 0.5, 1.0, 2.0]))
    send(command, number, target)
    assert_last_line(command.end(128 + number), f"stopped: run={world.run()} is saved at step ")
    world.train(workers=2).end()
    return [("worker", rank)]


def lost_right_before_a_request(world: World, draw: Draw) -> list[tuple[str, int | None]]:
    """A worker is killed, and a signal asks for the end before anybody has noticed."""
    command = world.train(workers=2, program=world.unhurried())
    command.reach(draw.step(20, 100))
    rank, (number, target) = draw.one([0, 1]), draw.one(SIGNALS)
    kill(command.workers()[rank], signal.SIGKILL)
    send(command, number, target)
    assert_last_line(command.end(128 + number), f"stopped: run={world.run()} is saved at step ")
    world.train(workers=2).end()
    return [("worker", rank)]


def stopped_while_a_rank_hangs(world: World, draw: Draw) -> list[tuple[str, int | None]]:
    """A rank that cannot hear is killed when the time for it is over."""
    command = world.train("cluster.grace_seconds=3", workers=2)
    command.reach(draw.step(20, 100))
    kill(command.workers()[draw.one([0, 1])], signal.SIGSTOP)
    number, target = draw.one(SIGNALS)
    send(command, number, target)
    assert_last_line(command.end(128 + number), f"stopped: run={world.run()} is saved at step ")
    world.train(workers=2).end()
    return []


def killed_while_it_stops(world: World, draw: Draw) -> list[tuple[str, int | None]]:
    """Power is lost right after a request to stop."""
    command = world.train(workers=2)
    command.reach(draw.step(20, 100))
    send(command, *draw.one(SIGNALS))
    time.sleep(draw.one([0.0, 0.005, 0.01, 0.02, 0.1]))
    command.kill_all()
    stopped = read_events(world.run())[-1]["event"] == "stop"
    world.train(workers=2).end()
    return [] if stopped else [("silent", None)]


@pytest.mark.parametrize(
    "harm",
    [
        damaged_while_it_restarts,
        stopped_while_it_restarts,
        lost_right_before_a_request,
        stopped_while_a_rank_hangs,
        killed_while_it_stops,
    ],
    ids=lambda harm: harm.__name__,
)
def test_two_faults_at_once(
    harm: Callable[[World, Draw], list[tuple[str, int | None]]], world: World, draw: Draw
) -> None:
    faults = harm(world, draw)
    assert_same_run(world.run(), world.reference(workers=2))
    assert_sound(world.run(), world.plan, faults=faults)


def test_workers_that_find_all_checkpoints_damaged_are_not_started_again(world: World, draw: Draw) -> None:
    command = world.train(workers=2)
    command.reach(draw.step(40, 110))
    workers = command.workers()
    kill(workers[1], signal.SIGKILL)
    await_end(workers)
    for path in Path(world.run(), "checkpoints").glob("*.ckpt"):
        truncated(path)
    before = contents(f"{world.run()}/checkpoints")
    assert_last_line(command.end(2), "error: ")
    assert contents(f"{world.run()}/checkpoints") == before
    assert status(world.run())["state"] == "stopped"


def test_workers_go_on_though_what_they_are_forks_of_is_gone(world: World, draw: Draw) -> None:
    """What is sent to the whole group is not for it. Where it is lost all the same, its workers are asked to stop, and
    others are started by another one."""
    command = world.train(workers=2)
    step = draw.step(20, 100)
    command.reach(step)
    (nursery,) = command.nurseries()
    kill(nursery, signal.SIGTERM)
    kill(nursery, signal.SIGINT)
    command.reach(step + 10)
    assert command.nurseries() == [nursery]
    kill(nursery, signal.SIGKILL)
    told = command.end()
    assert "Traceback" not in told, told
    assert_same_run(world.run(), world.reference(workers=2))
    (failure,) = status(world.run())["failures"]
    assert (failure["kind"], failure["cause"]) == ("worker", "ended with 255")
