"""Laws 2, 3 and 5 on real processes that talk over gloo: the number of workers changes nothing but the rounding."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import runner as trainer
from pipeline.config import Config
from pipeline.corpus.lanes import LanePlan
from pipeline.corpus.manifest import read_manifest
from pipeline.errors import ConfigError
from pipeline.run.checkpoint import checkpoint_path, load_checkpoint
from pipeline.run.ledger import read_events
from pipeline.runner import train

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree"),  # Lightning 2.6, every fit
]

NUM_TARGETS = 4 * 7 * 10 + 1  # 4 lanes, bptt 7: in the last window the last lane alone has a target
WINDOWS = 11
TrainOn = Callable[..., dict[str, Any]]


@pytest.fixture
def data(make_corpus: Callable[..., str]) -> str:
    """A corpus of just that many targets: made_text writes a line end after every 11 words."""
    folder = make_corpus(train=257, valid=60)
    assert read_manifest(folder).splits["train"].num_tokens == NUM_TARGETS
    plan = LanePlan(num_targets=NUM_TARGETS, num_lanes=4, bptt=7)
    assert (plan.num_windows, plan.lengths(10).tolist()) == (WINDOWS, [0, 0, 0, 1])
    return folder


@pytest.fixture
def train_on(data: str, small_config: Callable[..., Config], tmp_path: Path) -> TrainOn:
    """Trains with so many workers: (workers, overrides, run=) → the last checkpoint."""

    def go(num_workers: int, *overrides: str, run: str) -> dict[str, Any]:
        outcome = train(
            small_config(
                f"data={data}",
                f"run={tmp_path / run}",
                "stream.num_lanes=4",
                "optim=sgd",
                "optim.lr=1",
                "optim.clip_norm=0.2",
                "max_steps=30",
                f"cluster.num_workers={num_workers}",
                *overrides,
            )
        )
        return load_checkpoint(checkpoint_path(str(tmp_path / run), outcome.step))

    return go


def records(run: Path) -> list[dict[str, Any]]:
    """The run's metrics without what the clock decides."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(("speed/", "run/"))} for line in lines]


def assert_close(run: Path, checkpoint: dict[str, Any], other_run: Path, other: dict[str, Any]) -> None:
    """The same training but for rounding: every loss, every norm before clipping, the weights, the carried state."""
    mine, theirs = records(run), records(other_run)
    assert [line.keys() for line in mine] == [line.keys() for line in theirs]
    for one, another in zip(mine, theirs, strict=True):
        assert one == pytest.approx(another, rel=1e-5, abs=1e-9)
    torch.testing.assert_close(checkpoint["state_dict"], other["state_dict"], rtol=1e-4, atol=1e-6)
    averaged, others = (each["wordlanes"]["averaged"] for each in (checkpoint, other))
    torch.testing.assert_close(averaged, others, rtol=1e-4, atol=1e-6)
    for name in checkpoint["wordlanes"]["state_names"]:
        torch.testing.assert_close(checkpoint["wordlanes"][name], other["wordlanes"][name], rtol=1e-4, atol=1e-6)
    for name in ("tokens_seen", "interval_targets", "validations", "identity", "num_averaged"):
        assert checkpoint["wordlanes"][name] == pytest.approx(other["wordlanes"][name])


def assert_same(checkpoint: dict[str, Any], other: dict[str, Any]) -> None:
    """Equal in every bit."""
    for name, weights in checkpoint["state_dict"].items():
        assert torch.equal(weights, other["state_dict"][name]), name
    for name, value in checkpoint["wordlanes"].items():
        theirs = other["wordlanes"][name]
        assert torch.equal(value, theirs) if isinstance(value, torch.Tensor) else value == theirs, name


CASES = {
    "dropout, carried state": ["stream.state=carry"],
    "no dropout, reset state, plateau": [
        "model.dropout=0",
        "optim.schedule.kind=plateau",
        "optim.schedule.divide_by=2",
        "checkpoint.validate_every_steps=4",
    ],
    "tied, full softmax": ["model.tied=true", "model.embedding_size=5", "model.softmax.kind=full"],
    "drawn windows": ["stream.bptt=10", "stream.random_bptt=true", "stream.state=carry"],
    "averaging": ["optim.averaging=start", "checkpoint.validate_every_steps=4"],
    "blocks": ["stream.order=blocks", "stream.block_tokens=20", "stream.state=carry"],
    "AWD-LSTM": [
        "stream.state=carry",
        "model.embedding_size=4",
        "model.tied=true",
        "model.softmax.kind=full",
        "model.recurrence.last_size=4",
        "model.recurrence.weight_dropout=0.5",
        "model.regularization.locked=true",
        "model.regularization.input_dropout=0.4",
        "model.regularization.layer_dropout=0.2",
        "model.regularization.embedding_dropout=0.1",
        "model.regularization.activation=2",
        "model.regularization.temporal=20",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES.keys())
def test_any_number_of_workers_makes_the_same_updates(overrides: list[str], train_on: TrainOn, tmp_path: Path) -> None:
    """Windows in which some ranks have no target, and clusters without one, are among the steps."""
    alone = train_on(1, *overrides, run="alone")
    norms = [line["train/gradient_norm"] for line in records(tmp_path / "alone") if "train/gradient_norm" in line]
    assert max(norms) > 0.2 > min(norms), "the test must see steps that are clipped and steps that are not"
    for num_workers in (2, 4):
        several = train_on(num_workers, *overrides, run=f"on{num_workers}")
        assert_close(tmp_path / f"on{num_workers}", several, tmp_path / "alone", alone)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_workers(train_on: TrainOn, tmp_path: Path) -> None:
    """4 → 2 → 1 → 4, within an epoch, at its end and after it, with the lanes' state carried over all of it."""
    overrides = ("stream.state=carry", "checkpoint.validate_every_steps=9")
    whole = train_on(1, *overrides, run="whole")
    for num_workers, limit in ((4, 5), (2, WINDOWS), (1, WINDOWS + 3), (4, 30)):
        torn = train_on(num_workers, *overrides, f"max_steps={limit}", run="torn")
    ended_early = {5, WINDOWS, WINDOWS + 3}  # a run's end is validated, which the undisturbed run knows nothing of
    lines = [line for line in records(tmp_path / "torn") if "valid/perplexity" in line]
    assert ended_early <= {line["step"] for line in lines}
    for step in ended_early:
        del torn["wordlanes"]["validations"][step]
    kept = [
        {key: value for key, value in line.items() if line["step"] not in ended_early or not key.startswith("valid/")}
        for line in records(tmp_path / "torn")
    ]
    (tmp_path / "torn" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    assert_close(tmp_path / "torn", torn, tmp_path / "whole", whole)
    sizes = [
        (event["from_size"], event["to_size"])
        for event in read_events(str(tmp_path / "torn"))
        if event["event"] == "resize"
    ]
    assert sizes == [(4, 2), (2, 1), (1, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [2, 4])
def test_a_resume_with_the_same_number_of_workers_changes_no_bit(num_workers: int, train_on: TrainOn) -> None:
    """Four ranks' sums are rounded by the layout of DDP's buckets, which must therefore be the same from the start."""
    overrides = ("optim.clip_norm=null", "optim=adam", "optim.lr=0.01", "checkpoint.validate_every_steps=1000")
    whole = train_on(num_workers, *overrides, run="whole")
    train_on(num_workers, *overrides, "max_steps=13", run="torn")
    torn = train_on(num_workers, *overrides, run="torn")
    torn["wordlanes"]["validations"].pop(13)
    assert_same(torn, whole)


@pytest.mark.slow
def test_lanes_that_cannot_be_shared_out_evenly_are_trained_all_the_same(
    train_on: TrainOn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An elastic group that has lost a machine: three workers hold 1, 1 and 2 of four lanes."""
    alone = train_on(1, run="alone")
    monkeypatch.setattr(trainer, "check_world_size", lambda *arguments, **named: None)
    assert_close(tmp_path / "on3", train_on(3, run="on3"), tmp_path / "alone", alone)


def test_a_number_of_workers_that_does_not_divide_the_lanes_is_refused(train_on: TrainOn, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cluster.num_workers=3 does not divide stream.num_lanes=4; use .*=2 or 4"):
        train_on(3, run="refused")
    assert not (tmp_path / "refused").exists()
