"""`python -m jobs report`: runs as one page that needs no network, and its charts as pictures beside it.

In: `runs=[A,B]`, folders of runs that go on or have ended, and `out=FILE.html`. Out: the files, a line for each.
Refuses a folder without a ledger, a run that is named twice, and an installation without the extra `report`.
"""

import time
from collections.abc import Sequence

from pipeline import storage
from pipeline.config import ReportConfig, load
from pipeline.errors import ConfigError
from pipeline.reporting.report import report

NAME = "report.html"


def main(arguments: Sequence[str]) -> None:
    """Writes the report and says what was written."""
    config = load(ReportConfig, arguments, name="report")
    if config.runs is None:
        raise ConfigError("runs=null is not given; use runs=[FOLDER,FOLDER]")
    for path, size_bytes in report(config.runs, out=_out(config.out, config.runs[0]), now=time.time()):
        print(f"{path} ({size_bytes / 1e6:,.2f} MB)")


def _out(out: str | None, first_run: str) -> str:
    """Where the page goes."""
    if out is None and not storage.is_local(first_run):
        raise ConfigError(f"out=null puts the report into runs=[{first_run}], which is not local; use out=FILE.html")
    out = storage.join(first_run, NAME) if out is None else out
    if not out.endswith(".html"):
        raise ConfigError(f"out={out} is no name of a page; use out=FILE.html")
    return out
