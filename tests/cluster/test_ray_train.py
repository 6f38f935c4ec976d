"""Training by Ray on real processes: it is the training without Ray, whatever workers and machines do."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import gone
from support.typed import over

from jobs.__main__ import main
from pipeline.config import Config
from pipeline.run.account import account
from pipeline.run.checkpoint import checkpoint_path, load_checkpoint
from pipeline.run.ledger import read_events
from pipeline.runner import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree"),  # Lightning 2.6, every fit
]

ROOT = Path(__file__).resolve().parents[2]
SEED = int(os.environ.get("WORDLANES_FAULT_SEED", "1"))  # printed; another one draws other steps and ranks
STEPS = 240
PATIENCE_SECONDS = 240.0  # for whatever must come; a busy machine is no finding
AT_EASE = 0.1  # seconds before each step, so that faults fall between the start and the end
SLOWLY = 1.0  # while the test waits for machines to go or to come
QUICK = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # of 15, by which the tests beside these take all
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}
LOST_SOON = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_timeout_ms": 3000}
FEW = {"prestart_worker_first_driver": False}  # processes that nobody uses, on each machine
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}

Undisturbed = Callable[[int], Path]


class World:
    """A corpus, and commands that train on it by Ray."""

    def __init__(self, folder: Path, data: str) -> None:
        self.folder = folder
        self.run = folder / "run"
        self.data = data
        self.random = random.Random(SEED)
        self.asked = folder / "asked"  # how the workers are disturbed, and their process ids
        self.asked.mkdir()
        self.ask(pace=AT_EASE)
        self.commands: list[Command] = []
        print(f"WORDLANES_FAULT_SEED={SEED}")

    def command(self, *overrides: str) -> "Command":
        self.commands.append(Command(self, over(settings(self.data, self.run), *overrides)))
        return self.commands[-1]

    def ask(self, **how: object) -> None:
        for name, value in how.items():
            temporary = self.asked / f"{name}.new"
            temporary.write_text(str(value))
            temporary.rename(self.asked / name)

    def pid(self, rank: int) -> int:
        return int((self.asked / str(rank)).read_text())

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in read_events(str(self.run)) if event["event"] == name]

    def sizes(self) -> list[int]:
        """Of the worker groups that trained, one after the other."""
        sizes = [event["world_size"] for event in self.events("group")]
        return sizes[: len(self.events("training"))]

    def reached(self) -> int:
        """The last step in metrics.jsonl."""
        path = self.run / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return int(json.loads(lines[-1])["step"]) if lines else 0

    def drawn_step(self, first: int, last: int) -> int:
        step = self.random.randint(first, last)
        print("drawn: step", step)
        return step

    def drawn_rank(self) -> int:
        rank = self.random.randrange(2)
        print("drawn: rank", rank)
        return rank


def settings(data: str, run: Path) -> list[str]:
    return [
        f"data={data}",
        f"run={run}",
        f"max_steps={STEPS}",
        "max_epochs=1000",
        "stream.num_lanes=8",
        "stream.bptt=7",
        "stream.state=carry",
        "model.embedding_size=6",
        "model.hidden_size=5",
        "model.dropout=0.3",
        "model.softmax.cutoffs=[10,30]",
        "model.softmax.div_value=2",
        "optim=sgd",
        "optim.lr=0.5",
        "logging.every_steps=1",
        "logging.progress=false",
        "tracking.kind=none",
        "accelerator=cpu",
        "cluster.cpus_per_worker=1",
        "checkpoint.every_steps=25",
        "checkpoint.validate_every_steps=40",
    ]


class Command:
    """`python -m jobs train`, in a process group of its own, as a terminal starts it."""

    def __init__(self, world: World, arguments: list[str]) -> None:
        self.world = world
        self.output = world.folder / f"told{time.monotonic_ns()}.txt"
        environment = {"DISTURBED": str(world.asked), "PYTHONPATH": str(ROOT)}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests" / "support" / "disturbed.py"), "train", *arguments],
                env={**os.environ, **QUICK, **environment},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def told(self) -> str:
        return self.output.read_text()

    def until(self, met: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not met():
            assert self.process.poll() is None, self.told
            assert time.monotonic() < deadline, self.told
            time.sleep(0.1)

    def until_size(self, size: int, *, after: int = 0) -> None:
        """Another group than those first ones trains with so many; machines come and go one by one, as sizes may."""
        self.until(lambda: self.world.sizes()[after:][-1:] == [size])

    def until_step(self, step: int) -> None:
        self.until(lambda: self.world.reached() >= step)

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def ended(self) -> int:
        try:
            return self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(self.told) from None


def records(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(("speed/", "run/"))} for line in lines]


def assert_same_end(run: Path, whole: Path, *, to_the_bit: bool) -> None:
    left, right = (load_checkpoint(checkpoint_path(str(each), STEPS))["state_dict"] for each in (run, whole))
    if to_the_bit:
        assert records(run) == records(whole)
        assert all(torch.equal(weights, right[name]) for name, weights in left.items())
        return
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)
    mine, theirs = records(run), records(whole)
    assert [line["step"] for line in mine] == [line["step"] for line in theirs]
    for one, another in zip(mine, theirs, strict=True):
        assert one == pytest.approx(another, rel=1e-4, abs=1e-7)


@pytest.fixture
def world(tmp_path: Path, make_corpus: Callable[..., str]) -> Iterator[World]:
    world = World(tmp_path, make_corpus(train=2000, valid=150))
    yield world
    for command in world.commands:  # of a test that failed
        command.process.kill()
        command.process.wait()


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs are that nothing happens to, made when they are first needed."""
    return tmp_path_factory.mktemp("undisturbed")


@pytest.fixture
def undisturbed(world: World, wholes: Path, small_config: Callable[..., Config]) -> Undisturbed:
    """A run without Ray, by its number of workers."""

    def made(num_workers: int) -> Path:
        run = wholes / str(num_workers)
        if not run.exists():
            train(small_config(*settings(world.data, run), f"cluster.num_workers={num_workers}"))
        return run

    return made


class Machines:
    """A Ray of several machines with one core each, on this one. The commands run on its head, which has none."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.nodes: list[Any] = []

    def add(self, number: int) -> None:
        self.nodes += [self.cluster.add_node(**NODE) for _ in range(number)]

    def lose(self, number: int = 1) -> None:
        for _ in range(number):
            self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)

    def of(self, num_workers: int, *overrides: str) -> list[str]:
        places = ["cluster=ray", f"cluster.address={self.cluster.address}", f"cluster.num_workers={num_workers}"]
        return [*places, "cluster.resize_seconds=3", *overrides]


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    """A Ray cluster without machines for workers; it goes on from test to test, as one does from run to run."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUICK.items():
            patch.setenv(name, value)
        node = {**NODE, "num_cpus": 0, "_system_config": {**LOST_SOON, **FEW}}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def machines(head: Any) -> Iterator[Machines]:
    machines = Machines(head)
    yield machines
    machines.lose(len(machines.nodes))


def test_ray_on_this_machine_changes_no_bit_and_stops_when_asked(world: World, undisturbed: Undisturbed) -> None:
    """SIGTERM or SIGHUP on the way: a checkpoint of that step, and the same command goes on. Nothing of Ray's is in the
    way."""
    whole = undisturbed(1)
    command = world.command("cluster=local")
    command.until_step(world.drawn_step(5, 80))
    command.send(signal.SIGTERM)
    assert command.ended() == 128 + signal.SIGTERM, command.told
    (stop,) = world.events("stop")
    assert stop["cause"] == "SIGTERM"
    assert command.told.splitlines()[0] == "1 worker, from step 0"
    assert command.told.splitlines()[-1].startswith(f"stopped: run={world.run} is saved at step {stop['step']}; ")
    command = world.command("cluster=local")  # and its terminal closes, which tells all that it started
    command.until_step(world.drawn_step(100, 180))
    os.killpg(command.process.pid, signal.SIGHUP)
    assert command.ended() == 128 + signal.SIGHUP, command.told
    (_, stop) = world.events("stop")
    assert stop["cause"] == "SIGHUP"
    world.ask(pace=0)
    command = world.command("cluster=local")
    assert command.ended() == 0, command.told
    first, *between, last = command.told.splitlines()
    assert first == f"1 worker, from step {stop['step']}"
    assert last == f"{world.run} is trained to step {STEPS} (from step {stop['step']})"
    assert all("validation perplexity" in line for line in between)
    assert world.events("group")[-1]["step"] == stop["step"]
    assert_same_end(world.run, whole, to_the_bit=True)
    names = {path.name for path in world.run.iterdir()}
    known = {".lock", ".writer.lock", "attempt", "checkpoints", "config.yaml", "events.jsonl", "metrics.jsonl"}
    assert names <= known | {"tracking-id", "tracking-place"}


def test_a_command_that_is_killed_takes_its_ray_with_it_and_goes_on(world: World, undisturbed: Undisturbed) -> None:
    whole = undisturbed(2)
    command = world.command("cluster=local", "cluster.num_workers=2")
    command.until_step(world.drawn_step(30, 80))
    workers = [world.pid(rank) for rank in range(2)]
    command.send(signal.SIGKILL)
    command.process.wait()
    command = world.command("cluster=local", "cluster.num_workers=2")
    command.until(lambda: all(gone(pid) for pid in workers))
    world.ask(pace=0)
    assert command.ended() == 0, command.told
    assert [event["attempt"] for event in world.events("end")] == [2]
    assert_same_end(world.run, whole, to_the_bit=True)


def test_the_text_goes_on_through_four_workers_three_one_and_four(
    world: World, machines: Machines, undisturbed: Undisturbed
) -> None:
    """A worker is killed, a machine is lost, two more at once, and three are added; three workers share 8 lanes."""
    whole = undisturbed(1)
    machines.add(4)
    command = world.command(*machines.of(4, "cluster.min_workers=1", "cluster.resize_seconds=6"))
    command.until_size(4)
    step, rank = world.drawn_step(30, 60), world.drawn_rank()
    command.until_step(step)
    os.kill(world.pid(rank), signal.SIGKILL)
    command.until_size(4, after=len(world.sizes()))
    command.until_step(step + 10)
    world.ask(pace=SLOWLY)
    machines.lose()
    command.until_size(3, after=len(world.sizes()))
    machines.lose(2)
    command.until_size(1)
    machines.add(3)
    command.until_size(4)
    world.ask(pace=0)
    assert command.ended() == 0, command.told
    assert_same_end(world.run, whole, to_the_bit=False)
    stood = account(read_events(str(world.run)), now=time.time())
    assert (stood.state, stood.step, stood.world_size) == ("finished", STEPS, 4)
    assert [(each.kind, each.fatal) for each in stood.failures] == [("worker", True)] * 3
    assert stood.failures[0].rank == rank
    assert stood.failures[0].cause.startswith("ActorDiedError: ")
    sizes = [event["world_size"] for event in world.events("group")]
    resizes = [(each["from_size"], each["to_size"]) for each in stood.resizes]
    assert resizes == [(before, size) for before, size in pairwise(sizes) if size != before]
    assert resizes[:2] == [(4, 3), (3, 1)]
    assert all(before < size for before, size in resizes[2:])  # in one step or more, as machines come
    grown = [event for event in world.events("group") if event["reached_step"] > event["step"]]
    assert grown, "what was made since the last checkpoint may be made again, and the ledger says so"


def test_a_machine_is_taken_away_with_notice(world: World, machines: Machines, undisturbed: Undisturbed) -> None:
    """The notice is answered by a checkpoint, and does not count among the failures, of which none is allowed."""
    whole = undisturbed(1)
    machines.add(2)
    command = world.command(*machines.of(2, "cluster.min_workers=1", "cluster.max_failures=0"))
    command.until_size(2)
    command.until_step(world.reached() + 10)
    node = machines.nodes[world.drawn_rank()]
    subprocess.run(
        [
            str(Path(sys.executable).parent / "ray"),
            "drain-node",
            f"--address={machines.cluster.address}",
            f"--node-id={node.node_id}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=taken away",
            "--deadline-remaining-seconds=15",
        ],
        check=True,
        capture_output=True,
    )
    command.until(lambda: any(event["reason"] == "notice" for event in world.events("checkpoint")))
    world.ask(pace=SLOWLY)
    command.until_size(1, after=len(world.sizes()))
    assert world.sizes()[-2:] == [2, 1]
    world.ask(pace=0)
    assert command.ended() == 0, command.told
    assert_same_end(world.run, whole, to_the_bit=False)
    notice, *losses = world.events("fault")
    assert (notice["kind"], notice["fatal"]) == ("preemption", False)
    assert [(loss["kind"], loss["fatal"]) for loss in losses] in ([], [("preemption", True)])
    (saved,) = (event["step"] for event in world.events("checkpoint") if event["reason"] == "notice")
    assert saved == notice["step"] <= world.events("group")[-1]["step"]


def test_two_faults_at_once_and_no_machine_left_for_a_worker(
    world: World, machines: Machines, undisturbed: Undisturbed
) -> None:
    """A machine is lost and a worker of the other one killed. The command waits for a machine, or to be stopped."""
    whole = undisturbed(2)
    machines.add(2)
    command = world.command(*machines.of(2))
    command.until_step(world.drawn_step(30, 60))
    machines.lose()
    os.kill(world.pid(world.drawn_rank()), signal.SIGKILL)
    lack = "no workers yet: 2 with 1 CPU each are needed, and the cluster has 1 CPU"
    command.until(lambda: lack in command.told)
    command.send(signal.SIGINT)
    assert command.ended() == 128 + signal.SIGINT, command.told
    assert world.events("stop")[-1]["cause"] == "SIGINT"
    command = world.command(*machines.of(2))
    command.until(lambda: lack in command.told)
    assert main(["stop", f"run={world.run}"]) == 0  # nobody trains; the command itself looks for the request
    assert command.ended() == 0, command.told
    world.ask(pace=0)
    command = world.command(*machines.of(2))
    command.until(lambda: lack in command.told)
    machines.add(1)
    assert command.ended() == 0, command.told
    assert_same_end(world.run, whole, to_the_bit=True)
    assert [event["attempt"] for event in world.events("group")] == [1, 3]
    assert [event["attempt"] for event in world.events("fault")] == [1]


def test_a_worker_that_hangs_is_named_and_ended_and_a_second_ctrl_c_too(
    world: World, machines: Machines, undisturbed: Undisturbed
) -> None:
    whole = undisturbed(2)
    machines.add(2)
    command = world.command(*machines.of(2, "guard.hang_seconds=8"))
    command.until_step(world.drawn_step(10, 40))
    rank = world.drawn_rank()
    hanging = world.pid(rank)
    os.kill(hanging, signal.SIGSTOP)
    command.until(lambda: world.sizes() == [2, 2])
    assert gone(hanging)
    (fault,) = world.events("fault")
    assert (fault["kind"], fault["rank"]) == ("hang", rank)
    assert f"hang: {fault['cause']}" in command.told
    world.ask(pace=30)
    time.sleep(2)  # they are in a step that takes long
    command.send(signal.SIGINT)
    time.sleep(2)  # not right after, as a terminal and a supervisor may both do
    command.send(signal.SIGINT)
    assert command.ended() == 128 + signal.SIGINT, command.told
    assert command.told.splitlines()[-1] == "interrupted; the same command goes on from what is finished"
    world.ask(pace=0)
    command = world.command(*machines.of(2))
    assert command.ended() == 0, command.told
    assert_same_end(world.run, whole, to_the_bit=True)


def test_a_command_that_is_killed_goes_on_and_what_workers_meet_is_told_in_a_line(
    world: World, machines: Machines, undisturbed: Undisturbed
) -> None:
    """A bug is tried again and given up with its stack; what is the user's is not tried again."""
    whole = undisturbed(2)
    machines.add(2)
    command = world.command(*machines.of(2))
    step, rank = world.drawn_step(30, 60), world.drawn_rank()
    command.until_step(step)
    workers = [world.pid(rank) for rank in range(2)]
    command.send(signal.SIGKILL)
    command.process.wait()

    world.ask(missing=world.run / "attempt")
    command = world.command(*machines.of(2))
    command.until(lambda: all(gone(pid) for pid in workers))
    assert command.ended() == 2, command.told
    assert f"run={world.run} is not the same folder on every machine" in command.told.splitlines()[-1]
    assert len(command.told.splitlines()) == 1

    world.ask(pace=0, missing="", bug=f"{rank} {step + 40}")
    command = world.command(*machines.of(2, "cluster.max_failures=1"))
    assert command.ended() == 2, command.told
    stack = max((world.run / "failures").glob(f"attempt-3-rank-{rank}-*.txt"), key=lambda path: path.stat().st_mtime)
    cause = f"RuntimeError: a bug whose text has two lines; its stack is in {stack}"
    assert command.told.splitlines()[-1] == (
        f"error: 2 worker groups were lost, the last by rank {rank} ({cause}); cluster.max_failures=1 allows no more;"
        " the same command goes on"
    )
    assert 'raise RuntimeError("a bug whose text' in stack.read_text()
    assert [(event["rank"], event["attempt"]) for event in world.events("fault")] == [(rank, 3)] * 2
    assert "Traceback" not in command.told

    world.ask(bug="")
    command = world.command(*machines.of(2))
    assert command.ended() == 0, command.told
    assert_same_end(world.run, whole, to_the_bit=True)


def test_an_address_that_nobody_answers_is_refused_in_a_line(world: World) -> None:
    for address in ("127.0.0.1:1", "ray://127.0.0.1:10001"):
        command = world.command("cluster=ray", f"cluster.address={address}")
        assert command.ended() == 2
        (line,) = command.told.splitlines()
        assert line.startswith(f"error: cluster.address={address} reaches no Ray cluster (")
