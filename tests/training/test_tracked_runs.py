"""Whole runs on the dashboard of Weights & Biases: one curve of all attempts, and what is told beside it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.monitoring import ended
from support.wandb_server import Server, serving

from pipeline.corpus.manifest import read_manifest
from pipeline.run.checkpoint import read_mark
from pipeline.run.tracking import what_waits

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 240.0
SLOW = """
import runpy, time
from pipeline.training.module import LanguageModelModule
sound = LanguageModelModule.training_step
def training_step(self, batch, batch_idx):
    step = self.global_step + 1
    time.sleep({pace})
    {harm}
    return sound(self, batch, batch_idx)
LanguageModelModule.training_step = training_step
if __name__ == "__main__":
    runpy.run_module("jobs", run_name="__main__")
"""


class Attempts:
    """The same command again and again, at a pace at which it can be disturbed."""

    def __init__(self, folder: Path, data: str, **environment: str) -> None:
        self.run, self.data, self.folder = str(folder / "run"), data, folder
        (folder / "home").mkdir()
        own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        home = {"HOME": str(folder / "home"), "NETRC": str(folder / "home" / "netrc"), "PYTHONPATH": str(ROOT)}
        self.environment = {**own, **home, **environment}

    def begin(self, *more: str, harm: str = "pass", pace: float = 0.05) -> "subprocess.Popen[bytes]":
        settings = [
            "stream.num_lanes=4",
            "stream.bptt=7",
            "model.embedding_size=6",
            "model.recurrence.hidden_size=5",
            "model.softmax.cutoffs=[10,30]",
            "checkpoint.every_steps=10",
            "logging.every_steps=1",
            "max_epochs=1000",
            "max_steps=60",
            "tracking.tags=[small,made]",
            "accelerator=cpu",
        ]
        script = self.folder / "slow.py"  # a file, which workers read too
        script.write_text(SLOW.format(pace=pace, harm=harm))
        command = [sys.executable, str(script), "train", f"data={self.data}"]
        with (self.folder / "told.txt").open("ab") as log:
            return subprocess.Popen(
                [*command, f"run={self.run}", *settings, *more],
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def told(self) -> str:
        return (self.folder / "told.txt").read_text()

    def reach(self, process: "subprocess.Popen[bytes]", step: int) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.records() or self.records()[-1]["step"] < step:
            assert process.poll() is None and time.monotonic() < deadline, self.told()
            time.sleep(0.05)

    def records(self) -> list[dict[str, Any]]:
        path = Path(self.run, "metrics.jsonl")
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def three(self, *more: str) -> None:
        """One is killed, one is asked to stop, one comes to its end."""
        process = self.begin(*more)
        self.reach(process, 25)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process = self.begin(*more)
        self.reach(process, 38)
        assert ended(process, signal.SIGTERM) == 143, self.told()
        assert self.begin(*more).wait(PATIENCE_SECONDS) == 0, self.told()


def assert_one_curve(server: Server, attempts: Attempts, *, complete: bool) -> str:
    """Steps of the dashboard's own never go back, and each value over `tokens_seen` is that of metrics.jsonl.

    Returns:
        The run's identity.
    """
    (identity,) = server.history
    sent = server.history[identity]
    assert all(before["_step"] < after["_step"] for before, after in pairwise(sent))
    keys = ("train/nats_per_token", "valid/nats_per_token", "train/cluster_nats/tail-1", "train/cluster_share/head")
    curve = {line["tokens_seen"]: {key: line.get(key) for key in keys} for line in sent}
    truth = {record["tokens_seen"]: {key: record.get(key) for key in keys} for record in attempts.records()}
    assert {at: value for at, value in truth.items() if at in curve} == curve
    assert {3} <= {line["run/attempt"] for line in sent} <= {1, 2, 3}
    if complete:
        assert curve == truth
        assert {line["run/attempt"] for line in sent} == {1, 2, 3}
    return identity


def test_three_attempts_online_are_one_curve_with_all_that_belongs_to_it(
    make_corpus: Callable[..., str], tmp_path: Path
) -> None:
    data = make_corpus()
    with serving() as server:
        attempts = Attempts(tmp_path, data, WANDB_BASE_URL=server.url, WANDB_API_KEY="0123456789" * 4)
        attempts.three()
        identity = assert_one_curve(server, attempts, complete=False)
    about = server.runs[identity]
    config = {key: value["value"] for key, value in json.loads(about["config"]).items() if key != "_wandb"}
    manifest = read_manifest(data)
    assert config["corpus_fingerprint"] == manifest.fingerprint
    assert config["oov_rate"] == {name: split.oov_rate for name, split in manifest.splits.items()}
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert config["code"]["commit"] == (head.strip() or None)
    parts = config["parameters"]
    assert parts["embedding"] == manifest.vocab_size * 6
    assert parts["total"] == parts["embedding"] + parts["recurrence"] + parts["softmax"]
    assert (sorted(about["tags"]), about["groupName"], about["displayName"]) == (["made", "small"], "data", "run")
    summary = server.summaries[identity]
    records = attempts.records()
    for key in ("train/perplexity", "valid/nats_per_token"):
        found = [record[key] for record in records if key in record]
        assert (summary[key], summary[f"{key}_min"]) == (found[-1], min(found))
    metadata = {each["artifactTypeName"]: json.loads(each["metadata"]) for each in server.artifacts}
    assert metadata["corpus"]["fingerprint"] == manifest.fingerprint
    assert metadata["model"]["sha256"]["step-60.ckpt"] == read_mark(attempts.run, 60).sha256
    assert "0123456789" not in attempts.told()


def test_three_attempts_kept_offline_are_sent_as_one_curve(make_corpus: Callable[..., str], tmp_path: Path) -> None:
    attempts = Attempts(tmp_path, make_corpus())
    attempts.three("tracking.mode=offline")
    line = str(what_waits(attempts.run))
    assert line.startswith("3 parts of this run are kept offline; to send: wandb sync /")
    assert line in attempts.told()
    with serving() as server:
        key = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0123456789" * 4}
        for command in (each.split() for each in line.partition("to send: ")[2].split("; ")):
            done = subprocess.run(
                [str(Path(sys.executable).parent / command[0]), *command[1:]],
                env=attempts.environment | key,
                cwd=tmp_path,  # where wandb leaves logs of its own
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        assert_one_curve(server, attempts, complete=False)
    left = str(what_waits(attempts.run))  # what a kill has cut off is never whole; all of the others is sent
    assert left == "None" or left.startswith("1 part of this run is kept offline")


@pytest.mark.parametrize(
    ("harm", "more", "code", "title"),
    [
        ("time.sleep(3600 if step == 12 else 0)", ["guard.hang_seconds=3"], 75, "training hangs"),
        ("self.model.embedding_VE.data.fill_(float('nan')) if step == 12 else None", [], 2, "bad loss"),
    ],
)
def test_a_hang_and_a_bad_loss_are_alerts(
    harm: str, more: list[str], code: int, title: str, make_corpus: Callable[..., str], tmp_path: Path
) -> None:
    with serving() as server:
        attempts = Attempts(tmp_path, make_corpus(), WANDB_BASE_URL=server.url, WANDB_API_KEY="0123456789" * 4)
        assert attempts.begin(*more, harm=harm).wait(PATIENCE_SECONDS) == code, attempts.told()
        assert [each["title"] for each in server.alerts] == [title]
        assert "12" in server.alerts[0]["text"] or "11" in server.alerts[0]["text"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_hang_of_one_of_two_workers_is_an_alert_whichever_it_is(
    rank: int, make_corpus: Callable[..., str], tmp_path: Path
) -> None:
    """The first rank alone has a dashboard; of its own hang the next group tells, once."""
    once = f"not __import__('os').path.exists('{tmp_path}/hung') and open('{tmp_path}/hung', 'x')"
    harm = f"time.sleep(3600 if step == 12 and self.ranks.rank == {rank} and {once} else 0)"
    with serving() as server:
        attempts = Attempts(tmp_path, make_corpus(), WANDB_BASE_URL=server.url, WANDB_API_KEY="0123456789" * 4)
        process = attempts.begin("guard.hang_seconds=3", "cluster.num_workers=2", harm=harm)
        assert process.wait(PATIENCE_SECONDS) == 0, attempts.told()
        titles = [each["title"] for each in server.alerts]
        assert titles.count("training goes on after a hang") == 1
        assert titles in (["training hangs", "training goes on after a hang"], ["training goes on after a hang"])
        assert f"rank {rank} stood still" in server.alerts[-1]["text"]
