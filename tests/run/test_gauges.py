"""What Prometheus gets of a run: names, labels, a file that is whole or not there."""

import logging
import stat
from pathlib import Path

import pytest

from pipeline.run import gauges
from pipeline.run.account import Standing
from pipeline.run.gauges import GAUGES, Gauges, Sample, TextFile, exposition, samples

RECORD = {
    "step": 7,
    "train/perplexity": 99.5,
    "train/gradient_norm": None,
    "train/cluster_nats/head": 1.5,
    "train/cluster_nats/tail-1": None,
    "train/cluster_share/head": 1.0,
    "speed/of light": 3.0,
}


def test_a_record_becomes_samples_in_the_order_of_the_table() -> None:
    labels = {"run": "r"}
    assert samples({"attempt": 2, "step": 7}, RECORD, labels=labels) == [
        Sample("step", labels, 7),
        Sample("attempt", labels, 2),
        Sample("perplexity", labels, 99.5),
        Sample("not_finite", labels, 1),
        Sample("cluster_nats", {"run": "r", "cluster": "head"}, 1.5),
        Sample("cluster_share", {"run": "r", "cluster": "head"}, 1.0),
    ]


def test_the_text_has_each_name_once_told_of_and_labels_escaped() -> None:
    nasty = 'a"b\\c\nd'
    found = [Sample("step", {"run": nasty, "run_id": "1"}, 7), Sample("failures_total", {"run": "r"}, 1e300)]
    found += [Sample("cluster_nats", {"cluster": name}, 0.1) for name in ("head", "tail-1")]
    assert exposition(found).splitlines() == [
        "# HELP wordlanes_step Updates made.",
        "# TYPE wordlanes_step gauge",
        r'wordlanes_step{run="a\"b\\c\nd",run_id="1"} 7.0',
        f"# HELP wordlanes_failures_total {GAUGES['failures_total']}",
        "# TYPE wordlanes_failures_total counter",
        'wordlanes_failures_total{run="r"} 1e+300',
        f"# HELP wordlanes_cluster_nats {GAUGES['cluster_nats']}",
        "# TYPE wordlanes_cluster_nats gauge",
        'wordlanes_cluster_nats{cluster="head"} 0.1',
        'wordlanes_cluster_nats{cluster="tail-1"} 0.1',
    ]


def test_a_file_is_replaced_whole_readable_by_all_and_gone_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = TextFile(str(tmp_path), identity="0a1b")
    path = tmp_path / "wordlanes-0a1b.prom"
    file([Sample("step", {}, 1)])
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    before = path.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: pytest.fail("reached"))
        with pytest.raises(pytest.fail.Exception, match="reached"):
            file([Sample("step", {}, 2)])
    assert path.read_text() == before
    assert [each.suffix for each in tmp_path.iterdir()].count(".prom") == 1, "no temporary file is taken for another"
    file([Sample("step", {}, 2)])
    assert path.read_text() != before
    file.remove()
    assert list(tmp_path.iterdir()) == []
    file.remove()


def made(*sinks: gauges.Sink, told: list[str]) -> Gauges:
    standing = Standing([], now=1000.0)
    return Gauges(sinks, labels={"run": "r"}, total_steps=9, attempt=3, standing=standing, on_failure=told.append)


def test_numbers_go_on_with_each_record_and_now_and_then_between(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [50.0]
    monkeypatch.setattr("pipeline.run.gauges.time.monotonic", lambda: now[0])
    given: list[dict[str, float]] = []
    shown = made(lambda found: given.append({each.name: each.value for each in found}), told=[])
    shown.show(1, {"train/perplexity": 8.0}, tokens_seen=10)
    shown.show(2, {}, tokens_seen=20)
    now[0] += gauges.REFRESH_SECONDS
    shown.show(3, {}, tokens_seen=30)
    shown.show(4, {"valid/perplexity": 9.0}, tokens_seen=40)
    assert [(each["step"], each["tokens_seen"], each["perplexity"]) for each in given] == [
        (1, 10, 8.0),
        (3, 30, 8.0),
        (4, 40, 8.0),
    ]
    assert (given[-1]["valid_perplexity"], given[-1]["total_steps"], given[-1]["attempt"]) == (9.0, 9, 3)


def test_a_folder_that_is_gone_is_told_of_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    folder = tmp_path / "prom"
    shown = made(TextFile(str(folder), identity="x"), told=told)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            shown.show(step, {"train/perplexity": 1.0}, tokens_seen=step)
    assert len(told) == len(caplog.records) == 1
    assert told[0].startswith("monitoring lacks this run's numbers: FileNotFoundError")
    folder.mkdir()
    shown.show(3, {"train/perplexity": 1.0}, tokens_seen=3)
    assert [each.name for each in folder.iterdir()] == ["wordlanes-x.prom"]
    shown.close()
    assert list(folder.iterdir()) == []
