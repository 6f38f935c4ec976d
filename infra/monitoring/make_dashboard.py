"""Makes `wordlanes-dashboard.json` for Grafana: `python infra/monitoring/make_dashboard.py` in the checkout.

In: the list of panels here below. Out: the JSON, which Grafana imports as it is. Each expression takes the numbers of a
run wherever they come from: node-exporter's text file, or Ray, which puts `ray_` before a name and whose label WorkerId
changes with each process.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

PLACE = Path(__file__).with_name("wordlanes-dashboard.json")
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT = 24, 8  # of a row, in Grafana's units


def latest(name: str, *, by: str = "run, run_id") -> str:
    """The number of a name, of each run that is chosen."""
    return f'max by ({by}) ({{__name__=~"(ray_)?wordlanes_{name}", run=~"$run"}})'


class Panel(NamedTuple):
    """One panel: its title, (expression, legend) of each line, and Grafana's name of the unit."""

    title: str
    lines: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = WIDTH // 2
    log_scale: bool = False


RUN = "{{run}}"
BY_CLUSTER = "run, run_id, cluster"
FAILURES = ("failures_total", "skipped_windows_total", "not_finite", "attempt")
PANELS = [
    Panel("Steps done", ((f"{latest('step')} / {latest('total_steps')}", RUN),), "percentunit", "stat", 6),
    Panel("Perplexity", ((latest("perplexity"), RUN),), "short", "stat", 6),
    Panel("Words a second", ((latest("tokens_per_second"), RUN),), "short", "stat", 6),
    Panel("Goodput", ((latest("goodput_ratio"), RUN),), "percentunit", "stat", 6),
    Panel(
        "Perplexity over time",
        ((latest("perplexity"), f"{RUN} train"), (latest("valid_perplexity"), f"{RUN} valid")),
        log_scale=True,
    ),
    Panel("Words a second over time", ((latest("tokens_per_second"), RUN),)),
    Panel("Nats of a target, by cluster", ((latest("cluster_nats", by=BY_CLUSTER), f"{RUN} {{{{cluster}}}}"),)),
    Panel(
        "Share of targets, by cluster",
        ((latest("cluster_share", by=BY_CLUSTER), f"{RUN} {{{{cluster}}}}"),),
        "percentunit",
    ),
    Panel("Gradient norm", ((latest("gradient_norm"), RUN),), log_scale=True),
    Panel("Sampled loss of a target", ((latest("sampled_loss"), RUN),)),
    Panel("Learning rate", ((latest("learning_rate"), RUN),)),
    Panel("Goodput over time", ((latest("goodput_ratio"), RUN),), "percentunit"),
    Panel("Failures, windows passed over, attempts", tuple((latest(name), f"{RUN} {name}") for name in FAILURES)),
    Panel("Since the last step", ((f"time() - {latest('last_step_timestamp_seconds')}", RUN),), "s"),
    Panel("Training that is not saved yet", ((f"time() - {latest('checkpoint_timestamp_seconds')}", RUN),), "s"),
    Panel("Words seen", ((latest("tokens_seen"), RUN),)),
]


def dashboard() -> dict[str, Any]:
    """What Grafana imports."""
    panels, x, y = [], 0, 0
    for number, panel in enumerate(PANELS, start=1):
        if x + panel.width > WIDTH:
            x, y = 0, y + HEIGHT
        panels.append(_panel(panel, number, x=x, y=y))
        x += panel.width
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    runs = 'label_values({__name__=~"(ray_)?wordlanes_step"}, run)'
    run = {"name": "run", "label": "Run", "type": "query", "datasource": SOURCE, "refresh": 2, "sort": 1}
    run |= {"query": {"query": runs, "refId": "run"}, "definition": runs, "multi": True, "includeAll": True}
    return {
        "uid": "wordlanes",
        "title": "wordlanes",
        "tags": ["wordlanes"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [source, run | {"allValue": ".*", "current": {"text": "All", "value": "$__all"}}]},
        "panels": panels,
    }


def _panel(panel: Panel, number: int, *, x: int, y: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.log_scale:
        defaults["custom"] = {"scaleDistribution": {"type": "log", "log": 10}}
    targets = [
        {"refId": chr(ord("A") + i), "expr": expression, "legendFormat": legend, "datasource": SOURCE}
        for i, (expression, legend) in enumerate(panel.lines)
    ]
    return {
        "id": number,
        "title": panel.title,
        "type": panel.kind,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": HEIGHT},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": targets,
    }


def text() -> str:
    """The file."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    PLACE.write_text(text())
