"""The dashboard and the alert rules: what they name is there, on a real Prometheus that scrapes a real run."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.monitoring import ended
from support.processes import command_line, descendants

from pipeline.run.gauges import GAUGES

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "infra" / "monitoring"
PATIENCE_SECONDS = 120.0
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "wordlanes-dashboard.json").read_text())
RULES: list[dict[str, Any]] = yaml.safe_load((FOLDER / "wordlanes-rules.yml").read_text())["groups"][0]["rules"]
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
NAMED = re.compile(r'__name__=~"\(ray_\)\?wordlanes_(\w+)"')


def program(name: str) -> str:
    """Where a program of Debian's packages prometheus and prometheus-node-exporter is."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (apt-get install prometheus prometheus-node-exporter)")
    return found


# --- by their keys


def test_the_dashboard_is_the_one_that_its_list_makes() -> None:
    made = subprocess.run(
        [sys.executable, "-c", "import make_dashboard; print(make_dashboard.text(), end='')"],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert made == (FOLDER / "wordlanes-dashboard.json").read_text(), "run python infra/monitoring/make_dashboard.py"


def test_each_panel_has_an_id_a_place_and_something_to_show() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert cells and at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        assert [target["refId"] for target in panel["targets"]] == [*"ABCDEFGH"[: len(panel["targets"])]]
        for where in (panel, *panel["targets"]):
            assert where["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(target["expr"] and target["legendFormat"] for target in panel["targets"])
    assert [each["name"] for each in DASHBOARD["templating"]["list"]] == ["datasource", "run"]


def test_all_that_is_named_is_a_gauge_and_takes_both_sources() -> None:
    for expression in [*EXPRESSIONS, *(rule["expr"] for rule in RULES)]:
        assert NAMED.findall(expression), expression
        assert len(NAMED.findall(expression)) == expression.count("wordlanes_"), expression
    named = {name for each in [*EXPRESSIONS, *(rule["expr"] for rule in RULES)] for name in NAMED.findall(each)}
    assert named == {*GAUGES}, "what nobody looks at need not be told"


# --- by Prometheus' own tools


def test_the_rules_and_the_dashboards_expressions_are_such(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{i}", "expr": each.replace("$run", ".*")} for i, each in enumerate(EXPRESSIONS)]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    for path in (tmp_path / "panels.yml", FOLDER / "wordlanes-rules.yml"):
        subprocess.run([program("promtool"), "check", "rules", "--lint-fatal", str(path)], check=True)


def test_each_alert_fires_where_it_should_and_nowhere_else() -> None:
    subprocess.run([program("promtool"), "test", "rules", "wordlanes-rules-test.yml"], cwd=FOLDER, check=True)
    cases: dict[str, list[bool]] = {rule["alert"]: [] for rule in RULES}
    for test in yaml.safe_load((FOLDER / "wordlanes-rules-test.yml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            cases[case["alertname"]].append(bool(case["exp_alerts"]))
    assert {name: sorted(set(found)) for name, found in cases.items()} == {name: [False, True] for name in cases}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_the_cases_notice_an_alert_that_never_fires(rule: dict[str, Any], tmp_path: Path) -> None:
    for name in ("wordlanes-rules.yml", "wordlanes-rules-test.yml"):
        shutil.copy(FOLDER / name, tmp_path)
    broken = [each if each is not rule else {**each, "expr": f"({each['expr']}) > 1e12"} for each in RULES]
    (tmp_path / "wordlanes-rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "rules", "rules": broken}]}))
    command = [program("promtool"), "test", "rules", "wordlanes-rules-test.yml"]
    assert subprocess.run(command, cwd=tmp_path, check=False, capture_output=True).returncode == 1


# --- a real Prometheus and a real run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Prometheus:
    """A Prometheus on loopback, with our rules, that looks at some addresses each second."""

    def __init__(self, folder: Path, *targets: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/api/v1"
        (folder / "prometheus.yml").write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "rule_files": [str(FOLDER / "wordlanes-rules.yml")],
                    "scrape_configs": [{"job_name": "runs", "static_configs": [{"targets": [*targets]}]}],
                }
            )
        )
        self.process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def asked(self, expression: str) -> list[dict[str, Any]]:
        """The labels and values of an expression now; none while it does not answer."""
        query = urllib.parse.urlencode({"query": expression.replace("$run", ".*")})
        try:
            with urllib.request.urlopen(f"{self.url}/query?{query}", timeout=10) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
                return found
        except OSError:
            return []


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that end with the test."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in reversed(processes):
        ended(process, signal.SIGTERM)


def await_that(holds: Callable[[], Any], *, about: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, about()
        time.sleep(0.5)


CUTOFFS = ("model.softmax.cutoffs=[10,30]",)


def trained(data: str, run: Path, *more: str, softmax: Sequence[str] = CUTOFFS) -> subprocess.Popen[bytes]:
    """A small run that goes on until it is asked to stop."""
    settings = [
        "stream.num_lanes=4",
        "stream.bptt=7",
        "model.embedding_size=6",
        "model.recurrence.hidden_size=5",
        *softmax,
        "checkpoint.validate_every_steps=40",
        "logging.every_steps=20",
        "max_epochs=100000",
        "tracking.kind=none",
        "accelerator=cpu",
    ]
    command = [sys.executable, "-m", "jobs", "train", f"data={data}", f"run={run}", *settings, *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    with run.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def assert_all_is_there(prometheus: Prometheus, *, lacking: str | None = None) -> None:
    """Every name, panel and rule's expression has a value; no alert's limit is passed.

    Args:
        prometheus: that scrapes a run.
        lacking: a name that no such run has, nor what is asked of it; None: there are runs of all kinds.
    """
    for each in [*(f'{{__name__=~"(ray_)?wordlanes_{name}"}}' for name in GAUGES), *EXPRESSIONS]:
        if lacking is None or f"wordlanes_{lacking}" not in each:
            await_that(partial(prometheus.asked, each), about=partial(str, each))
        else:
            assert not prometheus.asked(each)
    for rule in RULES:
        assert prometheus.asked(re.sub(r"(< 0\.5( \* .*)?|[<>]=? [\d.]+)$", "", rule["expr"].strip(), flags=re.DOTALL))
    assert not prometheus.asked('ALERTS{alertname=~"Wordlanes.*", alertstate="firing"}')


@pytest.mark.slow
def test_prometheus_scrapes_a_run_by_node_exporters_text_file(
    make_corpus: Callable[..., str], tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    folder, port = tmp_path / "prom", free_port()
    folder.mkdir()
    exporter = [
        program("prometheus-node-exporter"),
        f"--web.listen-address=127.0.0.1:{port}",
        "--collector.disable-defaults",
        "--collector.textfile",
        f"--collector.textfile.directory={folder}",
    ]
    started.append(subprocess.Popen(exporter, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    prometheus = Prometheus(tmp_path, f"127.0.0.1:{port}")
    started.append(prometheus.process)
    run = trained(make_corpus(), tmp_path / 'a "run"', f"tracking.prometheus_folder={folder}")
    sampled = trained(
        make_corpus(),
        tmp_path / "sampled",
        f"tracking.prometheus_folder={folder}",
        softmax=["model.softmax.kind=sampled"],
    )
    started += [run, sampled]
    assert_all_is_there(prometheus)
    sampled.send_signal(signal.SIGTERM)
    assert sampled.wait(PATIENCE_SECONDS) == 143
    await_that(lambda: len(prometheus.asked("wordlanes_step")) == 1, about=lambda: "one of two runs was stopped")
    assert prometheus.asked("node_textfile_scrape_error")[0]["value"][1] == "0"
    (found,) = prometheus.asked("wordlanes_step")
    identity = (tmp_path / 'a "run"' / "tracking-id").read_text()
    assert (found["metric"]["run"], found["metric"]["run_id"]) == ('a "run"', identity)
    assert [path.name for path in folder.glob("*.prom")] == [f"wordlanes-{identity}.prom"]
    (step,) = prometheus.asked("wordlanes_step")
    await_that(lambda: float(prometheus.asked("wordlanes_step")[0]["value"][1]) > float(step["value"][1]), about=str)
    run.send_signal(signal.SIGTERM)
    assert run.wait(PATIENCE_SECONDS) == 143
    assert list(folder.iterdir()) == [], "a run that stopped leaves no file"

    killed = trained(make_corpus("other"), tmp_path / "killed", f"tracking.prometheus_folder={folder}")
    started.append(killed)
    await_that(lambda: list(folder.glob("*.prom")), about=(tmp_path / "killed.log").read_text)
    killed.kill()
    killed.wait()
    left = prometheus.asked("time() - max by (run, run_id) (wordlanes_last_step_timestamp_seconds)")
    await_that(lambda: len(list(folder.glob("*.prom"))) == 1, about=lambda: left)
    await_that(
        lambda: [
            each
            for each in prometheus.asked("time() - max by (run) (wordlanes_last_step_timestamp_seconds)")
            if each["metric"]["run"] == "killed" and float(each["value"][1]) > 2
        ],
        about=lambda: "the age of a killed run grows, which WordlanesNoStep waits for",
    )


@pytest.mark.slow
def test_prometheus_scrapes_a_run_by_ray(
    make_corpus: Callable[..., str], tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    run = trained(make_corpus(), tmp_path / "run", "cluster=local", "cluster.num_workers=1")
    started.append(run)
    program("prometheus")
    await_that(lambda: list((tmp_path / "run").glob("metrics.jsonl")), about=(tmp_path / "run.log").read_text)
    prometheus = Prometheus(tmp_path, ray_endpoint(run.pid))
    started.append(prometheus.process)
    assert_all_is_there(prometheus, lacking="sampled_loss")
    (found,) = prometheus.asked("ray_wordlanes_step")
    assert (found["metric"]["run"], len(found["metric"]["run_id"])) == ("run", 8)
    assert not prometheus.asked("wordlanes_step")
    run.send_signal(signal.SIGTERM)
    assert run.wait(PATIENCE_SECONDS) == 143


def ray_endpoint(pid: int) -> str:
    """HOST:PORT on which the Ray that a process started gives its numbers to Prometheus."""
    told = " ".join(command_line(each) for each in descendants(pid))
    address, session = re.search(r"--node_ip_address=(\S+)", told), re.search(r"--session[-_]dir=(\S+)", told)
    assert address and session, told
    (port,) = Path(session[1]).glob("metrics_export_port_*")
    return f"{address[1]}:{port.read_text().strip()}"
