"""`stop` of a run that was submitted: its request, what becomes of its job, and that no step is lost for it."""

import json
import time

import pytest
from support.clients import client_of, submitted

from jobs import stop
from jobs.__main__ import main
from pipeline.run.ledger import Ledger
from pipeline.run.stop import stop_request
from pipeline.submission.adaptors import JobStatus

QUEUED = JobStatus(state="queued", name="17", reason="Priority")
RUNNING = JobStatus(state="running", name="17")
ENDED = JobStatus(state="ended", name="17")
SILENT = JobStatus(state="silent", reason="no such host")


@pytest.fixture
def client(monkeypatch):
    """A client; the clock goes on by a second for each look, so that nobody waits."""
    clock = iter(range(100, 100_000))
    monkeypatch.setattr("jobs.stop.time.monotonic", lambda: float(next(clock)))
    monkeypatch.setattr("jobs.stop.time.sleep", lambda seconds: None)
    monkeypatch.setattr("jobs.stop.read_config", lambda run: Grace)
    return client_of("slurm", monkeypatch)


class Grace:
    class cluster:  # noqa: N801 as the section is called
        grace_seconds = 20.0


def begun(run):
    ledger = Ledger(str(run), attempt=1)
    ledger.write("start", command_step=0, total_steps=40, cluster="none")
    ledger.write("progress", step=7)
    return ledger


def stopped(run, capsys):
    """(exit code, the object that `--json` prints)."""
    code = main(["stop", f"run={run}", "--json"])
    return code, json.loads(capsys.readouterr().out)


def requested(run):
    return stop_request(str(run), attempt=1) is not None


def test_a_job_that_waits_is_cancelled_at_once_and_a_second_stop_is_harmless(tmp_path, client, capsys):
    job = submitted(str(tmp_path))
    client.jobs = {job.id: QUEUED}
    assert main(["stop", f"run={tmp_path}"]) == 0
    assert capsys.readouterr().out == (
        f"run={tmp_path} has not begun, nothing is saved; the same command begins it\n{job.id} is cancelled\n"
    )
    assert requested(tmp_path) and client.cancelled == [job.id]
    code, told = stopped(tmp_path, capsys)
    assert (code, told["state"], told["saved_step"], told["cancelled"]) == (0, "stopped", 0, False)
    assert (told["submission"], told["via"], told["job"]["reason"]) == (job.id, "slurm", "CANCELLED")
    assert client.cancelled == [job.id]


def test_a_job_that_runs_and_has_not_begun_to_train_is_cancelled(tmp_path, client, capsys):
    """Its first start would take the request away."""
    job = submitted(str(tmp_path))
    client.jobs = {job.id: RUNNING}
    assert stopped(tmp_path, capsys)[0] == 0
    assert client.cancelled == [job.id]


def test_a_run_that_trains_stops_by_its_folder_and_its_job_ends_by_itself(tmp_path, client, monkeypatch, capsys):
    job, ledger = submitted(str(tmp_path), seconds_ago=60), begun(tmp_path)
    client.jobs = {job.id: RUNNING}

    def train(seconds):
        if requested(tmp_path):
            ledger.write("stop", step=9, cause="user")

    def end(name):
        assert ledger_ended(tmp_path), "the client is asked once the run has stopped"
        if len(client.asked) == 3:
            client.jobs = {job.id: ENDED}

    monkeypatch.setattr("jobs.stop.time.sleep", train)
    client.look = end
    code, told = stopped(tmp_path, capsys)
    assert (code, told["state"], told["was_running"], told["cancelled"]) == (0, "stopped", True, False)
    assert (len(client.asked), client.cancelled) == (3, [])


def ledger_ended(run):
    return '"event": "stop"' in (run / "events.jsonl").read_text()


@pytest.mark.parametrize("then", [RUNNING, QUEUED], ids=["it stays", "it is requeued"])
def test_a_job_that_outlives_its_run_is_cancelled(then, tmp_path, client, monkeypatch, capsys):
    job, ledger = submitted(str(tmp_path), seconds_ago=60), begun(tmp_path)
    client.jobs = {job.id: then}
    monkeypatch.setattr("jobs.stop.time.sleep", lambda seconds: ledger.write("stop", step=9, cause="user"))
    code, told = stopped(tmp_path, capsys)
    assert (code, told["state"], told["cancelled"]) == (0, "stopped", True)
    assert client.cancelled == [job.id]
    assert len(client.asked) > 5 if then is RUNNING else len(client.asked) == 1


def test_a_run_that_does_not_stop_in_time_keeps_its_job(tmp_path, client, capsys):
    job = submitted(str(tmp_path), seconds_ago=60)
    begun(tmp_path)
    client.jobs = {job.id: RUNNING}
    assert main(["stop", f"run={tmp_path}"]) == stop.LATE
    lines = capsys.readouterr().out.splitlines()
    assert "goes on still, nothing is saved; the request stands" in lines[0]
    assert lines[1] == f"{job.id} runs still"
    assert client.cancelled == []


def test_a_run_that_is_silent_while_its_job_runs_is_waited_for_and_keeps_its_job(tmp_path, client, capsys, monkeypatch):
    job = submitted(str(tmp_path), seconds_ago=2000)
    begun(tmp_path)
    client.jobs = {job.id: RUNNING}
    now = time.time()
    monkeypatch.setattr("jobs.stop.time.time", lambda: now + 1000)
    code, told = stopped(tmp_path, capsys)
    assert (code, told["state"], client.cancelled) == (stop.LATE, "silent", [])
    assert requested(tmp_path)


def test_a_client_that_does_not_answer_leaves_it_open_unless_the_run_has_said_that_it_stopped(tmp_path, client, capsys):
    job = submitted(str(tmp_path), seconds_ago=60)
    client.jobs = {job.id: SILENT}
    assert main(["stop", f"run={tmp_path}"]) == stop.LATE
    assert capsys.readouterr().out.splitlines()[1] == (
        f"slurm does not answer (no such host): it is not known whether {job.id} goes on"
    )
    begun(tmp_path).write("stop", step=9, cause="SIGTERM")
    assert main(["stop", f"run={tmp_path}"]) == 0
    assert requested(tmp_path)


def test_a_job_that_cannot_be_cancelled_is_told(tmp_path, client, capsys):
    job = submitted(str(tmp_path))
    client.jobs, client.refuses = {job.id: QUEUED}, "slurm does not answer; cancel it where it does"
    assert main(["stop", f"run={tmp_path}"]) == stop.LATE
    assert capsys.readouterr().out.splitlines()[1] == (
        f"{job.id} could not be cancelled and may go on: slurm does not answer; cancel it where it does"
    )
    assert requested(tmp_path)


def test_a_finished_run_that_was_submitted_again_is_cancelled(tmp_path, client, capsys):
    begun(tmp_path).write("end", step=40)
    first = submitted(str(tmp_path), seconds_ago=60)
    client.jobs = {first.id: ENDED}
    assert stopped(tmp_path, capsys)[0] == 0
    assert not requested(tmp_path)
    second = submitted(str(tmp_path), number=2, seconds_ago=-1)
    client.jobs[second.id] = QUEUED
    assert stopped(tmp_path, capsys)[0] == 0
    assert requested(tmp_path) and client.cancelled == [second.id]
