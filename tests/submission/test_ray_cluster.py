"""A real Ray cluster of two machines with a token: a run is submitted, killed, stopped and resumed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from support.faulty_runs import kill, saved
from support.processes import command_line
from support.ray_cluster import RayCluster, ray_cluster
from support.runs import assert_same_end
from support.typed import ROOT, prepare_typed, train_typed, write_texts

from pipeline.run.ledger import read_events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
PATIENCE_SECONDS = 300.0  # a busy machine is no finding
STEPS = 2000
SETTINGS = [
    "stream.num_lanes=4",
    "max_epochs=null",
    "checkpoint.every_steps=20",
    "cluster.num_workers=2",
    "cluster.cpus_per_worker=1",
]
SECRET = "planted-c2VjcmV0"
ADAPTOR = """
import sys
from pipeline.submission import ray_jobs
from pipeline.submission.record import submissions
last = submissions(sys.argv[1])[-1]
{do}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster() as started:
        yield started


class Desk:
    """Where a user sits, who reaches the cluster.

    Args:
        cluster: that cluster.
        data, run: folders.
    """

    def __init__(self, cluster: RayCluster, *, data: Path, run: Path) -> None:
        self._cluster, self.run = cluster, str(run)
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self._environment = own | cluster.environment | {"PYTHONPATH": str(ROOT), "WANDB_API_KEY": SECRET}
        overridden = {each.partition("=")[0] for each in SETTINGS} | {"cluster", "max_steps"}
        typed = [each for each in train_typed(data, run) if each.partition("=")[0] not in overridden]
        self.train = [*typed, *SETTINGS, f"max_steps={STEPS}"]

    def python(self, *arguments: str) -> str:
        """What Python prints, which has to end well."""
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self) -> dict[str, Any]:
        """Presses the button."""
        via = ["via=ray", f"via.address={self._cluster.url}", f"via.working_dir={ROOT}"]
        return json.loads(self.python("-m", "jobs", "submit", *self.train, *via, "--json"))

    def adaptor(self, do: str) -> str:
        """What Python prints that does something with the last submission."""
        return self.python("-c", ADAPTOR.format(do=do), self.run)

    def jobs(self) -> list[dict[str, Any]]:
        """What the Jobs API tells of all jobs."""
        token = Path(self._cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        with urlopen(Request(f"{self._cluster.url}/api/jobs/", headers={"Authorization": f"Bearer {token}"})) as answer:
            return json.load(answer)

    def state(self, job: str) -> str:
        """Ray's word for a job."""
        return next(each["status"] for each in self.jobs() if each["submission_id"] == job)

    def process(self, module: str) -> int:
        """The process that runs a module for this run."""
        pids = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]
        [pid] = [pid for pid in pids if f" -m {module} train " in (line := command_line(pid)) and self.run in line]
        return pid

    def await_that(self, what: str, holds: Callable[[], bool]) -> None:
        """Waits until something holds."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            assert time.monotonic() < deadline, f"not in {PATIENCE_SECONDS:g} s: {what}; {self.jobs()}"
            time.sleep(0.1)


def test_a_run_is_submitted_killed_stopped_and_resumed(cluster: RayCluster, tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    desk = Desk(cluster, data=tmp_path / "data", run=tmp_path / "run")
    desk.python("-m", "jobs", *prepare_typed(tmp_path / "texts", tmp_path / "data"))
    first = desk.submit()
    assert (first["again"], first["state"], first["via"]) == (False, "queued", "ray")
    second = desk.submit()
    assert (second["again"], second["id"]) == (True, first["id"])

    desk.await_that("step 60 is saved", lambda: saved(desk.run) >= 60)
    kill(desk.process("jobs"), 9)
    reached = saved(desk.run)
    desk.await_that("it goes on", lambda: saved(desk.run) >= reached + 60)
    kill(desk.process("jobs.again"), 9)
    desk.await_that("the job has failed", lambda: desk.state(first["id"]) == "FAILED")
    assert "again: train ended with -9, step " in desk.adaptor("print(*ray_jobs.logs(last, follow=True))")

    third = desk.submit()
    assert (third["again"], third["id"]) == (False, first["id"].replace("-a1", "-a2"))
    reached = saved(desk.run)
    assert reached < STEPS / 2
    desk.await_that("it goes on", lambda: saved(desk.run) > reached)
    desk.python("-m", "jobs", "stop", f"run={desk.run}")
    desk.await_that("the job has ended", lambda: desk.state(third["id"]) == "SUCCEEDED")
    assert 0 < saved(desk.run) < STEPS
    assert [event["cause"] for event in read_events(desk.run) if event["event"] == "stop"] == ["SIGTERM", "user"]

    cancelled = desk.submit()["id"]
    desk.await_that("the job runs", lambda: desk.state(cancelled) == "RUNNING")
    desk.adaptor("ray_jobs.cancel(last)")
    desk.await_that("the job is stopped", lambda: desk.state(cancelled) == "STOPPED")
    assert desk.adaptor("print(ray_jobs.status(last).reason)") == "stopped\n"
    assert desk.adaptor("ray_jobs.cancel(last)") == ""

    last = desk.submit()["id"]
    assert last.endswith("-a4")
    desk.await_that("the run is finished", lambda: desk.state(last) == "SUCCEEDED")
    undisturbed = str(tmp_path / "undisturbed")
    desk.python("-m", "jobs", *[each.replace(f"run={desk.run}", f"run={undisturbed}") for each in desk.train])
    assert_same_end(desk.run, undisturbed, STEPS)
    assert SECRET not in json.dumps(desk.jobs())
    assert not [path for path in Path(desk.run).rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
