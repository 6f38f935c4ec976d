"""`plan.json`: written, read and set beside what a run came to."""

import pytest
from support.plans import FORECAST

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.run.account import account
from pipeline.run.plan import compared, read_plan, seconds_left, shown_bytes, write_plan

EVENTS = [
    {"event": "start", "time": 0.0, "attempt": 1, "command_step": 0, "total_steps": 500, "cluster": "none"},
    {"event": "group", "time": 1.0, "attempt": 1, "step": 0, "reached_step": 0, "world_size": 2, "checkpoint": None},
    {"event": "training", "time": 2.0, "attempt": 1},
    {
        "event": "checkpoint",
        "time": 900.0,
        "attempt": 1,
        "step": 100,
        "seconds": 1,
        "size_bytes": 7_000_000,
        "reason": "steps",
    },
    {"event": "stop", "time": 1800.0, "attempt": 1, "step": 250, "cause": "SIGTERM"},
]


def rows(forecast, events, **facts):
    facts = {"words_per_second": None, "hours_left": None} | facts
    found = account(events, now=1800.0)
    return {row.name: row[1:] for row in compared(forecast, found=found, events=events, **facts)}


def test_a_plan_is_read_as_it_was_written(tmp_path):
    run = str(tmp_path / "new" / "run")
    assert read_plan(run) is None
    write_plan(run, FORECAST)
    assert read_plan(run) == FORECAST


@pytest.mark.parametrize("text", [b"{}", b"[1, 2", b'{"total_steps": "many"}'])
def test_what_is_no_plan_is_refused(tmp_path, text):
    storage.publish_bytes(str(tmp_path / "plan.json"), text)
    with pytest.raises(ConfigError, match=r"plan\.json is no plan \(.*\); remove it, or plan again"):
        read_plan(str(tmp_path))


def test_plan_beside_fact():
    assert rows(FORECAST, EVENTS, words_per_second=50.0, hours_left=1.0) == {
        "steps": ("500", "250 of 500"),
        "workers": ("4", "2"),
        "words/s": ("100", "50"),
        "hours": ("1.00", "0.50 so far, 1.00 left"),
        "checkpoint": ("7.2 MB", "7 MB"),
        "cost": ("12.00", "3.00 so far"),  # two devices, half an hour, 3 an hour
    }


def test_the_time_that_a_run_was_down_is_none_of_its_hours():
    """It was stopped after half an hour, resumed 60 hours later, and has trained for another half since."""
    later = 1800.0 + 60 * 3600
    begun = [
        {"event": "start", "time": later, "attempt": 2, "command_step": 250, "total_steps": 500, "cluster": "none"},
        {**EVENTS[1], "time": later, "attempt": 2, "step": 250, "reached_step": 250},
        {"event": "training", "time": later, "attempt": 2},
        {"event": "end", "time": later + 1800.0, "attempt": 2, "step": 500},
    ]
    found = rows(FORECAST, [*EVENTS, *begun])
    assert found["hours"] == ("1.00", "1.00 so far")  # a run that does not go on has no time left
    assert found["cost"] == ("12.00", "6.00 so far")


def test_time_left():
    """By the ledger's pace, else by the words of a step and their seconds, else nobody knows."""
    records = [{"step": step, "tokens_seen": 720 * step, "speed/tokens_per_second": 720.0} for step in (10, 20)]
    events = [*EVENTS[:3], {"event": "progress", "time": 12.0, "attempt": 1, "step": 100}]
    assert left(events, records) == 400  # 400 steps of 720 words
    assert left([*events, {"event": "progress", "time": 62.0, "attempt": 1, "step": 200}], records) == 300 / 2
    assert left(events, []) is left([], records) is None


def left(events, records):
    return seconds_left(account(events, now=100.0), events=events, records=records)


def test_plan_beside_fact_where_little_is_known():
    forecast = FORECAST.model_copy(
        update=dict.fromkeys(("words_per_second", "hours", "cost", "price_per_hour"))  # too large to be tried
    )
    assert rows(forecast, EVENTS[:1]) == {
        "steps": ("500", "0 of 500"),
        "workers": ("4", "not known"),
        "words/s": ("not known", "not known"),
        "hours": ("not known", "0.00 so far"),
        "checkpoint": ("7.2 MB", "none yet"),
    }


@pytest.mark.parametrize(
    ("num_bytes", "shown"),
    [(999, "999 B"), (1000, "1 kB"), (1_234_567, "1.23 MB"), (80e9, "80 GB"), (1.5e15, "1,500 TB")],
)
def test_sizes_as_people_read_them(num_bytes, shown):
    assert shown_bytes(num_bytes) == shown
