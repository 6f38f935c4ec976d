"""Slurm, real: two machines; and what its script and its checks are."""

import io
import json
import shutil
import signal
import subprocess
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from support.faulty_runs import PATIENCE_SECONDS, SETTINGS, TOTAL, assert_same_run, recorded, saved, status
from support.slurm_cluster import ask, await_idle, missing, slurm

from jobs.__main__ import main
from pipeline.run.ledger import read_events

SLOW = """
import time
from pipeline.training.module import LanguageModelModule

def training_step(module, batch, batch_idx, sound=LanguageModelModule.training_step):
    time.sleep(0.1)
    return sound(module, batch, batch_idx)

LanguageModelModule.training_step = training_step
"""
TRAIN = [each for each in SETTINGS if not each.startswith("cluster=")]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Slurm's environment."""
    if (why := missing()) is not None:
        pytest.skip(why)
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture
def slow(tmp_path):
    """Arguments by which the steps of a job take their time."""
    (tmp_path / "slowly.py").write_text(SLOW)
    setup = tmp_path / "setup.sh"
    setup.write_text(f"export PYTHONPATH={tmp_path} MASTER_ADDR=127.0.0.1 OMP_NUM_THREADS=1\n")
    return ["extensions=[slowly]", f"via.setup={setup}"]


@pytest.fixture(autouse=True)
def found(request, monkeypatch, tmp_path):
    """Commands find the cluster, and this process the module that slows steps."""
    monkeypatch.syspath_prepend(str(tmp_path))
    if "cluster" in request.fixturenames:
        for name, value in request.getfixturevalue("cluster").items():
            monkeypatch.setenv(name, value)


def call(*arguments):
    """(exit code, what was printed) of a command."""
    with redirect_stdout(io.StringIO()) as told, redirect_stderr(told):
        code = main(arguments)
    return code, told.getvalue()


def submitted(*arguments):
    """The object that a submission prints."""
    code, told = call("submit", *arguments, "--json")
    assert code == 0, told
    return json.loads(told)


def await_that(holds, *, why):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, why()
        time.sleep(0.1)


def state_of(cluster, number):
    return ask(cluster, "squeue", "--noheader", "--states=all", f"--jobs={number}", "--format=%T")


@pytest.mark.slow
def test_a_run_goes_through_a_time_limit_and_a_preemption_bit_for_bit(world, cluster, slow):
    """Two machines: USR1, as before the time limit; then another partition takes them. One ledger, no step lost."""
    run = world.run()
    order = ["train", "via=slurm", "via.nodes=2", f"data={world.data}", f"run={run}", *TRAIN, "cluster.num_workers=2"]
    job = submitted(*order, *slow)
    again = submitted(*order, *slow)
    assert (again["id"], again["job"], again["again"]) == (job["id"], job["job"], True)
    assert ask(cluster, "squeue", "--noheader", "--format=%j") == job["id"]
    log = Path(run, "logs", f"{job['id']}.log")

    def told():
        return f"{log.read_text() if log.exists() else 'no log'}\n{state_of(cluster, job['job'])}"

    await_that(lambda: recorded(run) >= 20, why=told)
    ask(cluster, "scancel", "--signal=USR1", "--batch", job["job"])
    await_that(lambda: state_of(cluster, job["job"]) == "PENDING", why=told)
    first = saved(run)
    assert first == recorded(run)
    await_that(lambda: recorded(run) >= first + 20, why=told)
    ask(cluster, "sbatch", "--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap=true")
    await_that(lambda: state_of(cluster, job["job"]) == "PENDING", why=told)
    assert saved(run) == recorded(run) > first
    await_that(lambda: state_of(cluster, job["job"]) == "COMPLETED", why=told)
    stops = [event["cause"] for event in read_events(run) if event["event"] == "stop"]
    assert stops == ["SIGTERM", "SIGTERM"]
    found = status(run)
    assert (found["state"], found["step"], found["num_attempts"], found["steps_replayed"]) == ("finished", TOTAL, 3, 0)
    assert_same_run(run, world.reference(workers=2))
    assert "requeued" in log.read_text()
    assert not found["failures"]


@pytest.mark.slow
def test_a_run_that_is_stopped_or_cannot_go_on_is_not_requeued(world, cluster, slow):
    run = world.run()
    order = ["train", "via=slurm", f"data={world.data}", f"run={run}", *TRAIN, *slow]
    job = submitted(*order)
    await_that(lambda: recorded(run) >= 10, why=lambda: state_of(cluster, job["job"]))
    assert call("stop", f"run={run}")[0] == 0
    await_that(
        lambda: state_of(cluster, job["job"]) in ("COMPLETED", "CANCELLED"), why=lambda: state_of(cluster, job["job"])
    )
    step = saved(run)
    second = submitted(*order)  # a person goes on
    assert second["id"] == f"{job['id'][:-1]}2"
    await_that(lambda: recorded(run) > step, why=lambda: state_of(cluster, second["job"]))
    assert call("stop", f"run={run}")[0] == 0
    await_idle(cluster)

    lost = world.run("lost")
    job = submitted("train", "via=slurm", "data=/nowhere", f"run={lost}", *TRAIN, *slow)
    await_that(lambda: state_of(cluster, job["job"]) == "FAILED", why=lambda: state_of(cluster, job["job"]))
    assert "error: data=/nowhere" in Path(lost, "logs", f"{job['id']}.log").read_text()


def test_the_script_passes_shellcheck(tmp_path):
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here; apt-get install shellcheck")
    for verb in ("train", "prepare"):
        code, told = call(
            "submit", verb, "via=slurm", "data=/d", f"run={tmp_path / 'a b'}", "via.setup=/etc/profile", "--dry-run"
        )
        assert code == 0
        done = subprocess.run(
            ["shellcheck", "--shell=bash", "--exclude=SC1091", "-"],
            input=told,
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.stdout == ""


def test_no_word_of_a_user_is_code_of_the_script(tmp_path):
    """What is typed reaches the command as it is typed."""
    run, data = tmp_path / "it's $(touch no) `x` @work@", "/a;b & c"
    code, told = call("submit", "train", "via=slurm", f"data={data}", f"run={run}", "--dry-run")
    assert code == 0
    script = told.replace("srun --kill-on-bad-exit=1", "printf '%s\\n'").replace("saved_step)", "echo 0)")
    done = subprocess.run(["bash"], input=script, text=True, capture_output=True, check=False, cwd=tmp_path)
    assert {f"data={data}", f"run={run}", "cluster=none"} <= set(done.stdout.splitlines())
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("typed", "needed"),
    [
        (["cluster.num_workers=3", "via.nodes=2"], "use cluster.num_workers=2"),
        (["via.minutes=2", "via.signal_seconds=120"], "not below via.minutes=2"),
        (["via.setup=setup.sh"], "no full path"),
        (["via.options=[-x]"], "no long option"),
        (["via.options=[--array=0-3]"], "--array is what `submit` itself sets"),
        (["via.options=[--comment=x,--job-name=x]"], "--job-name is what `submit` itself sets"),
        (["via.options=[--time=9]"], "--time is what `submit` itself sets"),
        (["via.python=python3"], "no full path"),
        (["run=s3://bucket/run"], "give via.logs=FOLDER"),
        (["run=/tmp/a%j"], "holds %"),
        (["cluster=ray"], "runs with cluster=none"),
        (["run=here"], "use run=/"),
        (["run=s3://key:word@bucket/run"], "holds a secret"),
    ],
)
def test_what_sbatch_could_not_take_is_refused(typed, needed):
    places = {"data": "data=/d", "run": "run=/r"} | {each.partition("=")[0]: each for each in typed}
    code, told = call("submit", "train", "via=slurm", *places.values(), "--dry-run")
    assert code == 2
    assert needed in told
    assert told.count("\n") == 1


def test_a_slurm_that_is_not_there_is_told_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, told = call("submit", "train", "via=slurm", "data=/d", f"run={tmp_path / 'run'}")
    assert code == 2
    assert "needs the command sbatch" in told


FAKE = """#!/bin/bash
printf '%s\\n' "$0 $*" >> @folder@/calls
case "$0" in
  */sbatch) env > @folder@/environment; cat > @folder@/script; echo 7 ;;
  */squeue) if [[ "$*" == *--jobs=* ]]; then echo RUNNING; else cat @folder@/jobs 2>/dev/null; fi; true ;;
  */python) sleep 1.5 ;;
  */srun) trap '' USR1; sleep "${SRUN_SECONDS:-0}"; exit "${SRUN_CODE:-0}" ;;
esac
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A folder with commands of Slurm that write down what they are asked, first on PATH."""
    folder = tmp_path / "fake"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scancel", "scontrol", "srun", "python"):
        (folder / name).write_text(FAKE.replace("@folder@", str(folder)))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def test_a_job_of_another_user_is_the_runs_job_too(fake, tmp_path):
    order = ["train", "via=slurm", "data=/d", f"run={tmp_path / 'run'}"]
    job = submitted(*order)
    (fake / "jobs").write_text("7|PENDING|Resources\n")
    assert submitted(*order) == job | {"again": True}
    asked = [line for line in (fake / "calls").read_text().splitlines() if "/squeue " in line]
    assert asked
    assert not [line for line in asked if "--user" in line or "--me" in line]


def test_of_two_jobs_of_one_name_the_first_stays(fake, tmp_path):
    (fake / "jobs").write_text("5|PENDING|Resources\n7|PENDING|Resources\n6|COMPLETED|None\n")
    assert submitted("train", "via=slurm", "data=/d", f"run={tmp_path / 'run'}")["job"] == "5"
    assert f"{fake}/scancel 7" in (fake / "calls").read_text().splitlines()


def test_sbatch_gets_no_secret_and_nothing_that_renames_the_job(fake, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "SBATCH_JOB_NAME", "SBATCH_NO_REQUEUE", "SBATCH_SIGNAL"):
        monkeypatch.setenv(name, "planted-0123")
    monkeypatch.setenv("SBATCH_ACCOUNT", "ours")
    submitted("train", "via=slurm", "data=/d", f"run={tmp_path / 'run'}")
    environment = (fake / "environment").read_text()
    assert "planted-0123" not in environment
    assert "SBATCH_ACCOUNT=ours" in environment


@pytest.mark.parametrize("code", [0, 7])
def test_the_ranks_exit_code_is_kept_when_they_end_while_they_are_asked_to(fake, tmp_path, monkeypatch, code):
    """bash leaves `wait` for the trap; what the ranks ended with meanwhile counts all the same."""
    monkeypatch.setenv("SRUN_SECONDS", "1")
    monkeypatch.setenv("SRUN_CODE", str(code))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    typed = ["data=/d", f"run={tmp_path / 'run'}", f"via.python={fake / 'python'}"]
    told = call("submit", "train", "via=slurm", *typed, "--dry-run")[1]
    script = tmp_path / "script"
    script.write_text(told.replace("before=$(saved_step)", "before=0").replace("after=$(saved_step)", "after=0"))
    process = subprocess.Popen(["bash", str(script)])
    await_that(lambda: "/srun " in (fake / "calls").read_text() if (fake / "calls").exists() else False, why=str)
    time.sleep(0.3)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(PATIENCE_SECONDS) == code
    asked = (fake / "calls").read_text()
    assert f"stop.stop_newest_attempt(sys.argv[1]) {tmp_path / 'run'}" in asked
    assert "/scontrol " not in asked
