"""Weights & Biases: what says where records go, which run they are of, and how what was kept offline is sent."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from support.wandb_server import serving

from jobs import train as train_job
from pipeline.config import Config, TrackingConfig, load
from pipeline.run.tracking import sync_line, tracking_id, what_waits
from pipeline.training import dashboards
from pipeline.training.dashboards import WandbTracker

KEY = "0123456789" * 4


@pytest.fixture(autouse=True)
def own_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing of a developer's own account or settings; wandb reads its variables once in a session."""
    for name in os.environ:
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    monkeypatch.chdir(tmp_path / "home")
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def run(tmp_path: Path) -> str:
    (tmp_path / "run").mkdir()
    return str(tmp_path / "run")


def tracking(**changes: Any) -> TrackingConfig:
    unset = {"kind": "wandb", "project": None, "mode": None, "group": None, "tags": (), "prometheus_folder": None}
    return TrackingConfig(**unset | changes)


def tracker(run: str, *told: list[str], **changes: Any) -> WandbTracker:
    tell = told[0].append if told else pytest.fail
    return WandbTracker(tracking(**changes), run=run, config={"of": "this run"}, group="corpus", report=tell)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- where records go


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What wandb is asked for; nothing is begun."""
    found: list[dict[str, Any]] = []

    def init(**asked: Any) -> SimpleNamespace:
        found.append(asked)
        quiet = {name: lambda *_, **__: None for name in ("define_metric", "log", "finish")}
        return SimpleNamespace(**quiet, summary={})

    monkeypatch.setattr(wandb, "init", init)
    return found


@pytest.mark.parametrize(
    ("variables", "configured", "has_key", "expected"),
    [
        ({}, {}, False, ("offline", "wordlanes")),
        ({}, {}, True, ("online", "wordlanes")),
        ({"WANDB_MODE": "offline"}, {}, True, ("offline", "wordlanes")),
        ({"WANDB_MODE": "dryrun"}, {}, True, ("offline", "wordlanes")),
        ({"WANDB_MODE": "online"}, {}, True, ("online", "wordlanes")),
        ({"WANDB_MODE": "shared"}, {}, True, ("shared", "wordlanes")),
        ({"WANDB_PROJECT": "theirs"}, {}, False, ("offline", "theirs")),
        ({"WANDB_PROJECT": "theirs"}, {"project": "ours"}, False, ("offline", "ours")),
        ({"WANDB_MODE": "disabled"}, {"mode": "offline"}, False, ("offline", "wordlanes")),
        ({"WANDB_MODE": "offline"}, {"mode": "online"}, True, ("online", "wordlanes")),
    ],
)
def test_wandbs_own_variables_count_unless_configuration_says_otherwise(
    variables: dict[str, str],
    configured: dict[str, str],
    has_key: bool,
    expected: tuple[str, str],
    run: str,
    asked: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(wandb, "login", lambda *, prompt: has_key)
    tracker(run, **configured)
    (found,) = asked
    assert (found["mode"], found["project"]) == expected
    assert (found["id"], found["dir"], found["name"]) == (Path(run, "tracking-id").read_text(), run, "run")
    assert found["resume"] == "allow"


def test_a_settings_file_of_wandbs_counts_too(run: str, asked: list[dict[str, Any]]) -> None:
    Path("wandb").mkdir()
    Path("wandb", "settings").write_text("[default]\nmode = offline\nproject = filed\n")
    tracker(run)
    assert (asked[0]["mode"], asked[0]["project"]) == ("offline", "filed")


def test_a_name_is_theirs_and_the_identity_ours(
    run: str, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NAME", "RUN_ID", "DIR", "RESUME"):
        monkeypatch.setenv(f"WANDB_{name}", "never" if name == "RESUME" else "theirs")
    tracker(run)
    assert asked[0]["name"] == "theirs"
    assert (asked[0]["id"], asked[0]["dir"]) == (Path(run, "tracking-id").read_text(), run)
    assert asked[0]["resume"] == "allow"


def test_disabled_leaves_nothing_behind(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    found = tracker(run)
    found.log({"step": 1})
    found.finish()
    assert list(Path(run).iterdir()) == []
    assert what_waits(run) is None


def test_who_asks_for_online_without_a_key_is_told(run: str, asked: list[dict[str, Any]]) -> None:
    told: list[str] = []
    tracker(run, told, mode="online")
    assert told == ["records are kept offline: no key of Weights & Biases is configured"]
    assert [each["mode"] for each in asked] == ["offline"]


# --- a server


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(dashboards, "SERVER_SECONDS", 5.0)
    wandb.teardown()


def offline_parts(run: str) -> list[Path]:
    return sorted(Path(run, "wandb").glob("offline-run-*"))


@pytest.mark.slow
def test_a_key_whose_server_does_not_answer_keeps_all_offline(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to(f"http://127.0.0.1:{closed_port()}", monkeypatch)
    told: list[str] = []
    found = tracker(run, told)
    found.log({"step": 1, "tokens_seen": 7})
    found.finish()
    (why,) = told
    assert why.startswith("records are kept offline: ")
    assert "127.0.0.1" in why
    assert len(offline_parts(run)) == 1
    assert str(what_waits(run)).startswith("1 part of this run is kept offline; to send: wandb sync /")
    kept = b"".join(path.read_bytes() for path in Path(run).rglob("*") if path.is_file())
    assert KEY.encode() not in kept
    assert KEY not in why


@pytest.mark.slow
def test_a_start_that_fails_after_the_login_keeps_all_offline(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to(f"http://127.0.0.1:{closed_port()}", monkeypatch)
    monkeypatch.setattr(wandb, "login", lambda *, prompt: True)
    told: list[str] = []
    tracker(run, told).finish()
    assert len(told) == len(offline_parts(run)) == 1


def test_a_start_that_fails_does_not_wait_for_a_process_of_wandbs_that_never_ends(
    run: str, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*, prompt: bool) -> bool:
        raise wandb.Error("the service process is busy")

    ends, told = threading.Event(), list[str]()
    with monkeypatch.context() as patch:
        patch.setattr(wandb, "login", fail)
        patch.setattr(wandb, "teardown", ends.wait)
        patch.setattr(dashboards, "SERVER_SECONDS", 0.1)
        tracker(run, told)
        ends.set()
    assert told == ["records are kept offline: the service process is busy"]
    assert [each["mode"] for each in asked] == ["offline"]


@pytest.mark.slow
def test_parts_of_a_run_that_were_kept_offline_are_sent_as_one(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for first in (1, 4):
        found = tracker(run, mode="offline")
        for step in range(first, first + 3):
            found.log({"step": step, "tokens_seen": 7 * step})
        found.finish()
        shutil.move(offline_parts(run)[-1], Path(run, "wandb", f"offline-run-2026010{first}_000000-{tracking_id(run)}"))
    line = str(what_waits(run))
    assert line.startswith("2 parts of this run are kept offline; to send: wandb sync /")
    with serving() as server:
        point_to(server.url, monkeypatch)
        send(line)
        assert [(each["_step"], each["step"]) for each in server.history[tracking_id(run)]] == [
            (step - 1, step) for step in range(1, 7)
        ]
        assert server.projects == {"wordlanes"}
        assert what_waits(run) is None
        found = tracker(run)  # and it goes on where they ended
        found.log({"step": 7, "tokens_seen": 49})
        found.finish()
        assert [each["_step"] for each in server.history[tracking_id(run)]] == [*range(7)]
    assert what_waits(run) is None


def send(line: str) -> None:
    for command in (each.split() for each in line.partition("to send: ")[2].split("; ")):
        program = str(Path(sys.executable).parent / command[0])
        subprocess.run([program, *command[1:]], check=True, capture_output=True, timeout=60)


@pytest.mark.slow
def test_a_server_that_goes_away_holds_the_end_up_no_longer_than_its_limit(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as server:
        point_to(server.url, monkeypatch)
        found = tracker(run)
    found.log({"step": 1, "tokens_seen": 7})
    with pytest.raises(
        TimeoutError, match=r"not all is sent yet; `wandb sync .*/wandb/run-\d+_\d+-[0-9a-f]{8}` does it"
    ):
        found.finish()


# --- which run it is


def test_an_identity_stays_through_a_move_and_is_another_in_a_copy(tmp_path: Path) -> None:
    first, moved, copy = (str(tmp_path / name) for name in ("first", "moved", "copy"))
    Path(first).mkdir()
    identity = tracking_id(first)
    assert tracking_id(first) == identity == Path(first, "tracking-id").read_text()
    shutil.copytree(first, copy)
    other = tracking_id(copy)
    assert other != identity
    assert (tracking_id(copy), tracking_id(first)) == (other, identity)
    shutil.move(first, moved)
    assert tracking_id(moved) == identity
    shutil.copytree(moved, first)  # where it was itself before
    assert tracking_id(first) not in (identity, other)
    assert tracking_id(moved) == identity


def test_an_identity_of_before_is_adopted(tmp_path: Path) -> None:
    (tmp_path / "tracking-id").write_text("0123abcd")
    assert tracking_id(str(tmp_path)) == "0123abcd"
    shutil.copytree(tmp_path, tmp_path / "copy")
    assert tracking_id(str(tmp_path / "copy")) != "0123abcd"


def test_one_folder_under_two_names_is_no_copy(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "mount").symlink_to(tmp_path / "run")
    identity = tracking_id(str(tmp_path / "run"))
    assert [tracking_id(str(tmp_path / name)) for name in ("mount", "run")] == [identity, identity]


def test_an_identity_of_an_object_store(s3_bucket: str, tmp_path: Path) -> None:
    there, here = f"{s3_bucket}/tracked", str(tmp_path)
    identity = tracking_id(there)
    assert tracking_id(there) == identity
    for name, text in (("tracking-id", identity), ("tracking-place", there)):
        Path(here, name).write_text(text)
    assert tracking_id(here) != identity
    Path(here, "tracking-id").write_text(identity)
    Path(here, "tracking-place").write_text("s3://no-such-bucket-any-more/run")
    assert tracking_id(here) == identity


# --- what waits


def part_of(folder: Path, name: str, *, sent: bool = False) -> str:
    part = folder / "wandb" / name
    part.mkdir(parents=True)
    (part / "run-x.wandb").touch()
    if sent:
        (part / "run-x.wandb.synced").touch()
    return str(part)


def test_what_was_kept_offline_is_told_until_it_is_sent(tmp_path: Path) -> None:
    assert sync_line(str(tmp_path), identity="aaaaaaaa") is None
    part_of(tmp_path, "offline-run-20260101_000000-aaaaaaaa", sent=True)
    part_of(tmp_path, "run-20260102_000000-aaaaaaaa")
    assert sync_line(str(tmp_path), identity="aaaaaaaa") is None
    second = part_of(tmp_path, "offline-run-20260104_000000-aaaaaaaa")
    first = part_of(tmp_path, "offline-run-20260103_000000-aaaaaaaa")
    assert sync_line(str(tmp_path), identity="aaaaaaaa") == (
        f"2 parts of this run are kept offline; to send: wandb sync {first}; wandb sync {second}"
    )


def test_what_a_copy_has_of_its_original_is_sent_as_its_own(tmp_path: Path) -> None:
    part = part_of(tmp_path / "a copy", "offline-run-20260103_000000-aaaaaaaa")
    assert sync_line(str(tmp_path / "a copy"), identity="bbbbbbbb") == (
        f"1 part of this run is kept offline; to send: wandb sync --id bbbbbbbb '{part}'"
    )


@pytest.mark.parametrize("ends", [None, KeyboardInterrupt])
def test_the_command_says_once_what_waits_however_it_ends(
    ends: type[BaseException] | None, run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def launched(plan: object) -> None:
        if ends is not None:
            raise ends

    planned = SimpleNamespace(writes=True, job=SimpleNamespace(run=run))
    monkeypatch.setattr(train_job, "plan_run", lambda config, environment: planned)
    monkeypatch.setattr(train_job, "launch", launched)
    monkeypatch.setattr(train_job, "conclude", lambda plan, result: SimpleNamespace(line="trained"))
    tracking_id(run)
    part = part_of(Path(run), "offline-run-20260103_000000-aaaaaaaa")
    for kind in ("wandb", "none"):
        with pytest.raises(ends) if ends else pytest.MonkeyPatch.context():
            train_job.main([f"run={run}", f"tracking.kind={kind}"])
        told = capsys.readouterr().out
        assert told.count(part) == (kind == "wandb")


def test_old_configurations_mean_what_they_meant() -> None:
    from pipeline.upgrades import upgraded_configuration

    tree = json.loads(load(Config, []).model_dump_json())
    tree["tracking"] |= {"project": "wordlanes", "mode": "auto"}
    found = Config.model_validate_json(json.dumps(upgraded_configuration(tree))).tracking
    assert (found.project, found.mode) == ("wordlanes", None)
