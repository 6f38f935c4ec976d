"""`metrics.jsonl`: what is no record costs itself alone, what is missing is told, and no line is torn by another."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.run.records import METRICS_NAME, SPEED, VALIDATION, MetricsFile, Record, read_records, speed_of


def record(step: int) -> Record:
    return {"step": step, "tokens_seen": step * 7, "train/perplexity": 3.5, "train/nats_per_token": None}


def lines(*steps: int) -> bytes:
    return "".join(json.dumps(record(step)) + "\n" for step in steps).encode()


def steps(path: Path) -> list[Any]:
    return [each["step"] for each in read_records(str(path))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / METRICS_NAME


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def metrics(path: Path, told: list[str]) -> Iterator[MetricsFile]:
    """With records of steps 1 and 2."""
    metrics = MetricsFile(str(path), last_step=0, report=told.append)
    metrics.write(record(1))
    metrics.write(record(2))
    yield metrics
    metrics.close()


NO_RECORDS = [
    b"garbage",
    b"\0\0\0\0",
    b'{"step": 5, "tokens_se',
    b'{"step": "5"}',
    b'{"step": 5.0}',
    b'{"step": 0}',
    b'{"step": null}',
    b'{"step": 5, "train/perplexity": NaN}',
    b'{"step": 5, "train/perplexity": 1e999}',
    b'{"step": 5, "train/perplexity": "3"}',
    b'{"step": 5, "train/perplexity": [3]}',
    b'{"step": 5, "train/perplexity": true}',
    b'{"tokens_seen": 5}',
    b"[5]",
    b"5",
    b'"\xff\xfe',
    b"[" * 100_000,
    b'{"step": ' + b"5" * 5000 + b"}",
]


@pytest.mark.parametrize("line", NO_RECORDS, ids=lambda line: repr(line[:30]))
def test_a_line_that_is_no_record_is_dropped_and_told(line: bytes, path: Path, caplog: Any) -> None:
    path.write_bytes(lines(1, 2) + line + b"\n" + lines(3))
    assert steps(path) == [1, 2, 3]
    told: list[str] = []
    metrics = MetricsFile(str(path), last_step=3, num_known=3, report=told.append)
    metrics.write(record(4))
    metrics.close()
    assert path.read_bytes() == lines(1, 2, 3, 4)
    assert told == [f"{path} held 1 line that is no record, dropped now"]
    assert caplog.messages == [f"{told[0]}; training goes on"]


def test_lines_are_counted_wherever_they_stand(path: Path, told: list[str]) -> None:
    path.write_bytes(b"garbage\n" + lines(1) + b"\n" + b"garbage\n")
    MetricsFile(str(path), last_step=1, report=told.append).close()
    assert told == [f"{path} held 2 lines that are no records, dropped now"]


def test_of_nothing_there_is_nothing(path: Path, told: list[str]) -> None:
    metrics = MetricsFile(str(path), last_step=0, num_known=0, report=told.append)
    assert (metrics.reached_step, metrics.num_records, path.read_bytes(), told) == (0, 0, b"", [])
    metrics.close()


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, len(lines(1, 2, 3)) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_costs_two_records_at_most(at: int, bit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("run") / METRICS_NAME
    content = bytearray(lines(1, 2, 3))
    content[at] ^= 1 << bit
    path.write_bytes(content)
    MetricsFile(str(path), last_step=3).close()
    assert {1, 2, 3} & {*steps(path)}
    assert path.read_bytes().endswith(b"\n")


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, len(lines(1, 2, 3))))
def test_a_cut_costs_the_record_that_it_cuts_even_if_another_follows_on_its_line(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("run") / METRICS_NAME
    path.write_bytes(lines(1, 2, 3)[:cut])
    whole = [step for step in (1, 2, 3) if cut >= len(lines(*range(1, step + 1))) - 1]
    assert steps(path) == whole
    path.write_bytes(lines(1, 2, 3)[:cut] + lines(4))
    assert steps(path) == [*whole, 4]


def test_what_a_kill_cut_off_the_end_is_no_fault(path: Path, told: list[str]) -> None:
    path.write_bytes(lines(1, 2) + b'{"step": 3, "tok')
    MetricsFile(str(path), last_step=2, num_known=2, report=told.append).close()
    assert (path.read_bytes(), told) == (lines(1, 2), [])


def test_records_of_steps_to_be_made_again_are_removed_and_remembered(path: Path, told: list[str]) -> None:
    path.write_bytes(lines(1, 2, 5, 3, 4))
    metrics = MetricsFile(str(path), last_step=3, num_known=3, report=told.append)
    assert path.read_bytes() == lines(1, 2, 3)
    assert (metrics.reached_step, metrics.num_records, told) == (5, 3, [])
    metrics.close()


@pytest.mark.parametrize(
    ("known", "content", "cause"),
    [
        (4, lines(1, 4), "lacks 2 of 4 records up to step 4"),
        (4, lines(1, 1, 1, 4, 5, 6), "lacks 2 of 4 records up to step 4"),
        (2, None, "lacks 2 of 2 records up to step 4"),
        (2, lines(1, 4), None),
        (1, lines(1, 4), None),
        (None, None, None),
    ],
    ids=["a gap", "repeated", "no file", "none missing", "more", "unknown"],
)
def test_a_gap_is_told(known: int | None, content: bytes | None, cause: str | None, path: Path, caplog: Any) -> None:
    if content is not None:
        path.write_bytes(content)
    told: list[str] = []
    MetricsFile(str(path), last_step=4, num_known=known, report=told.append).close()
    assert told == ([] if cause is None else [f"{path} {cause}"])
    assert len(caplog.messages) == len(told)


# --- while it is written


def test_records_are_there_at_once(path: Path, metrics: MetricsFile, told: list[str]) -> None:
    assert path.read_bytes() == lines(1, 2)
    assert (metrics.num_records, told) == (2, [])


@pytest.mark.parametrize("size_bytes", [0, 1, 20, len(lines(1)), len(lines(1)) + 1, len(lines(1, 2)) - 1])
def test_after_a_cut_the_next_record_stands_on_a_line_of_its_own(
    size_bytes: int, path: Path, metrics: MetricsFile, told: list[str]
) -> None:
    os.truncate(path, size_bytes)
    metrics.write(record(3))
    metrics.write(record(4))
    assert told == [f"{path} was cut: {size_bytes} bytes, {len(lines(1, 2))} were written"]
    assert path.read_bytes().endswith(b"\n" * (size_bytes > 0) + lines(3, 4))
    assert path.read_bytes().startswith(lines(1, 2)[:size_bytes])
    assert b"\n\n" not in path.read_bytes()


def test_what_another_has_added_is_not_torn(path: Path, metrics: MetricsFile, told: list[str]) -> None:
    with path.open("ab") as file:
        file.write(b"half a line")
    metrics.write(record(3))
    assert path.read_bytes() == lines(1, 2) + b"half a line\n" + lines(3)
    assert told == []


def test_a_file_that_is_removed_is_written_anew_with_all_records(
    path: Path, metrics: MetricsFile, told: list[str]
) -> None:
    path.unlink()
    metrics.write(record(3))
    metrics.write(record(4))
    assert path.read_bytes() == lines(1, 2, 3, 4)
    assert told == [f"{path} was removed and is written anew"]


def test_a_file_that_is_replaced_is_gone_on_with(path: Path, metrics: MetricsFile, told: list[str]) -> None:
    (path.parent / "edited").write_bytes(lines(1) + b'{"step": 2')
    (path.parent / "edited").rename(path)
    metrics.write(record(3))
    assert path.read_bytes() == lines(1) + b'{"step": 2\n' + lines(3)
    assert told == [f"{path} was replaced"]


@pytest.mark.parametrize("removed", [True, False])
def test_where_the_folder_is_lost_records_wait_for_another(removed: bool, path: Path, tmp_path: Path) -> None:
    told: list[str] = []
    metrics = MetricsFile(str(path), last_step=0, report=told.append, lost=lambda: not path.exists())
    metrics.write(record(1))
    path.unlink()
    if removed:
        tmp_path.rmdir()
    metrics.write(record(2))
    assert not path.exists()
    metrics.move(str(tmp_path / "other" / METRICS_NAME))
    metrics.write(record(3))
    metrics.close()
    assert (tmp_path / "other" / METRICS_NAME).read_bytes() == lines(1, 2, 3)
    assert told == []


def test_a_full_disk_is_told_once_and_its_records_wait(
    path: Path, metrics: MetricsFile, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        """As the file, with room for ten bytes more."""

        room = 10

        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            if not Full.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            written, Full.room = self.file.write(data[: Full.room]), 0
            return int(written)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    with monkeypatch.context() as patched:
        patched.setattr(metrics, "_file", Full(metrics._file))
        metrics.write(record(3))
        metrics.write(record(4))
        assert path.read_bytes() == lines(1, 2) + lines(3)[:10]
    assert told == [f"{path} lacks records: [Errno 28] No space left on device"]
    metrics.write(record(5))
    assert path.read_bytes() == lines(1, 2, 3, 4, 5)
    assert len(told) == 1


def test_what_a_full_disk_has_cut_is_written_whole_where_the_file_was_cut_meanwhile(
    path: Path, metrics: MetricsFile
) -> None:
    whole = lines(3)
    metrics._unwritten, metrics._num_written = whole, 10
    with path.open("ab") as file:
        file.write(whole[:10])
    metrics.write(record(4))
    assert steps(path) == [1, 2, 3, 4]


def test_what_waits_is_written_at_the_end(path: Path) -> None:
    metrics = MetricsFile(str(path), last_step=0)
    metrics._unwritten = lines(1)
    metrics.close()
    assert path.read_bytes() == lines(1)


def test_a_commit_holds_the_records_so_far(path: Path, metrics: MetricsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino))
    metrics.commit()()
    assert flushed == [path.stat().st_ino]


def test_a_commit_that_fails_is_told(metrics: MetricsFile, told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        metrics.commit()()
    assert len(told) == 1


def test_an_object_store_gets_them_by_commit_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"memory://records/{METRICS_NAME}"
    storage.publish_bytes(path, lines(1, 2, 9))
    told: list[str] = []
    metrics = MetricsFile(path, last_step=2, report=told.append)
    metrics.write(record(3))
    commit = metrics.commit()
    metrics.write(record(4))
    assert storage.read_bytes(path) == lines(1, 2)
    commit()
    assert storage.read_bytes(path) == lines(1, 2, 3)

    def fail(*arguments: object) -> None:
        raise ConfigError("nobody answers")

    with monkeypatch.context() as broken:
        broken.setattr(storage, "publish_bytes", fail)
        metrics.commit()()
        metrics.commit()()
    assert told == [f"{path} lacks records: nobody answers"]
    metrics.close()
    assert storage.read_bytes(path) == lines(1, 2, 3, 4)
    assert metrics.num_records == 4


def test_a_folder_of_that_name_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(ConfigError, match=r"metrics\.jsonl cannot be read \(Is a directory\); mend or remove it"):
        MetricsFile(str(path), last_step=0)


def test_the_speed_of_records_is_their_words_by_their_seconds() -> None:
    """A hundred words in 1 s and a hundred in 3 s are 200 in 4 s, whichever came first."""
    validated: Record = {"step": 2, VALIDATION: 9.0}
    records = [{"step": 1, SPEED: 100.0}, validated, {"step": 3, SPEED: 100 / 3}, {"step": 4, SPEED: 0.0}]
    assert speed_of(records) == pytest.approx(50.0)
    assert speed_of([validated]) is None
