"""`metrics.jsonl`: what a run measured, one record for each logged step.

In: records. Out: whole lines. Refuses nothing: a line that is no record is passed over and told of, and so are records
that are missing; a disk without room is told of, and the record waits.
"""

import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from statistics import harmonic_mean
from typing import BinaryIO, cast

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.run.tail import Tail

log = logging.getLogger(__name__)

Record = dict[str, float | int | None]
METRICS_NAME = "metrics.jsonl"
VALIDATION = "valid/perplexity"  # the key that a record of a validation has
SAMPLED_LOSS = "train/sampled_loss"  # per target, of an output layer that trains on some words alone: no perplexity
SPEED = "speed/tokens_per_second"  # words a second of all ranks since the record before, validations left out


class MetricsFile:
    """`metrics.jsonl`: one object a line. On a local disk each is there at once; an object store gets them by `commit`.

    A disk that is full is told of once; what could not be written waits, and is written when there is room again. A
    local file that something else cuts, replaces or removes meanwhile is gone on with, on a line of its own.

    Args:
        path: in the run folder.
        last_step: records beyond it belong to steps that are to be made again; they are removed.
        num_known: records up to there that were once written; None: nobody knows.
        report: told of what is wrong with the file, besides the log.
        lost: whether the whole folder is gone or another one; then records wait for `move`.

    Attributes:
        reached_step: of the last record found, kept or not.
        num_records: those kept and those written since, on the disk or not.
    """

    def __init__(
        self,
        path: str,
        *,
        last_step: int,
        num_known: int | None = None,
        report: Callable[[str], None] = lambda cause: None,
        lost: Callable[[], bool] = bool,
    ) -> None:
        self._path = path
        self._lost = lost
        self._report = report
        self._warned: set[str] = set()
        found, num_unreadable = _found(storage.read_or_nothing(path))
        self.reached_step = max((step_of(record) for _, record in found), default=0)
        self._lines = [line for line, record in found if step_of(record) <= last_step]
        self.num_records = len({step_of(record) for _, record in found if step_of(record) <= last_step})
        if num_unreadable:
            lines = "1 line that is no record" if num_unreadable == 1 else f"{num_unreadable} lines that are no records"
            self._warn(f"{path} held {lines}, dropped now")
        if num_known is not None and self.num_records < num_known:
            self._warn(f"{path} lacks {num_known - self.num_records} of {num_known} records up to step {last_step}")
        storage.publish_bytes(path, "".join(self._lines).encode())
        self._file: BinaryIO | None = None
        if storage.is_local(path):
            self._lines.clear()
            self._file = _opened(path)
        self._unwritten = b""  # whole lines, of which `_num_written` bytes are there already
        self._num_written = 0
        self._size_bytes = 0 if self._file is None else os.fstat(self._file.fileno()).st_size

    def write(self, record: Record) -> None:
        """Adds a record."""
        line = json.dumps(record) + "\n"
        self.num_records += 1
        if self._file is None:
            self._lines.append(line)
            return
        self._unwritten += line.encode()
        self._write_rest()

    def commit(self) -> Callable[[], None]:
        """What makes the records so far outlast the machine, to be called once and by any thread.

        A checkpoint is not to be ahead of its records.
        """
        if self._file is None:
            num_lines = len(self._lines)
            return lambda: self._publish(num_lines)
        descriptor = os.dup(self._file.fileno())
        return lambda: self._flush(descriptor)

    def close(self) -> None:
        """No record follows."""
        if self._file is not None:
            self._write_rest()
        self.commit()()
        if self._file is not None:
            self._file.close()

    def move(self, path: str) -> None:
        """Goes on elsewhere, with all records: what stood under the name is gone or another's.

        Raises:
            ConfigError: the place cannot be written to.
        """
        assert self._file is not None
        content = _content(self._file)
        storage.publish_bytes(path, content + (b"" if content.endswith(b"\n") or not content else b"\n"))
        self._file.close()
        self._path, self._file = path, _opened(path)
        self._size_bytes, self._num_written = os.fstat(self._file.fileno()).st_size, 0
        self._write_rest()

    def _write_rest(self) -> None:
        """Writes what is not written yet."""
        try:
            if not self._find():
                return
            assert self._file is not None
            while rest := self._unwritten[self._num_written :]:
                num_bytes = self._file.write(rest)
                self._num_written += num_bytes
                self._size_bytes += num_bytes
            self._unwritten, self._num_written = b"", 0
        except OSError as error:
            self._warn_of_lack(error)

    def _publish(self, num_lines: int) -> None:
        try:
            storage.publish_bytes(self._path, "".join(self._lines[:num_lines]).encode())
        except ConfigError as error:
            self._warn_of_lack(error)

    def _flush(self, descriptor: int) -> None:
        try:
            os.fsync(descriptor)
        except OSError as error:
            self._warn_of_lack(error)
        finally:
            os.close(descriptor)

    def _find(self) -> bool:
        """Whether there is a place to write to: the end of the file, wherever something else has brought that."""
        assert self._file is not None
        there = None
        with suppress(FileNotFoundError, NotADirectoryError):
            there = Path(self._path).stat()
        if there is None or not os.path.samestat(there, os.fstat(self._file.fileno())):
            if self._lost():
                return False
            file = _opened(self._path)
            if there is None:
                file.write(_content(self._file))
            self._file.close()
            self._file = file
            self._warn(f"{self._path} was {'removed and is written anew' if there is None else 'replaced'}")
        elif there.st_size < self._size_bytes:
            self._warn(f"{self._path} was cut: {there.st_size} bytes, {self._size_bytes} were written")
        elif there.st_size == self._size_bytes:
            return True
        self._size_bytes, self._num_written = os.fstat(self._file.fileno()).st_size, 0
        if self._size_bytes and os.pread(self._file.fileno(), 1, self._size_bytes - 1) != b"\n":
            self._unwritten = b"\n" + self._unwritten
        return True

    def _warn_of_lack(self, error: Exception) -> None:
        self._warn(f"{self._path} lacks records: {error}", about="lack")

    def _warn(self, cause: str, *, about: str | None = None) -> None:
        """Once for each kind of trouble."""
        if (about or cause) not in self._warned:
            log.warning("%s; training goes on", cause)
            self._warned.add(about or cause)
            self._report(cause)


def read_records(path: str) -> list[Record]:
    """The records of a file in its order, none if it is not there; what is no record is passed over.

    Raises:
        ConfigError: something is there that cannot be read.
    """
    return _records_of(storage.read_or_nothing(path))


def last_records(run: str, *, num_bytes: int) -> list[Record]:
    """The records at the end of a run's metrics, in its order; the first of them may be cut off.

    Args:
        run: the run folder.
        num_bytes: of the file, at most.

    Raises:
        ConfigError: something is there that cannot be read.
    """
    return _records_of(storage.read_end(storage.join(run, METRICS_NAME), num_bytes))


def last_validation(run: str) -> Record | None:
    """The last record of a run's metrics that has a validation; None: there is none.

    Raises:
        ConfigError: something is there that cannot be read.
    """
    content = storage.read_or_nothing(storage.join(run, METRICS_NAME))
    end = content.rfind(f'"{VALIDATION}"'.encode())
    if end < 0:
        return None
    start = content.rfind(b"\n", 0, end) + 1
    found = [each for each in _records_of(content[start:].split(b"\n", 1)[0]) if VALIDATION in each]
    return found[-1] if found else None


def records_tail(run: str) -> Tail[Record]:
    """The records of a run folder, as they come."""
    path = storage.join(run, METRICS_NAME)
    return Tail(path, parse=_records_of, read=lambda: read_records(path))


def _records_of(content: bytes) -> list[Record]:
    return [record for _, record in _found(content)[0]]


def _found(content: bytes) -> tuple[list[tuple[str, Record]], int]:
    """(line, record) of each record, and the number of lines that are none.

    After a cut the next record may stand on the same line: it begins where its first key does. What a kill has cut off
    the end of the file is not counted.
    """
    lines = content.decode(errors="replace").split("\n")
    found, num_unreadable = [], 0
    for number, line in enumerate(lines, start=1):
        parts = [(part, _record(part)) for part in re.split(r'(?<!^)(?=\{"step":)', line)]
        found += [(f"{part}\n", record) for part, record in parts if record is not None]
        if number < len(lines) and any(record is None and part.strip() for part, record in parts):
            num_unreadable += 1
    return found, num_unreadable


def _record(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    sound = all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))
        for value in record.values()
    )
    return record if sound and record["step"] > 0 else None


def step_of(record: Record) -> int:
    """The step of a record; the one value that each has, a whole number above 0."""
    return cast(int, record["step"])


def speed_of(records: Iterable[Record]) -> float | None:
    """Words a second of all ranks over some records: their words by their seconds; None: none of them has a speed.

    Records stand for as many words each, so this is the harmonic mean: a slow stretch counts by the time it took.
    """
    speeds = [speed for record in records if (speed := record.get(SPEED))]
    return harmonic_mean(speeds) if speeds else None


def _opened(path: str) -> BinaryIO:
    return cast(BinaryIO, Path(path).open("a+b", buffering=0))


def _content(file: BinaryIO) -> bytes:
    """All of an open file, which may have no name any more."""
    with os.fdopen(os.dup(file.fileno()), "rb") as copy:
        copy.seek(0)
        return copy.read()
