"""`stream.order=blocks` in whole runs: what is read, what it is part of, what is refused; how held-out text is read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.runs import assert_killed_ends_as_undisturbed, records, ruin_gradients
from support.same import assert_same
from support.sequences import Ids

from pipeline.config import Config, PlanConfig, load
from pipeline.corpus.lanes import LanePlan
from pipeline.corpus.manifest import read_manifest
from pipeline.corpus.order import Order
from pipeline.corpus.stream import read_window
from pipeline.errors import ConfigError
from pipeline.planning import plan
from pipeline.run.checkpoint import checkpoint_path, load_checkpoint
from pipeline.run.ledger import read_events
from pipeline.runner import plan_run, train
from pipeline.scoring.perplexity import score_tokens
from pipeline.training import worker
from pipeline.training.data import Batch
from pipeline.training.parts import build_model, open_split
from pipeline.training.tiling import epoch_order, run_identity

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree")

WINDOWS = 52  # of the made corpus: 1091 targets on 3 lanes of bptt 7
NUM_TARGETS = 1091
BLOCKS = ["stream.order=blocks", "stream.block_tokens=60"]  # 18 whole ones and 11 tokens
SmallConfig = Callable[..., Config]
MakeCorpus = Callable[..., str]


def inputs_of(config: Config, monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """The inputs of each step of a run."""
    found = []
    real = worker.on_device

    def noted(batches: object, device: torch.device) -> object:
        for batch in real(batches, device):  # type: ignore[arg-type]
            assert isinstance(batch, Batch)
            found.append(batch.inputs_TL.tolist())
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(worker, "on_device", noted)
        train(config)
    return found


def test_a_run_reads_each_epoch_in_an_order_of_its_own(
    make_corpus: MakeCorpus, small_config: SmallConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text is put into the order by hand, and read as it then lies."""
    data = make_corpus()
    config = small_config(f"data={data}", f"run={tmp_path / 'run'}", "max_epochs=2", *BLOCKS)
    found = inputs_of(config, monkeypatch)
    tokens = open_split(data, read_manifest(data), "train").read(0, NUM_TARGETS)
    tiling = LanePlan(num_targets=NUM_TARGETS, num_lanes=3, bptt=7)
    order = Order(num_tokens=NUM_TARGETS, block_tokens=60, seed=1)
    epochs = []
    for epoch in range(2):
        pieces = [tokens[start:stop] for start, stop in order.stored(epoch, 0, NUM_TARGETS)]
        epochs.append(Ids(np.concatenate(pieces)))
    expected = [
        read_window(tokens, tiling, step=window, lanes=range(3)).inputs_TL.tolist()
        for tokens in epochs
        for window in range(WINDOWS)
    ]
    assert found == expected
    assert found[:WINDOWS] != found[WINDOWS:]


@pytest.mark.parametrize("kills", [(29, 31), (WINDOWS, WINDOWS + 1), (WINDOWS - 1, 2 * WINDOWS)])
def test_a_killed_run_ends_as_an_undisturbed_one(
    kills: tuple[int, int],
    make_corpus: MakeCorpus,
    small_config: SmallConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within an epoch, at its end and after it; twice in a row."""
    total = 2 * WINDOWS + 5
    common = [f"data={make_corpus()}", f"max_steps={total}", "checkpoint.every_steps=5", "stream.state=carry", *BLOCKS]
    assert_killed_ends_as_undisturbed(
        small_config, common, kills=kills, folder=tmp_path, total=total, monkeypatch=monkeypatch
    )


def test_the_order_is_part_of_what_a_run_is(make_corpus: MakeCorpus, small_config: SmallConfig, tmp_path: Path) -> None:
    common = [f"data={make_corpus()}", f"run={tmp_path / 'run'}"]
    train(small_config(*common, "max_steps=3", *BLOCKS))
    for changed, told in (
        ([], 'stream.order was "blocks" and is "sequential"'),
        (["stream.order=blocks", "stream.block_tokens=61"], "stream.block_tokens was 60 and is 61"),
        ([*BLOCKS, "stream.seed=2"], "stream.seed was 1 and is 2"),
    ):
        with pytest.raises(ConfigError, match=told):
            train(small_config(*common, "max_steps=4", *changed))
    assert train(small_config(*common, "max_steps=4", *BLOCKS)).first_step == 3


def test_blocks_that_nobody_reads_are_no_part_of_it(make_corpus: MakeCorpus, small_config: SmallConfig) -> None:
    manifest = read_manifest(make_corpus())
    one, other = (
        run_identity(small_config(f"stream.block_tokens={size}"), manifest, total_steps=9) for size in (60, 70)
    )
    assert one == other
    assert one["stream.order"] == '"sequential"'
    assert "stream.block_tokens" not in one
    assert run_identity(small_config(*BLOCKS), manifest, total_steps=9)["stream.block_tokens"] == "60"


def test_held_out_text_is_read_as_it_lies(make_corpus: MakeCorpus, small_config: SmallConfig, tmp_path: Path) -> None:
    data, run = make_corpus(), str(tmp_path / "run")
    config = small_config(f"data={data}", f"run={run}", "max_steps=5", *BLOCKS)
    train(config)
    manifest = read_manifest(data)
    model = build_model(config.model, vocab_size=manifest.vocab_size)
    weights = load_checkpoint(checkpoint_path(run, 5))["state_dict"]
    model.load_state_dict({name.removeprefix("model."): each for name, each in weights.items()})
    score = score_tokens(model, open_split(data, manifest, "valid"))
    assert records(run)[-1]["valid/nats_per_token"] == pytest.approx(score.nats_per_token, rel=1e-12)


def test_a_run_of_sequential_order_is_what_it_was_and_blocks_are_another(
    make_corpus: MakeCorpus, small_config: SmallConfig, tmp_path: Path
) -> None:
    common, ends = [f"data={make_corpus()}", "max_steps=9"], {}
    for name, changed in {
        "plain": [],
        "sequential": ["stream.order=sequential", "stream.block_tokens=60"],
        "blocks": BLOCKS,
        "larger": ["stream.order=blocks", "stream.block_tokens=70"],
    }.items():
        train(small_config(*common, f"run={tmp_path / name}", *changed))
        ends[name] = load_checkpoint(checkpoint_path(str(tmp_path / name), 9))["state_dict"]
    assert_same(ends["plain"], ends["sequential"])
    for one, other in (("plain", "blocks"), ("blocks", "larger")):
        assert any(not torch.equal(ends[one][name], ends[other][name]) for name in ends[one])


def test_a_window_that_is_passed_over_is_named_by_the_stored_tokens(
    make_corpus: MakeCorpus, small_config: SmallConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(tmp_path / "run")
    guard = ["guard.on_bad_loss=skip", "checkpoint.every_steps=5"]
    bad = WINDOWS + 17
    with monkeypatch.context() as patch:
        ruin_gradients({bad}, patch)
        train(small_config(f"data={make_corpus()}", f"run={run}", f"max_steps={bad + 9}", *guard, *BLOCKS))
    (skip,) = [event for event in read_events(run) if event["event"] == "skip"]
    tiling = LanePlan(num_targets=NUM_TARGETS, num_lanes=3, bptt=7)
    order = Order(num_tokens=NUM_TARGETS, block_tokens=60, seed=1)
    lanes = [order.stored(1, start, stop) for start, stop in tiling.lane_ranges(16)]
    assert (skip["epoch"], skip["window"]) == (1, 16)
    assert skip["tokens"] == [[start, stop] for ranges in lanes for start, stop in ranges]
    assert sum(stop - start for start, stop in skip["tokens"]) == skip["num_tokens"] == 21


# --- what is refused


def test_blocks_of_less_than_a_window_are_refused_with_the_configuration(small_config: SmallConfig) -> None:
    with pytest.raises(ConfigError) as refusal:
        small_config("stream.order=blocks", "stream.block_tokens=6")
    assert str(refusal.value).endswith(
        "stream.block_tokens=6 is below stream.bptt=7, so no window would hold text as it stands; use"
        " stream.block_tokens=7 or more, or stream.order=sequential"
    )
    assert small_config("stream.order=blocks", "stream.block_tokens=7").stream.block_tokens == 7
    assert small_config("stream.block_tokens=6").stream.block_tokens == 6


@pytest.mark.parametrize("block_tokens", [546, 1091, 1092, 65_536, 10**15])
def test_fewer_than_two_whole_blocks_are_refused_before_anything_is_written(
    block_tokens: int, make_corpus: MakeCorpus, small_config: SmallConfig, tmp_path: Path
) -> None:
    data, run = make_corpus(), tmp_path / "run"
    overrides = [f"data={data}", f"run={run}", "stream.order=blocks", f"stream.block_tokens={block_tokens}"]
    needed = (
        f"stream.block_tokens={block_tokens} makes fewer than 2 whole blocks of the corpus' 1091 targets, so that there"
        " is nothing to put in another order; use stream.block_tokens=545 or less, or stream.order=sequential"
    )
    planned = load(PlanConfig, [*overrides, "accelerator=cpu"], name="plan")
    for call in (lambda: plan_run(small_config(*overrides), {}), lambda: plan(planned)):
        with pytest.raises(ConfigError) as refusal:
            call()
        assert str(refusal.value) == needed
    assert not run.exists()


def test_two_blocks_are_enough(make_corpus: MakeCorpus, small_config: SmallConfig) -> None:
    manifest = read_manifest(make_corpus())
    order = epoch_order(small_config("stream.order=blocks", "stream.block_tokens=545"), manifest)
    assert order == Order(num_tokens=NUM_TARGETS, block_tokens=545, seed=1)
    assert {order.stored(epoch, 0, 1)[0][0] for epoch in range(20)} == {0, 545}
    with pytest.raises(ConfigError, match=r"order; use stream\.order=sequential$"):
        epoch_order(small_config("stream.order=blocks", "stream.block_tokens=600", "stream.bptt=550"), manifest)
