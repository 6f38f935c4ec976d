"""The report: one page without an address to load from, whose data are the runs'; pictures; what it refuses."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.plans import FORECAST
from support.run_folders import BEGIN, event, group, record, start, write_run

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.reporting.report import report
from pipeline.run.plan import write_plan

NOW = BEGIN + 100_000
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CODE = {"version": "9.9", "commit": "c" * 40, "dirty": True}
EVENTS = [
    start(0, code=CODE, environment={"python": "3.11.7", "torch": "2.13.0"}),
    group(10),
    event("training", 20),
    event("checkpoint", 60, step=10, seconds=1.0, size_bytes=4, reason="steps"),
    event("progress", 80, step=20),
    event("fault", 100, kind="worker", cause="was killed by <SIGKILL> & more", rank=1, fatal=True),
    event("resize", 105, from_size=2, to_size=1),
    group(110, step=10, reached=20),
    event("training", 120, step=10),
    event("end", 200, step=100),
]


class Page(HTMLParser):
    """The tags, the text and the scripts of a page."""

    def __init__(self, path):
        super().__init__()
        self.path, self.content = path, Path(path).read_text()
        self.tags, self.texts, self.scripts, self._inside = [], [], {}, None
        self.feed(self.content)
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._inside = dict(attributes).get("id", "code") if tag == "script" else tag if tag == "style" else None

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside is None:
            self.texts.append(data)
        else:
            self.scripts[self._inside] = self.scripts.get(self._inside, "") + data

    def data(self, name):
        return json.loads(self.scripts["datasets"])[name]

    @property
    def charts(self):
        assert [*json.loads(self.scripts["charts"])] == [
            at["id"].removeprefix("chart-") for tag, at in self.tags if at.get("class") == "chart"
        ]
        return [*json.loads(self.scripts["charts"])]


def made(tmp_path, *runs):
    """The page alone: pictures take most of the time."""
    path, size_bytes = next(report(runs, out=str(tmp_path / "out" / "page.html"), now=NOW))
    assert Path(path).stat().st_size == size_bytes
    return Page(path)


@pytest.fixture
def two(tmp_path):
    records = [record(step, valid=5.5 if step % 50 == 0 else None) for step in range(5, 101, 5)]
    mark = {"step": 100, "validations": {"50": 5.6, "100": 5.5}, "tokens_seen": 10_000}
    first = write_run(str(tmp_path / "a" / "run"), events=EVENTS, records=records, saved=mark)
    second = write_run(str(tmp_path / "b" / "run"), events=EVENTS[:5], records=records[:3], saved={"step": 10})
    return first, second


def test_a_page_tells_of_its_runs_and_loads_nothing(tmp_path, two):
    out = str(tmp_path / "out" / "page.html")
    written = [path for path, _ in report(two, out=out, now=NOW)]
    page = Page(out)
    for word in ("https://cdn", "jsdelivr", "unpkg", 'src="http'):
        assert word not in page.content
    assert not [at for _, at in page.tags for name in ("src", "href") if not at.get(name, "#").startswith("#")]
    policies = [at.get("content") for _, at in page.tags if at.get("http-equiv") == "Content-Security-Policy"]
    assert [policy.split(";")[0] for policy in policies] == ["default-src 'none'"]
    assert page.charts == ["perplexity-tokens", "perplexity-hours", "goodput", "speed"]
    assert [Path(each).name for each in written] == ["page.html", *(f"page-{name}.png" for name in page.charts)]
    for picture in written[1:]:
        assert Path(picture).read_bytes().startswith(b"\x89PNG")
    assert {row["run"] for row in page.data("training")} == {"a/run", "b/run"}
    assert [row["perplexity"] for row in page.data("validations")] == [244.69, 244.69]
    shares = [row["share"] for row in page.data("goodput") if row["run"] == "a/run"]
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    marks = {row["event"]: row for row in page.data("course") if "event" in row and row["run"] == "a/run"}
    assert {*marks} == {"start", "fault", "resize"}
    assert marks["fault"]["hours"] == pytest.approx(100 / 3600, rel=1e-3)
    for word in ("was killed by <SIGKILL> & more", "a" * 64, "c" * 40, "with changes that are not committed", "3.11.7"):
        assert word in page.text
    assert "100 of 100" in page.text


@pytest.mark.parametrize(("events", "hours"), [(EVENTS[:5], "0.03 so far, 0.04 left"), (EVENTS, "0.05 so far")])
def test_a_plan_stands_beside_what_a_run_took(tmp_path, events, hours):
    """It has gone on for 100 s and makes ten steps in 20 s, or has ended after 180 s and 20 s of a dead worker."""
    records = [record(10), record(20) | {"speed/tokens_per_second": 500.0}]
    run = write_run(str(tmp_path / "run"), events=events, records=records)
    write_plan(run, FORECAST)
    path, _ = next(report([run], out=str(tmp_path / "out" / "page.html"), now=BEGIN + 100))
    text = re.sub(r"\s+", " ", Page(path).text)
    assert f"hours 1.00 {hours} checkpoint" in text
    assert "words/s 100 667 hours" in text


def test_names_and_causes_from_files_are_text(tmp_path):
    name = "</script><script>alert(1)</script>"
    cause = "</script><img src=x onerror=alert(2)>"
    events = [*EVENTS[:5], event("fault", 90, kind="disk", cause=cause, rank=None, fatal=False)]
    run = write_run(f"{tmp_path}/{name.replace('/', chr(0x2215))}", events=events, records=[record(10)])
    page = made(tmp_path, run)
    assert "img" not in {tag for tag, _ in page.tags}
    assert [at.get("type", at.get("id")) for tag, at in page.tags if tag == "script"] == [
        "application/json",
        "application/json",
        None,
        "module",
    ]
    assert cause in page.text
    assert cause in [row.get("what", "").partition(": ")[2] for row in page.data("course")]


@pytest.mark.parametrize(
    ("num_records", "charts"),
    [(0, ["goodput", "speed"]), (1, ["perplexity-tokens", "perplexity-hours", "goodput", "speed"])],
)
def test_a_run_that_has_hardly_begun(tmp_path, num_records, charts):
    page = made(tmp_path, write_run(str(tmp_path / "run"), events=EVENTS[:5], records=[record(5)][:num_records]))
    assert page.charts == charts
    assert "nothing is saved" in page.text
    assert "config.yaml" in page.text  # that there is none


def test_a_ledger_alone_of_an_earlier_version(tmp_path):
    page = made(tmp_path, write_run(str(tmp_path / "run"), events=[start(0)]))
    assert page.charts == ["goodput", "speed"]
    assert "did not record it" in page.text


def test_ten_thousand_records_make_a_page_that_opens_at_once(tmp_path):
    records = [record(step) for step in range(1, 10_001)]
    records[5000]["train/nats_per_token"] = 9.0  # a spike
    end = event("end", 9000, step=10_000)
    page = made(tmp_path, write_run(str(tmp_path / "run"), events=[*EVENTS[:3], end], records=records))
    assert len(page.content) < 3_000_000
    assert 900 <= len(page.data("training")) <= 1000
    assert max(row["perplexity"] for row in page.data("training")) == pytest.approx(8103.1)


def test_clusters_of_the_softmax_are_drawn_where_they_were_measured(tmp_path):
    clusters = {"train/cluster_nats/head": 4.0, "train/cluster_share/head": 0.75, "train/cluster_nats/tail 1": None}
    run = write_run(str(tmp_path / "run"), events=EVENTS, records=[record(5, **clusters), record(10, **clusters)])
    page = made(tmp_path, run)
    assert "clusters" in page.charts
    assert [(row["cluster"], row["nats"], row["share"]) for row in page.data("clusters")] == [("head", 4.0, 0.75)] * 2


def test_a_secret_is_in_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "planted-in-the-environment")
    cause = "s3://user:planted-in-a-url@bucket/x does not serve planted-in-the-environment"
    config = (Path(__file__).parents[1] / "kept" / "run" / "config.yaml").read_text()
    config = re.sub(r"(?m)^data: .*$", "data: https://user:planted-in-a-url@host/data", config)
    assert "planted-in-a-url" in config
    events = [*EVENTS[:5], event("fault", 90, kind="disk", cause=cause, rank=None, fatal=False)]
    page = made(tmp_path, write_run(str(tmp_path / "run"), events=events, records=[record(10)], config=config))
    assert "https://***@host/data" in page.text
    assert "planted" not in page.content


@pytest.mark.parametrize(
    ("identity", "told"),
    [
        ({"corpus": "1" * 64, "vocabulary": "2" * 64}, None),
        ({"corpus": "3" * 64, "vocabulary": "2" * 64}, "different corpora"),
        ({"corpus": "3" * 64, "vocabulary": "4" * 64}, "different vocabularies"),
    ],
)
def test_perplexities_of_other_words_are_not_compared(tmp_path, two, identity, told):
    other = write_run(str(tmp_path / "c"), events=EVENTS, saved={"step": 10, "identity": identity})
    page = made(tmp_path, two[0], other)
    assert ("cannot be compared" in page.text) == (told is not None)
    assert told is None or told in page.text


def test_a_damaged_checkpoint_and_a_plan_that_is_none_are_told(tmp_path, two):
    Path(two[0], "checkpoints", "step-100.ckpt").write_bytes(b"other bytes")
    Path(two[0], "plan.json").write_text("{}")
    page = made(tmp_path, two[0])
    assert "step-100.ckpt is damaged" in page.text
    assert "plan.json is no plan" in page.text


def test_a_run_in_an_object_store(tmp_path, s3_bucket):
    run = write_run(f"{s3_bucket}/reported/run", events=EVENTS, records=[record(50)], saved={"step": 100})
    page = made(tmp_path, run)
    assert f"{run}/checkpoints/step-100.ckpt" in page.text
    path, size_bytes = next(report([run], out=f"{run}/page.html", now=NOW))
    assert storage.size_bytes(path) == size_bytes


def test_what_is_no_report(tmp_path, two, monkeypatch):
    out = str(tmp_path / "page.html")
    with pytest.raises(ConfigError, match=r"holds no events\.jsonl"):
        list(report([two[0], str(tmp_path)], out=out, now=NOW))
    with pytest.raises(ConfigError, match="twice"):
        list(report([two[0], f"{two[0]}/../run/"], out=out, now=NOW))
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(ConfigError, match=r"pip install 'wordlanes\[report\]'"):
        list(report([two[0]], out=out, now=NOW))
    assert not Path(out).exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_without_network_draws_every_chart(tmp_path, two):
    page = made(tmp_path, *two)
    done = subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=20000", "--enable-logging=stderr"),
            *("--dump-dom", f"file://{page.path}"),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    drawn = re.findall(r'id="chart-([a-z-]+)"[^>]*><svg', done.stdout)
    assert drawn == page.charts
    assert not re.findall(r"CONSOLE.*(?:rror|Refused).*", done.stderr)
