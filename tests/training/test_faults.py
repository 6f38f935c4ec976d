"""Whatever happens to a run, the same command goes on to the end that it would have had: with real processes and files.

Each run here is harmed, goes on, and is then compared with one that nothing happened to: bit for bit on the same number
of workers, to float tolerance on another. See `faulty_runs.py` for what is drawn, and from which seed.
"""

import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from faulty_runs import (
    BPTT,
    JOBS,
    NUM_LANES,
    PATIENCE_SECONDS,
    SAVE_EVERY,
    SETTINGS,
    TOTAL,
    WINDOWS,
    Command,
    Draw,
    World,
    assert_close_run,
    assert_same_run,
    assert_sound,
    children,
    command_line,
    gone,
    kill,
    made_again,
    recorded,
    saved,
    stands_still,
    status,
)
from test_resume import records

from pipeline.config import Config, load
from pipeline.corpus.manifest import read_manifest
from pipeline.scoring.perplexity import score_tokens
from pipeline.training.checkpoint import checkpoint_path, committed_steps, load_checkpoint
from pipeline.training.data import read_batches
from pipeline.training.ledger import Ledger, read_events
from pipeline.training.optimization import build_optimizer, learning_rate
from pipeline.training.parts import build_model, open_split
from pipeline.training.watchdog import HUNG

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),  # a CPU's way
]


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs are that nothing happens to."""
    return tmp_path_factory.mktemp("undisturbed")


@pytest.fixture(scope="module")
def undisturbed() -> dict[tuple[str, ...], str]:
    """Runs that nothing happened to: made when first needed."""
    return {}


@pytest.fixture
def world(
    make_corpus: Callable[..., str],
    tmp_path: Path,
    shared_folder: Path,
    undisturbed: dict[tuple[str, ...], str],
) -> Iterator[World]:
    """A corpus and the commands on it, of which none outlives the test."""
    data = make_corpus(train=3000, valid=150, test=170)
    world = World(folder=tmp_path, data=data, undisturbed=undisturbed, shared_folder=shared_folder)
    yield world
    world.end()


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> Draw:
    """What is left to chance, by the seed and the test's name."""
    return Draw(request.node.name)


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


def test_workers_that_lose_their_command_while_they_start_end_too(world: World, draw: Draw) -> None:
    command = world.train(workers=2)
    command.await_that("two workers", lambda: len(command.workers()) == 2)
    orphans = command.workers()
    time.sleep(draw.one([0.0, 0.5, 1.0, 1.5, 2.0, 2.5]))
    kill(command.process.pid, signal.SIGKILL)
    await_end(orphans)
    assert recorded(world.run()) < TOTAL, command.told
    world.train(workers=2).end()
    assert_same_run(world.run(), world.reference(workers=2))


def await_end(pids: Sequence[int]) -> None:
    """Waits until the processes are gone."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.05)


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


SIGNALS = [
    (number, target) for number in (signal.SIGTERM, signal.SIGINT) for target in ("the command", "the whole group")
]


def send(command: Command, number: int, target: str) -> None:
    """As `kill` does it, or as a terminal does it."""
    if target == "the command":
        os.kill(command.process.pid, number)
    else:
        os.killpg(command.process.pid, number)


def assert_last_line(told: str, beginning: str) -> None:
    """How a command says in one line how it ended."""
    lines = told.splitlines()
    assert "Traceback" not in told, told
    assert lines[-1].startswith(beginning), told
    assert sum(line.startswith(("stopped:", "error:", "interrupted;")) for line in lines) == 1, told


@pytest.mark.parametrize("workers", [1, 2])
def test_a_wish_to_stop_is_heard_at_the_next_step_and_costs_nothing(workers: int, world: World, draw: Draw) -> None:
    steps = draw.steps((8, 58), (70, 120))
    for step, (number, target) in zip(steps, draw.order(SIGNALS), strict=False):
        command = world.train(workers=workers)
        reached = command.reach(step)
        send(command, number, target)
        assert_last_line(command.end(128 + number), f"stopped: run={world.run()} is saved at step ")
        assert reached <= saved(world.run()) == recorded(world.run())
        assert status(world.run())["state"] == "stopped"
        assert read_events(world.run())[-1]["cause"] == signal.Signals(number).name
    world.train(workers=workers).end()
    assert_same_run(world.run(), world.reference(workers=workers))
    assert assert_sound(world.run(), world.plan, faults=[])["tokens_replayed"] == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_wish_to_stop_while_it_starts_leaves_nothing_behind(workers: int, world: World, draw: Draw) -> None:
    begun = ("start", "group") if workers > 1 else ("start",)
    for number, target in draw.order(SIGNALS)[:2]:
        command = world.train(workers=workers)
        events = len(read_events(world.run()))
        sign = draw.one(begun)
        command.await_that(f"the event {sign}", lambda sign=sign, since=events: sign in events_since(world, since))
        send(command, number, target)
        told = command.end((128 + number, -number))
        assert "Traceback" not in told, told
        assert not command.survivors()
    world.train(workers=workers).end()
    assert_same_run(world.run(), world.reference(workers=workers))


def events_since(world: World, since: int) -> list[str]:
    """The names of events that were added."""
    return [event["event"] for event in read_events(world.run())[since:]]


def test_a_wish_to_stop_is_heard_where_lightning_would_take_it(world: World, draw: Draw) -> None:
    """It has a handler of its own for SIGTERM while it sets up, which broadcasts."""
    once = "    if once(f'{os.getppid()}{module.peers.rank}'): os.kill(os.getpid(), signal.SIGTERM)\n"
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
    "its mark not text": lambda path, draw: Path(f"{path}.sha256").write_bytes(b"\xff" * 64),
    "its mark empty": lambda path, draw: Path(f"{path}.sha256").write_bytes(b""),
}


def newest_file(run: str) -> Path:
    """The newest checkpoint."""
    return Path(run, "checkpoints", f"step-{saved(run)}.ckpt")


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
class track(monitor.NoTracker):
    def __init__(self, *arguments, **more): pass
    def log(self, record):
        if record["step"] >= {step}: raise ConnectionError("nobody answers")
""",
    "at the end": """
class track(monitor.NoTracker):
    def __init__(self, *arguments, **more): pass
    def finish(self): raise ConnectionError("nobody answers")
""",
}


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


SKIP = [
    "guard.on_bad_loss=skip",
    "guard.spike_deviations=8",
    "guard.spike_window_steps=20",
    "checkpoint.every_steps=20",
]


def spoiling(steps: dict[int, str], *, rank: int = 0) -> str:
    """By what a rank's losses are multiplied in some steps; as an expression."""
    cases = ", ".join(f"{step}: {factor}" for step, factor in steps.items())
    return f"{{{cases}}}.get(step, 1.0) if rank == {rank} else 1.0"


def told_beforehand(world: World, skips: Sequence[int], *overrides: str) -> str:
    """The folder of a run that nothing happens to, but whose ledger says from the start what is passed over."""
    run = world.run("told-beforehand")
    Path(run).mkdir()
    for step in skips:
        epoch, window = divmod(step - 1, WINDOWS)
        tokens = tokens_by_hand(world, window)
        num_tokens = sum(stop - start for start, stop in tokens)
        fields = {"step": step, "epoch": epoch, "window": window, "num_tokens": num_tokens, "tokens": tokens}
        Ledger(run, attempt=1).write("skip", **fields)
    world.train(*overrides, run=run).end()
    return run


def tokens_by_hand(world: World, window: int) -> list[list[int]]:
    """[start, stop) of each lane's targets in a window."""
    bounds = [lane * world.plan.num_targets // NUM_LANES for lane in range(NUM_LANES + 1)]
    starts = [start + window * BPTT for start in bounds[:-1]]
    return [[start, min(start + BPTT, end)] for start, end in zip(starts, bounds[1:], strict=True)]


def weights_by_hand(world: World, skips: Sequence[int]) -> dict[str, torch.Tensor]:
    """Those of a loop that leaves some windows out, written without Lightning."""
    config = load(Config, SETTINGS)
    manifest, plan = read_manifest(world.data), world.plan
    model = build_model(config.model, vocab_size=manifest.vocab_size)
    model.draw_weights(seed=config.stream.seed, init_scale=config.model.init_scale)
    train, valid = (open_split(world.data, manifest, split) for split in ("train", "valid"))
    optimizer, state, validations = build_optimizer(model.parameters(), config.optim), None, []
    batches = read_batches(
        train,
        plan,
        start=0,
        stop=TOTAL,
        lanes=range(NUM_LANES),
        seed=config.stream.seed,
        cutoffs=model.softmax.cutoffs,
        num_sites=model.num_sites,
    )
    for step, batch in enumerate(batches, start=1):
        if step not in skips:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    config.optim, step=step - 1, epoch=0, total_steps=TOTAL, validations=validations
                )
            nats_N, state = model(
                batch.inputs_TL,
                state or model.recurrence.zero_state(NUM_LANES),
                batch.targets,
                keys_SL=batch.keys_SL,
                short_L=batch.short_L,
                rows_N=batch.rows_N,
            )
            state = state.detached()
            optimizer.zero_grad()
            (nats_N.sum() / batch.num_targets).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
            optimizer.step()
        if step % 13 == 0:
            validations.append(score_tokens(model, valid).nats_per_token)
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


def test_windows_of_bad_losses_are_passed_over_for_good(world: World, draw: Draw) -> None:
    """A loss that is not a number, and a spike in an epoch's last window; the run is killed before a checkpoint holds
    the first skip, and again after it holds both."""
    skips = [draw.step(41, 48), WINDOWS]
    end_itself = f"os.kill(os.getpid(), signal.SIGKILL) if step == {skips[0] + 2} and once() else 0"
    program = world.script(end_itself, factor=spoiling({skips[0]: "float('nan')"}))
    world.train(*SKIP, program=program).end(-signal.SIGKILL)
    command = world.train(*SKIP, program=world.script(factor=spoiling({skips[1]: "30.0"})))
    command.reach(draw.step(65, 110))
    command.kill_all()
    world.train(*SKIP).end()
    found = assert_sound(world.run(), world.plan, faults=[("loss", None), ("silent", None)] * 2)
    assert [(skip["step"], skip["epoch"], skip["window"]) for skip in found["skips"]] == [
        (skips[0], 0, skips[0] - 1),
        (WINDOWS, 0, WINDOWS - 1),
    ]
    ranges = [tokens_by_hand(world, step - 1) for step in skips]
    assert [skip["tokens"] for skip in found["skips"]] == ranges
    assert found["tokens_skipped"] == sum(stop - start for each in ranges for start, stop in each)
    reference = told_beforehand(world, skips, *SKIP)
    assert_same_run(world.run(), reference)
    torch.testing.assert_close(
        load_checkpoint(checkpoint_path(reference, TOTAL))["state_dict"], weights_by_hand(world, skips)
    )


def test_workers_pass_the_same_windows_over(world: World, draw: Draw) -> None:
    skips, rank = draw.steps((41, 48), (WINDOWS - 1, WINDOWS + 1)), draw.one([0, 1])
    factor = spoiling({skips[0]: "30.0", skips[1]: "float('nan')"}, rank=rank)
    command = world.train(*SKIP, workers=2, program=world.script(factor=factor))
    command.reach(draw.step(70, 100))
    kill(command.workers()[1], signal.SIGKILL)
    command.end()
    assert_close_run(world.run(), told_beforehand(world, skips, *SKIP))
    found = assert_sound(world.run(), world.plan, faults=[("loss", None), ("loss", None), ("worker", 1)])
    assert [skip["step"] for skip in found["skips"]] == skips


def test_windows_before_a_bad_loss_are_passed_over_too_though_a_checkpoint_holds_them(world: World, draw: Draw) -> None:
    step, overrides = draw.step(41, 42), [*SKIP, "guard.skip_steps=3"]
    world.train(*overrides, program=world.script(factor=spoiling({step: "float('inf')"}))).end()
    skips = [step - 2, step - 1, step]
    assert [skip["step"] for skip in status(world.run())["skips"]] == skips
    assert_same_run(world.run(), told_beforehand(world, skips, *overrides))


def test_a_bad_loss_stops_the_run_before_anything_of_it_is_saved(world: World, draw: Draw) -> None:
    step = draw.step(20, 120)
    factor = spoiling({step: "float('nan')"}, rank=draw.one([0, 1]))
    told = world.train(workers=2, program=world.script(factor=factor)).end(2)
    assert_last_line(told, f"error: loss is not finite (nan) at step {step}; step {saved(world.run())} is saved")
    assert recorded(world.run()) == step - 1
    assert step - SAVE_EVERY <= saved(world.run()) < step
    assert status(world.run())["state"] == "stopped"
    world.train(workers=2).end()
    assert_same_run(world.run(), world.reference(workers=2))
    assert_sound(world.run(), world.plan, faults=[("loss", None)])


def test_a_run_stops_after_all_where_too_many_losses_are_bad(world: World, draw: Draw) -> None:
    steps = draw.steps((10, 30), (50, 70), (90, 120))
    factor = spoiling(dict.fromkeys(steps, "float('nan')"))
    told = world.train(*SKIP, "guard.max_skips=2", program=world.script(factor=factor)).end(2)
    assert_last_line(told, f"error: loss is not finite (nan) at step {steps[2]}; step {saved(world.run())} is saved")
    assert "guard.max_skips=2" in told
    assert [skip["step"] for skip in status(world.run())["skips"]] == steps[:2]
    assert recorded(world.run()) == steps[2] - 1


def test_a_bad_loss_is_ignored_where_it_is_to_be(world: World, draw: Draw) -> None:
    step = draw.step(20, 120)
    factor = spoiling({step: "float('nan')"})
    world.train("guard.on_bad_loss=ignore", program=world.script(factor=factor)).end()
    assert_sound(world.run(), world.plan, faults=[])
    losses = [record["train/nats_per_token"] for record in records(world.run())]
    assert None not in losses[: step - 1]
    assert losses[step - 1 :] == [None] * (TOTAL - step + 1)


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
    command = world.train(workers=2)
    command.reach(draw.step(20, 100))
    workers, rank, (number, target) = command.workers(), draw.one([0, 1]), draw.one(SIGNALS)
    kill(workers[rank], signal.SIGKILL)
    await_end(workers)
    time.sleep(draw.one([0.0, 0.1, 0.2, 0.5, 1.0, 2.0]))
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
    """Power is lost right after a wish to stop."""
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
    [damaged_while_it_restarts, stopped_while_it_restarts, stopped_while_a_rank_hangs, killed_while_it_stops],
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


def srun(world: World, num_tasks: int, *overrides: str, wait_seconds: float = 0.0) -> list[Command]:
    """The processes that `srun --ntasks-per-node` starts on one machine; the later ones a little later."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    commands = []
    for rank in range(num_tasks):
        environment = {
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NAME": "train",
            "SLURM_NODELIST": "127.0.0.1",
            "SLURM_NODEID": "0",
            "SLURM_NTASKS": str(num_tasks),
            "SLURM_NTASKS_PER_NODE": str(num_tasks),
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        commands.append(world.train(*overrides, environment=environment))
        time.sleep(wait_seconds)
    return commands


def test_srun_starts_and_stops_it(world: World, draw: Draw) -> None:
    commands = srun(world, 2, wait_seconds=3.0)
    reached = commands[0].reach(draw.step(20, 100))
    for command in commands:
        kill(command.process.pid, signal.SIGTERM)
    for command in commands:
        assert_last_line(command.end(128 + signal.SIGTERM), f"stopped: run={world.run()} is saved at step ")
    assert reached <= saved(world.run()) == recorded(world.run())
    for command in srun(world, 2):
        command.end()
    assert_same_run(world.run(), world.reference(workers=2))
    assert assert_sound(world.run(), world.plan, faults=[])["tokens_replayed"] == 0


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
