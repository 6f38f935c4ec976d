"""`metrics.jsonl`: what a run measured, one record for each logged step.

In: records. Out: whole lines. Refuses nothing: a disk without room is told of, and the record waits.
"""

import json
import logging
import os
from pathlib import Path

from pipeline import storage
from pipeline.errors import ConfigError

log = logging.getLogger(__name__)

Record = dict[str, float | int | None]
METRICS_NAME = "metrics.jsonl"


class MetricsFile:
    """`metrics.jsonl`: one object a line. On a local disk each is there at once; an object store gets them by `commit`.

    A disk that is full is told of once; what could not be written waits, and is written when there is room again.

    Args:
        path: in the run folder.
        last_step: records beyond it belong to steps that are to be made again; they are removed.

    Attributes:
        reached_step: of the last record found, kept or not.
    """

    def __init__(self, path: str, *, last_step: int) -> None:
        found = whole_lines(path)
        steps = [int(json.loads(line)["step"]) for line in found]
        self.reached_step = max(steps, default=0)
        self._path = path
        self._text = "".join(line for line, step in zip(found, steps, strict=True) if step <= last_step)
        self._unwritten = b""
        self._told = False
        storage.publish_bytes(path, self._text.encode())
        self._file = Path(path).open("ab", buffering=0) if storage.is_local(path) else None  # noqa: SIM115

    def write(self, record: Record) -> None:
        """Adds a record."""
        line = json.dumps(record) + "\n"
        if self._file is None:
            self._text += line
            return
        self._unwritten += line.encode()
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            self._tell(error)

    def commit(self) -> None:
        """Makes what was written so far outlast the machine; a checkpoint is not to be ahead of its records."""
        try:
            if self._file is None:
                storage.publish_bytes(self._path, self._text.encode())
            else:
                os.fsync(self._file.fileno())
        except (OSError, ConfigError) as error:
            self._tell(error)

    def close(self) -> None:
        """No record follows."""
        self.commit()
        if self._file is not None:
            self._file.close()

    def _tell(self, error: Exception) -> None:
        if not self._told:
            log.warning("%s lacks records, training goes on: %s", self._path, error)
        self._told = True


def whole_lines(path: str) -> list[str]:
    """The lines of a file that end; a kill may have cut the last one."""
    if not storage.exists(path):
        return []
    return [line for line in storage.read_bytes(path).decode().splitlines(keepends=True) if line.endswith("\n")]
