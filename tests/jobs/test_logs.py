"""`logs` as a user types it: of every submission in order, followed or not, whether its client answers or not."""

import json
import time

import pytest
from support.clients import client_of, submitted

from jobs.__main__ import main
from pipeline import storage
from pipeline.run.ledger import EVENTS_NAME
from pipeline.submission.adaptors import ADAPTORS


@pytest.fixture
def client(monkeypatch):
    return client_of("slurm", monkeypatch)


def test_each_submission_has_its_header_and_what_it_printed(tmp_path, client, capsys):
    first, second = submitted(str(tmp_path)), submitted(str(tmp_path), number=2, verb="prepare")
    client.printed = {first.id: ["one\ntw", "o"], second.id: []}
    (tmp_path / "failures").mkdir()
    (tmp_path / "failures" / "attempt-1-rank-0-7.txt").write_text("Traceback")
    assert main(["logs", f"run={tmp_path}"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].startswith(f"==> {first.id} (train, slurm, 20")
    assert lines[1:3] == ["one", "two"]
    assert lines[3].startswith(f"==> {second.id} (prepare, slurm, 20")
    assert lines[4:] == [f"stack of a worker that failed: {tmp_path}/failures/attempt-1-rank-0-7.txt"]
    assert (printed.err, client.followed) == ("", [])


def test_the_last_job_is_followed_and_then_the_next_one(tmp_path, client, capsys):
    first, second = submitted(str(tmp_path)), submitted(str(tmp_path), number=2)
    third = []

    def printed_by_the_second():
        yield "goes on\n"
        third.append(submitted(str(tmp_path), number=3))
        client.printed[third[0].id] = ["anew\n"]

    client.printed = {first.id: ["ended\n"], second.id: printed_by_the_second()}
    assert main(["logs", f"run={tmp_path}", "-f"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("==>")]
    assert lines == ["ended", "goes on", "anew"]
    assert client.followed == [second.id, third[0].id]


def test_a_client_that_does_not_answer_is_told_and_the_others_are_shown(tmp_path, client, capsys):
    first, second = submitted(str(tmp_path)), submitted(str(tmp_path), number=2)
    client.printed = {first.id: None, second.id: ["here\n"]}
    assert main(["logs", f"run={tmp_path}"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[2:] == ["here"]
    assert printed.err == f"{first.id}: the client does not answer; ask where it is\n"
    client.printed[second.id] = None
    assert main(["logs", f"run={tmp_path}"]) == 2
    assert capsys.readouterr().err.count("the client does not answer") == 2


def test_a_run_that_was_not_submitted_names_its_files(tmp_path, capsys):
    start = {
        "event": "start",
        "time": time.time(),
        "attempt": 1,
        "command_step": 0,
        "total_steps": 9,
        "cluster": "none",
    }
    storage.publish_bytes(f"{tmp_path}/{EVENTS_NAME}", json.dumps(start).encode() + b"\n")
    assert main(["logs", f"run={tmp_path}"]) == 0
    assert capsys.readouterr().out == (
        f"run={tmp_path} was not submitted: it printed to the terminal where it was started; what it did stands in"
        f" {tmp_path}/events.jsonl and {tmp_path}/metrics.jsonl\n"
    )


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert main(["logs", f"run={tmp_path}"]) == 2
    assert "holds no events.jsonl; give the folder that" in capsys.readouterr().err
    assert main(["logs", f"run={tmp_path}", "--follow"]) == 2
    assert capsys.readouterr().err == "error: unknown flag --follow of logs; it knows --help -f and key=value\n"


def test_a_submission_by_a_way_of_another_version_is_told(tmp_path, client, monkeypatch, capsys):
    submitted(str(tmp_path))
    monkeypatch.delitem(ADAPTORS, "slurm")
    assert main(["logs", f"run={tmp_path}"]) == 2
    assert "via=slurm is none of this version; use the version that submitted it" in capsys.readouterr().err
