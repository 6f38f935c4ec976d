"""`status` as a user types it: what it prints of a run folder, for people and as JSON, and what it refuses."""

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from jobs.__main__ import main
from pipeline import storage
from pipeline.run.checkpoint import checkpoint_path
from pipeline.run.ledger import EVENTS_NAME

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
        ([(60, "stop", {"step": 61, "cause": "SIGTERM"})], 1000, "stopped (SIGTERM), step 61/500 (12.2%), world size 4"),
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
