"""Rows from outside the package, for as long as a test lasts."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from pipeline.config import KINDS
from pipeline.model.tables import INPUT_LAYERS, OUTPUT_LAYERS, RECURRENCES


@contextmanager
def tables_restored() -> Iterator[None]:
    """What modules add to the tables meanwhile is gone at the end, and so are the toys."""
    copies = {place: dict(kinds) for place, kinds in KINDS.items()}
    try:
        with patch.dict(KINDS, copies), patch.dict(INPUT_LAYERS), patch.dict(RECURRENCES), patch.dict(OUTPUT_LAYERS):
            yield
    finally:
        sys.modules.pop("support.toys", None)


@contextmanager
def toys_added() -> Iterator[None]:
    """With the rows of `support.toys`."""
    with tables_restored():
        importlib.import_module("support.toys")
        yield
