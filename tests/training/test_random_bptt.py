"""`stream.random_bptt=true` in whole runs: what is read at which rate, what it is part of, what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.runs import assert_killed_ends_as_undisturbed, records, ruin_gradients

from pipeline.config import Config, PlanConfig, load
from pipeline.corpus.drawn_windows import stretch_lengths
from pipeline.corpus.lanes import LanePlan
from pipeline.corpus.manifest import read_manifest
from pipeline.corpus.order import Order
from pipeline.errors import ConfigError
from pipeline.planning import plan
from pipeline.run.checkpoint import checkpoint_path, load_checkpoint
from pipeline.run.ledger import read_events
from pipeline.runner import train
from pipeline.training import worker
from pipeline.training.data import Batch
from pipeline.training.parts import open_split
from pipeline.training.tiling import lane_plan, run_identity

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree")

RANDOM = ["stream.bptt=10", "stream.random_bptt=true"]
NUM_TARGETS = 1091
TILING = LanePlan(num_targets=NUM_TARGETS, num_lanes=3, bptt=10, window_seed=1)
WINDOWS = TILING.num_windows
SmallConfig = Callable[..., Config]
MakeCorpus = Callable[..., str]


def batches_of(config: Config, monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """What each step of a run reads."""
    found = []
    real = worker.on_device

    def noted(batches: object, device: torch.device) -> object:
        for batch in real(batches, device):  # type: ignore[arg-type]
            assert isinstance(batch, Batch)
            found.append(batch)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(worker, "on_device", noted)
        train(config)
    return found


@pytest.mark.parametrize(
    "blocks", [[], ["stream.order=blocks", "stream.block_tokens=60"]], ids=["sequential", "blocks"]
)
def test_each_step_reads_its_length_at_its_share_of_the_rate(
    blocks: list[str],
    make_corpus: MakeCorpus,
    small_config: SmallConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every lane goes on where it stopped, through two epochs; the rate is that of the length, also in the warm-up."""
    data, run = make_corpus(), str(tmp_path / "run")
    rate = ["optim=sgd", "optim.lr=0.5", "optim.schedule.warmup_steps=4"]
    found = batches_of(small_config(f"data={data}", f"run={run}", "max_epochs=2", *RANDOM, *rate, *blocks), monkeypatch)
    tokens = open_split(data, read_manifest(data), "train").read(0, NUM_TARGETS)
    order = Order(num_tokens=NUM_TARGETS, block_tokens=60 if blocks else None, seed=1)
    assert len(found) == 2 * WINDOWS
    heights = []
    for epoch in range(2):
        read = np.concatenate([tokens[start:stop] for start, stop in order.stored(epoch, 0, NUM_TARGETS)])
        before = np.concatenate([[0], read[:-1]])
        of_epoch = found[epoch * WINDOWS : (epoch + 1) * WINDOWS]
        for lane in range(3):
            inputs = np.concatenate([batch.inputs_TL[:, lane].numpy() for batch in of_epoch])
            start, stop = TILING.lane_start(lane), TILING.lane_start(lane + 1)
            assert inputs[: stop - start].tolist() == before[start:stop].tolist()
        heights.append([len(batch.inputs_TL) for batch in of_epoch])
    assert heights[0] != heights[1]
    assert set(heights[0][:-1]) <= set(stretch_lengths(10))
    assert len(set(heights[0])) > 4
    lines = records(run)
    assert [line["tokens_seen"] for line in lines] == np.cumsum([batch.num_targets for batch in found]).tolist()
    for line, height in zip(lines, heights[0] + heights[1], strict=True):
        assert line["train/learning_rate"] == pytest.approx(0.5 * min(1, line["step"] / 4) * height / 10, rel=1e-12)


@pytest.mark.parametrize("kills", [(WINDOWS - 7, WINDOWS - 3), (WINDOWS, WINDOWS + 1), (WINDOWS - 1, 2 * WINDOWS)])
def test_a_killed_run_ends_as_an_undisturbed_one(
    kills: tuple[int, int],
    make_corpus: MakeCorpus,
    small_config: SmallConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within an epoch, at its end and after it; twice in a row."""
    total = 2 * WINDOWS + 5
    common = [f"data={make_corpus()}", f"max_steps={total}", "checkpoint.every_steps=5", "stream.state=carry", *RANDOM]
    assert_killed_ends_as_undisturbed(
        small_config, common, kills=kills, folder=tmp_path, total=total, monkeypatch=monkeypatch
    )


def test_it_is_part_of_what_a_run_is(make_corpus: MakeCorpus, small_config: SmallConfig, tmp_path: Path) -> None:
    common = [f"data={make_corpus()}", f"run={tmp_path / 'run'}", "stream.bptt=10"]
    train(small_config(*common, "max_steps=3", "stream.random_bptt=true"))
    with pytest.raises(ConfigError, match="random_bptt was true and is false"):
        train(small_config(*common, "max_steps=4"))
    assert train(small_config(*common, "max_steps=4", "stream.random_bptt=true")).first_step == 3


def test_a_plain_run_is_what_it_was(make_corpus: MakeCorpus, small_config: SmallConfig, tmp_path: Path) -> None:
    """Its windows are all of bptt, and its rate is that of the schedule, to the bit, in a short last window too."""
    data, common, ends = make_corpus(), ["stream.bptt=10", "max_epochs=1", "optim=sgd", "optim.lr=0.7"], {}
    for name, changed in (("plain", []), ("random", ["stream.random_bptt=true"])):
        config = small_config(f"data={data}", f"run={tmp_path / name}", *common, *changed)
        step = train(config).step
        ends[name] = load_checkpoint(checkpoint_path(str(tmp_path / name), step))["state_dict"]
    assert {line["train/learning_rate"] for line in records(str(tmp_path / "plain"))} == {0.7}
    assert any(not torch.equal(ends["plain"][name], ends["random"][name]) for name in ends["plain"])
    tiling = lane_plan(small_config("stream.bptt=10"), read_manifest(data))
    assert tiling == LanePlan(num_targets=NUM_TARGETS, num_lanes=3, bptt=10)
    assert {tiling.share_of_bptt(step) for step in range(tiling.num_windows)} == {1.0}
    assert run_identity(small_config(), read_manifest(data), total_steps=1)["stream.random_bptt"] == "false"


def test_a_window_that_is_passed_over_is_the_one_that_was_read(
    make_corpus: MakeCorpus, small_config: SmallConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the second epoch, in which the same window has another length."""
    run, guard = str(tmp_path / "run"), ["guard.on_bad_loss=skip", "checkpoint.every_steps=5"]
    bad = next(
        step for step in range(WINDOWS, 2 * WINDOWS) if TILING.targets_in(step) != TILING.targets_in(step - WINDOWS)
    )
    with monkeypatch.context() as patch:
        ruin_gradients({bad + 1}, patch)
        train(small_config(f"data={make_corpus()}", f"run={run}", f"max_steps={bad + 9}", *guard, *RANDOM))
    (skip,) = [event for event in read_events(run) if event["event"] == "skip"]
    assert (skip["epoch"], skip["window"]) == (1, bad - WINDOWS)
    assert skip["tokens"] == [[start, stop] for start, stop in TILING.lane_ranges(bad)]
    assert sum(stop - start for start, stop in skip["tokens"]) == skip["num_tokens"] == TILING.targets_in(bad)


def test_the_longest_window_is_planned_for(make_corpus: MakeCorpus) -> None:
    common = [f"data={make_corpus()}", "accelerator=cpu", "plan.words_per_second=10", "max_epochs=3"]
    longest = max(stretch_lengths(35))
    drawn, plain, long = (
        plan(load(PlanConfig, [*common, *more], name="plan"))
        for more in (["stream.random_bptt=true"], [], [f"stream.bptt={longest}"])
    )
    assert drawn.memory_bytes == long.memory_bytes
    assert drawn.memory_bytes.activations > plain.memory_bytes.activations
    assert drawn.total_words == plain.total_words == 3 * NUM_TARGETS
    assert drawn.total_steps == 3 * LanePlan(num_targets=NUM_TARGETS, num_lanes=20, bptt=35, window_seed=1).num_windows


def test_lengths_about_too_few_tokens_are_refused(small_config: SmallConfig) -> None:
    with pytest.raises(ConfigError) as refusal:
        small_config("stream.bptt=9", "stream.random_bptt=true")
    assert str(refusal.value) == (
        "stream.random_bptt=true draws lengths of 5 and more about stream.bptt=9 and half of it; use stream.bptt=10 or"
        " more, or stream.random_bptt=false"
    )
    assert small_config("stream.bptt=9").stream.bptt == 9
    assert small_config(*RANDOM).stream.random_bptt
