"""The report as one HTML file that asks no network for anything.

In: runs as they were read, and their charts. Out: the text of the file. Refuses nothing.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pipeline
from pipeline.reporting.charts import DataSets, Drawing
from pipeline.reporting.course import NATS, VALID_NATS, last_of_clusters
from pipeline.reporting.lineage import lineage
from pipeline.reporting.markup import UNKNOWN, counted, data_script, number, pairs, table, text, when
from pipeline.reporting.reported import ReportedRun
from pipeline.run.ledger import Event
from pipeline.run.plan import HOUR_SECONDS, Forecast, compared, seconds_left
from pipeline.run.records import speed_of

# the browser itself refuses whatever the page would load
POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:"
DRAW = """
const read = name => JSON.parse(document.getElementById(name).textContent);
const datasets = read("datasets");
for (const [name, specification] of Object.entries(read("charts")))
  vegaEmbed("#chart-" + name, {...specification, datasets}, {renderer: "svg", actions: false});
"""
RUN_COLUMNS = (
    "run",
    "state",
    "step",
    "best valid",
    "last valid",
    "last train",
    "words/s",
    "goodput",
    "hours",
    "workers",
    "attempts",
    "parameters",
)
Show = Callable[[str], str]  # the chart of a name; nothing where there is none


def page(
    runs: Sequence[ReportedRun], *, drawings: Mapping[str, Drawing], data: DataSets, script: str, now: float
) -> str:
    """The whole file.

    Args:
        runs: at least one.
        drawings: by name.
        data: what they draw.
        script: the libraries that draw them.
        now: when the report is made, unix seconds.
    """
    parts = [(title, body) for title, body in _sections(runs, lambda name: _figure(drawings.get(name))) if body]
    links = "\n".join(f'<a href="#{_anchor(title)}">{title}</a>' for title, _ in parts)
    body = "\n".join(f'<h2 id="{_anchor(title)}">{title}</h2>\n{content}' for title, content in parts)
    names = ", ".join(run.name for run in runs)
    specifications = {name: drawing.specification for name, drawing in drawings.items()}
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(names)}</title>
<style>
{Path(__file__).with_name("page.css").read_text()}</style>
</head>
<body>
<h1>{counted(len(runs), "training run")}</h1>
<p class="soft">{when(now)}, wordlanes {pipeline.__version__}</p>
<nav>
{links}
</nav>
<noscript><p class="note">The charts need JavaScript. The same pictures lie beside this file as PNG.</p></noscript>
{body}
{data_script("datasets", data)}
{data_script("charts", specifications)}
<script>{script}</script>
<script type="module">{DRAW}</script>
</body>
</html>
"""


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _figure(drawing: Drawing | None) -> str:
    if drawing is None:
        return ""
    caption = f"<figcaption>{text(drawing.caption)}</figcaption>"
    return f'<figure>{caption}<div class="chart" id="chart-{drawing.name}"></div></figure>'


def _sections(runs: Sequence[ReportedRun], show: Show) -> Iterator[tuple[str, str]]:
    """Title and content of each section, in the order of the page."""
    yield "Runs", _comparison(runs) + _runs(runs)
    yield "Perplexity", show("perplexity-tokens") + show("perplexity-hours")
    yield "Goodput", show("goodput") + _times(runs)
    yield "Speed and faults", show("speed") + _faults(runs)
    yield "Clusters of the softmax", _clusters(runs, show("clusters"))
    yield "Plan and fact", "".join(map(_plan, runs))
    yield "Lineage", "".join(f"<h3>{text(run.name)}</h3>{pairs(lineage(run))}" for run in runs)
    yield "Configuration", _configuration(runs)
    yield "Environment", _environment(runs)


def _comparison(runs: Sequence[ReportedRun]) -> str:
    """A warning where the runs' perplexities are of different texts or words."""
    known = {run.corpus for run in runs if run.corpus is not None}
    if len(known) <= 1:
        return ""
    what = "vocabularies" if len({vocabulary for _, vocabulary in known}) > 1 else "corpora"
    return f'<p class="note">These runs have different {what}: their perplexities cannot be compared.</p>'


def _runs(runs: Sequence[ReportedRun]) -> str:
    """A row for each run, of what is known of any of them."""
    columns = zip(RUN_COLUMNS, *map(_run_cells, runs), strict=True)
    header, *rows = zip(*(column for column in columns if {*column[1:]} != {UNKNOWN}), strict=True)
    return table(header, rows, numbers=RUN_COLUMNS[2:])


def _run_cells(run: ReportedRun) -> list[str]:
    found = run.found
    validations = _values(run, VALID_NATS)
    total = UNKNOWN if found.total_steps is None else f"{found.total_steps:,}"
    return [
        run.name,
        found.state,
        f"{found.step:,} of {total}",
        _perplexity(min(validations, default=None)),
        _perplexity(validations[-1] if validations else None),
        _perplexity(values[-1] if (values := _values(run, NATS)) else None),
        number(speed_of(run.records)),
        f"{found.shares['productive']:.1%}",
        number(math.fsum(found.seconds.values()) / HOUR_SECONDS, ",.2f"),
        number(found.world_size),
        number(found.num_attempts),
        number(run.plan.parameters.total if isinstance(run.plan, Forecast) else None),
    ]


def _values(run: ReportedRun, key: str) -> list[float]:
    return [value for record in run.records if (value := record.get(key)) is not None]


def _perplexity(nats: float | None) -> str:
    return number(None if nats is None else math.exp(min(nats, 700.0)), ",.2f")


def _times(runs: Sequence[ReportedRun]) -> str:
    """Seconds of each category, and what was made twice."""
    categories = [*runs[0].found.seconds]
    counts = ("wall", "saves", "steps again", "skips")
    rows = [
        [
            run.name,
            *(f"{seconds:,.1f}" for seconds in run.found.seconds.values()),
            f"{math.fsum(run.found.seconds.values()):,.1f}",
            *map(number, (run.found.num_checkpoints, run.found.steps_replayed, len(run.found.skips))),
        ]
        for run in runs
    ]
    header = ("seconds", *categories, *counts)
    return table(header, rows, numbers=header[1:])


def _faults(runs: Sequence[ReportedRun]) -> str:
    rows = [
        [
            run.name,
            when(fault.time),
            number(fault.step),
            fault.kind if fault.rank is None else f"{fault.kind}, rank {fault.rank}",
            "yes" if fault.fatal else "no",
            fault.cause,
        ]
        for run in runs
        for fault in run.found.failures
    ]
    if not rows:
        return '<p class="soft">No faults.</p>'
    return table(("run", "time", "step", "fault", "ended the workers", "cause"), rows, numbers=("step",))


def _clusters(runs: Sequence[ReportedRun], figure: str) -> str:
    """The chart, and what each cluster came to; nothing where no run measured it."""
    rows = [
        [run.name, name, number(nats, ".3f"), number(share, ".1%")]
        for run in runs
        for name, nats, share in last_of_clusters(run.records)
    ]
    header = ("run", "cluster", "last nats per target", "share of targets")
    return figure + table(header, rows, numbers=header[2:]) if figure else ""


def _plan(run: ReportedRun) -> str:
    """What a run was to take beside what it took; nothing for one that was not planned."""
    if run.plan is None:
        return ""
    if isinstance(run.plan, str):
        return f'<p class="note">{text(run.plan)}</p>'
    going = run.found.state == "running"
    left = seconds_left(run.found, events=run.events, records=run.records) if going else None
    rows = compared(
        run.plan,
        found=run.found,
        events=run.events,
        words_per_second=speed_of(run.records),
        hours_left=None if left is None else left / HOUR_SECONDS,
    )
    return f"<h3>{text(run.name)}</h3>{table(('', 'planned', 'fact'), rows)}"


def _configuration(runs: Sequence[ReportedRun]) -> str:
    """What differs, then all of it, folded."""
    unread = [f'<p class="note">{text(run.configuration)}</p>' for run in runs if isinstance(run.configuration, str)]
    known = [run for run in runs if run.settings]
    if not known:
        return "".join(unread)
    keys = list(dict.fromkeys(key for run in known for key in run.settings))
    header = ("key", *(run.name for run in known))

    def rows(wanted: Sequence[str]) -> list[list[str]]:
        return [[key, *(run.settings.get(key, UNKNOWN) for run in known)] for key in wanted]

    differing = [key for key in keys if key != "run" and len({run.settings.get(key) for run in known}) > 1]
    parts = [*unread]
    if differing:
        parts += ["<h3>What differs</h3>", table(header, rows(differing))]
    elif len(known) > 1:
        parts.append('<p class="soft">The configurations are equal.</p>')
    parts.append(f"<details><summary>All {len(keys)} values</summary>{table(header, rows(keys))}</details>")
    return "\n".join(parts)


def _environment(runs: Sequence[ReportedRun]) -> str:
    """Code, packages and machine of the command, as each start of the run recorded them."""
    told = [_told_of(run) for run in runs]
    keys = list(dict.fromkeys(key for each in told for key in each))
    if not keys:
        return '<p class="soft">These runs did not record it: they were started by an earlier version.</p>'
    rows = [[key, *(" → ".join(each.get(key, [UNKNOWN])) for each in told)] for key in keys]
    note = '<p class="soft">Of the command that started the workers. An arrow stands where a later start differed.</p>'
    return note + table(("", *(run.name for run in runs)), rows)


def _told_of(run: ReportedRun) -> dict[str, list[str]]:
    """What the starts of a run say of code and environment: by name the values, each once, in their order."""
    found: dict[str, list[str]] = {}
    for event in run.events:
        for name, value in _made_with(event).items() if event["event"] == "start" else ():
            if value not in found.setdefault(name, []):
                found[name].append(value)
    return found


def _made_with(start: Event) -> dict[str, str]:
    """Code and environment of one start, as far as it tells them."""
    code, environment = start.get("code"), start.get("environment")
    found: dict[str, str] = {}
    if isinstance(code, dict):
        changed = ", with changes that are not committed" if code.get("dirty") else ""
        found = {"wordlanes": f"{code.get('version')}", "commit": f"{code.get('commit') or 'not known'}{changed}"}
    if isinstance(environment, dict):
        found |= {f"{name}": f"{value}" for name, value in environment.items()}
    return found
