"""Keys: what a file of a prepared corpus was made of, as a hash.

In: a work unit, the digest of its bytes, and the configuration. Out: a key that is another as soon as the unit's words
would be; so a rerun does what changed and nothing else. Refuses nothing.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import PurePosixPath

from pipeline.config import CorpusConfig
from pipeline.corpus.packing import SUFFIXES
from pipeline.corpus.readers import READERS
from pipeline.corpus.units import WorkUnit

FORMAT = 1  # to be raised when the same text would give other words or other bytes


def hashed(content: Sequence[object]) -> str:
    """sha256 of plain values, as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def unit_key(unit: WorkUnit, corpus: CorpusConfig, *, digest: str) -> str:
    """The key of a unit: of its bytes and how they are read, and not of where they lie.

    Args:
        unit: what is read.
        corpus: how.
        digest: of the bytes that decide its text, as `sources.range_digest` has it.
    """
    suffix = PurePosixPath(unit.path).suffix.lower()
    rules = [corpus.words, corpus.lowercase, corpus.eos, corpus.documents, corpus.text_column]
    content = [digest, unit.format, suffix, unit.last, unit.low, unit.high]
    later = _later_rules(unit, corpus, suffix=suffix)
    return hashed([FORMAT, *content, *rules, *([later] if later else [])])


def _later_rules(unit: WorkUnit, corpus: CorpusConfig, *, suffix: str) -> dict[str, object]:
    """Rules that came after the first version, each only where it is in force: so earlier keys stay the same."""
    rules: dict[str, object] = {}
    if unit.packing is not None and unit.packing != SUFFIXES.get(suffix):
        rules["packing"] = unit.packing
    if unit.has_mark:
        rules["has_mark"] = True
    reader = READERS[unit.format]
    if reader.documents is not None and corpus.null_rows != "refuse":
        rules["null_rows"] = corpus.null_rows
    if reader.version > 1:
        rules["version"] = reader.version
    return rules
