"""Keys: what a file of a prepared corpus was made of, as a hash.

In: a work unit and the configuration. Out: a key that is another as soon as the unit's words would be; so a rerun does
what changed and nothing else. Refuses: a unit that changed while it was read.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.config import CorpusConfig
from pipeline.corpus.blocks import read_blocks
from pipeline.corpus.packing import SUFFIXES
from pipeline.corpus.readers import READERS
from pipeline.corpus.sources import unit_digest
from pipeline.corpus.units import WorkUnit
from pipeline.errors import CorpusError

FORMAT = 1  # to be raised when the same text would give other words or other bytes
FIRST_BLOCK_BYTES = 4096


@dataclass(frozen=True)
class Digested:
    """What decides a unit's words, and whether it holds any text."""

    key: str
    has_text: bool


def hashed(content: Sequence[object]) -> str:
    """sha256 of plain values, as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def digest_unit(unit: WorkUnit, *, corpus: CorpusConfig) -> Digested:
    """What decides a unit's words: its bytes and how they are read, and not where they lie."""
    suffix = PurePosixPath(unit.path).suffix.lower()
    rules = [corpus.words, corpus.lowercase, corpus.eos, corpus.documents, corpus.text_column]
    content = [unit_digest(unit, corpus), unit.format, suffix, unit.last, unit.low, unit.high]
    later = _later_rules(unit, corpus, suffix=suffix)
    first = next(read_blocks(unit, corpus, block_bytes=FIRST_BLOCK_BYTES), None)
    return Digested(hashed([FORMAT, *content, *rules, *([later] if later else [])]), has_text=first is not None)


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


def refuse_changed(unit: WorkUnit, corpus: CorpusConfig, *, key: str) -> None:
    """Refuses a unit whose key is another by now; of a data set, computing it would cost as much as preparing it.

    Args:
        unit: what was read.
        corpus: how.
        key: the unit's, from before it was read.

    Raises:
        CorpusError: the file changed.
    """
    if READERS[unit.format].is_file and digest_unit(unit, corpus=corpus).key != key:
        raise CorpusError(f"{unit.path} changed while it was prepared; leave it as it is and prepare again")
