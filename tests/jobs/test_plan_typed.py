"""`plan` as a user types it: what it prints, what it leaves, and what it refuses."""

import json

import pytest
from support.typed import MODEL

from jobs.__main__ import main
from pipeline.run.plan import read_plan


@pytest.fixture
def typed_plan(make_corpus, tmp_path, capsys):
    """(more arguments) → exit code, standard output, standard error."""
    data, run = make_corpus(), str(tmp_path / "run")

    def make(*more):
        code = main(["plan", f"data={data}", f"run={run}", *MODEL, "plan.words_per_second=1000", *more])
        return (code, *capsys.readouterr())

    return make


def test_the_table(typed_plan, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = typed_plan(
        "max_epochs=3", "plan.price_per_hour=3", "plan.device_memory_gb=80", "cluster.num_workers=3"
    )
    assert (code, err) == (0, "")
    found = read_plan(str(tmp_path / "run"))
    assert f"{found.total_steps:,}, {found.steps_per_epoch:,} an epoch, 3 epochs" in out
    assert f"{found.parameters.total:,}: embedding {found.parameters.embedding:,}" in out
    assert "3 on 3 devices, 1 on each" in out
    assert "of 80 GB: weights" in out
    assert "at 3 an hour and device" in out
    assert "words/s as given; activations as a cpu keeps them" in out


def test_json_is_what_is_kept(typed_plan, tmp_path):
    code, out, err = typed_plan("--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads((tmp_path / "run" / "plan.json").read_text())
    assert json.loads(out)["cost"] is None
    assert {"total_steps", "lanes_per_rank", "memory_bytes", "checkpoint_bytes", "hours"} < json.loads(out).keys()


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (
            ["plan.device_memory_gb=0.00005"],
            ["a device has 50 kB and the run needs ", "; one lane takes ", "use devices of plan.device_memory_gb=0.01"],
        ),
        (["cluster.num_workers=2"], ["cluster.num_workers=2 does not divide stream.num_lanes=3", "1 or 3"]),
        (["plan.device_memory_gb=0"], ["plan.device_memory_gb=0"]),
        (["plan.words_per_secnd=3"], ["did you mean plan.words_per_second?"]),
    ],
)
def test_a_refusal_is_one_line_and_leaves_nothing(typed_plan, tmp_path, more, parts):
    code, out, err = typed_plan(*more)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert all(part in err for part in parts), err
    assert not (tmp_path / "run").exists()
