"""Training from a corpus on a real S3 API, through this machine's cache: the same bits, and each shard fetched once."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.same import assert_same

from jobs.__main__ import main
from pipeline import storage
from pipeline.config import Config, EvaluateConfig, load
from pipeline.corpus.cache import ShardCache
from pipeline.corpus.manifest import read_manifest
from pipeline.errors import ConfigError, CorpusError
from pipeline.evaluation import evaluate_split
from pipeline.run.checkpoint import checkpoint_path, committed_steps, load_checkpoint
from pipeline.run.stop import ATTEMPT_NAME
from pipeline.runner import plan_run, train
from pipeline.training import worker

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree"),  # Lightning 2.6, every fit
]
NAMES = r"\w+/(?:train|valid)/\d+\.arrow"
TOTAL = 100  # steps; an epoch has 48
SETTINGS = [f"max_steps={TOTAL}", "stream.num_lanes=4", "stream.bptt=7", "checkpoint.validate_every_steps=40"]
SCRIPT = """
import sys
from pipeline.config import Config, validated
from pipeline.runner import train
if __name__ == "__main__":
    train(validated(Config, sys.stdin.read()))
"""


class Remote:
    """A corpus here and the same in the store; runs on both."""

    def __init__(
        self,
        folder: Path,
        bucket: str,
        data: str,
        small_config: Callable[..., Config],
        told: pytest.LogCaptureFixture,
    ) -> None:
        self.told = told
        self.folder, self.here, self.there = folder, data, f"{bucket}/{uuid.uuid4().hex[:8]}"
        self.cache = folder / "cache"
        self._small_config = small_config
        for path in storage.list_files(data):
            storage.publish_bytes(f"{self.there}{path.removeprefix(data)}", Path(path).read_bytes())
        manifest = read_manifest(data)
        self.shards = manifest.shards_of("train", "valid")
        self.largest = max(shard.size_bytes for shard in self.shards)

    def config(self, name: str, *overrides: str, there: bool = True) -> Config:
        places = [f"data={self.there if there else self.here}", f"run={self.folder / name}"]
        return self._small_config(*SETTINGS, *places, f"stream.cache_folder={self.cache}", *overrides)

    def smallest(self) -> str:
        return f"stream.cache_gb={4 * self.largest / 1e9!r}"

    def fetched(self) -> Counter[str]:
        """How often each shard was read, by the store's own account."""
        found = (re.search(rf"GET /bucket/({NAMES})", record.getMessage()) for record in self.told.get_records("call"))
        return Counter(each[1] for each in found if each)

    def kept(self) -> list[str]:
        return sorted(path.name for path in self.cache.iterdir() if path.name != ".lock")

    def assert_same(self, name: str, other: str) -> None:
        left, right = (load_checkpoint(checkpoint_path(str(self.folder / each), TOTAL)) for each in (name, other))
        assert_same(left["state_dict"], right["state_dict"])
        assert_same(left["optimizer_states"], right["optimizer_states"])
        assert losses(self.folder / name) == losses(self.folder / other)


def losses(run: Path) -> list[Any]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[line["step"], line.get("train/nats_per_token"), line.get("valid/nats_per_token")] for line in lines]


@pytest.fixture
def remote(
    s3_bucket: str,
    make_corpus: Callable[..., str],
    small_config: Callable[..., Config],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> Remote:
    caplog.set_level(logging.INFO, logger="werkzeug")  # moto's server, a thread of this process
    data = make_corpus(shards=9, train=1200, valid=150, test=170)
    return Remote(tmp_path, s3_bucket, data, small_config, caplog)


def counted(patch: pytest.MonkeyPatch, kind: type, name: str) -> list[tuple[Any, ...]]:
    """The arguments of each call of a method from now on."""
    real, calls = getattr(kind, name), []

    def noted(self: object, *given: Any) -> Any:
        calls.append(given)
        return real(self, *given)

    patch.setattr(kind, name, noted)
    return calls


def begin(config: Config, script: Path) -> subprocess.Popen[bytes]:
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    process.stdin.write(config.model_dump_json().encode())
    process.stdin.close()
    return process


@pytest.mark.slow
def test_a_run_from_there_is_the_run_from_here_and_fetches_each_shard_once(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(remote.config("here", there=False))
    assert not remote.cache.exists()
    with pytest.MonkeyPatch.context() as patch:
        known = counted(patch, ShardCache, "on_release"), counted(patch, ShardCache, "off_release")
        train(remote.config("there"))
    assert [len(each) for each in known] == [2, 2]  # train and valid, which are known no longer
    remote.assert_same("here", "there")
    fetched = remote.fetched()
    assert sorted(fetched.values()) == [1] * len(remote.shards)
    assert remote.kept() == sorted(shard.sha256 for shard in remote.shards)
    train(remote.config("again", remote.smallest()))  # in the same folder, which is more than it may hold
    remote.assert_same("here", "again")
    assert sum((remote.cache / name).stat().st_size for name in remote.kept()) <= 4 * remote.largest
    steps = counted(monkeypatch, ShardCache, "at")
    here, there = (
        evaluate_split(
            load(
                EvaluateConfig,
                [f"run={remote.folder / 'there'}", f"data={data}", f"cache_gb={remote.largest / 1e9!r}"],
                name="evaluate",
            )
        )
        for data in (remote.here, remote.there)
    )
    assert (here.score, here.unigram) == (there.score, there.unigram)
    assert steps == [(0,), (0,), (1,), (1,)]  # the beginning and the end of either pass, of less than a window


@pytest.mark.slow
def test_options_of_evaluation_read_other_splits_from_there_with_the_same_score(remote: Remote) -> None:
    """Gradients on train, weights on valid, the test split twice: each through the cache, within the smallest bound."""
    train(remote.config("run", "max_steps=5", there=False))
    run = remote.folder / "run"
    options = ["dynamic.lr=0.001", "dynamic.num_lanes=2", "dynamic.segment=7", "neural_cache.size=20", f"mix=[{run}]"]
    bound = f"cache_gb={2 * remote.largest / 1e9!r}"  # two lanes of train, or two readers
    here, there = (
        evaluate_split(
            load(
                EvaluateConfig,
                [f"run={run}", f"data={data}", f"cache_folder={remote.cache}", bound, *options],
                name="evaluate",
            )
        )
        for data in (remote.here, remote.there)
    )
    assert (here.score, here.unigram, here.protocol) == (there.score, there.unigram, there.protocol)
    assert {name.split("/")[1] for name in remote.fetched()} == {"train", "valid"}
    held = [(remote.cache / name).stat().st_size for name in remote.kept()]
    assert 0 < sum(held) <= 2 * remote.largest
    with pytest.raises(ConfigError, match="2 lanes"):
        smaller = f"cache_gb={1.9 * remote.largest / 1e9!r}"
        places = [f"run={run}", f"data={remote.there}", f"cache_folder={remote.cache}"]
        evaluate_split(load(EvaluateConfig, [*places, smaller, *options], name="evaluate"))


@pytest.mark.slow
@pytest.mark.parametrize("smallest", [False, True])
def test_two_ranks_share_a_cache_and_a_kill_while_one_fetches_costs_nothing(remote: Remote, smallest: bool) -> None:
    two = ["cluster.num_workers=2", "cluster.cpus_per_worker=1", "checkpoint.every_steps=10"]
    assert begin(remote.config("here", *two, there=False), remote.folder / "go.py").wait() == 0
    config = remote.config("there", *two, *([remote.smallest()] if smallest else []))
    process = begin(config, remote.folder / "go.py")
    while not (remote.cache.exists() and any(name.endswith(".part") for name in remote.kept())):
        assert process.poll() is None
        time.sleep(0.001)
    for each in descendants(process.pid):
        os.kill(each, signal.SIGKILL)
    process.kill()
    process.wait()
    assert begin(config, remote.folder / "go.py").wait() == 0
    assert committed_steps(str(remote.folder / "there"))[-1] == TOTAL
    remote.assert_same("here", "there")
    if not smallest:
        assert remote.kept() == sorted(shard.sha256 for shard in remote.shards)
        cut = sum(remote.fetched().values()) - len(remote.shards)
        assert 0 <= cut <= 2 * 3  # what two threads and the reader of each rank had begun


def descendants(process: int) -> list[int]:
    found = [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return [*found, *(below for each in found for below in descendants(each))]


def test_a_cache_without_room_for_the_lanes_is_refused_before_anything_is_written(
    remote: Remote, capsys: pytest.CaptureFixture[str]
) -> None:
    small = f"stream.cache_gb={3.9 * remote.largest / 1e9!r}"
    with pytest.raises(ConfigError, match="4 lanes × the largest token shard"):
        train(remote.config("run", small))
    assert not (remote.folder / "run").exists()
    assert not remote.cache.exists()
    places = [f"data={remote.there}", f"run={remote.folder / 'run'}", f"stream.cache_folder={remote.cache}"]
    assert main(["train", *places, small, *SETTINGS, "accelerator=cpu"]) == 2
    told = capsys.readouterr().err.strip()
    assert "\n" not in told
    assert "stream.cache_gb=" in told
    assert torch.cuda.is_available() or remote.fetched() == {}


def test_a_manifest_there_without_the_fingerprint_of_its_shards_is_refused(remote: Remote) -> None:
    path = f"{remote.there}/manifest.json"
    manifest = json.loads(storage.read_bytes(path))
    storage.publish_bytes(path, json.dumps(manifest | {"fingerprint": "0" * 64}).encode())
    config = remote.config("run")
    with pytest.raises(CorpusError, match="does not have the fingerprint of its shards"):
        train(config)
    assert not (remote.folder / "run").exists()
    job = plan_run(config, {}).job
    storage.publish_bytes(f"{job.run}/{ATTEMPT_NAME}", str(job.attempt).encode())  # as a worker finds it
    with pytest.raises(CorpusError, match="does not have the fingerprint of its shards"):
        worker._common_ground(job)
    assert remote.fetched() == {}


def test_a_damaged_shard_there_is_refused_by_name(remote: Remote) -> None:
    name = f"{remote.there}/train/00000.arrow"
    whole = storage.read_bytes(name)
    storage.publish_bytes(name, whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(Exception, match=rf"{name}: found sha256 \w+, needed \w+, 2 times"):
        train(remote.config("run"))
