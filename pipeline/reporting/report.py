"""A report of runs: read, drawn, written.

In: folders of runs. Out: one HTML file and a picture of each chart beside it. Refuses what `reported.py` refuses,
before anything is written, and an installation without the extra `report`.
"""

from collections.abc import Iterator, Sequence

from pipeline import storage
from pipeline.masking import masked_tree
from pipeline.reporting import charts
from pipeline.reporting.course import MOST_POINTS, Row, data_sets
from pipeline.reporting.page import page
from pipeline.reporting.reported import ReportedRun, read_runs

MOST_POINTS_OF_ALL = 8000  # of one kind, so that a page with many runs stays small


def report(folders: Sequence[str], *, out: str, now: float) -> Iterator[tuple[str, int]]:
    """Writes the report of some runs.

    Args:
        folders: of the runs, at least one.
        out: the HTML file.
        now: unix seconds.

    Yields:
        path and size in bytes of each file, once it is written.

    Raises:
        ConfigError: a folder is none of a run or named twice, the extra is missing, or `out` cannot be written.
    """
    charts.check_installed(verb="report")
    runs = read_runs(folders, now=now)
    data = _data(runs)
    drawings = charts.drawings(data)
    text = page(runs, drawings=drawings, data=data, script=charts.script(), now=now)
    yield _written(out, text.encode())
    for name, drawing in drawings.items():
        yield _written(f"{out.removesuffix('.html')}-{name}.png", charts.picture(drawing, data))


def _data(runs: Sequence[ReportedRun]) -> dict[str, list[Row]]:
    """What the charts of some runs draw, by name of data set."""
    most = max(100, min(MOST_POINTS, MOST_POINTS_OF_ALL // len(runs)))
    each = [data_sets(run.name, records=run.records, events=run.events, found=run.found, most=most) for run in runs]
    return {name: masked_tree([row for one in each for row in one[name]]) for name in each[0]}


def _written(path: str, content: bytes) -> tuple[str, int]:
    storage.publish_bytes(path, content)
    return path, len(content)
