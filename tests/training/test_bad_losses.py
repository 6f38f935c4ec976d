"""A loss that is not finite or leaps: the run stops, passes its window over, or goes on, as it is told to."""

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from support.faulty_runs import (
    BPTT,
    NUM_LANES,
    SAVE_EVERY,
    SETTINGS,
    TOTAL,
    WINDOWS,
    Draw,
    World,
    assert_close_run,
    assert_last_line,
    assert_same_run,
    assert_sound,
    kill,
    recorded,
    saved,
    status,
)
from support.runs import records

from pipeline.config import Config, load
from pipeline.corpus.manifest import read_manifest
from pipeline.run.checkpoint import checkpoint_path, load_checkpoint
from pipeline.run.ledger import Ledger
from pipeline.scoring.perplexity import score_tokens
from pipeline.training.data import read_batches
from pipeline.training.optimization import build_optimizer, learning_rate
from pipeline.training.parts import build_model, open_split

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),  # a CPU's way
]


SKIP = [
    "guard.on_bad_loss=skip",
    "guard.spike_deviations=8",
    "guard.spike_window_steps=20",
    "checkpoint.every_steps=20",
]


def spoiling(steps: dict[int, str], *, rank: int = 0) -> str:
    """By what a rank's losses are multiplied in some steps; as an expression."""
    cases = ", ".join(f"{step}: {factor}" for step, factor in steps.items())
    return f"{{{cases}}}.get(step, 1.0) if rank == {rank} else 1.0"


def told_beforehand(world: World, skips: Sequence[int], *overrides: str) -> str:
    """The folder of a run that nothing happens to, but whose ledger says from the start what is passed over."""
    run = world.run("told-beforehand")
    Path(run).mkdir()
    for step in skips:
        epoch, window = divmod(step - 1, WINDOWS)
        tokens = tokens_by_hand(world, window)
        num_tokens = sum(stop - start for start, stop in tokens)
        fields = {"step": step, "epoch": epoch, "window": window, "num_tokens": num_tokens, "tokens": tokens}
        Ledger(run, attempt=1).write("skip", **fields)
    world.train(*overrides, run=run).end()
    return run


def tokens_by_hand(world: World, window: int) -> list[list[int]]:
    """[start, stop) of each lane's targets in a window."""
    bounds = [lane * world.plan.num_targets // NUM_LANES for lane in range(NUM_LANES + 1)]
    starts = [start + window * BPTT for start in bounds[:-1]]
    return [[start, min(start + BPTT, end)] for start, end in zip(starts, bounds[1:], strict=True)]


def weights_by_hand(world: World, skips: Sequence[int]) -> dict[str, torch.Tensor]:
    """Those of a loop that leaves some windows out, written without Lightning."""
    config = load(Config, SETTINGS)
    manifest, plan = read_manifest(world.data), world.plan
    model = build_model(config.model, vocab_size=manifest.vocab_size)
    model.draw_weights(seed=config.stream.seed, init_scale=config.model.init_scale)
    train, valid = (open_split(world.data, manifest, split) for split in ("train", "valid"))
    optimizer, state, validations = build_optimizer(model.parameters(), config.optim), None, []
    batches = read_batches(
        train,
        plan,
        start=0,
        stop=TOTAL,
        lanes=range(NUM_LANES),
        seed=config.stream.seed,
        prepare_targets=model.softmax.prepare_targets,
        num_sites=model.num_sites,
    )
    for step, batch in enumerate(batches, start=1):
        if step not in skips:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    config.optim, step=step - 1, epoch=0, total_steps=TOTAL, validations=validations
                )
            nats_N, state = model(
                batch.inputs_TL,
                state or model.recurrence.zero_state(NUM_LANES),
                batch.targets,
                keys_SL=batch.keys_SL,
                short_L=batch.short_L,
                rows_N=batch.rows_N,
            )
            state = tuple(each.detach() for each in state)
            optimizer.zero_grad()
            (nats_N.sum() / batch.num_targets).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
            optimizer.step()
        if step % 13 == 0:
            validations.append(score_tokens(model, valid).nats_per_token)
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


@pytest.mark.each_commit
def test_windows_of_bad_losses_are_passed_over_for_good(world: World, draw: Draw) -> None:
    """A loss that is not a number, and a spike in an epoch's last window; the run is killed before a checkpoint holds
    the first skip, and again after it holds both."""
    skips = [draw.step(41, 48), WINDOWS]
    end_itself = f"os.kill(os.getpid(), signal.SIGKILL) if step == {skips[0] + 2} and once() else 0"
    program = world.script(end_itself, factor=spoiling({skips[0]: "float('nan')"}))
    world.train(*SKIP, program=program).end(-signal.SIGKILL)
    command = world.train(*SKIP, program=world.script(factor=spoiling({skips[1]: "30.0"})))
    command.reach(draw.step(65, 110))
    command.kill_all()
    world.train(*SKIP).end()
    found = assert_sound(world.run(), world.plan, faults=[("loss", None), ("silent", None)] * 2)
    assert [(skip["step"], skip["epoch"], skip["window"]) for skip in found["skips"]] == [
        (skips[0], 0, skips[0] - 1),
        (WINDOWS, 0, WINDOWS - 1),
    ]
    ranges = [tokens_by_hand(world, step - 1) for step in skips]
    assert [skip["tokens"] for skip in found["skips"]] == ranges
    assert found["tokens_skipped"] == sum(stop - start for each in ranges for start, stop in each)
    reference = told_beforehand(world, skips, *SKIP)
    assert_same_run(world.run(), reference)
    torch.testing.assert_close(
        load_checkpoint(checkpoint_path(reference, TOTAL))["state_dict"], weights_by_hand(world, skips)
    )


def test_workers_pass_the_same_windows_over(world: World, draw: Draw) -> None:
    skips, rank = draw.steps((41, 48), (WINDOWS - 1, WINDOWS + 1)), draw.one([0, 1])
    factor = spoiling({skips[0]: "30.0", skips[1]: "float('nan')"}, rank=rank)
    command = world.train(*SKIP, workers=2, program=world.script(factor=factor))
    command.reach(draw.step(70, 100))
    kill(command.workers()[1], signal.SIGKILL)
    command.end()
    assert_close_run(world.run(), told_beforehand(world, skips, *SKIP))
    found = assert_sound(world.run(), world.plan, faults=[("loss", None), ("loss", None), ("worker", 1)])
    assert [skip["step"] for skip in found["skips"]] == skips


RUIN_WEIGHTS = """
def optimizer_step(module, *given, sound=LanguageModelModule.optimizer_step):
    step, skipped = module.global_step + 1, module.global_step in module.state.skipped
    sound(module, *given)
    if step == {step} and not skipped:
        module.model.softmax.head_weight.data[0, 0] = float("inf")

LanguageModelModule.optimizer_step = optimizer_step
"""


def test_workers_pass_over_the_window_of_a_bad_update_and_not_the_next(world: World, draw: Draw) -> None:
    """A gradient of one rank that is not finite though its loss is, and an update that makes weights infinite."""
    skips, rank = draw.steps((41, 48), (WINDOWS - 1, WINDOWS + 1)), draw.one([0, 1])
    factor = spoiling({skips[0]: "(1 + (made * 0).sqrt())"}, rank=rank)
    more = RUIN_WEIGHTS.format(step=skips[1])
    world.train(*SKIP, workers=2, program=world.script(factor=factor, more=more)).end()
    assert [skip["step"] for skip in status(world.run())["skips"]] == skips
    assert_close_run(world.run(), told_beforehand(world, skips, *SKIP))


def test_windows_before_a_bad_loss_are_passed_over_too_though_a_checkpoint_holds_them(world: World, draw: Draw) -> None:
    step, overrides = draw.step(41, 42), [*SKIP, "guard.skip_steps=3"]
    world.train(*overrides, program=world.script(factor=spoiling({step: "float('inf')"}))).end()
    skips = [step - 2, step - 1, step]
    assert [skip["step"] for skip in status(world.run())["skips"]] == skips
    assert_same_run(world.run(), told_beforehand(world, skips, *overrides))


def test_a_bad_loss_stops_the_run_before_anything_of_it_is_saved(world: World, draw: Draw) -> None:
    step = draw.step(20, 120)
    factor = spoiling({step: "float('nan')"}, rank=draw.one([0, 1]))
    told = world.train(workers=2, program=world.script(factor=factor)).end(2)
    assert_last_line(told, f"error: loss is not finite (nan) at step {step}; step {saved(world.run())} is saved")
    assert recorded(world.run()) == step - 1
    assert step - SAVE_EVERY <= saved(world.run()) < step
    assert status(world.run())["state"] == "stopped"
    world.train(workers=2).end()
    assert_same_run(world.run(), world.reference(workers=2))
    assert_sound(world.run(), world.plan, faults=[("loss", None)])


def test_a_run_stops_after_all_where_too_many_losses_are_bad(world: World, draw: Draw) -> None:
    steps = draw.steps((10, 30), (50, 70), (90, 120))
    factor = spoiling(dict.fromkeys(steps, "float('nan')"))
    told = world.train(*SKIP, "guard.max_skips=2", program=world.script(factor=factor)).end(2)
    assert_last_line(told, f"error: loss is not finite (nan) at step {steps[2]}; step {saved(world.run())} is saved")
    assert "guard.max_skips=2" in told
    assert [skip["step"] for skip in status(world.run())["skips"]] == steps[:2]
    assert recorded(world.run()) == steps[2] - 1


def test_a_bad_loss_is_ignored_where_it_is_to_be(world: World, draw: Draw) -> None:
    step = draw.step(20, 120)
    factor = spoiling({step: "float('nan')"})
    world.train("guard.on_bad_loss=ignore", program=world.script(factor=factor)).end()
    assert_sound(world.run(), world.plan, faults=[])
    losses = [record["train/nats_per_token"] for record in records(world.run())]
    assert None not in losses[: step - 1]
    assert losses[step - 1 :] == [None] * (TOTAL - step + 1)
