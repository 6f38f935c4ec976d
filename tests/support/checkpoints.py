"""Checkpoints as they are not written: other bytes under their names, and marks that fit them all the same."""

import hashlib
import json
from pathlib import Path

from pipeline.run.checkpoint import mark_path


def mark(path: str | Path, content: bytes | None = None) -> None:
    """Has a file the mark of a checkpoint that is whole: its own made to fit, or else one of an earlier version.

    Args:
        path: of the file.
        content: what is written to it first.
    """
    file = Path(path)
    if content is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    own, found = Path(mark_path(str(file))), hashlib.sha256(file.read_bytes()).hexdigest()
    if own.exists():
        change_mark(file, sha256=found, size_bytes=file.stat().st_size)
    else:
        Path(f"{file}.sha256").write_text(found)


def change_mark(path: Path, **changes: object) -> None:
    """Has the mark of a checkpoint say something else."""
    own = path.with_suffix(".json")
    own.write_text(json.dumps(json.loads(own.read_text()) | changes))


def mark_as_before(path: str | Path, content: str | None = None) -> None:
    """Marks a checkpoint as earlier versions did; by its digest, or with some other content."""
    own = Path(path).with_suffix(".json")
    Path(f"{path}.sha256").write_text(json.loads(own.read_text())["sha256"] if content is None else content)
    own.unlink()
