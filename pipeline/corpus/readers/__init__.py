"""The table of text formats: what reads each.

A format is one file of this folder that makes a `Reader`, and one row below. One from outside the package is a row too:
a module that `extensions` names does `READERS["name"] = Reader(...)`.
"""

from pipeline.corpus.readers.dataset import DATASET
from pipeline.corpus.readers.jsonl import JSON_LINES
from pipeline.corpus.readers.parquet import PARQUET
from pipeline.corpus.readers.reader import Reader
from pipeline.corpus.readers.text import TEXT

READERS: dict[str, Reader] = {
    "text": TEXT,  # also any file that no other row knows
    "jsonl": JSON_LINES,
    "parquet": PARQUET,
    "dataset": DATASET,
}
