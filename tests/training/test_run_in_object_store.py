"""A run folder on a real S3 API: the same training, the same bits, and whatever is there is whole."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import storage
from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.run.account import account
from pipeline.run.checkpoint import checkpoint_path, committed_steps, load_checkpoint
from pipeline.run.ledger import events_of_run, read_events
from pipeline.runner import train
from pipeline.training import sync
from pipeline.training.module import LanguageModelModule
from pipeline.training.restore import load_trained

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree"),  # Lightning 2.6, every fit
]


@pytest.fixture
def bucket_folder(s3_bucket: str) -> str:
    return f"{s3_bucket}/{uuid.uuid4().hex[:8]}"


def records(run: str) -> list[dict[str, Any]]:
    lines = storage.read_bytes(f"{run}/metrics.jsonl").decode().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not key.startswith(("speed/", "run/"))}
        for line in lines
    ]


def assert_same_end(run: str, other: str, step: int) -> None:
    left, right = (load_checkpoint(checkpoint_path(each, step)) for each in (run, other))
    for name, weights in left["state_dict"].items():
        assert torch.equal(weights, right["state_dict"][name]), name
    assert records(run) == records(other)


def test_a_run_there_is_the_run_here(
    bucket_folder: str, make_corpus: Callable[..., str], small_config: Callable[..., Config], tmp_path: Path
) -> None:
    here, there = str(tmp_path / "run"), f"{bucket_folder}/run"
    common = [f"data={make_corpus()}", "checkpoint.every_steps=10", "checkpoint.validate_every_steps=15"]
    train(small_config(*common, "max_steps=40", f"run={here}"))
    train(small_config(*common, "max_steps=23", f"run={there}"))
    outcome = train(small_config(*common, "max_steps=40", f"run={there}"))
    assert (outcome.run, outcome.first_step) == (there, 23)
    left, right = (load_checkpoint(checkpoint_path(each, 40)) for each in (here, there))
    for name, weights in left["state_dict"].items():
        assert torch.equal(weights, right["state_dict"][name]), name
    losses = [[line.get("train/nats_per_token") for line in records(run)] for run in (here, there)]
    assert losses[0] == losses[1]
    assert committed_steps(there) == committed_steps(here)
    assert load_trained(there, "best").step == load_trained(here, "best").step
    assert account(events_of_run(there), now=time.time()).state == "finished"
    names = {name.removeprefix(there) for name in storage.list_files(there)}
    assert {"/config.yaml", "/metrics.jsonl", "/events.jsonl", "/checkpoints/step-40.ckpt"} <= names


def test_a_damaged_object_is_passed_over(
    bucket_folder: str, make_corpus: Callable[..., str], small_config: Callable[..., Config]
) -> None:
    run = f"{bucket_folder}/run"
    common = [f"data={make_corpus()}", "checkpoint.every_steps=10", f"run={run}"]
    train(small_config(*common, "max_steps=20"))
    newest = checkpoint_path(run, 20)
    storage.publish_bytes(newest, storage.read_bytes(newest)[:-7])
    assert train(small_config(*common, "max_steps=30")).first_step == 10


def test_between_checkpoints_no_step_waits_for_the_store(
    bucket_folder: str,
    make_corpus: Callable[..., str],
    small_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the first step to the last, all that is asked of it is asked by other threads."""
    run, asked, steps = f"{bucket_folder}/run", set[str](), list[int]()

    def resolve(path: str, sound: Any = storage.resolve) -> Any:
        if path.startswith("s3://") and 0 < len(steps) < 39:
            asked.add(threading.current_thread().name)
        return sound(path)

    def step(self: LanguageModelModule, *arguments: Any, sound: Any = LanguageModelModule.training_step) -> Any:
        steps.append(1)
        return sound(self, *arguments)

    local = storage.is_local
    monkeypatch.setattr(storage, "is_local", lambda path: local(path) if not path.startswith("s3://") else False)
    monkeypatch.setattr(storage, "resolve", resolve)
    monkeypatch.setattr(LanguageModelModule, "training_step", step)
    monkeypatch.setattr(sync, "PROGRESS_SECONDS", 0.0)
    train(small_config(f"data={make_corpus()}", "checkpoint.every_steps=10", "max_steps=40", f"run={run}"))
    assert len(steps) == 40
    assert asked <= {"ledger", "checkpoint_0"}
    assert storage.list_files(f"{run}/events") == []
    assert account(events_of_run(run), now=time.time()).state == "finished"
    progress = [event for event in read_events(run) if event["event"] == "progress"]
    assert len(progress) < 15, "signs of life in a row are one"


def test_a_ledger_that_cannot_be_gathered_at_the_end_costs_nothing(
    bucket_folder: str,
    make_corpus: Callable[..., str],
    small_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, removed = f"{bucket_folder}/run", []

    def fail(path: str, sound: Any = storage.remove) -> None:
        removed.append(path)
        if "/events/" in path:
            raise ConfigError("nobody answers")
        sound(path)

    with monkeypatch.context() as broken:
        broken.setattr(storage, "remove", fail)
        config = small_config(f"data={make_corpus()}", "max_steps=4", f"run={run}")
        assert train(config).step == 4
    assert removed
    assert [event["event"] for event in read_events(run)].count("end") == 1
    assert train(config.model_copy(update={"max_steps": 6})).first_step == 4
    assert account(events_of_run(run), now=time.time()).num_attempts == 2


@pytest.mark.slow
def test_kill_9_of_a_run_there(
    bucket_folder: str, make_corpus: Callable[..., str], small_config: Callable[..., Config], tmp_path: Path
) -> None:
    here, there = str(tmp_path / "run"), f"{bucket_folder}/run"
    overrides = ["max_steps=120", "checkpoint.every_steps=5", f"run={here}", "cluster.cpus_per_worker=1"]
    config = small_config(f"data={make_corpus()}", *overrides)
    train(config)
    script = tmp_path / "go.py"
    script.write_text(
        "import sys\nfrom pipeline.config import Config, validated\nfrom pipeline.runner import train\n"
        "train(validated(Config, sys.stdin.read()))\n"
    )
    kills = 0
    generator = torch.Generator().manual_seed(0)
    while not committed_steps(there) or committed_steps(there)[-1] < 120:
        process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, cwd=Path.cwd())
        assert process.stdin is not None
        process.stdin.write(config.model_copy(update={"run": there}).model_dump_json().encode())
        process.stdin.close()
        at_start = committed_steps(there)
        while kills < 2 and process.poll() is None and committed_steps(there) == at_start:
            time.sleep(0.02)  # until it has come further than before
        if kills < 2:
            time.sleep(float(torch.rand((), generator=generator)) * 0.3)
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 2
    assert_same_end(here, there, 120)
