"""The ledger: events survive cuts and full disks, and every second of a run goes to one category."""

import errno
import json
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.run import ledger
from pipeline.run.account import SILENT_SECONDS, Account, Failure, Standing, account
from pipeline.run.ledger import (
    EVENTS_NAME,
    FIELDS,
    Event,
    Ledger,
    gather,
    next_attempt,
    read_events,
)

SILENT_CAUSE = "ended without a word after step {} (killed, or the machine was lost)"


def at(seconds: float, event: str, /, *, attempt: int = 1, **fields: object) -> Event:
    return {"event": event, "time": 1000.0 + seconds, "attempt": attempt, **fields}


def start(seconds: float, *, step: int = 0, attempt: int = 1) -> Event:
    return at(seconds, "start", attempt=attempt, command_step=step, total_steps=500, cluster="local")


def group(seconds: float, *, step: int = 0, reached: int = 0, size: int = 4, attempt: int = 1) -> Event:
    return at(
        seconds, "group", attempt=attempt, step=step, reached_step=reached, world_size=size, checkpoint=f"step-{step}"
    )


def checkpoint(seconds: float, *, step: int, blocked: float) -> Event:
    return at(seconds, "checkpoint", step=step, seconds=blocked, size_bytes=7, reason="steps")


def fault(seconds: float, *, kind: str = "worker", fatal: bool = True, rank: int | None = 2) -> Event:
    return at(seconds, "fault", kind=kind, cause=f"a {kind} fault", rank=rank, fatal=fatal)


def skip(seconds: float, *, step: int, window: int, num_tokens: int) -> Event:
    return at(seconds, "skip", step=step, epoch=0, window=window, num_tokens=num_tokens, tokens=[[0, 3], [9, 12]])


BEGUN = [start(0), group(2), at(10, "training")]  # 10 s of starting


def spent(events: list[Event], *, now: float = 1e6) -> dict[str, float]:
    """Seconds of the categories that have any."""
    found = account(events, now=1000.0 + now).seconds
    return {category: seconds for category, seconds in found.items() if seconds}


# --- reading and writing


@pytest.fixture(params=["local", "memory"])
def run(request, tmp_path):
    """A run folder of each kind of file system."""
    if request.param == "local":
        yield str(tmp_path)
        return
    folder = f"memory:///{uuid.uuid4().hex}"
    yield folder
    filesystem, name = storage.resolve(folder)
    if filesystem.exists(name):
        filesystem.rm(name, recursive=True)


def test_what_is_written_is_read(run, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1234.5)
    first = Ledger(run, attempt=1)
    first.write("start", command_step=0, total_steps=9, cluster="none")
    first.write("fault", kind="worker", cause='rank 1:\n"é" {"event": 1}', rank=None, fatal=False, step=4)
    Ledger(run, attempt=2).write("training")
    common = {"time": 1234.5, "attempt": 1}
    assert read_events(run) == [
        {"event": "start", **common, "command_step": 0, "total_steps": 9, "cluster": "none"},
        {
            "event": "fault",
            **common,
            "kind": "worker",
            "cause": 'rank 1:\n"é" {"event": 1}',
            "rank": None,
            "fatal": False,
            "step": 4,
        },
        {"event": "training", "time": 1234.5, "attempt": 2},
    ]
    gather(run)
    lines = storage.read_bytes(storage.join(run, EVENTS_NAME)).decode().splitlines()
    assert [json.loads(line) for line in lines] == read_events(run)
    assert next_attempt(read_events(run)) == 3


def test_a_run_without_a_ledger_has_no_events(run):
    assert read_events(run) == []
    assert next_attempt([]) == 1


TEXTS = st.text() | st.sampled_from(['{"event": "stop"', '}{"event": ', "\n", "\\", '"', "\u2028"])


@settings(max_examples=30, deadline=None)
@given(causes=st.lists(TEXTS, min_size=1, max_size=3))
def test_a_cut_at_any_byte_loses_only_the_event_it_cuts(causes, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / EVENTS_NAME
    writer = Ledger(str(path.parent), attempt=1)
    ends = []  # of the objects, without their newline
    for cause in causes:
        writer.write("stop", step=3, cause=cause)
        ends.append(path.stat().st_size - 1)
    whole, before = path.read_bytes(), read_events(str(path.parent))
    assert [event["cause"] for event in before] == causes
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = before[: sum(end <= cut for end in ends)]
        assert read_events(str(path.parent)) == kept
        writer.write("end", step=4)
        assert [{**event, "time": 0} for event in read_events(str(path.parent))[len(kept) :]] == [
            {"event": "end", "time": 0, "attempt": 1, "step": 4}
        ]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\x00\x00\x00",
        b"[]",
        b"7",
        b'{"event": "progress", "time": 5.0, "attempt": 1}',
        b'{"event": "progress", "time": 5.0, "attempt": 1, "step": "3"}',
        b'{"event": "progress", "time": 5.0, "attempt": 1, "step": -3}',
        b'{"event": "progress", "time": NaN, "attempt": 1, "step": 3}',
        b'{"event": "progress", "time": Infinity, "attempt": 1, "step": 3}',
        b'{"event": "training", "time": 5.0, "attempt": 1, "step": null}',
        b'{"event": "progress", "attempt": 1, "step": 3}',
        b'{"event": 3, "time": 5.0, "attempt": 1}',
        b'{"event": ["stop"], "time": 5.0, "attempt": 1}',
        b'{"event": "st\xff\xfe',
        b'{"event": "end", "time": 5.0, "attempt": 1, "step": 3, "of a user": NaN}',
    ],
)
def test_a_line_that_is_no_event_is_passed_over(line, tmp_path):
    good = b'{"event": "end", "time": 6, "attempt": 1, "step": 3}'
    (tmp_path / EVENTS_NAME).write_bytes(b"\n".join([good, line, good]) + b"\n" + line + good)
    assert [event["event"] for event in read_events(str(tmp_path))] == ["end"] * 3


def test_another_order_of_keys_and_an_unknown_event_are_read(tmp_path):
    (tmp_path / EVENTS_NAME).write_text('{"attempt":1,"event":"end","step":3,"time":6}\n' + json.dumps(at(0, "nap")))
    assert [event["event"] for event in read_events(str(tmp_path))] == ["end", "nap"]


def test_a_write_that_a_full_disk_cuts_short_costs_that_event_alone(tmp_path, monkeypatch, caplog):
    writer, write = Ledger(str(tmp_path), attempt=1), os.write
    free_bytes = 30

    def fill(descriptor, data):
        nonlocal free_bytes
        if not free_bytes:
            raise OSError(errno.ENOSPC, "No space left on device")
        written, free_bytes = write(descriptor, data[:free_bytes]), 0
        return written

    writer.write("progress", step=1)
    with monkeypatch.context() as filling:
        filling.setattr(os, "write", fill)
        writer.write("progress", step=2)
    writer.write("progress", step=3)
    assert [event["step"] for event in read_events(str(tmp_path))] == [1, 3]
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), ConfigError("full"), RuntimeError("of a store's own")]
)
def test_a_ledger_that_cannot_be_written_is_told_of_once_and_tried_again(error, tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise error

    writer = Ledger(str(tmp_path), attempt=1)
    with caplog.at_level(logging.WARNING):
        with monkeypatch.context() as broken:
            broken.setattr(storage, "append_line", fail)
            writer.write("progress", step=1)
            writer.write("progress", step=2)
        writer.write("progress", step=3)
    assert [event["step"] for event in read_events(str(tmp_path))] == [3]
    assert [each.getMessage() for each in caplog.records] == [
        f"{tmp_path}/events.jsonl lacks an event, training goes on: {error}"
    ]


def test_a_folder_that_is_not_there_does_not_stop_training(tmp_path, caplog):
    Ledger(str(tmp_path / "absent"), attempt=1).write("training")
    assert "cannot be written" in caplog.text
    assert not (tmp_path / "absent").exists()


def test_a_file_that_is_removed_is_written_anew_with_all_that_is_known(tmp_path, caplog):
    start = {"command_step": 0, "total_steps": 9, "cluster": "none"}
    Ledger(str(tmp_path), attempt=1).write("start", **start)
    writer = Ledger(str(tmp_path), attempt=1, before=read_events(str(tmp_path)))
    writer.write("training")
    writer.write("progress", step=1)
    writer.write("progress", step=2)
    (tmp_path / EVENTS_NAME).unlink()
    writer.write("progress", step=3)
    writer.write("end", step=4)
    events = read_events(str(tmp_path))
    told = ["start", "training", "fault", "progress", "end"]
    assert [event["event"] for event in events] == told  # of a stretch the last sign of life
    assert [event["step"] for event in events[3:]] == [3, 4]
    assert (events[2]["kind"], events[2]["fatal"]) == ("disk", False)
    assert caplog.messages == [f"{tmp_path}/events.jsonl was removed and is written anew; training goes on"]


def test_a_file_that_is_replaced_is_gone_on_with(tmp_path, caplog):
    writer = Ledger(str(tmp_path), attempt=1)
    writer.write("progress", step=1)
    (tmp_path / "edited").write_text(json.dumps(at(0, "nap")) + "\n")
    (tmp_path / "edited").rename(tmp_path / EVENTS_NAME)
    writer.write("progress", step=2)
    writer.write("progress", step=3)
    assert [event["event"] for event in read_events(str(tmp_path))] == ["nap", "fault", "progress", "progress"]
    assert caplog.messages == [f"{tmp_path}/events.jsonl was replaced; training goes on"]


def test_each_line_is_one_append_whoever_else_writes(tmp_path):
    one, other = Ledger(str(tmp_path), attempt=1), Ledger(str(tmp_path), attempt=2)
    for step in range(5):
        one.write("progress", step=step)
        other.write("progress", step=step)
    assert [event["step"] for event in read_events(str(tmp_path))] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


# --- in an object store


@pytest.fixture
def store():
    """A run folder in one."""
    folder = f"memory:///{uuid.uuid4().hex}"
    yield folder
    filesystem, name = storage.resolve(folder)
    if filesystem.exists(name):
        filesystem.rm(name, recursive=True)


def parts(store):
    return storage.list_files(f"{store}/events")


@pytest.fixture
def published(monkeypatch):
    """(thread, path) of each object that is written."""
    made, sound = [], storage.publish_bytes

    def publish(path, data):
        sound(path, data)
        made.append((threading.current_thread().name, path.rpartition("/")[2]))

    monkeypatch.setattr(storage, "publish_bytes", publish)
    return made


def test_a_store_is_talked_to_by_a_thread_and_all_is_there_at_the_end(store, published):
    with Ledger(store, attempt=1, background=True) as writer:
        for step in range(1, 1000):
            writer.write("progress", step=step)
        writer.write("stop", step=1000, cause="SIGTERM")
    assert {thread for thread, _ in published} == {"ledger"}
    assert [event["step"] for event in read_events(store)] == [999, 1000]
    assert len(published) <= 2
    assert not any(thread.name == "ledger" for thread in threading.enumerate())


def test_signs_of_life_wait_and_all_else_does_not(store, published, monkeypatch):
    monkeypatch.setattr(ledger, "STORE_SECONDS", 1e6)
    with Ledger(store, attempt=1, background=True) as writer:
        writer.write("fault", kind="disk", cause="full", rank=0, fatal=False)
        await_that(lambda: len(read_events(store)) == 1)
        writer.write("progress", step=1)
        writer.write("progress", step=2)
        assert len(published) == 1
        writer.write("training")
        await_that(lambda: len(read_events(store)) == 3)
    assert [event["event"] for event in read_events(store)] == ["fault", "progress", "training"]


def test_signs_of_life_reach_the_store_by_themselves(store, monkeypatch):
    monkeypatch.setattr(ledger, "STORE_SECONDS", 0.01)
    with Ledger(store, attempt=1, background=True) as writer:
        for step in (1, 2):
            writer.write("progress", step=step)
            await_that(lambda step=step: [event["step"] for event in read_events(store)] == [step])


def test_a_run_of_weeks_leaves_a_small_object(store):
    with Ledger(store, attempt=1, background=True) as writer:
        for step in range(1, 20_001):
            writer.write("progress", step=step)
            if step % 5000 == 0:
                writer.write("checkpoint", step=step, seconds=0.1, size_bytes=9, reason="steps")
    assert [event["step"] for event in read_events(store)] == [step for step in range(5000, 20_001, 5000) for _ in "pc"]


def test_nothing_waits_for_a_store_that_does_not_answer(store, monkeypatch, caplog):
    answers, sound = threading.Event(), storage.publish_bytes

    def slow(path, data):
        assert answers.wait(60)
        sound(path, data)

    monkeypatch.setattr(storage, "publish_bytes", slow)
    with Ledger(store, attempt=1, background=True) as writer:
        for step in range(1, 100):
            writer.write("validation", step=step, seconds=1.0)  # returns
        assert read_events(store) == []
        answers.set()
    assert [event["step"] for event in read_events(store)] == [*range(1, 100)]
    assert caplog.messages == []


def test_a_store_that_fails_is_told_of_once_and_the_events_wait(store, monkeypatch, caplog):
    fails, tries, sound = True, [], storage.publish_bytes

    def publish(path, data):
        tries.append(path)
        if fails:
            raise RuntimeError("of a store's own")
        sound(path, data)

    monkeypatch.setattr(storage, "publish_bytes", publish)
    with Ledger(store, attempt=1, background=True) as writer:
        for step in range(1, 4):
            writer.write("validation", step=step, seconds=1.0)
            await_that(lambda step=step: len(tries) >= step)
        fails = False
    assert [event["step"] for event in read_events(store)] == [1, 2, 3]
    assert caplog.messages == [f"{store}/events.jsonl lacks an event, training goes on: of a store's own"]


def test_writers_do_not_lose_each_others_lines(store):
    """Each replaces an object of its own, so no order of reads and writes can."""
    num_writers, num_events = 6, 20

    def write(number):
        with Ledger(store, attempt=number, background=number % 2 == 0) as writer:
            for step in range(num_events):
                writer.write("validation", step=step, seconds=1.0)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(1, num_writers + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [(event["attempt"], event["step"]) for event in read_events(store)]
    expected = [(number, step) for number in range(1, num_writers + 1) for step in range(num_events)]
    assert sorted(told) == expected
    gather(store)
    assert sorted((event["attempt"], event["step"]) for event in read_events(store)) == expected
    assert parts(store) == []


def test_ledgers_follow_each_other_in_the_order_in_which_they_began_whatever_the_clocks_say(store, monkeypatch):
    command, rank = Ledger(store, attempt=1), Ledger(store, attempt=1)
    monkeypatch.setattr(time, "time", lambda: 9000.0)
    command.write("start", command_step=0, total_steps=9, cluster="none")
    monkeypatch.setattr(time, "time", lambda: 8000.0)  # of another machine
    rank.write("training")
    rank.write("progress", step=3)
    monkeypatch.setattr(time, "time", lambda: 7000.0)
    Ledger(store, attempt=1).write("stop", step=3, cause="SIGTERM")
    assert [event["event"] for event in read_events(store)] == ["start", "training", "progress", "stop"]
    gather(store)
    Ledger(store, attempt=2).write("training")
    assert [event["event"] for event in read_events(store)] == ["start", "training", "progress", "stop", "training"]


def test_a_writer_that_outlives_a_gathering_tells_nothing_twice(store):
    orphan = Ledger(store, attempt=1)
    orphan.write("training")
    gather(store)
    Ledger(store, attempt=2).write("training")
    orphan.write("end", step=4)
    assert [(event["event"], event["attempt"]) for event in read_events(store)] == [
        ("training", 1),
        ("end", 1),
        ("training", 2),
    ]
    gather(store)
    assert len(read_events(store)) == 3


def test_a_gathering_that_is_cut_short_loses_and_repeats_nothing(store, monkeypatch):
    for step in range(4):
        Ledger(store, attempt=1).write("progress", step=step)
    for call in ("publish_bytes", "remove"):
        with monkeypatch.context() as cut:
            cut.setattr(storage, call, lambda *arguments: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                gather(store)
        assert [event["step"] for event in read_events(store)] == [0, 1, 2, 3]
    gather(store)
    assert [event["step"] for event in read_events(store)] == [0, 1, 2, 3]


def test_a_ledger_of_before_in_a_store_is_gone_on_with(store):
    line = json.dumps(at(0, "training")) + "\n"
    storage.publish_bytes(f"{store}/events.jsonl", line.encode() + b'{"event": "st')
    Ledger(store, attempt=2).write("training")
    assert [event["attempt"] for event in read_events(store)] == [1, 2]
    storage.publish_bytes(f"{store}/events/notes.txt", b"mine")
    gather(store)
    assert [event["attempt"] for event in read_events(store)] == [1, 2]
    assert [part.rpartition("/")[2] for part in parts(store)] == ["notes.txt"]


def test_to_gather_a_local_ledger_changes_nothing(tmp_path):
    (tmp_path / EVENTS_NAME).write_bytes(b"anything")
    gather(str(tmp_path))
    assert (tmp_path / EVENTS_NAME).read_bytes() == b"anything"


def await_that(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"from_size": 4}, "an event resize with to_size missing or of another type"),
        ({"from_size": "4", "to_size": None}, "an event resize with from_size, to_size missing"),
        ({"from_size": 4, "to_size": 2, "when": object()}, "not JSON serializable"),
        ({"from_size": 4, "to_size": 2, "ratio": float("nan")}, "not JSON compliant"),
    ],
)
def test_an_event_that_is_not_of_its_kind_is_told_of_and_not_written(fields, named, tmp_path, caplog):
    Ledger(str(tmp_path), attempt=1).write("resize", **fields)
    assert named in caplog.text
    assert read_events(str(tmp_path)) == []


def test_the_docstring_names_every_event_and_field():
    table = ledger.__doc__.split("\n\n")[2]
    assert [line.split()[0] for line in table.splitlines() if not line.startswith(" " * 5)] == list(FIELDS)
    words = set(table.replace(",", " ").split())
    assert {name for fields in FIELDS.values() for name in fields} <= words


def test_it_loads_nothing_heavy():
    code = "import sys, pipeline.run.ledger; print(*{'torch', 'lightning', 'ray', 'numpy'} & set(sys.modules))"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


# --- the account, by hand


def test_a_run_from_start_to_end():
    events = [
        *BEGUN,
        at(20, "progress", step=100),
        checkpoint(25, step=120, blocked=2.0),
        checkpoint(35, step=150, blocked=0.5),
        at(65, "validation", step=200, seconds=8.0),
        checkpoint(69, step=400, blocked=3.0),
        at(70, "end", step=500),
    ]
    found = account(events, now=9e9)
    assert found == Account(
        state="finished",
        step=500,
        total_steps=500,
        world_size=4,
        num_attempts=1,
        last_time=1070.0,
        seconds={
            "productive": 60.0 - 5.5 - 8.0,
            "replaying": 0.0,
            "checkpoints": 5.5,
            "validating": 8.0,
            "starting": 10.0,
            "down": 0.0,
        },
        num_checkpoints=3,
        checkpoint_seconds=5.5,
        largest_checkpoint_seconds=3.0,
        steps_replayed=0,
        tokens_replayed=0,
        tokens_skipped=0,
        skips=(),
        failures=(),
        resizes=(),
    )
    assert found.shares["productive"] == 46.5 / 70.0
    assert found.shares["starting"] == 10.0 / 70.0


def test_a_fatal_fault_then_steps_made_again_by_fewer_workers():
    resize = at(51, "resize", from_size=4, to_size=3)
    events = [
        *BEGUN,
        at(48, "progress", step=90),
        fault(50),  # 38 s of training, 2 s of nobody knows
        resize,
        group(52, step=60, reached=90, size=3),
        at(57, "training"),  # 7 s of starting
        at(70, "replayed", step=80, num_steps=20, num_tokens=200, seconds=12.0),
        at(77, "replayed", step=90, num_steps=10, num_tokens=100, seconds=6.5),
        at(100, "progress", step=120),
        at(101, "stop", step=120, cause="SIGTERM"),
    ]
    found = account(events, now=9e9)
    assert spent(events) == {"starting": 17.0, "replaying": 18.5, "productive": 38.0 + 44.0 - 18.5, "down": 2.0}
    assert (found.steps_replayed, found.tokens_replayed) == (30, 300)
    assert (found.state, found.step, found.world_size, found.num_attempts) == ("stopped", 120, 3, 1)
    assert found.failures == (Failure(time=1050, step=90, kind="worker", cause="a worker fault", rank=2, fatal=True),)
    assert found.resizes == (resize,)


def test_a_stop_then_a_new_attempt():
    events = [
        *BEGUN,
        at(30, "stop", step=50, cause="Ctrl-C"),
        start(130, step=50, attempt=2),
        group(131, step=50, reached=50, attempt=2),
        at(134, "training", attempt=2),
        at(140, "end", step=60, attempt=2),
    ]
    found = account(events, now=9e9)
    assert spent(events) == {"starting": 14.0, "productive": 26.0, "down": 100.0}
    assert (found.state, found.step, found.num_attempts, found.failures) == ("finished", 60, 2, ())


def test_an_attempt_that_died_without_a_word():
    events = [*BEGUN, at(40, "progress", step=90), start(1040, step=60, attempt=2), group(1041, step=60, attempt=2)]
    found = account(events, now=1000.0 + 1043)
    assert spent(events, now=1043) == {"starting": 10.0 + 3.0, "productive": 30.0, "down": 1000.0}
    assert found.failures == (
        Failure(time=1040.0, step=90, kind="silent", cause=SILENT_CAUSE.format(90), rank=None, fatal=True),
    )
    assert (found.state, found.step, found.num_attempts) == ("running", 60, 2)


def test_an_attempt_that_died_without_a_word_before_its_first_step():
    events = [start(0), start(50, attempt=2), group(51, attempt=2), start(80, attempt=3)]
    found = account(events, now=1000.0 + 80)
    assert spent(events, now=80) == {"down": 50.0 + 29.0, "starting": 1.0}
    assert [(failure.kind, failure.time, failure.step) for failure in found.failures] == [
        ("silent", 1000.0, 0),
        ("silent", 1051.0, 0),
    ]


def test_an_attempt_that_ended_by_a_fault_is_counted_once():
    events = [*BEGUN, fault(30), at(31, "resize", from_size=4, to_size=3), start(60, attempt=2)]
    assert [failure.kind for failure in account(events, now=1060).failures] == ["worker"]
    assert spent(events, now=60) == {"starting": 11.0, "down": 20.0 + 29.0}


def test_a_group_that_died_without_a_word():
    events = [*BEGUN, at(40, "progress", step=90), group(70, step=60, reached=90), at(75, "training")]
    found = account(events, now=1000.0 + 75)
    assert spent(events, now=75) == {"starting": 15.0, "productive": 30.0, "down": 30.0}
    assert [(failure.kind, failure.step, failure.time) for failure in found.failures] == [("silent", 90, 1040.0)]
    assert found.step == 60


def test_a_group_that_ends_to_be_resized_is_no_failure():
    told = [at(39, "progress", step=9), at(40, "resize", from_size=4, to_size=8)]
    events = [*BEGUN, *told, group(45, size=8), at(47, "training")]
    found = account(events, now=1000.0 + 50)
    assert spent(events, now=50) == {"starting": 10.0 + 8.0, "productive": 29.0 + 3.0}
    assert found.failures == ()


def test_an_attempt_that_died_without_a_word_while_it_was_resized():
    told = [at(39, "progress", step=9), at(40, "resize", from_size=4, to_size=8)]
    events = [*BEGUN, *told, start(60, attempt=2)]
    assert spent(events, now=60) == {"starting": 11.0, "productive": 29.0, "down": 20.0}
    assert [failure.kind for failure in account(events, now=1060).failures] == ["silent"]


def test_a_stop_then_a_group_of_the_same_attempt():
    stop, resize = at(40, "stop", step=9, cause="notice"), at(50, "resize", from_size=4, to_size=2)
    events = [*BEGUN, stop, resize, group(50, step=9, reached=9, size=2), at(53, "training")]
    assert spent(events, now=60) == {"starting": 13.0, "productive": 37.0, "down": 10.0}
    assert account(events, now=1060).state == "running"


@pytest.mark.parametrize("when", [2.5, 20])
def test_a_resize_that_is_told_late_costs_no_more_than_the_time_since_the_last_sign_of_life(when):
    events = [*BEGUN, at(19, "progress", step=5), at(when, "resize", from_size=4, to_size=8), at(40, "end", step=9)]
    since = max(when - 19.0, 0.0)
    assert spent(sorted(events, key=lambda event: event["time"])) == {
        "starting": 10.0 + since,
        "productive": 30.0 - since,
    }


@pytest.mark.parametrize("kind", ["worker", "hang", "silent"])
def test_the_time_before_workers_are_found_dead_was_lost(kind):
    events = [*BEGUN, at(40, "progress", step=90), fault(340, kind=kind), group(345), at(350, "training")]
    assert spent(events, now=350) == {"starting": 20.0, "productive": 30.0, "down": 300.0}


@pytest.mark.parametrize("kind", ["loss", "disk", "checkpoint", "preemption"])
def test_the_time_before_workers_tell_of_a_fault_was_not(kind):
    events = [*BEGUN, at(40, "progress", step=90), fault(50, kind=kind), group(55), at(60, "training")]
    assert spent(events, now=60) == {"starting": 20.0, "productive": 40.0}


@pytest.mark.parametrize("kind", ["worker", "hang", "disk"])
def test_a_fault_while_starting_is_time_of_starting(kind):
    events = [start(0), group(2), fault(8, kind=kind), group(9), at(12, "training"), at(20, "end", step=3)]
    assert spent(events) == {"starting": 12.0, "productive": 8.0}


def test_a_fault_that_was_survived_explains_no_later_death():
    events = [*BEGUN, fault(30), group(31), at(40, "training"), start(60, attempt=2)]
    assert [failure.kind for failure in account(events, now=1060).failures] == ["worker", "silent"]


def test_a_fault_that_is_not_fatal_changes_nothing_but_the_list():
    events = [*BEGUN, at(20, "progress", step=7), fault(30, kind="tracker", fatal=False, rank=None)]
    found = account([*events, at(60, "end", step=9)], now=9e9)
    assert spent([*events, at(60, "end", step=9)]) == {"starting": 10.0, "productive": 50.0}
    assert found.failures == (
        Failure(time=1030, step=7, kind="tracker", cause="a tracker fault", rank=None, fatal=False),
    )


def test_a_fault_of_workers_that_is_not_fatal_costs_no_time():
    events = [*BEGUN, fault(30, kind="hang", fatal=False), at(40, "end", step=9)]
    assert spent(events) == {"starting": 10.0, "productive": 30.0}


def test_a_fault_may_tell_its_step():
    events = [*BEGUN, at(20, "progress", step=7), {**fault(30, kind="disk", fatal=False), "step": 5}]
    assert [failure.step for failure in account(events, now=1030).failures] == [5]
    assert account(events, now=1030).step == 7


def test_a_fault_after_a_stop_leaves_it_stopped():
    events = [*BEGUN, at(20, "stop", step=7, cause="SIGTERM"), fault(30, kind="preemption"), start(40, attempt=2)]
    assert account(events[:-1], now=1031).state == "stopped"
    assert spent(events, now=40) == {"starting": 10.0, "productive": 10.0, "down": 20.0}


def test_a_checkpoint_that_is_told_late_takes_the_step_nowhere_back():
    events = [*BEGUN, at(20, "progress", step=70), checkpoint(21, step=60, blocked=0.1)]
    assert account(events, now=1021).step == 70


def test_checkpoints_while_starting_stay_there():
    events = [start(0), checkpoint(5, step=0, blocked=4.0), at(10, "training"), at(30, "end", step=9)]
    assert spent(events) == {"starting": 10.0, "productive": 20.0}
    assert account(events, now=9e9).checkpoint_seconds == 4.0


def test_no_more_is_taken_out_than_this_stretch_of_training_has():
    loss = fault(100, kind="loss")
    events = [*BEGUN, loss, group(100), at(110, "training"), checkpoint(113, step=9, blocked=50.0)]
    assert spent(events, now=113) == {"starting": 20.0, "productive": 90.0, "checkpoints": 3.0}
    assert account(events, now=1113).largest_checkpoint_seconds == 50.0


def test_windows_that_are_skipped_again_count_once():
    events = [
        *BEGUN,
        skip(20, step=5, window=4, num_tokens=6),
        skip(21, step=7, window=6, num_tokens=5),
        fault(30),
        group(31, step=4, reached=8),
        at(32, "training"),
        skip(33, step=5, window=4, num_tokens=6),
    ]
    found = account(events, now=1033)
    assert found.tokens_skipped == 11
    assert found.skips == (events[-1], events[4])


def test_while_the_run_goes_on_the_time_since_belongs_to_what_it_does():
    assert spent([start(0)], now=7) == {"starting": 7.0}
    assert spent(BEGUN, now=17) == {"starting": 10.0, "productive": 7.0}
    assert spent([*BEGUN, fault(20, kind="loss")], now=23) == {"starting": 13.0, "productive": 10.0}
    assert account(BEGUN, now=1017).state == "running"
    assert account(BEGUN, now=1017).last_time == 1010.0


@pytest.mark.parametrize("late", [0.0, 1.0, 1e6])
def test_a_run_that_gives_no_sign_of_life_is_silent(late):
    found = account(BEGUN, now=1010 + SILENT_SECONDS + late)
    assert (found.state, found.last_time) == ("silent", 1010.0)
    assert sum(found.seconds.values()) == 10.0
    assert account(BEGUN, now=1010 + SILENT_SECONDS - 0.5).state == "running"


def test_a_clock_that_is_set_back_costs_nothing():
    events = [*BEGUN, at(30, "progress", step=5), at(12, "progress", step=6), at(35, "progress", step=7)]
    assert spent(events, now=20) == {"starting": 10.0, "productive": 25.0}
    assert account(events, now=1020).state == "running"


def test_an_attempt_whose_start_was_not_written_begins_all_the_same():
    events = [*BEGUN, at(20, "progress", step=5), group(50, step=5, attempt=2), at(55, "training", attempt=2)]
    found = account(events, now=1055)
    assert spent(events, now=55) == {"starting": 15.0, "productive": 10.0, "down": 30.0}
    assert (found.num_attempts, len(found.failures)) == (2, 1)


def test_a_worker_that_outlived_its_attempt_is_not_heard():
    events = [*BEGUN, start(20, attempt=2), at(25, "training", attempt=1), at(26, "progress", step=99, attempt=1)]
    assert spent(events, now=30) == {"starting": 20.0, "down": 10.0}
    assert account(events, now=1030).step == 0


def test_no_event_at_all():
    found = account([], now=5.0)
    assert (found.state, found.num_attempts, found.total_steps, found.world_size) == ("stopped", 0, None, None)
    assert set(found.shares.values()) == {0.0}


# --- the account, as properties


NUMBERS = st.integers(0, 300)
SECONDS = st.floats(0, 500) | st.sampled_from([0, 119.9, 120])
VALUES = {
    int: NUMBERS,
    str: st.sampled_from(["hang", "worker", "other"]),
    bool: st.booleans(),
    list: st.just([[0, 3]]),
    int | float: SECONDS,
    int | None: st.none() | NUMBERS,
    str | None: st.none() | st.just("step-1"),
}
NAMES = st.sampled_from([*FIELDS, "training", "training", "group", "progress", "of a later version"])


@st.composite
def histories(draw, *, may_go_back):
    """Events in any order, each a gap after the one before; attempts and the clock go back only if they may."""
    events, seconds, attempt = [], 1e9, 1
    for _ in range(draw(st.integers(1, 25))):
        name = draw(NAMES)
        seconds += draw(SECONDS | st.floats(-50, 0) if may_go_back else SECONDS)
        attempt = draw(st.integers(1, 4)) if may_go_back else attempt + (name == "start") * draw(st.integers(0, 1))
        fields = {field: draw(VALUES[kind]) for field, kind in FIELDS.get(name, {}).items()}
        events.append({"event": name, "time": seconds, "attempt": attempt, **fields})
    return events


@settings(max_examples=300, deadline=None)
@given(events=histories(may_go_back=True), late=st.floats(-100, 300))
def test_shares_sum_to_one_and_none_is_negative(events, late):
    found = account(events, now=events[-1]["time"] + late)
    assert min(found.seconds.values()) >= 0
    wall_seconds = sum(found.seconds.values())
    assert sum(found.shares.values()) == pytest.approx(1 if wall_seconds else 0)
    times = [event["time"] for event in events]
    most = max(times) - times[0] + max(late, 0)
    assert wall_seconds <= most + 1e-3


@settings(max_examples=300, deadline=None)
@given(events=histories(may_go_back=False), late=st.floats(0, 300))
def test_every_second_of_the_wall_time_goes_to_one_category(events, late):
    last = events[-1]["time"]
    found = account(events, now=last + late)
    if found.state in ("running", "silent"):
        assert found.state == ("running" if last + late - last < SILENT_SECONDS else "silent")
    live = late if found.state == "running" else 0.0
    assert sum(found.seconds.values()) == pytest.approx(last - events[0]["time"] + live, abs=1e-3)
    assert found.last_time == last


@settings(max_examples=100, deadline=None)
@given(events=histories(may_go_back=True), late=st.floats(0, 100), data=st.data())
def test_a_standing_that_is_told_event_by_event_says_what_the_whole_ledger_says(events, late, data):
    known = data.draw(st.integers(0, len(events)))
    standing = Standing(events[:known], now=1000.0)
    for number in range(known, len(events) + 1):
        now = max([1000.0, *(event["time"] for event in events[:number])]) + late
        found = account(events[:number], now=now)
        if number and found.state == "running":
            wall_seconds, least = sum(found.seconds.values()), found.shares["productive"]
            most = found.seconds["productive"] / ((wall_seconds - found.seconds["down"]) or 1.0)
            asked = any(event["event"] in ("stop", "end") for event in events[:number])
            assert least - 1e-9 <= standing.goodput(now=now) <= (most if asked else least) + 1e-9
            assert standing.goodput(now=now) == standing.goodput(now=now), "to ask changes nothing"
        assert standing.num_failures() == sum(failure.fatal for failure in found.failures)
        assert standing.num_skips() == len(found.skips)
        if number < len(events):
            standing.hear(events[number])


def test_a_standing_knows_since_when_nothing_is_saved():
    standing = Standing([start(0)], now=9e9)
    assert standing.unsaved_since() == 1000.0
    for event in BEGUN[1:]:
        standing.hear(event)
        assert standing.unsaved_since() == event["time"]
    standing.hear(checkpoint(25, step=120, blocked=2.0))
    standing.hear(at(30, "progress", step=130))
    assert standing.unsaved_since() == 1025.0


DAY = 86400.0
RESUMED = [start(DAY, step=50, attempt=2), group(DAY + 2, step=50, attempt=2), at(DAY + 10, "training", attempt=2)]


def test_a_resumed_run_has_nothing_unsaved_and_lost_no_time_by_a_stop():
    """Nor does the end of a run that is trained further."""
    for last in (at(100, "stop", step=50, cause="SIGTERM"), at(100, "end", step=50)):
        standing = Standing([*BEGUN, checkpoint(100, step=50, blocked=0.0), last, *RESUMED], now=9e9)
        now = 1000.0 + DAY + 20
        assert now - standing.unsaved_since() == 10.0
        assert standing.goodput(now=now) == pytest.approx((90 + 10) / (100 + 20))


def test_a_run_that_died_lost_the_time_until_it_was_resumed():
    standing = Standing([*BEGUN, at(100, "progress", step=50), *RESUMED], now=9e9)
    assert standing.goodput(now=1000.0 + DAY + 20) == pytest.approx(100 / (DAY + 20))


@given(events=histories(may_go_back=False), data=st.data())
def test_what_is_told_later_changes_no_finished_stretch(events, data):
    """Time that was spent stays spent: no category's seconds fall when the ledger grows, but for the productive."""
    num_events = data.draw(st.integers(1, len(events)))
    earlier = account(events[:num_events], now=1e12).seconds
    later = account(events, now=1e12).seconds
    for category in set(earlier) - {"productive"}:
        assert later[category] >= earlier[category] - 1e-3


def test_a_group_that_ends_for_a_notice_did_not_end_without_a_word():
    """Of a machine that is drained Ray Train says no more than the notice."""
    notice = {"kind": "preemption", "cause": "notice of preemption", "rank": None, "fatal": False, "step": 5}
    events = [*BEGUN, at(20, "progress", step=5), at(21, "fault", **notice), group(30, step=5), at(35, "training")]
    found = account(events, now=1040)
    assert [(failure.kind, failure.fatal) for failure in found.failures] == [("preemption", False)]
    assert spent(events, now=40) == {"starting": 24.0, "productive": 16.0}
