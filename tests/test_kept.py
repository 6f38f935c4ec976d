"""A corpus and a run that an early version wrote: they verify, report, evaluate and resume as then, to the bit.

The bits of a sum depend on the processor's instructions, so these runs are made with those that every x86-64 has.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import upgrades
from pipeline.config import Config, flat, load, validated
from pipeline.corpus.manifest import read_manifest
from pipeline.run.checkpoint import checkpoint_path, load_checkpoint
from pipeline.training.restore import read_config

ROOT = Path(__file__).resolve().parents[1]
KEPT = Path(__file__).resolve().parent / "kept"
ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
}
CORPUS = [
    "corpus.train=[text/a.txt,text/b.jsonl]",
    "corpus.words=words",
    "corpus.lowercase=true",
    "corpus.documents=lines",
    "corpus.valid_fraction=0.15",
    "corpus.test_fraction=0.15",
    "corpus.vocabulary.size=300",
    "corpus.unit_bytes=4096",
]
SETTINGS = [
    "stream.num_lanes=4",
    "stream.bptt=8",
    "stream.state=carry",
    "model.embedding_size=12",
    "model.hidden_size=16",
    "model.num_layers=2",
    "model.projection_size=8",
    "model.dropout=0.3",
    "model.softmax.cutoffs=[40,120]",
    "model.softmax.div_value=2",
    "optim=sgd",
    "optim.lr=0.5",
    "optim.momentum=0.9",
    "optim.schedule.kind=plateau",
    "optim.schedule.divide_by=2",
    "checkpoint.validate_every_steps=13",
    "checkpoint.every_steps=6",
    "logging.every_steps=1",
    "logging.progress=false",
    "tracking.kind=none",
    "accelerator=cpu",
    "cluster.cpus_per_worker=1",
    "guard.spike_deviations=50",
    "guard.spike_window_steps=10",
]
LAST_STEP = 70
EVALUATIONS = [(split, which) for split in ("valid", "test") for which in ("best", "last")]


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The folder, to be written to."""
    return Path(shutil.copytree(KEPT, tmp_path / "kept"))


def jobs(*arguments: str, folder: Path) -> str:
    """What a command printed, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *arguments],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def digest(value: object) -> str:
    """Of every bit of a value as checkpoints hold them; of a dictionary's order nothing."""
    found = hashlib.sha256()

    def take(value: object) -> None:
        if isinstance(value, torch.Tensor):
            array = value.detach().cpu().contiguous().numpy()
            found.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                found.update(f"key {key}".encode())
                take(value[key])
        elif isinstance(value, list | tuple):
            found.update(f"list {len(value)}".encode())
            for each in value:
                take(each)
        else:
            found.update(f"{type(value).__name__} {value!r}".encode())

    take(value)
    return found.hexdigest()


def outcome(folder: Path) -> dict[str, Any]:
    """What is expected to stay: of the corpus, the run as it lies, and what becomes of it when it goes on."""
    evaluated = [
        json.loads(
            jobs("evaluate", "data=corpus", "run=run", f"split={split}", f"checkpoint={which}", "--json", folder=folder)
        )
        for split, which in EVALUATIONS
    ]
    status = json.loads(jobs("status", "run=run", "--json", folder=folder))
    jobs("train", "data=corpus", "run=run", *SETTINGS, f"max_steps={LAST_STEP}", folder=folder)
    checkpoint = load_checkpoint(checkpoint_path(str(folder / "run"), LAST_STEP))
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return {
        "fingerprint": read_manifest(str(folder / "corpus")).fingerprint,
        "verified": jobs("verify", "data=corpus", folder=folder),
        "evaluated": evaluated,
        "status": status,
        "records": [{key: value for key, value in line.items() if not key.startswith("speed/")} for line in lines],
        "state_dict": {key: digest(value) for key, value in checkpoint["state_dict"].items()},
        "optimizer_states": digest(checkpoint["optimizer_states"]),
        "wordlanes": {key: digest(value) for key, value in checkpoint["wordlanes"].items() if key != "identity"},
        "identity": checkpoint["wordlanes"]["identity"],
    }


def assert_contains(found: object, expected: object, place: str = "") -> None:
    """Equal in all that is expected; a dictionary may have got keys since."""
    if isinstance(expected, dict):
        assert isinstance(found, dict), place
        for key, value in expected.items():
            assert key in found, f"{place}.{key}"
            assert_contains(found[key], value, f"{place}.{key}")
    elif isinstance(expected, list):
        assert isinstance(found, list), place
        assert len(found) == len(expected), place
        for at, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_contains(one, other, f"{place}[{at}]")
    else:
        assert found == expected, place


def test_a_run_of_before_verifies_reports_evaluates_and_resumes_to_the_bit(kept: Path) -> None:
    assert_contains(outcome(kept), json.loads((KEPT / "expected.json").read_text()))


def test_the_text_of_before_gives_the_same_corpus(kept: Path) -> None:
    jobs("prepare", "data=anew", *CORPUS, folder=kept)
    for path in sorted((KEPT / "corpus").rglob("*.arrow")):
        place = path.relative_to(KEPT / "corpus")
        if not place.parts[0].startswith("."):
            assert (kept / "anew" / place).read_bytes() == path.read_bytes(), place
    anew, before = read_manifest(str(kept / "anew")), read_manifest(str(KEPT / "corpus"))
    assert anew.fingerprint == before.fingerprint
    assert anew.configuration == before.configuration


def test_a_corpus_of_before_is_gone_on_with(kept: Path) -> None:
    before = {path: path.read_bytes() for path in sorted((kept / "corpus").glob("*/*.arrow"))}
    receipts = sorted((kept / "corpus" / ".work").glob("t*/*.json"))
    keys = [json.loads(path.read_text())["key"] for path in receipts]
    jobs("prepare", "data=corpus", *CORPUS, folder=kept)
    assert [json.loads(path.read_text())["key"] for path in receipts] == keys != []
    assert {path: path.read_bytes() for path in sorted((kept / "corpus").glob("*/*.arrow"))} == before
    assert read_manifest(str(kept / "corpus")).fingerprint == read_manifest(str(KEPT / "corpus")).fingerprint


def test_a_new_key_gets_its_value_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrades, "CONFIGURATION", {"model.new": 1.5, "corpus.vocabulary.new": None, "gone.new": 2})
    monkeypatch.setattr(upgrades, "CONFIGURATION_VALUES", {("tracking.mode", "auto"): None})
    monkeypatch.setattr(upgrades, "SECTIONS", ("later",))
    monkeypatch.setattr(upgrades, "MANIFEST", {"digest": None, "splits.*.num_new": 0})
    tree = {"model": {"old": 1}, "corpus": {"vocabulary": {"new": 3}}, "tracking": {"mode": "auto"}}
    assert upgrades.upgraded_configuration(tree) == {
        "model": {"old": 1, "new": 1.5},
        "corpus": {"vocabulary": {"new": 3}},
        "tracking": {"mode": None},
        "later": {},
    }
    assert upgrades.upgraded_manifest(
        {"splits": {"a": {"num_new": 1}, "b": {}}, "configuration": {"vocabulary": {}}}
    ) == {
        "digest": None,
        "splits": {"a": {"num_new": 1}, "b": {"num_new": 0}},
        "configuration": {"vocabulary": {"new": None}},
    }
    found = upgrades.upgraded_identity({"model.old": "1"}, needed=["model.old", "model.new"])
    assert found == {"model.old": "1", "model.new": "1.5"}


def test_every_row_of_the_table_is_a_key_of_today_and_no_key_of_the_kept_run() -> None:
    kept = flat(read_config(str(KEPT / "run")))
    assert {*upgrades.CONFIGURATION, *(key for key, _ in upgrades.CONFIGURATION_VALUES)} <= {*flat(load(Config, []))}
    assert {*kept} == {*flat(load(Config, []))}


def test_a_configuration_of_the_demo_of_before_is_read() -> None:
    tree = json.loads(load(Config, ["experiment=demo"]).model_dump_json())
    tree["corpus"] |= {"source": "python_docs", "train": None, "valid": None, "test": None}
    tree["corpus"] |= {"valid_fraction": 0.05, "test_fraction": 0.05}
    assert validated(Config, json.dumps(upgrades.upgraded_configuration(tree))).corpus.source == "files"
