"""Each recurrence of the package under training: stopped in mid-epoch and gone on with, in bf16, planned."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.kinds import RECURRENT, small
from support.runs import assert_same_end, records, train_killed

from pipeline.config import Config
from pipeline.run.checkpoint import checkpoint_path, load_checkpoint
from pipeline.runner import train

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree"),  # Lightning 2.6, every fit
]

WINDOWS = 52  # as in test_resume.py: 1091 targets on 3 lanes of bptt 7, and the last window is not full
SmallConfig = Callable[..., Config]
KINDS = {kind: small(kind) for kind in RECURRENT} | {
    "window of a word": [*small("window"), "model.recurrence.context_size=1"],  # no lane carries anything
    "window, direct": [*small("window"), "model.recurrence.direct=true"],
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_ends_as_an_undisturbed_one(
    kind: str,
    precision: str,
    make_corpus: Callable[..., str],
    small_config: SmallConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed twice in mid-epoch; with dropout, and with the state carried into the next epoch."""
    common = [f"data={make_corpus()}", f"max_steps={WINDOWS + 9}", "checkpoint.every_steps=5", *KINDS[kind]]
    common += [f"precision={precision}", "stream.state=carry"]
    whole, torn = str(tmp_path / "whole"), str(tmp_path / "torn")
    train(small_config(*common, f"run={whole}"))
    for kill in (18, 37):
        train_killed(small_config(*common, f"run={torn}"), kill, monkeypatch)
    assert train(small_config(*common, f"run={torn}")).first_step == 35
    assert_same_end(whole, torn, WINDOWS + 9)
    losses = [line["train/nats_per_token"] for line in records(whole) if "train/nats_per_token" in line]
    assert losses[-1] < losses[0] < 1.1 * math.log(62)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_with_another_number_of_workers(
    kind: str, make_corpus: Callable[..., str], small_config: SmallConfig, tmp_path: Path
) -> None:
    """1 worker, and 4 → 2 → 1 of them, in the middle of an epoch, with dropout: the same but for rounding."""
    common = [f"data={make_corpus()}", *KINDS[kind], "stream.num_lanes=4", "checkpoint.validate_every_steps=1000"]
    common += ["optim=sgd", "optim.lr=1"]  # Adam would make much of little differences

    def gone_on(run: str, *parts: tuple[int, int]) -> dict[str, Any]:
        for num_workers, limit in parts:
            workers = f"cluster.num_workers={num_workers}"
            train(small_config(*common, f"run={tmp_path / run}", workers, f"max_steps={limit}"))
        return load_checkpoint(checkpoint_path(str(tmp_path / run), parts[-1][1]))

    whole, torn = gone_on("whole", (1, 30)), gone_on("torn", (4, 11), (2, 23), (1, 30))
    torch.testing.assert_close(torn["state_dict"], whole["state_dict"], rtol=1e-4, atol=1e-6)
    for name in whole["wordlanes"]["state_names"]:
        torch.testing.assert_close(torn["wordlanes"][name], whole["wordlanes"][name], rtol=1e-4, atol=1e-6)
    left, right = (
        [line["train/nats_per_token"] for line in records(str(tmp_path / run)) if "train/nats_per_token" in line]
        for run in ("whole", "torn")
    )
    assert left == pytest.approx(right, rel=1e-5)
