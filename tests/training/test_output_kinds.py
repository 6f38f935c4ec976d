"""Runs with a sampled loss or an adaptive input: resumed bit for bit, the same on any number of ranks, told truly."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import assert_same_end, records, train_killed
from support.same import assert_same

from pipeline import load_model
from pipeline.config import Config
from pipeline.corpus.manifest import read_manifest
from pipeline.errors import ConfigError
from pipeline.run.checkpoint import checkpoint_path, load_checkpoint
from pipeline.runner import train
from pipeline.scoring.perplexity import score_tokens
from pipeline.submission.overview import overview
from pipeline.training.parts import open_split

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree"),  # Lightning 2.6, every fit
]

SmallConfig = Callable[..., Config]
STEPS = 60  # beyond the first epoch's last window, the 52nd, which is partial
TIED = ["model.tied=true", "model.embedding_size=5"]
SAMPLED = {
    "sampled": ["model.softmax.kind=sampled", "model.softmax.num_samples=20"],
    "nce": ["model.softmax.kind=nce", "model.softmax.num_samples=10", "stream.state=carry"],
    "blackout, tied": ["model.softmax.kind=blackout", "model.softmax.num_samples=15", *TIED],
}
ADAPTIVE = {
    "adaptive input": ["model.input.kind=adaptive", "model.input.div_value=2"],
    "adaptive input, tied": ["model.input.kind=adaptive", "model.input.div_value=2", *TIED],
    "adaptive input, full softmax": ["model.input.kind=adaptive", "model.input.cutoffs=[7]", "model.softmax.kind=full"],
}
CASES = SAMPLED | ADAPTIVE


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES.keys())
def test_it_is_killed_within_an_epoch_resumed_to_the_bit_and_scored_exactly(
    overrides: Sequence[str],
    make_corpus: Callable[..., str],
    small_config: SmallConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, whole, torn = make_corpus(), str(tmp_path / "whole"), str(tmp_path / "torn")
    common = [f"data={data}", f"max_steps={STEPS}", "checkpoint.every_steps=5", "logging.every_steps=6", *overrides]
    torch.manual_seed(1)  # no generator's state may matter
    train(small_config(*common, f"run={whole}"))
    torch.manual_seed(2)
    train_killed(small_config(*common, f"run={torn}"), 28, monkeypatch)
    assert train(small_config(*common, f"run={torn}")).first_step == 25
    assert_same_end(whole, torn, STEPS)

    trained, tokens = load_model(torn, checkpoint="last"), open_split(data, read_manifest(data), "test")
    score = score_tokens(trained.model, tokens)
    log_p_NV, targets_N = all_log_probabilities(trained.model, tokens)
    assert score.total_nats == pytest.approx(-float(log_p_NV[range(len(targets_N)), targets_N].sum()), rel=1e-4)
    torch.testing.assert_close(
        log_p_NV.exp().sum(1), torch.ones(len(targets_N), dtype=torch.float64), rtol=1e-5, atol=0
    )


@torch.no_grad()
def all_log_probabilities(model: Any, tokens: Any) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.from_numpy(tokens.read(0, len(tokens)).astype("int64"))
    inputs_TL = torch.cat([torch.zeros(1, dtype=torch.int64), ids[:-1]])[:, None]
    hidden_TLH, _ = model.hidden(inputs_TL, model.recurrence.zero_state(1))
    return model.softmax.log_probabilities(hidden_TLH[:, 0]).double(), ids


@pytest.mark.parametrize("overrides", SAMPLED.values(), ids=SAMPLED.keys())
def test_a_sampled_loss_is_told_as_such_and_validated_exactly(
    overrides: Sequence[str],
    make_corpus: Callable[..., str],
    small_config: SmallConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data, run, folder = make_corpus(), str(tmp_path / "run"), tmp_path / "prometheus"
    folder.mkdir()
    caplog.set_level("INFO")
    common = [f"data={data}", f"run={run}", "optim.lr=0.02", f"tracking.prometheus_folder={folder}", *overrides]
    train(small_config(*common, "max_epochs=10", "max_steps=300", "checkpoint.validate_every_steps=100"))
    lines = records(run)
    assert len(lines) == 300
    for line in lines:
        assert {key for key in line if key.startswith("train/")} == {
            "train/sampled_loss",
            "train/gradient_norm",
            "train/learning_rate",
        }
    first, last = (sum(line["train/sampled_loss"] for line in some) / 50 for some in (lines[:50], lines[-50:]))
    assert last < first
    valid = [line["valid/perplexity"] for line in lines if "valid/perplexity" in line]
    assert len(valid) == 3
    assert min(valid) < 0.9 * read_manifest(data).vocab_size  # it learns what it is scored by
    score = score_tokens(load_model(run, checkpoint="last").model, open_split(data, read_manifest(data), "valid"))
    assert score.perplexity == pytest.approx(valid[-1], rel=1e-5)
    told = [each.getMessage() for each in caplog.records if "validation perplexity" in each.getMessage()]
    assert all(", sampled loss " in each for each in told)
    found = overview(run).measured
    assert (found.perplexity, found.perplexity_of) == (valid[-1], "validation")


def test_before_the_first_validation_no_perplexity_is_known(
    make_corpus: Callable[..., str], small_config: SmallConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(tmp_path / "run")
    config = small_config(f"data={make_corpus()}", f"run={run}", "max_steps=9", *SAMPLED["nce"])
    train_killed(config, 5, monkeypatch)
    found = overview(run).measured
    assert (found.perplexity, found.perplexity_of) == (None, None)


def test_weights_of_a_sampled_loss_are_those_of_a_full_softmax(
    make_corpus: Callable[..., str], small_config: SmallConfig, tmp_path: Path
) -> None:
    """A run with the full loss can begin with them."""
    data, first, second = make_corpus(), str(tmp_path / "first"), str(tmp_path / "second")
    train(small_config(f"data={data}", f"run={first}", "max_steps=5", *SAMPLED["sampled"]))
    train(
        small_config(
            f"data={data}",
            f"run={second}",
            "max_steps=1",
            "optim.lr=1e-9",
            "model.softmax.kind=full",
            f"init_from={first}",
        )
    )
    before, after = (load_model(run, checkpoint="last").model.state_dict() for run in (first, second))
    torch.testing.assert_close(before, after, rtol=0, atol=1e-7)


REFUSED = {
    "another loss": (SAMPLED["nce"], SAMPLED["sampled"], r'model\.softmax\.kind was "nce" and is "sampled"'),
    "more draws": (
        SAMPLED["nce"],
        [*SAMPLED["nce"][:1], "model.softmax.num_samples=11", "stream.state=carry"],
        r"model\.softmax\.num_samples was 10 and is 11;",
    ),
    "another input": ([], ADAPTIVE["adaptive input"], r'model\.input\.kind was "full" and is "adaptive"'),
    "and back": (ADAPTIVE["adaptive input"], [], r'model\.input\.kind was "adaptive" and is "full"'),
    "other clusters": (
        ADAPTIVE["adaptive input"],
        [*ADAPTIVE["adaptive input"], "model.input.cutoffs=[9]"],
        r"model\.input\.cutoffs was \[10, 30\] and is \[9\];",
    ),
}


@pytest.mark.parametrize(("before", "after", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_checkpoint_of_another_kind_is_refused(
    before: Sequence[str],
    after: Sequence[str],
    message: str,
    make_corpus: Callable[..., str],
    small_config: SmallConfig,
    tmp_path: Path,
) -> None:
    common = [f"data={make_corpus()}", f"run={tmp_path / 'run'}"]
    train(small_config(*common, "max_steps=2", *before))
    with pytest.raises(ConfigError, match=message):
        train(small_config(*common, "max_steps=4", *after))


def test_an_adaptive_input_has_the_softmaxs_clusters_and_is_full_where_there_are_none(
    make_corpus: Callable[..., str], small_config: SmallConfig, tmp_path: Path
) -> None:
    data = make_corpus()
    for number, (cutoffs, expected) in enumerate([("[10,30]", (10, 20, 32)), ("null", None)]):
        run = str(tmp_path / f"{number}")
        common = [f"data={data}", f"run={run}", "model.input.kind=adaptive", f"model.softmax.cutoffs={cutoffs}"]
        train(small_config(*common, "max_steps=2"))
        model = load_model(run).model
        assert model.vocab_size == 62
        assert (None if model.input is None else tuple(map(len, model.input.tables))) == expected


@pytest.mark.slow
@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES.keys())
def test_two_ranks_make_the_updates_of_one_and_resume_to_the_bit(
    overrides: Sequence[str], make_corpus: Callable[..., str], small_config: SmallConfig, tmp_path: Path
) -> None:
    data = make_corpus()
    common = [f"data={data}", "stream.num_lanes=4", "optim=sgd", "optim.lr=0.2", *overrides]
    runs = {name: str(tmp_path / name) for name in ("one", "two", "torn")}
    train(small_config(*common, f"run={runs['one']}", "max_steps=30"))
    train(small_config(*common, f"run={runs['two']}", "max_steps=30", "cluster.num_workers=2"))
    for limit in (13, 30):  # in mid-epoch
        train(small_config(*common, f"run={runs['torn']}", f"max_steps={limit}", "cluster.num_workers=2"))
    one, two, torn = (load_checkpoint(checkpoint_path(run, 30)) for run in runs.values())
    torch.testing.assert_close(one["state_dict"], two["state_dict"], rtol=1e-4, atol=1e-6)
    losses = [[line[loss_key(line)] for line in records(run)] for run in (runs["one"], runs["two"])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert_same(two["state_dict"], torn["state_dict"])
    assert_same(two["optimizer_states"], torn["optimizer_states"])
    assert [line[loss_key(line)] for line in records(runs["torn"])] == losses[1]


def loss_key(line: dict[str, Any]) -> str:
    return "train/sampled_loss" if "train/sampled_loss" in line else "train/nats_per_token"


@pytest.mark.parametrize(
    "overrides", [SAMPLED["blackout, tied"], ADAPTIVE["adaptive input, tied"]], ids=["loss", "input"]
)
def test_it_is_planned(overrides: Sequence[str], make_corpus: Callable[..., str]) -> None:
    typed = [f"data={make_corpus()}", "stream.num_lanes=3", "model.recurrence.hidden_size=5", *overrides]
    if "adaptive" in overrides[0]:
        typed += ["model.softmax.cutoffs=[10,30]", "model.softmax.div_value=2"]
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "plan", "--json", "precision=bf16", "accelerator=cpu", *typed],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    assert planned["parameters"]["softmax"] > 0
    assert planned["words_per_second"] > 0
