"""A receipt comes back as what was written, or not at all."""

import json
from dataclasses import dataclass

import pytest

from pipeline import storage
from pipeline.corpus.receipts import is_whole, read_receipt, write_receipt


@dataclass(frozen=True)
class Made:
    key: str
    num_tokens: int
    samples: tuple[str, ...]


@dataclass(frozen=True)
class MadeLater:
    key: str
    num_tokens: int
    samples: tuple[str, ...]
    num_more: int


@pytest.fixture
def path(tmp_path):
    return tmp_path / "made.json"


MADE = Made("ab", 5, ("é", "😀", "\0"))


def test_a_receipt_comes_back(path):
    write_receipt(str(path), MADE)
    assert read_receipt(str(path), Made) == MADE


def test_a_receipt_that_is_not_just_what_was_written_is_none(path):
    assert read_receipt(str(path), Made) is None
    write_receipt(str(path), MADE)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert read_receipt(str(path), Made) is None
    for at in range(len(whole)):
        for bit in (1, 0x20, 0x80):  # of letters, 0x20 is the case
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            assert read_receipt(str(path), Made) in (None, MADE)


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b'"ab"', b"5", b"{}", b"\xff", b"[" * 100_000, b"9" * 5000])
def test_what_is_no_receipt_is_none(path, content):
    path.write_bytes(content)
    assert read_receipt(str(path), Made) is None


def test_a_receipt_of_another_version_is_none(path):
    write_receipt(str(path), MADE)
    assert read_receipt(str(path), MadeLater) is None
    write_receipt(str(path), MadeLater("ab", 5, (), 0))
    assert read_receipt(str(path), Made) is None
    path.write_text(json.dumps({"key": "ab", "num_tokens": 5, "samples": []}))  # as it was before there were seals
    assert read_receipt(str(path), Made) is None


def test_a_receipt_is_asked_for_once(path, monkeypatch):
    """Each look beforehand would be another request to an object store."""
    write_receipt(str(path), MADE)
    monkeypatch.delattr(storage, "exists")
    assert read_receipt(str(path), Made) == MADE
    assert read_receipt(f"{path}.missing", Made) is None
    assert read_receipt(f"{path}/below-a-file", Made) is None
    assert not is_whole(f"{path}.missing", sha256="")
    assert not is_whole(f"{path}/below-a-file", sha256="")


def test_an_artifact_is_whole_by_its_digest_alone(tmp_path):
    path = tmp_path / "a"
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert not is_whole(str(path), sha256=empty)
    path.touch()
    assert is_whole(str(path), sha256=empty)
    path.write_bytes(b"x")
    assert not is_whole(str(path), sha256=empty)
