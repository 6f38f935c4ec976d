"""Tasks: in this process or by Ray; errors are values, so that the others go on; what is transient is tried again."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.cluster import tasks
from pipeline.cluster.tasks import MAX_RETRIES, TASKS_PER_CPU, run_here, task_runner
from pipeline.config import Config, load
from pipeline.errors import ClusterError, CorpusError

# Ray leaves sockets and processes of its own to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:ray"),
]

NONE = load(Config, []).cluster
ROOT = Path(__file__).resolve().parents[2]
LOCAL = ["cluster=local", "cluster.num_cpus=2"]
TWO = load(Config, LOCAL).cluster


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Workers import the functions of this file by its name.
    here, before = str(Path(__file__).parent), os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{here}{os.pathsep}{before}" if before else here)


def square(number):
    return number * number


def refuse_three(number):
    if number == 3:
        raise CorpusError("file 3 is empty")
    return number


def modules_of_worker(names):
    return os.environ["OMP_NUM_THREADS"], [name for name in names if name in sys.modules]


def tried(path):
    """How often this was tried, this time counted."""
    with Path(path).open("a") as file:
        file.write("x")
    return Path(path).stat().st_size


def divide_by_zero(path):
    return 1 / (tried(path) - 1)


def die_once(path):
    return os.kill(os.getpid(), 9) if tried(path) == 1 else "second life"


def die(path):
    tried(path)
    os._exit(1)


def miss_twice(path):
    if tried(path) < 3:
        raise ConnectionResetError(104, "Connection reset by peer")
    return "third time"


def miss(path):
    tried(path)
    raise OSError(28, "No space left on device", "shard")


def lack_memory(path):
    tried(path)
    raise MemoryError


class Pickled:
    """A function that counts how often it was pickled."""

    def __init__(self):
        self.times = 0

    def __call__(self, number):
        return number

    def __reduce__(self):
        self.times += 1
        return Pickled, ()


class Taken(list):
    """Counts how many of its items were taken."""

    def __init__(self, items):
        super().__init__(items)
        self.number = 0

    def __iter__(self):
        for item in super().__iter__():
            self.number += 1
            yield item


def test_tasks_here_run_lazily_and_in_order():
    with task_runner(NONE) as run_tasks:
        assert list(run_tasks(square, [3, 1, 2])) == [(0, 9), (1, 1), (2, 4)]
        items = Taken([1, 2])
        assert next(run_tasks(square, items)) == (0, 1)
        assert items.number == 1
    assert list(run_here(square, [])) == []


def test_a_task_that_fails_here_leaves_the_others_and_is_not_tried_again(tmp_path):
    found = dict(run_here(refuse_three, [1, 3, 5]))
    assert (found[0], type(found[1]), str(found[1]), found[2]) == (1, CorpusError, "file 3 is empty", 5)
    for number, (function, reason) in enumerate([(miss, "No space left on device: 'shard'"), (lack_memory, "Memory")]):
        ((_, failed),) = run_here(function, [str(tmp_path / str(number))])
        assert type(failed) is ClusterError and reason in str(failed)
        assert (tmp_path / str(number)).read_text() == "x"
    with pytest.raises(ZeroDivisionError):
        list(run_here(divide_by_zero, [str(tmp_path / "zero")]))


def test_tasks_in_flight_follow_the_cores_of_the_cluster(monkeypatch, caplog):
    resources = {}
    monkeypatch.setattr(tasks, "ray_api", lambda: SimpleNamespace(cluster_resources=lambda: resources))
    monkeypatch.setattr(tasks, "LOOK_SECONDS", 0.0)
    room, bounded = tasks._Room(None), tasks._Room(3)

    def sizes(*numbers):
        for number in numbers:
            resources.clear()
            resources.update({"CPU": float(number)} if number else {})
            yield room.size(), bounded.size()

    assert [*sizes(4, 16, 1)] == [(8, 3), (32, 3), (2, 2)]
    assert caplog.messages == []
    assert [*sizes(0, 0, 2)] == [(1, 1), (1, 1), (4, 3)]
    assert caplog.messages == ["the Ray cluster has no cores; tasks wait for a machine to join it"] * 2  # of each room
    monkeypatch.setattr(tasks, "LOOK_SECONDS", 1000.0)
    assert [*sizes(4, 8)] == [(8, 3), (8, 3)]  # it was just looked


def test_a_machine_that_lacks_the_program_is_the_users_to_mend(monkeypatch):
    import ray

    def get(_):
        raise ray.exceptions.RayTaskError("f", "stack", RuntimeError(f"The remote function {tasks.NO_IMPORT}. This"))

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(ClusterError, match=r"cannot import this program \(.*\); install the same version on each"):
        tasks._result(None)


@pytest.mark.slow
def test_tasks_by_ray(tmp_path, capfd):
    def place(name):
        return str(tmp_path / name)

    def num_tried(name):
        return len((tmp_path / name).read_text())

    with task_runner(TWO) as run_tasks:
        assert dict(run_tasks(square, range(50))) == {number: number * number for number in range(50)}
        found = dict(run_tasks(refuse_three, range(5)))
        assert str(found.pop(3)) == "file 3 is empty" and found == {0: 0, 1: 1, 2: 2, 4: 4}
        assert capfd.readouterr() == ("", "")
        assert list(run_tasks(modules_of_worker, [("torch", "lightning")])) == [(0, ("1", []))]

        items = Taken(range(40))
        results = run_tasks(square, items)
        next(results)
        assert items.number == TASKS_PER_CPU * 2
        assert len([*results]) == 39
        function = Pickled()
        assert len([*run_tasks(function, range(20))]) == 20 and function.times == 1

        assert dict(run_tasks(die_once, [place("a"), place("b")])) == {0: "second life", 1: "second life"}
        assert dict(run_tasks(miss_twice, [place("c")])) == {0: "third time"}
        for function, reason in (
            (die, f"died {1 + MAX_RETRIES} times"),
            (miss, f"{1 + MAX_RETRIES} trials failed .*No space left on device"),
            (lack_memory, f"{1 + MAX_RETRIES} trials failed .MemoryError"),
        ):
            name = function.__name__
            ((_, failed),) = run_tasks(function, [place(name)])
            assert type(failed) is ClusterError and re.search(reason, str(failed)), failed
            assert num_tried(name) == 1 + MAX_RETRIES
        with pytest.raises(ZeroDivisionError):
            list(run_tasks(divide_by_zero, [place("zero")]))
        assert num_tried("zero") == 1


@pytest.mark.slow
def test_a_task_whose_worker_ray_kills_to_save_memory_is_not_tried_for_ever(tmp_path):
    """Ray's own default is to try it again without end."""
    (tmp_path / "a.txt").write_text("one two\n")
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "prepare", f"corpus.train={tmp_path}/a.txt", f"data={tmp_path}/data", *LOCAL],
        cwd=ROOT,
        env=os.environ | {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "20"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    assert f"a.txt: the worker died {1 + MAX_RETRIES} times" in done.stderr
    assert done.stderr.count("\n") == 1 and "retries remaining" not in done.stdout
