"""`plan.json`: written, read and set beside what a run came to."""

import pytest

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.run.account import account
from pipeline.run.plan import Forecast, compared, read_plan, shown_bytes, write_plan

FORECAST = Forecast.model_validate(
    {
        "total_steps": 500,
        "steps_per_epoch": 200,
        "epochs": 2.5,
        "total_words": 500 * 720,
        "num_lanes": 36,
        "world_size": 4,
        "lanes_per_rank": 9,
        "parameters": {"embedding": 1, "recurrence": 2, "softmax": 3, "total": 6},
        "memory_bytes": {"weights": 24, "gradients": 24, "optimizer": 48, "activations": 1000, "total": 1096},
        "device_memory_bytes": None,
        "checkpoint_bytes": 7_200_000,
        "checkpoint_every_steps": 50,
        "num_checkpoints": 4,
        "disk_bytes": 28_800_000,
        "free_bytes": None,
        "words_per_second": 100.0,
        "hours": 1.0,
        "price_per_hour": 3.0,
        "cost": 12.0,
        "measured": "given",
    }
)
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


def rows(forecast, events, records):
    found = account(events, now=1800.0)
    return {row.name: row[1:] for row in compared(forecast, found=found, events=events, records=records)}


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
    records = [{"step": step, "speed/tokens_per_second": speed} for step, speed in ((50, 10.0), (100, 50.0), (150, 60))]
    assert rows(FORECAST, EVENTS, [*records, {"step": 200, "valid/perplexity": 3.0}]) == {
        "steps": ("500", "250 of 500"),
        "workers": ("4", "2"),
        "words/s": ("100", "50"),
        "hours": ("1.00", "0.50 so far, 1.00 left"),  # 250 x 720 words at 50 a second
        "checkpoint": ("7.2 MB", "7 MB"),
        "cost": ("12.00", "3.00 so far"),  # two devices, half an hour, 3 an hour
    }


def test_plan_beside_fact_where_little_is_known():
    forecast = FORECAST.model_copy(
        update=dict.fromkeys(("words_per_second", "hours", "cost", "price_per_hour"))  # too large to be tried
    )
    assert rows(forecast, EVENTS[:1], []) == {
        "steps": ("500", "0 of 500"),
        "workers": ("4", "not known"),
        "words/s": ("not known", "not known"),
        "hours": ("not known", "0.00 so far, not known left"),
        "checkpoint": ("7.2 MB", "none yet"),
    }


@pytest.mark.parametrize(
    ("num_bytes", "shown"),
    [(999, "999 B"), (1000, "1 kB"), (1_234_567, "1.23 MB"), (80e9, "80 GB"), (1.5e15, "1,500 TB")],
)
def test_sizes_as_people_read_them(num_bytes, shown):
    assert shown_bytes(num_bytes) == shown
