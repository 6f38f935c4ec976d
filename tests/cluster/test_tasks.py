"""Tasks: in this process or by Ray, with the user's errors as they were raised and deaths made good."""

import os
import sys
from pathlib import Path

import pytest

from pipeline.cluster.tasks import MAX_RETRIES, run_here, task_runner
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
TWO = load(Config, ["cluster=local", "cluster.num_cpus=2"]).cluster


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


def divide_by(number):
    return 1 / number


def die_once(path):
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "second life"
    return os.kill(os.getpid(), 9)


def die(_):
    os._exit(1)


def test_tasks_here_run_lazily_in_order_and_raise_as_they_are():
    with task_runner(NONE) as run_tasks:
        assert list(run_tasks(square, [3, 1, 2])) == [(0, 9), (1, 1), (2, 4)]
        results = run_tasks(refuse_three, [1, 3])
        assert next(results) == (0, 1)
        with pytest.raises(CorpusError, match=r"^file 3 is empty$"):
            next(results)
    assert list(run_here(square, [])) == []


@pytest.mark.slow
def test_tasks_by_ray(tmp_path, capfd):
    with task_runner(TWO) as run_tasks:
        assert dict(run_tasks(square, range(50))) == {number: number * number for number in range(50)}
        with pytest.raises(CorpusError, match=r"^file 3 is empty$") as refused:
            list(run_tasks(refuse_three, range(5)))
        assert refused.value.__cause__ is None
        assert capfd.readouterr() == ("", "")
        assert dict(run_tasks(die_once, [str(tmp_path / name) for name in "ab"])) == {
            0: "second life",
            1: "second life",
        }
        with pytest.raises(ClusterError, match=f"died {1 + MAX_RETRIES} times"):
            list(run_tasks(die, [0]))
        assert list(run_tasks(modules_of_worker, [("torch", "lightning")])) == [(0, ("1", []))]
        with pytest.raises(ZeroDivisionError):
            list(run_tasks(divide_by, [0]))
