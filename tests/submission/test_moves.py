"""The run folder is the truth: one run goes from Ray to Slurm to this machine, as if it had never moved."""

import json
import time

import pytest
from support.faulty_runs import PATIENCE_SECONDS, SETTINGS, TOTAL, assert_same_run, saved, status
from support.ray_cluster import ray_cluster
from support.slurm_cluster import missing, slurm
from support.typed import typed

from pipeline.run.ledger import read_events
from pipeline.submission.record import submissions

PARTS = (52, 104, TOTAL)  # steps at which it moves
TRAIN = [each for each in SETTINGS if not each.startswith(("cluster=", "max_steps="))]


def call(*arguments):
    """What a command prints; in a process of its own, since Ray keeps the token that it found first."""
    done = typed(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def await_step(run, step):
    """Waits until a run is trained to a step, and its job has ended."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := json.loads(call("status", f"run={run}", "--json")))["state"] != "finished" or saved(run) < step:
        assert time.monotonic() < deadline, f"{found}\n{call('logs', f'run={run}')}"
        time.sleep(1.0)


@pytest.mark.slow
def test_a_run_moves_from_ray_to_slurm_to_this_machine(world, monkeypatch, tmp_path_factory):
    if (why := missing()) is not None:
        pytest.skip(why)
    run = world.run()
    line = [f"data={world.data}", f"run={run}", *TRAIN, "cluster.num_workers=2"]
    with ray_cluster() as cluster, monkeypatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        call("submit", "train", "via=ray", f"via.address={cluster.url}", *line, f"max_steps={PARTS[0]}")
        await_step(run, PARTS[0])
    with slurm(tmp_path_factory.mktemp("s")) as environment, monkeypatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        call("submit", "train", "via=slurm", "via.nodes=2", *line, f"max_steps={PARTS[1]}")
        await_step(run, PARTS[1])
    world.train(run=run, workers=2).end()
    assert [event["cluster"] for event in read_events(run) if event["event"] == "start"] == ["ray", "none", "none"]
    assert [each.kind for each in submissions(run)] == ["ray", "slurm"]
    found = status(run)
    assert (found["state"], found["num_attempts"], found["steps_replayed"]) == ("finished", 3, 0)
    assert_same_run(run, world.reference(workers=2))
