"""Training by Ray on real processes: it is the training without Ray, whatever workers and machines do."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.train import run as train
from pipeline.config import Config
from pipeline.training.checkpoint import checkpoint_path, load_checkpoint
from pipeline.training.ledger import account, read_events

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree"),  # Lightning 2.6, every fit
]

ROOT = Path(__file__).resolve().parents[1]
SEED = int(os.environ.get("WORDLANES_FAULT_SEED", "1"))  # printed; another one draws other steps and ranks
PATIENCE_SECONDS = 240.0  # for whatever must come; a busy machine is no finding
STEP_SECONDS = 0.05  # so that faults fall between the start and the end
QUICK = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
}
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}


class World:
    """A corpus, a run of it without Ray, and commands that train by Ray beside it."""

    def __init__(self, folder: Path, data: str, small_config: Callable[..., Config]) -> None:
        self.folder = folder
        self.data = data
        self.random = random.Random(SEED)
        self.small_config = small_config
        print(f"WORDLANES_FAULT_SEED={SEED}")

    def settings(self, steps: int) -> list[str]:
        return [
            f"data={self.data}",
            f"max_steps={steps}",
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
            "checkpoint.every_steps=25",
            "checkpoint.validate_every_steps=40",
        ]

    def undisturbed(self, steps: int, *overrides: str) -> Path:
        run = self.folder / f"whole{steps}{len(overrides)}"
        train(self.small_config(*self.settings(steps), f"run={run}", *overrides))
        return run

    def command(self, run: Path, steps: int, *overrides: str) -> subprocess.Popen[bytes]:
        """Starts to train, with slow steps, and with each rank's process id in `pids`."""
        pids = self.folder / "pids"
        pids.mkdir(exist_ok=True)
        how = json.dumps({"folder": str(pids), "step_seconds": STEP_SECONDS})
        with (self.folder / "told.txt").open("ab") as told:
            return subprocess.Popen(
                [
                    sys.executable,
                    str(ROOT / "tests" / "disturbed.py"),
                    "train",
                    *self.settings(steps),
                    f"run={run}",
                    *overrides,
                ],
                env={**os.environ, **QUICK, "DISTURBED": how, "PYTHONPATH": str(ROOT)},
                stdout=told,
                stderr=told,
                start_new_session=True,
            )

    def told(self) -> str:
        return (self.folder / "told.txt").read_text()

    def kill_worker(self, rank: int) -> None:
        os.kill(int((self.folder / "pids" / str(rank)).read_text()), signal.SIGKILL)


def reached(run: Path) -> int:
    """The last step in metrics.jsonl."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def wait_until(command: subprocess.Popen[bytes], world: World, met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not met():
        assert command.poll() is None, world.told()
        assert time.monotonic() < deadline, world.told()
        time.sleep(0.1)


def records(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("speed/")} for line in lines]


def assert_same_end(run: Path, whole: Path, step: int, *, to_the_bit: bool) -> None:
    left, right = (load_checkpoint(checkpoint_path(str(each), step))["state_dict"] for each in (run, whole))
    if to_the_bit:
        assert records(run) == records(whole)
        assert all(torch.equal(weights, right[name]) for name, weights in left.items())
        return
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)
    mine, theirs = records(run), records(whole)
    assert [line["step"] for line in mine] == [line["step"] for line in theirs]
    for one, another in zip(mine, theirs, strict=True):
        assert one == pytest.approx(another, rel=1e-4, abs=1e-7)


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in read_events(str(run)) if event["event"] == name]


@pytest.fixture
def world(tmp_path: Path, make_corpus: Callable[..., str], small_config: Callable[..., Config]) -> World:
    return World(tmp_path, make_corpus(train=2000, valid=150), small_config)


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A Ray of two machines with one core each; tests add and remove some."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUICK.items():
            patch.setenv(name, value)
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        cluster.add_node(**NODE)
        cluster.wait_for_nodes()
        yield cluster
        cluster.shutdown()


def on(cluster: Any) -> list[str]:
    return ["cluster=ray", f"cluster.address={cluster.address}", "cluster.num_workers=2", "cluster.resize_seconds=3"]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_ray_on_this_machine_changes_no_bit_and_stops_when_asked(num_workers: int, world: World) -> None:
    """SIGTERM on the way: a checkpoint of that step, and the same command goes on."""
    whole = world.undisturbed(120, f"cluster.num_workers={num_workers}")
    run, overrides = world.folder / "run", ("cluster=local", f"cluster.num_workers={num_workers}")
    command = world.command(run, 120, *overrides)
    step = world.random.randint(5, 80)
    print("stopped near step", step)
    wait_until(command, world, lambda: reached(run) >= step)
    os.kill(command.pid, signal.SIGTERM)
    assert command.wait(PATIENCE_SECONDS) == 128 + signal.SIGTERM, world.told()
    (stop,) = events(run, "stop")
    assert stop["cause"] == "SIGTERM"
    assert f"is saved at step {stop['step']}" in world.told()
    assert world.command(run, 120, *overrides).wait(PATIENCE_SECONDS) == 0, world.told()
    assert events(run, "group")[-1]["step"] == stop["step"]
    assert_same_end(run, whole, 120, to_the_bit=True)
    assert "Traceback" not in world.told()


def test_a_worker_is_killed_a_machine_lost_and_one_added(world: World, cluster: Any) -> None:
    """Two workers, two again after a kill, one, and two: the text goes on where it was."""
    whole = world.undisturbed(900)
    run = world.folder / "run"
    command = world.command(run, 900, *on(cluster), "cluster.min_workers=1")
    step, rank = world.random.randint(30, 90), world.random.randrange(2)
    print("rank", rank, "is killed near step", step)
    wait_until(command, world, lambda: reached(run) >= step)
    world.kill_worker(rank)
    wait_until(command, world, lambda: len(events(run, "training")) == 2 and reached(run) > step + 20)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    wait_until(command, world, lambda: [event["to_size"] for event in events(run, "resize")] == [1])
    cluster.add_node(**NODE)
    wait_until(command, world, lambda: [event["to_size"] for event in events(run, "resize")] == [1, 2])
    assert command.wait(PATIENCE_SECONDS) == 0, world.told()
    assert_same_end(run, whole, 900, to_the_bit=False)
    stood = account(read_events(str(run)), now=time.time())
    assert (stood.state, stood.step, stood.world_size) == ("finished", 900, 2)
    assert len(stood.failures) >= 2
    assert stood.failures[0].rank == rank


def test_a_machine_is_taken_away_with_notice(world: World, cluster: Any) -> None:
    """The notice is answered by a checkpoint, and does not count among the failures, of which none is allowed."""
    whole = world.undisturbed(500)
    run = world.folder / "run"
    command = world.command(run, 500, *on(cluster), "cluster.min_workers=1", "cluster.max_failures=0")
    wait_until(command, world, lambda: reached(run) >= 30)
    node = next(iter(cluster.worker_nodes))
    subprocess.run(
        [
            str(Path(sys.executable).parent / "ray"),
            "drain-node",
            f"--address={cluster.address}",
            f"--node-id={node.node_id}",
            "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=taken away",
            "--deadline-remaining-seconds=12",
        ],
        check=True,
        capture_output=True,
    )
    wait_until(command, world, lambda: any(event["reason"] == "notice" for event in events(run, "checkpoint")))
    wait_until(command, world, lambda: [event["to_size"] for event in events(run, "resize")] == [1])
    assert command.wait(PATIENCE_SECONDS) == 0, world.told()
    assert_same_end(run, whole, 500, to_the_bit=False)
    assert "preemption" in {event["kind"] for event in events(run, "fault")}


def test_a_command_that_is_killed_goes_on(world: World, cluster: Any) -> None:
    whole = world.undisturbed(150, "cluster.num_workers=2")
    run = world.folder / "run"
    command = world.command(run, 150, *on(cluster))
    step = world.random.randint(30, 110)
    print("killed near step", step)
    wait_until(command, world, lambda: reached(run) >= step)
    os.kill(command.pid, signal.SIGKILL)
    command.wait()
    assert world.command(run, 150, *on(cluster)).wait(PATIENCE_SECONDS) == 0, world.told()
    assert_same_end(run, whole, 150, to_the_bit=True)


def test_an_address_that_nobody_answers_is_refused_in_a_line(world: World) -> None:
    overrides = ("cluster=ray", "cluster.address=127.0.0.1:1")
    assert world.command(world.folder / "run", 10, *overrides).wait(PATIENCE_SECONDS) == 2
    assert "error: cluster.address=127.0.0.1:1 reaches no Ray cluster" in world.told()
