"""`python -m jobs report`, of a run that was trained."""

import hashlib
import json
from pathlib import Path

import pytest

from jobs.__main__ import main
from pipeline.runner import train

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree")  # 2.6, every fit


@pytest.fixture
def run(tmp_path, make_corpus, small_config):
    folder = str(tmp_path / "run")
    train(small_config(f"data={make_corpus()}", f"run={folder}", "max_steps=6"))
    return folder


def test_a_run_is_reported_with_all_that_it_was_made_of(run, capsys):
    assert main(["report", f"runs={run}"]) == 0
    files = [line.rpartition(" (")[0] for line in capsys.readouterr().out.splitlines()]
    assert files[0] == f"{run}/report.html"
    text = Path(files[0]).read_text()
    marks = [json.loads(path.read_text()) for path in Path(run, "checkpoints").glob("*.json")]
    assert {
        hashlib.sha256(Path(run, "checkpoints", f"step-{mark['step']}.ckpt").read_bytes()).hexdigest() for mark in marks
    } == {mark["sha256"] for mark in marks}
    last = max(marks, key=lambda mark: mark["step"])
    for word in (last["sha256"], last["identity"]["corpus"], last["identity"]["vocabulary"], "trained on this corpus"):
        assert word in text
    assert "cannot be reached" not in text
    for key in ("model.softmax.cutoffs", "[10,30]", "torch", "python"):
        assert key in text


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "runs=null is not given"),
        (["runs=[]"], "runs=[]"),
        (["runs=nowhere"], "holds no events.jsonl"),
        (["runs=nowhere", "out=page.pdf"], "out=page.pdf is no name of a page; use out=FILE.html"),
        (["runs=s3://bucket/run"], "is not local; use out=FILE.html"),
    ],
)
def test_a_mistake_costs_one_line(arguments, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not [*tmp_path.iterdir()]
