"""One run, one job: pressed twice, from two machines, after a lost connection; and what a record is."""

import io
import json
import sys
import threading
import time
import types
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.__main__ import main
from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.run.ledger import Ledger
from pipeline.run.stop import USER, request_stop, stop_request
from pipeline.submission import adaptors, submitting
from pipeline.submission.adaptors import JobStatus, Rendered
from pipeline.submission.record import job_id, record, submissions
from pipeline.submission.submitting import order_of, submit


class FakeCluster(types.ModuleType):
    """An adaptor whose jobs are rows of a dict."""

    CLUSTER = "none"

    def settled(self, section):
        return section

    def __init__(self):
        super().__init__("fake_cluster")
        self.jobs = {}
        self.calls = 0
        self.lost = 0  # calls whose answer is lost: (before, after) the job was made
        self.lock = threading.Lock()

    def check(self, order):
        pass

    def render(self, order):
        return Rendered(text=f"{order.command('/python')}\n", ending=".txt", command=["fake", order.submission.id])

    def submit(self, order, rendered, file):
        with self.lock:
            self.calls += 1
            if self.lost == "before":
                raise ConfigError("the connection is lost")
            self.jobs[order.submission.id] = "queued"
            if self.lost == "after":
                raise ConfigError("the connection is lost")
            return f"job-{len(self.jobs)}"

    def status(self, submission):
        return JobStatus(state=self.jobs.get(submission.id, "gone"), reason="no room")

    def cancel(self, submission):
        self.jobs[submission.id] = "ended"

    def logs(self, submission, *, follow):
        yield ""


@pytest.fixture
def cluster(monkeypatch):
    fake = FakeCluster()
    monkeypatch.setitem(sys.modules, "fake_cluster", fake)
    monkeypatch.setitem(adaptors.ADAPTORS, "sky", "fake_cluster")
    monkeypatch.setattr(submitting, "SETTLE_SECONDS", 0.5)
    monkeypatch.setattr(submitting, "LOOK_SECONDS", 0.05)
    return fake


@pytest.fixture(params=["disk", "store"])
def run(request, tmp_path):
    """A place for a run."""
    if request.param == "disk":
        return str(tmp_path / "My run")
    return f"{request.getfixturevalue('s3_bucket')}/{uuid.uuid4().hex}/My run"


def order(run, *typed, verb="train"):
    return order_of(verb, ["via=sky", "data=/data", f"run={run}", *typed])


def test_pressed_twice_is_one_job(cluster, run):
    first, second = submit(order(run)), submit(order(run))
    assert (first.again, second.again) == (False, True)
    assert first.submission == second.submission
    assert first.submission.id == job_id(run, number=1)
    assert second.status == JobStatus(state="queued", reason="no room")
    assert cluster.calls == 1
    assert submissions(run) == [first.submission]
    assert storage.read_bytes(first.file).decode() == f"{order(run).command('/python')}\n"


def test_pressed_at_once_from_many_places_is_one_job(cluster, run):
    with ThreadPoolExecutor(8) as pool:
        outcomes = [each.result() for each in [pool.submit(submit, order(run)) for _ in range(8)]]
    assert len({each.submission.id for each in outcomes}) == 1
    assert sorted(each.again for each in outcomes) == [False, *[True] * 7]
    assert cluster.calls == 1


@pytest.mark.parametrize(("lost", "calls"), [("before", 2), ("after", 1)])
def test_after_a_lost_connection_it_is_one_job_of_the_same_id(cluster, run, lost, calls):
    cluster.lost = lost
    with pytest.raises(ConfigError, match="connection is lost"):
        submit(order(run))
    cluster.lost = None
    found = submit(order(run))
    assert found.submission.id == job_id(run, number=1)
    assert (list(cluster.jobs), cluster.calls) == ([found.submission.id], calls)


def test_a_new_number_comes_only_after_the_last_job_ended(cluster, run):
    first = submit(order(run)).submission
    cluster.jobs[first.id] = "running"
    assert submit(order(run)).submission == first
    cluster.jobs[first.id] = "ended"
    second = submit(order(run)).submission
    assert (second.number, second.id) == (2, job_id(run, number=2))
    del cluster.jobs[second.id]  # it ended, and is forgotten: the ledger tells that it had begun
    Ledger(run, attempt=1).write("start", command_step=0, total_steps=9, cluster="none")
    assert submit(order(run)).submission.number == 3


def test_another_configuration_waits_for_the_job_that_is_there(cluster, run):
    first = submit(order(run)).submission
    with pytest.raises(ConfigError, match=f"already as {first.id}"):
        submit(order(run, "optim.lr=0.5"))
    with pytest.raises(ConfigError, match=f"already as {first.id}"):
        submit(order(run, verb="prepare"))
    del cluster.jobs[first.id]  # the client refused it, say; what was wrong is mended
    assert submit(order(run, "optim.lr=0.5")).submission.number == 2


def test_a_client_that_does_not_answer_gets_no_second_job(cluster, run):
    first = submit(order(run)).submission
    cluster.jobs[first.id] = "silent"
    second = submit(order(run))
    assert (second.submission, second.again, second.status.state) == (first, True, "silent")
    with pytest.raises(ConfigError, match=f"is submitted as {first.id}"):
        submit(order(run, "optim.lr=0.5"))
    assert cluster.calls == 1


@pytest.mark.parametrize(
    ("name", "fields", "over"),
    [
        ("end", {"step": 9}, True),
        ("stop", {"step": 5, "cause": "user"}, True),
        ("stop", {"step": 5, "cause": "SIGTERM"}, False),  # its job may have been requeued
        ("progress", {"step": 5}, False),
    ],
)
def test_a_run_that_is_over_may_leave_a_cluster_that_is_gone(cluster, run, name, fields, over):
    first = submit(order(run)).submission
    ledger = Ledger(run, attempt=1)
    ledger.write("start", command_step=0, total_steps=9, cluster="none")
    ledger.write(name, **fields)
    cluster.jobs[first.id] = "silent"
    assert submit(order(run)).submission.number == (2 if over else 1)


def test_a_run_whose_user_stopped_it_may_leave_a_cluster_that_died(cluster, run):
    """Its workers were killed with it, so that the ledger tells no end: the request does."""
    first = submit(order(run)).submission
    Ledger(run, attempt=1).write("start", time=time.time() - 1000, command_step=0, total_steps=9, cluster="none")
    cluster.jobs[first.id] = "silent"
    assert submit(order(run)).again
    request_stop(run, cause=USER, attempt=None)
    assert submit(order(run)).submission.number == 2


def test_a_person_who_submits_takes_a_request_to_stop_back(cluster, run):
    request_stop(run, cause=USER, attempt=None)
    submit(order(run))
    assert stop_request(run, attempt=1) is None
    request_stop(run, cause=USER, attempt=None)
    assert submit(order(run)).again
    assert stop_request(run, attempt=1) is not None, "nothing was submitted"


def test_whoever_wrote_the_record_has_time_to_call_whatever_the_clocks_say(cluster, run, monkeypatch):
    def record_by_a_clock_that_is_ahead(submission):
        return record(replace(submission, time=submission.time + 3600))

    monkeypatch.setattr(submitting, "SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(submitting, "record", record_by_a_clock_that_is_ahead)
    cluster.lost = "before"
    with pytest.raises(ConfigError, match="connection is lost"):
        submit(order(run))
    cluster.lost = None
    waited = []
    submit(order(run), wait=lambda seconds: (waited.append(seconds), time.sleep(seconds)))
    assert 1 <= len(waited) <= 10


def test_the_digest_is_of_places_however_they_are_typed(cluster, tmp_path):
    first = submit(order(str(tmp_path / "run")))
    assert submit(order(f"{tmp_path}/run/")).submission == first.submission


def test_a_record_of_another_version_is_told(cluster, run):
    first = submit(order(run)).submission
    path = storage.join(run, "submissions", f"{first.id}.json")
    storage.publish_bytes(path, first.as_json().replace(b'"sky"', b'"lsf"'))
    with pytest.raises(ConfigError, match="is submitted as"):
        submit(order(run))


def test_a_store_that_cannot_create_exclusively_is_refused(cluster, s3_bucket, monkeypatch):
    """Law 7: of a record, two writers would each think it theirs."""
    import s3fs

    async def old_pipe_file(self, path, data, **options):
        raise TypeError("unexpected argument mode")

    monkeypatch.setattr(s3fs.S3FileSystem, "_pipe_file", old_pipe_file)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(ConfigError, match="cannot create an object only where none is"):
            submit(order(f"{s3_bucket}/{uuid.uuid4().hex}"))
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
    assert cluster.calls == 0


def test_a_record_is_written_before_the_client_is_called(cluster, run, monkeypatch):
    seen = []
    monkeypatch.setattr(cluster, "submit", lambda order, rendered, file: seen.append(submissions(run)), raising=False)
    found = submit(order(run))
    assert seen == [[found.submission]]


@pytest.mark.parametrize(
    ("run", "begins"),
    [
        ("/runs/big_LSTM.2", "big-lstm-2-"),
        ("/runs/2024", "run-2024-"),
        ("s3://bucket/größe", "gr-e-"),
        ("/" + "x" * 99, "x" * 10),
        ("/...", "run-"),
    ],
)
def test_an_id_is_one_that_every_client_takes(run, begins):
    for number in (1, 12, 123):
        found = job_id(run, number=number)
        assert found.startswith(begins)
        assert found.endswith(f"-a{number}")
        assert len(found) <= 40
        assert set(found) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert "--" not in found
    assert job_id(run, number=1) != job_id(run + "/", number=2)
    assert job_id(run, number=1) == job_id(run + "/", number=1)
    assert job_id(run, number=1) != job_id("/other" + run.removeprefix("s3:/"), number=1)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"arguments": 3}', "nothing"])
def test_a_record_that_is_none_is_told(tmp_path, text):
    (tmp_path / "submissions").mkdir()
    (tmp_path / "submissions" / "x.json").write_text(text)
    with pytest.raises(ConfigError, match="is no record of a submission"):
        submissions(str(tmp_path))


def test_a_record_of_another_folder_is_told(cluster, run, tmp_path):
    """A copy of a run has its own jobs: the records that were copied with it are another's."""
    found = submit(order(run)).submission
    (tmp_path / "copy" / "submissions").mkdir(parents=True)
    (tmp_path / "copy" / "submissions" / f"{found.id}.json").write_bytes(found.as_json())
    assert submissions(str(tmp_path / "copy")) == []


def call(*arguments):
    with redirect_stdout(io.StringIO()) as told, redirect_stderr(told):
        code = main(arguments)
    return code, told.getvalue()


def test_the_command_says_the_id_in_a_line_or_an_object(cluster, tmp_path):
    typed = ["submit", "train", "via=sky", "data=/data", f"run={tmp_path}"]
    code, told = call(*typed)
    assert (code, told.startswith(job_id(str(tmp_path), number=1))) == (0, True)
    code, told = call(*typed, "--json")
    found = json.loads(told)
    assert (found["id"], found["again"], found["state"]) == (job_id(str(tmp_path), number=1), True, "queued")


def test_a_dry_run_leaves_nothing(cluster, tmp_path):
    code, told = call("submit", "train", "via=sky", "data=/data", f"run={tmp_path / 'run'}", "--dry-run")
    assert code == 0
    assert "'run=" in told
    assert not Path(tmp_path, "run").exists()
    assert cluster.calls == 0


@pytest.mark.parametrize(
    ("typed", "needed"),
    [
        ([], "give train or prepare first"),
        (["trian", "via=slurm"], "did you mean train"),
        (["train", "data=/d", "run=/r"], "via= is not given"),
        (["train", "via=slurm", "run=/r"], "data=null is not given"),
        (["train", "via=slurm", "data=d", "run=/r"], "data=d is relative"),
        (["train", "via=slurm", "data=/d", "run=/r", "via.nods=3"], "did you mean via.nodes"),
        (["train", "via=slurm", "data=/d", "run=/r", "init_from=x"], "init_from=x is relative"),
        (["prepare", "via=slurm", "data=/d", "run=/r", "corpus.train=[a.txt]"], "corpus.train=a.txt is relative"),
        (["train", "via=slurm", "data=/d", "run=/r", "via.account=s3://k:secretsecret@b"], "holds a secret"),
    ],
)
def test_a_mistake_ends_in_a_line(typed, needed):
    code, told = call("submit", *typed)
    assert (code, told.count("\n")) == (2, 1)
    assert needed in told
