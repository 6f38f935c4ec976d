"""What the terminal shows of workers elsewhere, whatever stands in the run folder."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.run.display import Display, Follower
from pipeline.run.ledger import Ledger
from pipeline.run.records import Record


class Shown(Display):
    """Notes what it is to show."""

    def __init__(self) -> None:
        super().__init__(total_steps=9, steps_per_epoch=3, drawn=False)
        self.steps: list[int] = []

    def show(self, step: int, record: Record) -> None:
        self.steps.append(step)
        super().show(step, record)


@pytest.fixture
def shown() -> Shown:
    return Shown()


def add(run: Path, *lines: str) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def record(step: int) -> str:
    return json.dumps({"step": step, "train/perplexity": 3.0, "speed/tokens_per_second": 9.0})


def test_each_record_is_shown_once_and_what_is_none_is_passed_over(tmp_path: Path, shown: Shown) -> None:
    add(tmp_path, record(1), "garbage")
    follower = Follower(str(tmp_path), shown)
    add(tmp_path, record(2), "\\0\\0", '{"step": "3"}', '{"step": 4, "train/perplexity": 2.0}')
    follower.look()
    add(tmp_path, record(5))
    follower.look()
    assert shown.steps == [2, 4, 5]


def test_what_is_made_again_is_shown_again(tmp_path: Path, shown: Shown) -> None:
    add(tmp_path, record(1), record(2), record(3))
    follower = Follower(str(tmp_path), shown)
    (tmp_path / "metrics.jsonl").write_text("")
    add(tmp_path, record(1), record(2))
    fields = {"reached_step": 3, "world_size": 2, "checkpoint": None}
    Ledger(str(tmp_path), attempt=1).write("group", step=1, **fields)
    follower.look()
    assert shown.steps == [2]


def test_faults_are_told_once_even_if_the_ledger_is_gone_for_a_while(tmp_path: Path, shown: Shown, caplog: Any) -> None:
    follower, events = Follower(str(tmp_path), shown), tmp_path / "events.jsonl"
    Ledger(str(tmp_path), attempt=1).write("fault", kind="disk", cause="full", rank=0, fatal=False)
    follower.look()
    events.rename(tmp_path / "aside")
    follower.look()
    (tmp_path / "aside").rename(events)
    follower.look()
    assert caplog.messages == ["disk: full"]


def test_a_store_that_does_not_answer_is_asked_again(
    tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def fail() -> None:
        raise ConfigError("nobody answers")

    follower = Follower(str(tmp_path), shown)
    with monkeypatch.context() as broken:
        broken.setattr(follower._events, "new", fail)
        follower.look()
    add(tmp_path, record(1))
    with caplog.at_level(logging.INFO):
        follower.start()
        follower.stop()
    assert shown.steps == [1]


def test_a_ledger_that_is_written_anew_is_told_of_what_is_new_alone(tmp_path: Path, shown: Shown, caplog: Any) -> None:
    ledger = Ledger(str(tmp_path), attempt=1)
    ledger.write("fault", kind="disk", cause="before", rank=0, fatal=False)
    follower, events = Follower(str(tmp_path), shown), tmp_path / "events.jsonl"
    ledger.write("fault", kind="disk", cause="full", rank=0, fatal=False)
    follower.look()
    content = events.read_text()
    events.rename(tmp_path / "aside")  # so that the new file is another one
    events.write_text(content)
    Ledger(str(tmp_path), attempt=1).write("fault", kind="disk", cause="anew", rank=0, fatal=False)
    follower.look()
    assert caplog.messages == ["disk: full", "disk: anew"]
