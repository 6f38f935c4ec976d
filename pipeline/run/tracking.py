"""What a run folder knows of its dashboard: the identity that the run has there, and what was kept offline.

In: a run folder. Out: the identity, the command that sends what waits. It imports no dashboard: a command is quick.
"""

import re
import shlex
import uuid
from pathlib import Path

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.masking import masked

ID_NAME, PLACE_NAME = "tracking-id", "tracking-place"


def sync_line(folder: str, *, identity: str | None) -> str | None:
    """How to send what was kept offline in a folder; None if nothing of it waits.

    A command for each part: of several that one command is given, wandb sends none after a part that a kill cut off.

    Args:
        folder: where wandb's own files are.
        identity: of the run; parts of the run that this one is a copy of are sent as its own.
    """
    parts = sorted(Path(folder, "wandb").glob("offline-run-*"))
    waiting = [part for part in parts if not any(part.glob("*.wandb.synced"))]
    if not waiting:
        return None
    others = any(not part.name.endswith(f"-{identity}") for part in waiting)
    sync = ["wandb", "sync", *(["--id", identity] if identity and others else [])]
    commands = "; ".join(shlex.join([*sync, str(part)]) for part in waiting)
    kept = "1 part of this run is" if len(waiting) == 1 else f"{len(waiting)} parts of this run are"
    return f"{kept} kept offline; to send: {commands}"


def what_waits(run: str) -> str | None:
    """The `sync_line` of a run folder; what a run in an object store keeps, lies with its first worker."""
    if not storage.is_local(run) or not Path(run, ID_NAME).exists():
        return None
    return sync_line(run, identity=storage.read_bytes(storage.join(run, ID_NAME)).decode())


def tracking_id(run: str) -> str:
    """The run's name on the dashboard's side: the same for every attempt, and another one for a copy of the folder.

    Beside it stands the place where it was last used: a folder that is found elsewhere was copied if there is one with
    this name at that place still, and else moved.

    Raises:
        ConfigError: the file holds no such name.
    """
    here = masked(run)
    id_path, place_path = (storage.join(run, name) for name in (ID_NAME, PLACE_NAME))
    identity = _read(id_path)
    if identity is not None and not re.fullmatch(r"[\w-]{1,64}", identity):  # wandb names a folder by it
        raise ConfigError(f"{id_path} holds {identity[:64]!r}, needed letters, digits, - and _; remove it")
    place = _read(place_path)
    if identity is None or (place not in (None, here) and _is_copy(run, of=str(place), identity=identity)):
        identity = uuid.uuid4().hex[:8]
        storage.publish_bytes(id_path, identity.encode())
    if place != here:
        storage.publish_bytes(place_path, here.encode())
    return identity


def _is_copy(run: str, *, of: str, identity: str) -> bool:
    try:
        if _read(storage.join(of, ID_NAME)) != identity:
            return False
        return not (storage.is_local(run) and storage.is_local(of) and Path(run).samefile(of))
    except (ConfigError, OSError):  # it cannot be reached any more
        return False


def _read(path: str) -> str | None:
    return storage.read_bytes(path).decode() if storage.exists(path) else None
