"""`prepare` on a real Ray cluster of several machines: on all of them, and one that dies costs another trial only."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.corpora import digests, words
from support.ray_cluster import NODES, RayCluster, end_node, ray_cluster
from support.typed import ROOT

from pipeline.cluster.tasks import MAX_RETRIES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SOON = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3"}  # a dead machine is missed
PATIENCE_SECONDS = 120.0
NUM_FILES = 12

FORMAT = """
import os, time
from pathlib import Path
import ray
from pipeline.corpus.readers import READERS, Reader
from pipeline.corpus.units import text_chunks

FOLDER = Path(__file__).parent

def text(unit):
    name = os.path.basename(unit.path)
    if ray.is_initialized():
        (FOLDER / "places" / ray.util.get_node_ip_address()).touch()
    with (FOLDER / "reads").open("a") as file:
        file.write(name + "\\n")
    while (FOLDER / "wait").exists():
        time.sleep(0.02)
    if name.startswith("deadly"):
        os._exit(1)
    yield from text_chunks(unit)

READERS["odd"] = Reader(suffixes=(".odd",), text=text)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a module with a text format, and what its readers tell each other."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "toy_odd.py").write_text(FORMAT)
    (folder / "places").mkdir()
    return folder


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[RayCluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # its machines work in another folder than the command
        with ray_cluster(num_nodes=2, settings=SOON | {"PYTHONPATH": str(folder)}) as started:
            patch.undo()
            yield started


class Desk:
    """Where a user sits, with some files to prepare."""

    def __init__(self, cluster: RayCluster, folder: Path, place: Path) -> None:
        self._cluster, self._folder = cluster, folder
        self.place = Path(os.path.relpath(place, ROOT))  # a command's relative paths hold on all machines
        (place / "texts").mkdir()
        for number in range(NUM_FILES):
            (place / "texts" / f"{number:02}.odd").write_text(words(number, 200))

    def prepare(self, data: str, *more: str) -> "subprocess.Popen[str]":
        """Begins the command."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = os.pathsep.join(filter(None, [str(self._folder), own.get("PYTHONPATH")]))
        typed = [f"corpus.train={self.place / 'texts'}", f"data={self.place / data}", "extensions=toy_odd", *more]
        typed.append("corpus.unit_bytes=2048")  # so that the files, which are larger, have tasks of their own
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", "prepare", *typed],
            cwd=ROOT,
            env=own | self._cluster.environment | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def prepare_there(self, data: str) -> "subprocess.Popen[str]":
        """Begins the command, whose tasks run on the cluster."""
        return self.prepare(data, "cluster=ray", f"cluster.address={self._cluster.address}")


def ended(command: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """The exit code, and what was printed."""
    out, err = command.communicate(timeout=PATIENCE_SECONDS)
    return command.returncode, out, err


def await_that(what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"not in {PATIENCE_SECONDS:g} s: {what}"
        time.sleep(0.05)


def test_a_file_that_kills_its_worker_is_named_while_the_others_are_done(cluster, folder, tmp_path):
    desk = Desk(cluster, folder, tmp_path)
    (tmp_path / "texts" / "deadly.odd").write_text("one two\n")
    (folder / "reads").write_text("")
    code, out, err = ended(desk.prepare_there("data"))
    reads = (folder / "reads").read_text().split()
    assert code == 2 and err.count("\n") == 1, (out, err)
    assert f"{tmp_path.name}/texts/deadly.odd: the worker died {1 + MAX_RETRIES} times" in err
    assert err.endswith("(in deadly.odd[0:8])\n")
    assert f"{NUM_FILES + 1} tasks (1 failed)" in out and "retries remaining" not in out
    assert reads.count("deadly.odd") == 1 + MAX_RETRIES
    assert {*reads} == {"deadly.odd", *(f"{number:02}.odd" for number in range(NUM_FILES))}
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_a_machine_that_dies_costs_another_trial_only(cluster, folder, tmp_path):
    desk = Desk(cluster, folder, tmp_path)
    code, _, err = ended(desk.prepare("whole", "cluster=none"))
    assert code == 0, err
    for place in (folder / "places").iterdir():
        place.unlink()
    (folder / "wait").touch()
    command = desk.prepare_there("data")
    await_that("both machines read", lambda: {each.name for each in (folder / "places").iterdir()} == {*NODES})
    end_node(cluster, 0)
    (folder / "wait").unlink()
    code, out, err = ended(command)
    assert code == 0, (out, err)
    assert "Traceback" not in out + err and "failed)" not in out
    assert digests(tmp_path / "data") == digests(tmp_path / "whole")
