"""Law 5 on one process: the trainer's steps are those of the plain formula, written out here without Lightning."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.config import Config
from pipeline.corpus.lanes import LanePlan
from pipeline.corpus.manifest import read_manifest
from pipeline.corpus.stream import read_window
from pipeline.model.adaptive_softmax import split_targets
from pipeline.model.dropout import lane_keys
from pipeline.run.checkpoint import checkpoint_path, load_checkpoint
from pipeline.runner import train
from pipeline.training import parts, worker
from pipeline.training.parts import build_model, open_split

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree"),  # Lightning 2.6, every fit
]


PENALTIES = ["activation=2", "temporal=300", "output_dropout=0", "embedding_dropout=0.2", "locked=true"]


@pytest.mark.parametrize("penalized", [False, True])
@pytest.mark.parametrize("carry", [False, True])
def test_steps_are_those_of_the_plain_loop(
    carry: bool, penalized: bool, make_corpus: Callable[..., str], small_config: Callable[..., Config], tmp_path: Path
) -> None:
    data, num_steps = make_corpus(), 60  # beyond the first epoch's partial last window
    config = small_config(
        f"data={data}",
        f"run={tmp_path / 'run'}",
        f"max_steps={num_steps}",
        "optim=sgd",
        "optim.lr=2",
        "optim.clip_norm=0.3",
        "logging.every_steps=60",
        f"stream.state={'carry' if carry else 'reset'}",
        *(f"model.regularization.{each}" for each in PENALTIES if penalized),
        f"model.recurrence_init_scale={0.3 if penalized else 'null'}",
    )
    train(config)
    trained = load_checkpoint(checkpoint_path(str(tmp_path / "run"), num_steps))

    manifest = read_manifest(data)
    tokens = open_split(data, manifest, "train")
    plan = LanePlan(num_targets=len(tokens), num_lanes=3, bptt=7)
    model = build_model(config.model, vocab_size=manifest.vocab_size)
    scales = {"init_scale": 0.1, "recurrence_init_scale": 0.3 if penalized else None}
    model.draw_weights(seed=config.stream.seed, **scales)
    optimizer = torch.optim.SGD(model.parameters(), lr=2, fused=True)
    state = model.recurrence.zero_state(3)
    total_nats, num_targets, norms = 0.0, 0, []
    for step in range(num_steps):
        window = read_window(tokens, plan, step=step, lanes=range(3))
        if window.starts_epoch and not carry:
            state = model.recurrence.zero_state(3)
        sites = {"num_sites": 3, "num_shared_sites": int(penalized)}
        hidden_TLH, state = model.hidden(
            torch.from_numpy(window.inputs_TL),
            state,
            keys_SL=torch.from_numpy(lane_keys(seed=1, step=step, lanes=range(3), **sites)),
            short_L=None if window.short_L is None else torch.from_numpy(window.short_L),
        )
        rows_N = None if window.rows_N is None else torch.from_numpy(window.rows_N)
        nats_N = model.nats(hidden_TLH, split_targets(window.targets_N, cutoffs=(10, 30)), rows_N=rows_N)
        penalty = torch.zeros(())
        if penalized:
            lanes = [hidden_TLH[:length, lane] for lane, length in enumerate(plan.lengths(step % plan.num_windows))]
            changes = torch.cat([hidden_TH[1:] - hidden_TH[:-1] for hidden_TH in lanes])
            penalty = 2 * torch.cat(lanes).square().mean() + 300 * changes.square().mean()
        state = tuple(each.detach() for each in state)
        optimizer.zero_grad()
        (nats_N.sum() / window.num_targets + penalty).backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        assert all(gradient is not None for gradient in gradients)
        norm = torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).norm()
        norms.append(float(norm))
        for gradient in gradients:
            assert gradient is not None
            gradient.mul_(min(1.0, 0.3 / (float(norm) + 1e-6)))
        optimizer.step()
        total_nats += nats_N.sum().item()
        num_targets += len(window.targets_N)

    assert max(norms) > 0.3 > min(norms), "the test must see steps that are clipped and steps that are not"
    for name, weights in model.state_dict().items():
        torch.testing.assert_close(trained["state_dict"][f"model.{name}"], weights, rtol=1e-4, atol=1e-6)
    own = trained["wordlanes"]
    assert own["tokens_seen"] == num_targets
    torch.testing.assert_close(own["hidden_KLP"], state[0], rtol=1e-4, atol=1e-6)
    record = [line for line in Path(tmp_path, "run", "metrics.jsonl").read_text().splitlines() if "train/" in line][-1]
    values = json.loads(record)
    assert values["train/nats_per_token"] == pytest.approx(total_nats / num_targets, rel=1e-5)
    assert values["train/gradient_norm"] == pytest.approx(norms[-1], rel=1e-3)
    assert values["tokens_seen"] == num_targets
    assert values["epoch"] == 1


def test_bf16_on_a_cpu_without_it_is_slow_and_not_refused(
    make_corpus: Callable[..., str],
    small_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """oneDNN's LSTM raises there; torch's own does not. The next run of the process has oneDNN again."""
    common = [f"data={make_corpus()}", "max_steps=3"]
    for module in (parts, worker):
        monkeypatch.setattr(module, "bf16_is_native", lambda: False)
    train(small_config(*common, "precision=bf16", f"run={tmp_path / 'bf16'}"))
    assert "precision=bf16 is some ten times slower than precision=fp32 on this CPU" in caplog.text
    assert not torch.backends.mkldnn.enabled
    train(small_config(*common, f"run={tmp_path / 'fp32'}"))
    assert torch.backends.mkldnn.enabled
    losses = [
        json.loads((tmp_path / run / "metrics.jsonl").read_text().splitlines()[0])["train/nats_per_token"]
        for run in ("bf16", "fp32")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    assert losses[0] != losses[1]  # it was computed in bf16


SCHEDULES = {
    "step": (["optim.schedule.hold_epochs=1"], lambda step, epoch: 0.5 / 2**epoch),
    "step, warmed up": (
        ["optim.schedule.warmup_steps=2"],
        lambda step, epoch: 0.25 * step if step <= 2 else 0.5 / 2 ** (epoch + 1),
    ),
    "cosine": (
        ["optim.schedule.min_lr=0.1"],
        lambda step, epoch: 0.1 + 0.2 * (1 + math.cos(math.pi * (step - 1) / 107)),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_each_step_updates_at_its_own_rate_an_epochs_first_and_last_too(
    name: str, make_corpus: Callable[..., str], small_config: Callable[..., Config], tmp_path: Path
) -> None:
    overrides, expected = SCHEDULES[name]
    config = small_config(
        f"data={make_corpus()}",
        f"run={tmp_path / 'run'}",
        "max_steps=107",
        "optim=sgd",
        "optim.lr=0.5",
        f"optim.schedule.kind={name.partition(',')[0]}",
        *overrides,
    )
    train(config)
    found = [json.loads(line) for line in Path(tmp_path, "run", "metrics.jsonl").read_text().splitlines()]
    for record in found:
        assert record["epoch"] == (record["step"] - 1) // 52
        assert record["train/learning_rate"] == pytest.approx(expected(record["step"], record["epoch"]), rel=1e-12)
