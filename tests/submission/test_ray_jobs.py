"""The adaptor to Ray's Jobs API, against a server of its own that answers as Ray 2.60 does."""

import json
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.errors import ConfigError
from pipeline.submission import ray_jobs
from pipeline.submission.adaptors import Order
from pipeline.submission.submitting import order_of

NO_JOB = (404, "Job x does not exist.")
TAKEN = (
    500,
    "Traceback\nValueError: Job with submission_id x already exists. Please use a different submission_id.\n.",
)


class FakeRay:
    """A Jobs API of one job.

    Attributes:
        answers: (method, end of the path) → code and body; of a list one after another, and then the last.
        bodies: what was posted.
        url: its address.
    """

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], object] = {}
        self.bodies: list[tuple[str, dict[str, object]]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self._answer("GET")

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fake.bodies.append((self.path, json.loads(body or b"{}")))
                self._answer("POST")

            def _answer(self, method):
                code, body = fake.answer(method, self.path)
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, method: str, path: str) -> tuple[int, object]:
        if path == "/api/version":
            return self.answers.get(("GET", "version"), (200, {"version": "4", "ray_version": "2.60.0"}))
        end = path.rstrip("/").rpartition("/")[2]
        found = self.answers[method, end if end in ("logs", "stop", "jobs") else "job"]
        if isinstance(found, list):
            return found.pop(0) if len(found) > 1 else found[0]
        return found

    def job(self, status: str, *, message: str = "", code: int | None = None) -> tuple[int, object]:
        """What Ray tells of a job."""
        told = {"type": "SUBMISSION", "submission_id": "x", "status": status, "entrypoint": "x", "metadata": {}}
        return 200, told | {"message": message, "driver_exit_code": code}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing leads to a Ray of the developer's."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake() -> Iterator[FakeRay]:
    server = FakeRay()
    yield server
    server.close()


@pytest.fixture
def submission(fake: FakeRay) -> SimpleNamespace:
    """A record, as far as questions go."""
    return SimpleNamespace(id="run-12345678-a1", kind="ray", via=via(fake.url))


def via(address: str | None) -> dict[str, object]:
    return {"kind": "ray", "python": None, "address": address, "working_dir": None}


def order(*typed: str, address: str = "http://127.0.0.1:1") -> Order:
    """What `submit train` makes of this."""
    return order_of("train", ["via=ray", f"via.address={address}", "data=/shared/data", "run=/shared/runs/a", *typed])


@pytest.mark.parametrize(
    ("word", "message", "code", "expected"),
    [
        ("PENDING", "Job has not started yet.\nIt waits for GPUs.", None, ("queued", "It waits for GPUs.")),
        ("RUNNING", "Job is currently running.", None, ("running", "")),
        ("SUCCEEDED", "Job finished successfully.", 0, ("ended", "succeeded")),
        ("STOPPED", "Job was intentionally stopped.", None, ("ended", "stopped")),
        ("FAILED", "last logs:\nerror: no\n\n", 2, ("ended", "failed, exit code 2: error: no")),
        ("FAILED", "The node died.", None, ("ended", "failed: The node died.")),
    ],
)
def test_each_status_of_ray_has_its_state(fake, submission, word, message, code, expected):
    fake.answers["GET", "job"] = fake.job(word, message=message, code=code)
    found = ray_jobs.status(submission)
    assert (found.state, found.reason, found.name) == (*expected, submission.id)


def test_a_job_that_ray_does_not_know_is_gone(fake, submission):
    fake.answers["GET", "job"] = fake.answers["POST", "stop"] = NO_JOB
    assert ray_jobs.status(submission).state == "gone"
    ray_jobs.cancel(submission)
    with pytest.raises(ConfigError, match="keeps nothing of job run-12345678-a1"):
        next(ray_jobs.logs(submission, follow=False))


@pytest.mark.parametrize("code", [401, 403])
def test_a_token_that_is_refused_is_named(fake, submission, code):
    fake.answers["GET", "version"] = (code, "Unauthorized")
    found = ray_jobs.status(submission)
    assert found.state == "silent"
    assert "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE" in found.reason


def test_a_failing_server_is_silent_and_not_gone(fake, submission):
    fake.answers["GET", "job"] = (500, "Traceback\nGcsTimeout: no answer\n.")
    assert ray_jobs.status(submission).state == "silent"
    assert "GcsTimeout: no answer" in ray_jobs.status(submission).reason


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}", "127.0.0.1:{port}"])
def test_where_nobody_listens_that_is_told_soon(submission, monkeypatch, address):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", address.format(port=port))
    began = time.monotonic()
    found = ray_jobs.status(SimpleNamespace(**vars(submission) | {"via": via(None)}))
    assert (found.state, time.monotonic() - began < 10) == ("silent", True)
    assert f"Ray at {address.format(port=port)} does not answer" in found.reason


def test_a_server_that_takes_a_question_and_never_answers_is_silent(submission, monkeypatch):
    monkeypatch.setattr(ray_jobs, "REACH_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        submission.via = via(f"http://127.0.0.1:{server.getsockname()[1]}")
        assert ray_jobs.status(submission).state == "silent"


def test_an_address_that_is_given_counts_more_than_the_environments(fake, submission, monkeypatch):
    fake.answers["GET", "job"] = fake.job("RUNNING")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert ray_jobs.status(submission).state == "running"
    submission.via = via(None)
    assert ray_jobs.status(submission).state == "silent"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", fake.url)
    assert ray_jobs.status(submission).state == "running"


def test_without_the_extra_it_is_named(submission, monkeypatch):
    monkeypatch.setattr(ray_jobs, "find_spec", lambda name: None if name == "aiohttp" else name)
    assert ray_jobs.status(submission).reason == "via=ray needs aiohttp; run `pip install 'wordlanes[submit]'`"


def test_what_is_shown_is_what_is_posted(fake):
    made = order("cluster.grace_seconds=12.5", "cluster.num_workers=2", address=fake.url)
    rendered = ray_jobs.render(made)
    fake.answers["POST", "jobs"] = (200, {"submission_id": made.submission.id, "job_id": made.submission.id})
    assert ray_jobs.submit(made, rendered, "") == made.submission.id
    [(_, posted)] = fake.bodies
    shown = json.loads(rendered.text)
    assert {key: posted[key] for key in shown} == shown
    words = shlex.split(shown["entrypoint"])
    assert words[:5] == ["exec", sys.executable, "-m", "jobs.again", "train"]
    assert words[5:] == [*made.submission.arguments] and "cluster=ray" in words
    assert shown["runtime_env"] == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "43"}}
    assert shown["metadata"].keys() == {"run", "commit", "configuration"}
    assert rendered.command[:3] == ["ray", "job", "submit"]
    assert rendered.command[-len(words) :] == words


def test_the_interpreter_and_the_code_can_be_given():
    root = str(Path(ray_jobs.__file__).parents[2])
    shown = json.loads(ray_jobs.render(order("via.python=/venv/bin/python", f"via.working_dir={root}")).text)
    assert shown["entrypoint"].startswith("exec /venv/bin/python -m jobs.again train ")
    assert shown["runtime_env"]["working_dir"] == root
    assert ".git" in shown["runtime_env"]["excludes"]


def test_a_job_that_somebody_has_just_submitted_too_is_the_same(fake):
    made = order(address=fake.url)
    fake.answers["POST", "jobs"], fake.answers["GET", "job"] = TAKEN, fake.job("PENDING")
    assert ray_jobs.submit(made, ray_jobs.render(made), "") == made.submission.id
    fake.answers["GET", "job"] = fake.job("SUCCEEDED")
    with pytest.raises(ConfigError, match="submit again, which takes the next number"):
        ray_jobs.submit(made, ray_jobs.render(made), "")
    fake.answers["GET", "job"] = NO_JOB
    with pytest.raises(ConfigError, match="already exists"):
        ray_jobs.submit(made, ray_jobs.render(made), "")


def test_a_job_is_stopped_by_its_id(fake, submission):
    fake.answers["POST", "stop"] = (200, {"stopped": True})
    ray_jobs.cancel(submission)
    assert [path for path, _ in fake.bodies] == ["/api/jobs/run-12345678-a1/stop"]


def test_logs_come_whole_and_each_piece_once(fake, submission, monkeypatch):
    monkeypatch.setattr(ray_jobs, "FOLLOW_SECONDS", 0.0)
    fake.answers["GET", "job"] = [fake.job("RUNNING"), fake.job("RUNNING"), fake.job("FAILED")]
    fake.answers["GET", "logs"] = [(200, {"logs": text}) for text in ("one\n", "one\ntwo\n", "one\ntwo\nthree\n")]
    assert [*ray_jobs.logs(submission, follow=True)] == ["one\n", "two\n", "three\n"]
    fake.answers["GET", "job"] = fake.job("RUNNING")
    assert [*ray_jobs.logs(submission, follow=False)] == ["one\ntwo\nthree\n"]


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "ray://10.0.0.1:10001", "http://me:password@10.0.0.1:8265"])
def test_an_address_that_is_none_or_tells_a_password_is_refused(address):
    with pytest.raises(ConfigError, match=r"via.address"):
        order(address=address)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A folder that has what a job needs."""
    folder = tmp_path / "code"
    (folder / "jobs").mkdir(parents=True)
    (folder / ray_jobs.CODE).touch()
    (folder / "large").mkdir()
    (folder / "large" / "file").write_bytes(b"x" * 5000)
    return folder


def test_a_folder_of_code_that_cannot_be_is_refused(code, tmp_path, monkeypatch):
    order(f"via.working_dir={code}")
    with pytest.raises(ConfigError, match=r"is relative; use via.working_dir=/"):
        order("via.working_dir=code")
    with pytest.raises(ConfigError, match=r"holds no jobs/again.py"):
        order(f"via.working_dir={tmp_path}")
    for name in ("data", "run"):
        with pytest.raises(ConfigError, match=rf"{name}=.* lies in via.working_dir="):
            place = {"data": "/shared/data", "run": "/shared/run"} | {name: f"{code}/runs/a"}
            typed = [f"{key}={value}" for key, value in place.items()]
            order_of("train", [*typed, "via=ray", f"via.working_dir={code}"])
    monkeypatch.setattr(ray_jobs, "MOST_BYTES", 4000)
    with pytest.raises(ConfigError, match=r"MiB, \d+ of them in large, and Ray"):
        order(f"via.working_dir={code}")


@pytest.mark.parametrize("with_git", [True, False])
def test_what_is_not_copied_does_not_count(code, monkeypatch, with_git):
    monkeypatch.setattr(ray_jobs, "MOST_BYTES", 4000)
    (code / "large").rename(code / ".venv")
    if with_git:
        (code / ".venv").rename(code / "runs")
        (code / ".gitignore").write_text("runs/\n")
        subprocess.run(["git", "init", "-q", str(code)], check=True)
    order(f"via.working_dir={code}")
