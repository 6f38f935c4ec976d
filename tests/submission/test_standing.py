"""Where a run stands, from its ledger and the client's word: each state, and whose word counts."""

import threading
from dataclasses import replace

import pytest
from support.clients import client_of, submitted

from pipeline.run.account import account
from pipeline.submission import asking
from pipeline.submission.adaptors import ADAPTORS, JobStatus
from pipeline.submission.asking import ask
from pipeline.submission.standing import Standing, needs_asking, shown_seconds, standing

NOW = 1_700_000_000.0
BEGUN = [
    ("start", {"command_step": 0, "total_steps": 500, "cluster": "none"}),
    ("group", {"step": 0, "reached_step": 0, "world_size": 4, "checkpoint": None}),
    ("training", {}),
]
ENDS = {"stop": {"step": 60, "cause": "SIGTERM"}, "end": {"step": 500}}
QUEUED = JobStatus(state="queued", name="17", reason="Priority")
RUNNING = JobStatus(state="running", name="17")
ENDED = JobStatus(state="ended", name="17", reason="TIMEOUT")
GONE = JobStatus(state="gone")
SILENT = JobStatus(state="silent", reason="waited 10 s")


def ledger(*more, seconds_ago):
    """The account of a run whose last event was so long ago."""
    told = [*BEGUN, *((name, ENDS[name]) for name in more)]
    events = [{"event": name, "time": NOW - seconds_ago, "attempt": 1, **about} for name, about in told]
    return account(events, now=NOW)


@pytest.fixture
def job(tmp_path):
    """A submission of a thousand seconds ago; `{id}` in this file stands for its id."""
    return replace(submitted(str(tmp_path / "mine")), time=NOW - 1000)


def where(found, job, said, *, cause=None, prepared=False):
    seen = standing(found, now=NOW, submission=job, job=said, stop_cause=cause, prepared=prepared)
    return seen if job is None else replace(seen, reason=seen.reason.replace(job.id, "{id}"))


@pytest.mark.parametrize(
    ("said", "state", "reason"),
    [
        (None, "submitted", ""),
        (QUEUED, "queued", "Priority"),
        (RUNNING, "running", "{id} runs and told no event yet"),
        (ENDED, "lost", "{id} has ended (TIMEOUT), before the first event"),
        (GONE, "submitted", "slurm does not know {id}"),
        (SILENT, "submitted", "slurm does not answer (waited 10 s)"),
    ],
)
def test_of_a_run_without_a_ledger_the_client_says_all(said, state, reason, job):
    assert where(account([], now=NOW), job, said) == Standing(state=state, reason=reason)


@pytest.mark.parametrize(("said", "state"), [(QUEUED, "queued"), (ENDED, "stopped"), (GONE, "stopped")])
def test_a_run_that_was_stopped_before_it_began_is_stopped(said, state, job):
    seen = where(account([], now=NOW), job, said, cause="user")
    assert (seen.state, seen.reason) == (state, "Priority" if said is QUEUED else "user")


def test_a_preparation_has_no_ledger_and_is_finished_once_its_corpus_is_there(job):
    prepares, nothing = replace(job, verb="prepare"), account([], now=NOW)
    assert where(nothing, prepares, RUNNING) == Standing(state="running")
    assert where(nothing, prepares, ENDED) == Standing(state="lost", reason="{id} has ended (TIMEOUT)")
    assert where(nothing, prepares, ENDED, prepared=True) == Standing(state="finished")


LEDGERS = {
    "runs": (ledger(seconds_ago=20), Standing(state="running")),
    "runs late": (ledger(seconds_ago=90), Standing(state="running")),
    "silent": (ledger(seconds_ago=600), Standing(state="lost", reason="no event for 10 min")),
    "stopped": (ledger("stop", seconds_ago=600), Standing(state="stopped", reason="SIGTERM")),
    "finished": (ledger("end", seconds_ago=600), Standing(state="finished")),
}


@pytest.mark.parametrize(("found", "alone"), LEDGERS.values(), ids=LEDGERS.keys())
def test_without_a_client_the_ledger_says_all(found, alone, job):
    cause = "SIGTERM" if found.state == "stopped" else None
    assert where(found, None, None, cause=cause) == alone
    assert where(found, job, None, cause=cause) == alone
    silent = where(found, job, SILENT, cause=cause)
    assert silent.state == alone.state
    assert silent.reason == "; ".join(filter(None, [alone.reason, "slurm does not answer (waited 10 s)"]))


@pytest.mark.parametrize(
    ("name", "said", "state", "reason"),
    [
        ("runs", RUNNING, "running", ""),
        ("runs", QUEUED, "running", "{id} is queued (Priority)"),  # by hand, beside it
        ("runs", ENDED, "running", "{id} has ended (TIMEOUT)"),  # by hand, after it
        ("runs", GONE, "running", "slurm does not know {id}"),
        ("runs late", RUNNING, "running", ""),
        ("runs late", QUEUED, "queued", "Priority"),  # requeued after a kill
        ("runs late", ENDED, "lost", "no event for 90 s; {id} has ended (TIMEOUT)"),
        ("runs late", GONE, "lost", "no event for 90 s; slurm does not know {id}"),
        ("silent", RUNNING, "lost", "no event for 10 min; {id} runs"),
        ("silent", QUEUED, "queued", "Priority"),
        ("silent", ENDED, "lost", "no event for 10 min; {id} has ended (TIMEOUT)"),
        ("stopped", RUNNING, "running", "{id} runs and told no event yet"),  # requeued, and on its way
        ("stopped", QUEUED, "queued", "Priority"),
        ("stopped", ENDED, "stopped", "SIGTERM"),
        ("stopped", GONE, "stopped", "SIGTERM"),
    ],
)
def test_a_clients_word_counts_where_the_ledger_is_silent_or_tells_of_an_end(name, said, state, reason, job):
    found = LEDGERS[name][0]
    cause = "SIGTERM" if name == "stopped" else None
    assert where(found, job, said, cause=cause) == Standing(state=state, reason=reason)


def test_a_job_that_is_newer_than_the_ledger_has_begun_anew(job):
    newer = replace(job, time=NOW - 300)
    for name in ("silent", "stopped", "finished"):
        seen = where(LEDGERS[name][0], newer, RUNNING)
        assert seen == Standing(state="running", reason="{id} runs and told no event yet")


def test_a_client_is_asked_only_where_its_word_matters(job):
    found = {name: each for name, (each, _) in LEDGERS.items()}
    assert needs_asking(account([], now=NOW), job, stop_cause=None)
    assert needs_asking(found["runs"], job, stop_cause=None)
    assert needs_asking(found["silent"], job, stop_cause=None)
    assert needs_asking(found["stopped"], job, stop_cause="SIGTERM")  # a requeue may follow
    assert not needs_asking(found["stopped"], job, stop_cause="user")
    assert not needs_asking(found["finished"], job, stop_cause=None)
    assert needs_asking(found["finished"], replace(job, time=NOW - 300), stop_cause=None)


def test_a_hang_may_take_as_long_as_the_run_allows():
    events = [{"event": name, "time": NOW - 300, "attempt": 1, **about} for name, about in BEGUN]
    states = {hang: account(events, now=NOW, hang_seconds=hang).state for hang in (None, 30.0, 299.0, 301.0)}
    assert states == {None: "silent", 30.0: "silent", 299.0: "silent", 301.0: "running"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99.4, "99 s"), (99.6, "2 min"), (5940, "99 min"), (6000, "1 h 40 min"), (180_000, "2 d 2 h")],
)
def test_a_length_of_time(seconds, text):
    assert shown_seconds(seconds) == text


def test_clients_are_asked_at_once_and_a_silent_one_once(tmp_path, monkeypatch):
    slurm, ray = client_of("slurm", monkeypatch), client_of("ray", monkeypatch)
    jobs = [submitted(str(tmp_path / f"run-{each}"), kind="slurm" if each % 2 else "ray") for each in range(6)]
    slurm.jobs = {each.id: SILENT for each in jobs}
    ray.jobs = {each.id: RUNNING for each in jobs}
    met = threading.Barrier(2, timeout=30)
    slurm.look = ray.look = lambda name: met.wait() if name in (jobs[0].id, jobs[1].id) else None
    found = ask(jobs)
    assert found == {each.id: SILENT if each.kind == "slurm" else RUNNING for each in jobs}
    assert (len(slurm.asked), len(ray.asked)) == (1, 3)


def test_nobody_waits_for_a_client_that_hangs(tmp_path, monkeypatch):
    client, answers = client_of("slurm", monkeypatch), threading.Event()
    job = submitted(str(tmp_path))
    client.look = lambda name: answers.wait(60)
    monkeypatch.setattr(asking, "PATIENCE_SECONDS", 0.05)
    assert ask([job])[job.id] == JobStatus(state="silent", reason="waited 0.05 s")
    answers.set()


def test_an_adaptor_that_is_not_here_is_silent(tmp_path, monkeypatch):
    monkeypatch.setitem(ADAPTORS, "slurm", "pipeline.submission.nowhere")
    job = submitted(str(tmp_path))
    assert ask([job])[job.id].state == "silent"
    monkeypatch.delitem(ADAPTORS, "slurm")
    assert ask([job])[job.id] == JobStatus(state="silent", reason="via=slurm is none of this version")
