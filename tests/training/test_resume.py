"""Law 3: N + M steps = N steps, stop, resume, M steps; bit for bit, whatever stands at the joint."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import assert_same_end, records, train_killed
from support.same import assert_same

from pipeline.config import Config
from pipeline.run.checkpoint import checkpoint_path, committed_steps, load_checkpoint
from pipeline.runner import Conclusion, train
from pipeline.training.module import LanguageModelModule

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree"),  # Lightning 2.6, every fit
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),  # a CPU's way
]

SmallConfig = Callable[..., Config]
WINDOWS = 52  # of the made corpus: 1000 words and 91 line ends on 3 lanes of bptt 7


AWD = [
    "stream.state=carry",
    "model.recurrence.last_size=4",
    "model.recurrence.weight_dropout=0.5",
    "model.regularization.locked=true",
    "model.regularization.input_dropout=0.4",
    "model.regularization.layer_dropout=0.2",
    "model.regularization.output_dropout=0.3",
    "model.regularization.embedding_dropout=0.1",
    "model.regularization.activation=2",
    "model.regularization.temporal=1",
]
CASES = {
    "plain": [],
    "carried state": ["stream.state=carry"],
    "sums between records": ["logging.every_steps=6"],
    "plateau": [
        "optim=sgd",
        "optim.lr=30",
        "optim.schedule.kind=plateau",
        "checkpoint.validate_every_steps=9",
        "optim.schedule.divide_by=3",
    ],
    "cosine, adamw": ["optim=adamw", "optim.lr=0.01", "optim.schedule.kind=cosine", "optim.schedule.warmup_steps=20"],
    "adagrad, projection": ["optim=adagrad", "optim.lr=0.1", "model.projection_size=4", "model.num_layers=3"],
    "drawn windows, blocks, averaging": [
        *["stream.bptt=10", "stream.random_bptt=true", "stream.order=blocks", "stream.block_tokens=60"],
        *["stream.state=carry", "optim=sgd", "optim.lr=30", "optim.averaging=nonmonotone"],
        *["optim.averaging_patience=1", "checkpoint.validate_every_steps=4"],
    ],
    "averaging, tied": [
        "optim.averaging=start",
        "model.tied=true",
        "model.embedding_size=5",
        "model.softmax.div_value=1",
    ],
    "bf16, tied": ["precision=bf16", "model.tied=true", "model.embedding_size=5", "model.softmax.div_value=1"],
    "step decay, momentum, full softmax": [
        "optim=sgd",
        "optim.momentum=0.9",
        "optim.lr=0.5",
        "optim.schedule.kind=step",
        "optim.schedule.hold_epochs=1",
        "model.softmax.kind=full",
    ],
    "AWD-LSTM": AWD,
    "AWD-LSTM, bf16": [*AWD, "precision=bf16"],
}


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize(
    "kills",
    [(29, 31), (WINDOWS, WINDOWS + 1), (WINDOWS - 1, 2 * WINDOWS)],
    ids=["twice within an epoch", "at and after an epoch's end", "in the last window, at the second end"],
)
def test_a_killed_run_ends_as_an_undisturbed_one(
    overrides: Sequence[str],
    kills: Sequence[int],
    make_corpus: Callable[..., str],
    small_config: SmallConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    total = 2 * WINDOWS + 5
    data = make_corpus()
    common = [f"data={data}", f"max_steps={total}", "checkpoint.every_steps=5", *overrides]
    whole, torn = str(tmp_path / "whole"), str(tmp_path / "torn")
    train(small_config(*common, f"run={whole}"))
    for kill in kills:
        train_killed(small_config(*common, f"run={torn}"), kill, monkeypatch)
    outcome = train(small_config(*common, f"run={torn}"))
    assert 0 < outcome.first_step <= kills[-1]
    assert_same_end(whole, torn, total)


def test_ctrl_c_is_told_as_such_and_costs_nothing_but_the_steps_since_the_checkpoint(
    make_corpus: Callable[..., str], small_config: SmallConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, torn = str(tmp_path / "whole"), str(tmp_path / "torn")
    common = [f"data={make_corpus()}", "max_steps=30", "checkpoint.every_steps=7"]
    train(small_config(*common, f"run={whole}"))

    def press(self: LanguageModelModule, *arguments: Any) -> None:
        if self.global_step == 17:
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(LanguageModelModule, "on_train_batch_end", press)
        with pytest.raises(KeyboardInterrupt):
            train(small_config(*common, f"run={torn}"))
    signal.signal(signal.SIGINT, handler)  # Lightning leaves it ignored
    assert train(small_config(*common, f"run={torn}")).first_step == 14
    assert_same_end(whole, torn, 30)


def test_the_corpus_has_the_windows_that_the_cases_name(
    make_corpus: Callable[..., str], small_config: SmallConfig
) -> None:
    data = make_corpus()
    run = f"{data}/run"
    outcome = train(small_config(f"data={data}", f"run={run}", "max_epochs=1"))
    assert outcome == Conclusion(run=run, step=WINDOWS, first_step=0)
    assert records(run)[-1]["tokens_seen"] == 1091
    assert 1091 % 3 != 0  # the last window is partial, and not every lane has its last token


def test_a_raised_limit_goes_on_as_if_it_had_stood_there_before(
    make_corpus: Callable[..., str], small_config: SmallConfig, tmp_path: Path
) -> None:
    common = [
        f"data={make_corpus()}",
        "optim=sgd",
        "optim.lr=30",
        "optim.schedule.kind=plateau",
        "checkpoint.validate_every_steps=9",
    ]
    whole, grown = str(tmp_path / "whole"), str(tmp_path / "grown")
    train(small_config(*common, f"run={whole}", "max_steps=110"))
    for limit in (40, WINDOWS, 110):
        train(small_config(*common, f"run={grown}", f"max_steps={limit}"))
    left, right = (load_checkpoint(checkpoint_path(run, 110)) for run in (whole, grown))
    assert_same(left["state_dict"], right["state_dict"])
    assert_same(left["optimizer_states"], right["optimizer_states"])


def test_a_finished_run_says_so_and_does_nothing(
    make_corpus: Callable[..., str], small_config: SmallConfig, tmp_path: Path
) -> None:
    config = small_config(f"data={make_corpus()}", f"run={tmp_path / 'run'}", "max_steps=8")
    train(config)
    before = {path: path.stat().st_mtime_ns for path in sorted(Path(tmp_path, "run").rglob("*"))}
    assert train(config) == Conclusion(run=str(tmp_path / "run"), step=8, first_step=8)
    assert {path: path.stat().st_mtime_ns for path in sorted(Path(tmp_path, "run").rglob("*"))} == before


def test_the_seed_decides_the_run(make_corpus: Callable[..., str], small_config: SmallConfig, tmp_path: Path) -> None:
    data = make_corpus()
    runs = {seed: str(tmp_path / f"run{seed}") for seed in (1, 2)}
    for seed, run in runs.items():
        train(small_config(f"data={data}", f"run={run}", "max_steps=4", f"stream.seed={seed}"))
    assert records(runs[1])[-1]["train/nats_per_token"] != records(runs[2])[-1]["train/nats_per_token"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_kill_9_at_a_moment_that_nobody_chose(
    seed: int, make_corpus: Callable[..., str], small_config: SmallConfig, tmp_path: Path
) -> None:
    total = 3 * WINDOWS
    data = make_corpus()
    whole, torn = str(tmp_path / "whole"), str(tmp_path / "torn")
    config = small_config(f"data={data}", f"run={whole}", f"max_steps={total}", "checkpoint.every_steps=4")
    train(config)
    script = tmp_path / "go.py"
    script.write_text(
        "import sys\nfrom pipeline.config import Config, validated\nfrom pipeline.runner import train\n"
        "train(validated(Config, sys.stdin.read()))\n"
    )
    config = config.model_copy(update={"run": torn})
    generator = torch.Generator().manual_seed(seed)
    kills = 0
    while not committed_steps(torn) or committed_steps(torn)[-1] < total:
        process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, cwd=Path.cwd())
        assert process.stdin is not None
        process.stdin.write(config.model_dump_json().encode())
        process.stdin.close()
        at_start = committed_steps(torn)
        while kills < 3 and process.poll() is None and committed_steps(torn) == at_start:
            time.sleep(0.01)  # until it has come further than before
        if kills < 3:
            time.sleep(float(torch.rand((), generator=generator)) * 0.3)
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 3
    assert_same_end(whole, torn, total)
