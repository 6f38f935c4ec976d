"""What a run tells: metrics that survive a kill, a tracker that never stops training."""

import json
import logging
from pathlib import Path

import pytest

from pipeline.run.records import MetricsFile, Record
from pipeline.scoring.perplexity import finite
from pipeline.training.dashboards import GuardedTracker, NoTracker
from pipeline.training.monitor import Stopwatch


def test_records_beyond_the_checkpoint_are_removed_and_a_torn_line_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(str(path), last_step=0)
    for step in (1, 2, 3, 4):
        first.write({"step": step, "loss": step / 3})
    first.close()
    with path.open("a") as file:
        file.write('{"step": 5, "lo')
    again = MetricsFile(str(path), last_step=3)
    again.write({"step": 4, "loss": 9.0})
    again.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 1 / 3},
        {"step": 2, "loss": 2 / 3},
        {"step": 3, "loss": 1.0},
        {"step": 4, "loss": 9.0},
    ]


def test_a_record_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    metrics = MetricsFile(str(tmp_path / "metrics.jsonl"), last_step=0)
    metrics.write({"step": 1})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    metrics.close()


def test_numbers_that_json_cannot_hold_are_null() -> None:
    assert [finite(value) for value in (1.5, float("inf"), float("-inf"), float("nan"))] == [1.5, None, None, None]


class Failing(NoTracker):
    """Fails from its second record on."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def log(self, record: Record) -> None:
        if self.records:
            raise OSError("the dashboard is gone")
        self.records.append(record)

    def finish(self) -> None:
        raise OSError("still gone")


def test_a_tracker_that_fails_is_told_of_once_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Failing()
    guarded = GuardedTracker(lambda: tracker)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            guarded.log({"step": step})
        guarded.finish()
    assert tracker.records == [{"step": 1}]
    assert [record.getMessage() for record in caplog.records] == [
        "tracking stops, training goes on: OSError: the dashboard is gone"
    ]


def test_a_tracker_that_does_not_start_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    def start() -> NoTracker:
        raise ImportError("no such package")

    with caplog.at_level(logging.WARNING):
        guarded = GuardedTracker(start)
        guarded.log({"step": 1})
    assert len(caplog.records) == 1


def test_the_stopwatch_leaves_pauses_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("pipeline.training.monitor.time.perf_counter", lambda: now[0])
    watch = Stopwatch()
    watch.add_tokens(30)
    now[0] = 2.0
    watch.pause()
    now[0] = 10.0
    watch.go_on()
    watch.add_tokens(60)
    now[0] = 11.0
    assert watch.tokens_per_second() == pytest.approx(30.0)
    watch.add_tokens(8)
    now[0] = 13.0
    assert watch.tokens_per_second() == pytest.approx(4.0)
