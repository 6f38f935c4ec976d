"""Receipts: what an artifact was made of and what it is, so that a rerun need not make it again.

In: a frozen dataclass of plain values, among them the key of what the artifact was made of and its own digest. Out: a
JSON file, sealed by a digest of its own. Refuses nothing: a receipt that is missing, cut, edited or of another version
is none, and the artifact is made anew.
"""

import hashlib
import json
from dataclasses import asdict, fields
from typing import Any, ClassVar, Protocol, TypeVar

from pipeline import storage

SEAL = "seal"


class Receipt(Protocol):
    """A dataclass with the key and the digest of an artifact."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def key(self) -> str:
        """Of what it was made of."""

    @property
    def sha256(self) -> str:
        """Of its bytes."""


Kind = TypeVar("Kind", bound=Receipt)


def write_receipt(path: str, receipt: Receipt) -> None:
    """Publishes a receipt. One that is lost with its machine costs no more than its artifact."""
    content = asdict(receipt)
    storage.publish_bytes(path, json.dumps({**content, SEAL: _seal(content)}).encode(), lasting=False)


def read_receipt(path: str, kind: type[Kind]) -> Kind | None:
    """The receipt that `write_receipt` wrote; None if there is none, or not just what was written."""
    try:
        content = json.loads(storage.read_bytes(path))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.pop(SEAL, None) != _seal(content):
        return None
    if content.keys() != {field.name for field in fields(kind)}:
        return None
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in content.items()})


def sound_receipt(path: str, kind: type[Kind], *, key: str, artifact: str) -> Kind | None:
    """The receipt of an artifact that need not be made; None if it must be.

    Args:
        path: of the receipt.
        kind: its type.
        key: of what the artifact would be made of now.
        artifact: its path.
    """
    receipt = read_receipt(path, kind)
    return receipt if receipt and receipt.key == key and is_whole(artifact, sha256=receipt.sha256) else None


def is_whole(path: str, *, sha256: str) -> bool:
    """Whether an artifact is there and has the digest of its receipt."""
    try:
        return storage.sha256(path) == sha256
    except (FileNotFoundError, NotADirectoryError):
        return False


def _seal(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
