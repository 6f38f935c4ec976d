"""Receipts: what a preparation says of an artifact that it made, so that a rerun need not make it again.

In: a frozen dataclass of plain values, among them the artifact's digest. Out: a JSON file, sealed by a digest of its
own. Refuses nothing: a receipt that is missing, cut, edited or of another version is none, and the artifact is made
anew.
"""

import hashlib
import json
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, TypeVar

from pipeline import storage

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Kind = TypeVar("Kind", bound=DataclassInstance)

SEAL = "seal"


def write_receipt(path: str, receipt: "DataclassInstance") -> None:
    """Publishes a receipt."""
    content = asdict(receipt)
    storage.publish_bytes(path, json.dumps({**content, SEAL: _seal(content)}).encode())


def read_receipt(path: str, kind: "type[Kind]") -> "Kind | None":
    """The receipt that `write_receipt` wrote; None if there is none, or not just what was written."""
    if not storage.exists(path):
        return None
    try:
        content = json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.pop(SEAL, None) != _seal(content):
        return None
    if content.keys() != {field.name for field in fields(kind)}:
        return None
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in content.items()})


def is_whole(path: str, *, sha256: str) -> bool:
    """Whether an artifact is there and has the digest that its receipt tells."""
    return storage.exists(path) and storage.sha256(path) == sha256


def _seal(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
