"""`status` as a user types it: what it prints of a run folder, for people and as JSON, and what it refuses."""

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from support.clients import client_of, submitted

from jobs.__main__ import main
from pipeline import storage
from pipeline.run.checkpoint import checkpoint_path
from pipeline.run.ledger import EVENTS_NAME
from pipeline.run.records import METRICS_NAME
from pipeline.submission import overview
from pipeline.submission.adaptors import JobStatus

ROOT = Path(__file__).resolve().parents[2]
BEGAN = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC
CAUSE = "the worker died of SIGKILL: [red]out of memory[/red], most likely; " + "a long story " * 10
COMMON = [
    (0, "start", {"command_step": 0, "total_steps": 500, "cluster": "local"}),
    (2, "group", {"step": 0, "reached_step": 0, "world_size": 4, "checkpoint": None}),
    (10, "training", {}),
]
FAULTY = [
    *COMMON,
    (40, "checkpoint", {"step": 60, "seconds": 2.0, "size_bytes": 9, "reason": "steps"}),
    (50, "progress", {"step": 62}),
    (50, "fault", {"kind": "worker", "cause": CAUSE + "\nwith a second line", "rank": 3, "fatal": True}),
    (51, "resize", {"from_size": 4, "to_size": 3}),
    (52, "group", {"step": 60, "reached_step": 90, "world_size": 3, "checkpoint": "step-60"}),
    (60, "training", {}),
    (70, "replayed", {"step": 90, "num_steps": 30, "num_tokens": 1920, "seconds": 9.0}),
    (80, "skip", {"step": 110, "epoch": 1, "window": 7, "num_tokens": 64, "tokens": [[0, 32], [50, 82]]}),
    (85, "fault", {"kind": "tracker", "cause": "no way to it", "rank": None, "fatal": False}),
    (90, "validation", {"step": 120, "seconds": 4.0}),
    (110, "progress", {"step": 125}),
]
OF_FAULTY = {  # by hand, of 110 s
    "productive": 40.0 - 2.0 + 50.0 - 9.0 - 4.0,
    "replaying": 9.0,
    "checkpoints": 2.0,
    "validating": 4.0,
    "starting": 10.0 + 10.0,
    "down": 0.0,
}


def write(run, events):
    lines = [
        json.dumps({"event": name, "time": BEGAN + seconds, "attempt": 1, **more}) for seconds, name, more in events
    ]
    storage.publish_bytes(storage.join(run, EVENTS_NAME), "".join(line + "\n" for line in lines).encode())
    return run


@pytest.fixture
def now(monkeypatch):
    """Sets the clock to seconds after the beginning, and the place to where it is two hours later than in Greenwich."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XYZ-2")
        time.tzset()
        yield lambda seconds: patch.setattr("pipeline.submission.overview.time.time", lambda: BEGAN + seconds)
    time.tzset()


def status(capsys, run, *more):
    assert main(["status", f"run={run}", *more]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def test_what_people_read(tmp_path, now, capsys):
    now(110)
    lines = status(capsys, write(str(tmp_path), FAULTY)).splitlines()
    assert lines[0] == (
        "running, step 125/500 (25.0%), world size 3, 1 attempt; nothing is saved: the same command begins anew"
    )
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert rows == [
        ["productive", "68.2%", "75.0"],
        ["replaying", "8.2%", "9.0"],
        ["checkpoints", "1.8%", "2.0"],
        ["validating", "3.6%", "4.0"],
        ["starting", "18.2%", "20.0"],
        ["down", "0.0%", "0.0"],
        ["wall", "", "110.0"],
    ]
    assert lines[-9:] == [
        "checkpoints: 1, 2.0 s in all, 2.0 s at most",
        "replayed: 1,920 tokens in 30 steps",
        "skipped: 64 tokens in 1 window",
        "  2023-11-15 00:14:40  step 110, epoch 1, window 7: 64 tokens",
        "failures: 2",
        f"  2023-11-15 00:14:10  step 62, worker, rank 3: {CAUSE}with a second line",
        "  2023-11-15 00:14:45  step 110, tracker, training went on: no way to it",
        "resizes: 1",
        "  2023-11-15 00:14:11  from 4 to 3 workers",
    ]


def test_what_programs_read(tmp_path, now, capsys):
    now(110)
    found = json.loads(status(capsys, write(str(tmp_path), FAULTY), "--json"))
    assert found.pop("shares") == pytest.approx({name: seconds / 110 for name, seconds in OF_FAULTY.items()})
    assert found == {
        "state": "running",
        "step": 125,
        "total_steps": 500,
        "world_size": 3,
        "num_attempts": 1,
        "last_time": BEGAN + 110,
        "seconds": OF_FAULTY,
        "num_checkpoints": 1,
        "checkpoint_seconds": 2.0,
        "largest_checkpoint_seconds": 2.0,
        "steps_replayed": 30,
        "tokens_replayed": 1920,
        "tokens_skipped": 64,
        "skips": [{"event": "skip", "time": BEGAN + 80, "attempt": 1, **FAULTY[10][2]}],
        "failures": [
            {
                "time": BEGAN + 50,
                "step": 62,
                "kind": "worker",
                "cause": CAUSE + "\nwith a second line",
                "rank": 3,
                "fatal": True,
            },
            {
                "time": BEGAN + 85,
                "step": 110,
                "kind": "tracker",
                "cause": "no way to it",
                "rank": None,
                "fatal": False,
            },
        ],
        "resizes": [{"event": "resize", "time": BEGAN + 51, "attempt": 1, "from_size": 4, "to_size": 3}],
        "saved_step": None,
        "resumes_from": 0,
        "reason": "",
        "perplexity": None,
        "perplexity_of": None,
        "perplexity_step": None,
        "words_per_second": None,
        "goodput": 75.0 / 110,
        "checkpoint_age_seconds": 70.0,
        "seconds_left": (500 - 125) / (5 / 20),  # by the 5 steps of the last 20 s
        "last_failure": {
            "time": BEGAN + 85,
            "step": 110,
            "kind": "tracker",
            "cause": "no way to it",
            "rank": None,
            "fatal": False,
        },
        "submission": None,
        "plan": [],
    }


@pytest.mark.parametrize(
    ("more", "seconds", "line"),
    [
        ([], 11, "running, step 0/500 (0.0%), world size 4, 1 attempt"),
        ([], 1000, "lost (no event for 16 min), step 0/500 (0.0%), world size 4, 1 attempt"),
        (
            [(60, "stop", {"step": 61, "cause": "SIGTERM"})],
            1000,
            "stopped (SIGTERM), step 61/500 (12.2%), world size 4",
        ),
        ([(60, "end", {"step": 500})], 1000, "finished, step 500/500 (100.0%), world size 4, 1 attempt"),
        ([(60, "start", COMMON[0][2])], 61, "running, step 0/500 (0.0%), world size 4, 2 attempts"),
    ],
    ids=["running", "lost", "stopped", "finished", "again"],
)
def test_the_first_line_says_how_it_stands(more, seconds, line, tmp_path, now, capsys):
    now(seconds)
    assert status(capsys, write(str(tmp_path), [*COMMON, *more])).splitlines()[0].startswith(line)


def test_a_run_of_which_little_is_known(tmp_path, now, capsys):
    now(3)
    printed = status(capsys, write(str(tmp_path), COMMON[2:]))
    assert printed.splitlines()[0].startswith("running, step 0, 1 attempt; ")


def test_a_run_in_an_object_store(now, capsys):
    now(110)
    run = f"memory:///{uuid.uuid4().hex}"
    save(run, {60: b"as told 9", 30: b"any"})
    found = json.loads(status(capsys, write(run, FAULTY), "--json"))
    assert (found["step"], found["saved_step"], found["resumes_from"]) == (125, 60, 60)
    storage.publish_bytes(checkpoint_path(run, 60), b"cut")
    found = json.loads(status(capsys, run, "--json"))
    assert (found["step"], found["saved_step"], found["resumes_from"]) == (125, 60, 30)


def save(run, contents, *, marks=True):
    """Checkpoints by step, of which FAULTY's ledger tells of one of step 60 with 9 bytes."""
    for step, content in contents.items():
        storage.publish_bytes(checkpoint_path(run, step), content)
        if marks:
            storage.publish_bytes(f"{checkpoint_path(run, step)}.sha256", b"a" * 64 + b"\n")


SAVED = {
    "none": ({}, None, 0, "nothing is saved: the same command begins anew"),
    "one": ({60: b"as told 9"}, 60, 60, "step 60 is saved: the same command goes on from step 60"),
    "of unknown size": ({40: b"x"}, 40, 40, "step 40 is saved: the same command goes on from step 40"),
    "beyond what is told": (
        {60: b"as told 9", 80: b"x"},
        80,
        80,
        "step 80 is saved: the same command goes on from step 80",
    ),
    "the newest cut": (
        {40: b"x", 60: b"short"},
        60,
        40,
        "step 60 is saved but damaged: the same command goes on from step 40",
    ),
    "all cut": ({40: b"", 60: b""}, 60, None, "step 60 is saved but damaged, and no other: the same command refuses"),
    "at the end": (
        {60: b"as told 9", 500: b"x"},
        500,
        500,
        "step 500 is saved: the same command has nothing to do",
    ),
}


@pytest.mark.parametrize(("contents", "saved", "resumes", "line"), SAVED.values(), ids=SAVED.keys())
def test_what_is_saved_and_what_the_same_command_goes_on_from(contents, saved, resumes, line, tmp_path, now, capsys):
    now(110)
    save(str(tmp_path), contents)
    save(str(tmp_path), {90: b"without its mark"}, marks=False)
    lines = status(capsys, write(str(tmp_path), FAULTY)).splitlines()
    assert lines[0] == f"running, step 125/500 (25.0%), world size 3, 1 attempt; {line}"
    found = json.loads(status(capsys, tmp_path, "--json"))
    assert (found["step"], found["saved_step"], found["resumes_from"]) == (125, saved, resumes)


def test_a_finished_run_whose_checkpoints_are_gone_begins_anew(tmp_path, now, capsys):
    now(110)
    line = status(capsys, write(str(tmp_path), [*COMMON, (60, "end", {"step": 500})])).splitlines()[0]
    assert line.startswith("finished, step 500/500 (100.0%)")
    assert line.endswith("; nothing is saved: the same command begins anew")


def test_foreign_checkpoints_are_not_read(tmp_path, now, capsys):
    now(110)
    save(str(tmp_path), {70: b"cos\nsystem\n(S'false'\ntR."})
    assert "step 70 is saved" in status(capsys, write(str(tmp_path), FAULTY)).splitlines()[0]


def test_it_needs_no_torch(tmp_path):
    code = "import sys, jobs.status; print(*{'torch', 'lightning', 'ray', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_a_ledger_that_is_a_folder_is_refused_in_a_line(tmp_path, capsys):
    (tmp_path / EVENTS_NAME).mkdir()
    assert main(["status", f"run={tmp_path}"]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/events.jsonl cannot be read (Is a directory); mend or remove it\n"
    )


@pytest.mark.parametrize("place", ["file", "file/run", "nowhere"])
def test_what_is_no_folder_holds_no_run(place, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["status", f"run={tmp_path}/{place}"]) == 2
    assert "holds no events.jsonl; give the folder" in capsys.readouterr().err


@pytest.mark.parametrize("time", [1e18, 260_000_000_000.0])
def test_an_event_of_no_date_is_passed_over(time, tmp_path, now, capsys):
    now(1000)
    write(str(tmp_path), COMMON)
    with (tmp_path / EVENTS_NAME).open("a") as file:
        file.write(
            json.dumps({"event": "progress", "time": time, "attempt": 1, "step": 9}) + "\n" + "[" * 100_000 + "\n"
        )
    assert status(capsys, tmp_path).startswith("lost (no event for 16 min), step 0/500")


def test_a_ledger_of_ten_megabytes_is_read(tmp_path, now, capsys):
    now(10**6)
    progress = [(seconds, "progress", {"step": seconds}) for seconds in range(11, 140_000)]
    write(str(tmp_path), [*COMMON, *progress])
    assert (tmp_path / EVENTS_NAME).stat().st_size > 10_000_000
    assert json.loads(status(capsys, tmp_path, "--json"))["step"] == 139_999


def test_reading_changes_nothing(tmp_path, now, capsys):
    now(110)
    write(str(tmp_path), FAULTY)
    before = (tmp_path / EVENTS_NAME).read_bytes()
    status(capsys, tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == [EVENTS_NAME]
    assert (tmp_path / EVENTS_NAME).read_bytes() == before


def test_through_a_pipe_it_is_plain_text_in_whole_lines(tmp_path):
    command = [sys.executable, "-m", "jobs", "status", f"run={write(str(tmp_path), FAULTY)}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert sum(CAUSE in line for line in done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "named"),
    [(None, "holds no events.jsonl;"), (b"", "holds no whole event in events.jsonl;"), (b'{"event": "st', "no whole")],
    ids=["none", "empty", "cut"],
)
def test_a_folder_without_a_ledger(content, named, tmp_path, capsys):
    if content is not None:
        (tmp_path / EVENTS_NAME).write_bytes(content)
    assert main(["status", f"run={tmp_path}"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: run={tmp_path} holds no ") and printed.err.count("\n") == 1
    assert named in printed.err
    assert printed.err.endswith("; give the folder that `python -m jobs train` wrote\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "error: run=null is not given; use run=FOLDER\n"),
        (["rum=x"], "error: unknown key rum; did you mean run?\n"),
        (["--jsn"], "error: unknown flag --jsn of status; it knows --help --json and key=value\n"),
        (["run=nosuch://x"], "error: nosuch://x/events.jsonl cannot be reached: Protocol not known: nosuch;"),
    ],
)
def test_what_is_typed_wrong(arguments, line, capsys):
    assert main(["status", *arguments]) == 2
    assert capsys.readouterr().err.startswith(line)


def test_help_shows_its_key(capsys):
    assert main(["status", "--help"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "python -m jobs status [key=value ...] [--json]",
        "  how a run stands and where its time went",
        "",
        "keys:",
        "  run=null  The folder of the training run.",
    ]


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--json"], ["status"]])
def test_a_reader_that_has_seen_enough_is_told_nothing(arguments, tmp_path):
    """As `| head` is."""
    of_run = [f"run={write(str(tmp_path), FAULTY)}"] if "status" in arguments else []
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "jobs", *arguments, *of_run]
    done = subprocess.run(command, cwd=ROOT, stdout=write_end, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, b"")


# --- what was measured, and what was planned


def measure(run, *records):
    lines = [json.dumps({"step": step, "tokens_seen": 64 * step, "epoch": 0} | more) for step, more in records]
    storage.publish_bytes(storage.join(run, METRICS_NAME), "".join(line + "\n" for line in lines).encode())


def trained(perplexity, speed=640.0):
    return {"train/perplexity": perplexity, "speed/tokens_per_second": speed}


def test_the_second_line_has_the_numbers(tmp_path, now, capsys):
    now(110)
    measure(
        write(str(tmp_path), FAULTY), (100, trained(90.0, 600.0) | {"valid/perplexity": 120.5}), (125, trained(88.0))
    )
    assert status(capsys, tmp_path).splitlines()[1] == (
        "perplexity 120.50 (validation, step 100), 619 words/s, goodput 68.2%, last checkpoint 70 s ago, 25 min left"
    )


def test_without_a_validation_the_perplexity_is_that_of_training(tmp_path, now, capsys):
    now(12)
    measure(write(str(tmp_path), COMMON), (10, trained(91.0)), (20, trained(None, 1280.0)))
    found = json.loads(status(capsys, tmp_path, "--json"))
    assert (found["perplexity"], found["perplexity_of"], found["perplexity_step"]) == (None, "training", 20)
    speed = 2 / (1 / 640 + 1 / 1280)
    assert found["words_per_second"] == pytest.approx(speed)
    assert found["seconds_left"] == pytest.approx(500 / (speed / 64))  # no event of a step yet: by the words of one
    assert "perplexity not finite (training, step 20)" in status(capsys, tmp_path).splitlines()[1]


@pytest.mark.parametrize("place", ["disk", "store"])
def test_a_validation_far_back_in_the_metrics_is_found(place, tmp_path, now, capsys):
    now(12)
    run = write(str(tmp_path) if place == "disk" else f"memory:///{uuid.uuid4().hex}", COMMON)
    many = [(step, trained(50.0)) for step in range(2, 3000)]
    measure(run, (1, trained(91.0) | {"valid/perplexity": 300.0}), *many)
    assert storage.size_bytes(storage.join(run, METRICS_NAME)) > 2 * overview.RECORDS_BYTES
    found = json.loads(status(capsys, run, "--json"))
    assert (found["perplexity"], found["perplexity_of"], found["perplexity_step"]) == (300.0, "validation", 1)


def test_a_run_that_does_not_go_on_has_no_time_left(tmp_path, now, capsys):
    now(1000)
    measure(write(str(tmp_path), FAULTY), (100, trained(90.0)), (125, trained(88.0)))
    found = json.loads(status(capsys, tmp_path, "--json"))
    assert (found["state"], found["reason"], found["seconds_left"]) == ("lost", "no event for 15 min", None)


@pytest.mark.parametrize(("hang", "state"), [("2000", "running"), ("100", "lost"), ("null", "lost"), ("[", "lost")])
def test_no_event_for_longer_than_a_hang_may_take_is_a_loss(hang, state, tmp_path, now, capsys):
    now(1000)
    write(str(tmp_path), FAULTY)
    (tmp_path / "config.yaml").write_text(f"extensions: [there.is.none]\nguard:\n  hang_seconds: {hang}\n")
    assert json.loads(status(capsys, tmp_path, "--json"))["state"] == state


def test_plan_and_fact_stand_side_by_side(tmp_path, now, capsys, monkeypatch):
    now(110)
    write(str(tmp_path), FAULTY)
    (tmp_path / "plan.json").write_text("no plan")
    assert "cannot be read" in status(capsys, tmp_path)
    monkeypatch.setattr(overview, "read_plan", lambda run: "the plan")
    monkeypatch.setattr(overview, "compared", lambda plan, **facts: [overview.Row("steps", plan, str(len(facts)))])
    line = next(line for line in status(capsys, tmp_path).splitlines() if "the plan" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")] == ["steps", "the plan", "4"]
    assert json.loads(status(capsys, tmp_path, "--json"))["plan"] == [
        {"name": "steps", "planned": "the plan", "fact": "4"}
    ]


# --- runs that were submitted


@pytest.fixture
def client(monkeypatch):
    return client_of("slurm", monkeypatch)


def test_a_run_that_waits(tmp_path, client, capsys):
    job = submitted(str(tmp_path))
    client.jobs = {job.id: JobStatus(state="queued", name="17", reason="Priority")}
    lines = status(capsys, tmp_path).splitlines()
    assert lines[0] == "queued (Priority)"
    assert lines[1].startswith(f"submitted as {job.id} (slurm: 17), 20") and len(lines) == 2
    found = json.loads(status(capsys, tmp_path, "--json"))
    assert (found["state"], found["reason"], found["step"], found["goodput"]) == ("queued", "Priority", 0, None)
    assert (found["submission"]["id"], found["submission"]["via"]["kind"]) == (job.id, "slurm")
    assert found["submission"]["job"] == {"state": "queued", "name": "17", "reason": "Priority"}
    assert found["last_time"] == job.time


def test_a_job_that_was_stopped_before_it_began(tmp_path, client, capsys):
    job = submitted(str(tmp_path))
    client.jobs = {job.id: JobStatus(state="queued", name="17", reason="Priority")}
    assert main(["stop", f"run={tmp_path}"]) == 0
    assert capsys.readouterr().out.endswith(f"{job.id} is cancelled\n")
    assert status(capsys, tmp_path).splitlines()[0] == "stopped (user)"


def test_a_client_that_does_not_answer_is_told_in_words(tmp_path, now, client, capsys):
    job = submitted(write(str(tmp_path), FAULTY), seconds_ago=time.time() - BEGAN)
    client.jobs = {job.id: JobStatus(state="silent", reason="no sinfo here")}
    now(110)
    line = status(capsys, tmp_path).splitlines()[0]
    assert line.startswith("running (slurm does not answer (no sinfo here)), step 125/500")


def test_a_job_that_is_gone_is_a_loss_before_the_ledger_is_silent_for_long(tmp_path, now, client, capsys):
    submitted(write(str(tmp_path), FAULTY), seconds_ago=time.time() - BEGAN)
    now(110 + 61)
    found = json.loads(status(capsys, tmp_path, "--json"))
    assert found["state"] == "lost" and found["reason"].startswith("no event for 61 s; slurm does not know ")


def test_of_a_run_that_ended_nobody_is_asked(tmp_path, now, client, capsys):
    for name, more in {"end": {"step": 500}, "stop": {"step": 99, "cause": "user"}}.items():
        run = write(str(tmp_path / name), [*COMMON, (60, name, more)])
        submitted(run, seconds_ago=time.time() - BEGAN)
        assert json.loads(status(capsys, run, "--json"))["state"] == {"end": "finished", "stop": "stopped"}[name]
    assert client.asked == []


def test_a_preparation_is_finished_once_its_corpus_is_there(tmp_path, client, capsys):
    job = submitted(str(tmp_path / "run"), verb="prepare", data=str(tmp_path / "corpus"))
    client.jobs = {job.id: JobStatus(state="ended", reason="COMPLETED")}
    assert status(capsys, tmp_path / "run").startswith(f"lost ({job.id} has ended (COMPLETED))\n")
    storage.publish_bytes(f"{tmp_path}/corpus/manifest.json", b"{}")
    assert status(capsys, tmp_path / "run").startswith("finished\n")


# --- folders of runs


def rows_of(printed):
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in printed.splitlines() if "│" in line]


def several(folder, client):
    """Four runs, what is no run, and a run below one of them."""
    write(f"{folder}/faulty", FAULTY)
    measure(f"{folder}/faulty", (100, trained(90.0) | {"valid/perplexity": 120.5}), (125, trained(88.0)))
    save(f"{folder}/faulty", {60: b"as told 9"})
    write(f"{folder}/ended", [*COMMON, (60, "end", {"step": 500})])
    write(f"{folder}/ended/older", COMMON)
    job = submitted(f"{folder}/waits", seconds_ago=time.time() - BEGAN - 100)
    client.jobs = {job.id: JobStatus(state="queued", name="17", reason="Priority")}
    storage.publish_bytes(f"{folder}/broken/{EVENTS_NAME}", b'{"event": "sta')
    storage.publish_bytes(f"{folder}/no-run/notes.txt", b"mine")


def test_a_folder_of_runs_is_a_table_with_the_newest_activity_first(tmp_path, now, client, capsys):
    several(tmp_path, client)
    now(110)
    rows = rows_of(status(capsys, tmp_path))
    assert [row[0] for row in rows] == ["faulty", "waits", "ended", "broken"]
    assert rows[0][1:] == [
        "running",
        "125/500",
        "60",
        "120.50",
        "640",
        "68.2%",
        "70 s",
        "25 min",
        "tracker: no way to it",
    ]
    assert rows[1][1:] == ["queued (Priority)", *[""] * 8]
    assert rows[2][1:3] == ["finished", "500/500"]
    assert rows[3][1] == "cannot be read" and "holds no whole event in events.jsonl" in rows[3][-1]


def test_a_folder_of_runs_is_a_list_for_programs(tmp_path, now, client, capsys):
    several(tmp_path, client)
    now(110)
    found = json.loads(status(capsys, tmp_path, "--json"))
    assert [(each["name"], each["state"]) for each in found] == [
        ("faulty", "running"),
        ("waits", "queued"),
        ("ended", "finished"),
        ("broken", None),
    ]
    assert [each["run"] for each in found] == [f"{tmp_path}/{each['name']}" for each in found]
    assert found[3]["error"].startswith(f"run={tmp_path}/broken holds no whole event") and found[0]["error"] is None
    alone = json.loads(status(capsys, tmp_path / "faulty", "--json"))
    assert {key: found[0][key] for key in alone} == alone


def test_an_object_store_is_asked_for_one_listing(now, client, capsys, monkeypatch):
    folder = f"memory:///{uuid.uuid4().hex}"
    several(folder, client)
    write(f"{folder}/parts", COMMON)
    storage.publish_bytes(
        f"{folder}/parts/events/000001-1-a.jsonl", storage.read_bytes(f"{folder}/parts/{EVENTS_NAME}")
    )
    storage.remove(f"{folder}/parts/{EVENTS_NAME}")
    now(110)
    listed, sound = [], storage.list_files
    monkeypatch.setattr(storage, "list_files", lambda place: [listed.append(place), sound(place)][1])
    assert overview.runs_in(folder) == [f"{folder}/{name}" for name in ("broken", "ended", "faulty", "parts", "waits")]
    assert listed == [folder]
    assert {row[0] for row in rows_of(status(capsys, folder))} == {"faulty", "waits", "ended", "parts", "broken"}


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path, now, capsys):
    now(3)
    write(f"{tmp_path}/[a]*/run+(1)", COMMON)
    assert [row[0] for row in rows_of(status(capsys, f"{tmp_path}/[a]*"))] == ["run+(1)"]


def test_a_run_that_may_not_be_read_has_a_row_and_the_others_too(tmp_path, now, capsys, monkeypatch):
    write(f"{tmp_path}/mine", COMMON)
    write(f"{tmp_path}/theirs", COMMON)
    sound = os.stat

    def stat(path, *more, **how):
        if "/theirs/" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return sound(path, *more, **how)

    monkeypatch.setattr(os, "stat", stat)
    (tmp_path / "theirs" / EVENTS_NAME).chmod(0)
    now(3)
    rows = rows_of(status(capsys, tmp_path))
    assert [row[0] for row in rows] == ["mine", "theirs"]
    assert rows[1][1] == "cannot be read" and "Permission denied" in rows[1][-1]
