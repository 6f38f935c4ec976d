"""A cell and an output layer from a module outside the package train, resume bit for bit, and are evaluated."""

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from support.same import assert_same
from support.tables import tables_restored

from pipeline.config import Config, flat, load
from pipeline.corpus.manifest import read_manifest
from pipeline.errors import ConfigError
from pipeline.run.checkpoint import checkpoint_path, load_checkpoint
from pipeline.runner import train
from pipeline.scoring.perplexity import score_tokens
from pipeline.training.parts import open_split
from pipeline.training.restore import load_trained

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree"),  # Lightning 2.6, every fit
]

STEPS = 70  # beyond the first epoch's last window, in which lanes are short
EXTENSION = "extensions=support.toys"
CASES = {
    "one tensor": (["model.recurrence.kind=decay", "model.recurrence.decay=0.7"], ["mean_1LH"]),
    "three tensors": (["model.recurrence.kind=trio", "stream.state=carry"], ["sum_1LH", "last_1LE", "count_1L"]),
    "an output layer": (["model.softmax.kind=grouped"], ["hidden_KLP", "cell_KLH"]),
    "regularized": (
        [
            "model.recurrence.kind=trio",
            "model.regularization.embedding_dropout=0.2",
            "model.regularization.output_dropout=0.4",
            "model.regularization.activation=2",
            "model.regularization.temporal=1",
        ],
        ["sum_1LH", "last_1LE", "count_1L"],
    ),
    "both": (
        ["model.recurrence.kind=trio", "model.softmax.kind=grouped", "model.softmax.words_per_group=7"],
        ["sum_1LH", "last_1LE", "count_1L"],
    ),
}


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    with tables_restored():
        yield


@pytest.mark.parametrize(("overrides", "names"), CASES.values(), ids=CASES.keys())
def test_it_trains_resumes_to_the_bit_and_is_scored(
    overrides: list[str],
    names: list[str],
    make_corpus: Callable[..., str],
    small_config: Callable[..., Config],
    tmp_path: Path,
) -> None:
    data, whole, torn = make_corpus(), str(tmp_path / "whole"), str(tmp_path / "torn")
    common = [EXTENSION, f"data={data}", *overrides]
    train(small_config(*common, f"run={whole}", f"max_steps={STEPS}"))
    train(small_config(*common, f"run={torn}", "max_steps=33"))
    assert train(small_config(*common, f"run={torn}", f"max_steps={STEPS}")).first_step == 33

    left, right = (load_checkpoint(checkpoint_path(run, STEPS)) for run in (whole, torn))
    assert_same(left["state_dict"], right["state_dict"])
    assert_same(left["optimizer_states"], right["optimizer_states"])
    for name in names:
        assert left["wordlanes"][name].shape[1] == 3
        assert left["wordlanes"][name].any()
        assert_same(left["wordlanes"][name], right["wordlanes"][name])
    assert not {"hidden_KLP", "cell_KLH"} & left["wordlanes"].keys() - {*names}

    trained = load_trained(torn, "last")
    tokens = open_split(data, read_manifest(data), "test")
    score = score_tokens(trained.model, tokens)
    assert score.num_targets == len(tokens)
    assert score.total_nats == pytest.approx(plain_nats(trained.model, tokens), rel=1e-4)


@torch.no_grad()
def plain_nats(model: torch.nn.Module, tokens: object) -> float:
    """Of all log-probabilities those of the targets."""
    ids = torch.from_numpy(tokens.read(0, len(tokens)).astype("int64"))
    inputs_TL = torch.cat([torch.zeros(1, dtype=torch.int64), ids[:-1]])[:, None]
    hidden_TLH, _ = model.hidden(inputs_TL, model.recurrence.zero_state(1))
    return -float(model.softmax.log_probabilities(hidden_TLH[:, 0])[range(len(ids)), ids].double().sum())


def test_its_section_has_its_own_keys_with_the_values_of_its_class() -> None:
    config = load(Config, [EXTENSION, "model.recurrence.kind=decay", "model.softmax.kind=grouped"])
    assert {key: value for key, value in flat(config).items() if key.startswith("model.recurrence.")} == {
        "model.recurrence.kind": "decay",
        "model.recurrence.width": 5,
        "model.recurrence.decay": 0.5,
    }
    sent = pickle.loads(pickle.dumps(config))
    assert sent == config
    refused = {
        "model.recurrence.hidden_size=5": (
            "model.recurrence.hidden_size is no key of model.recurrence.kind=decay; leave it out or use"
            " model.recurrence.kind=lstm"
        ),
        "model.recurrence.weight_dropout=0.5": (
            "model.recurrence.weight_dropout is no key of model.recurrence.kind=decay; leave it out or use"
            " model.recurrence.kind=lstm"
        ),
        "model.regularization.locked=true": (
            "model.regularization.locked=true is not for model.recurrence.kind=decay; use false"
        ),
        "model.regularization.layer_dropout=0.2": (
            "model.regularization.layer_dropout=0.2 is not for model.recurrence.kind=decay; use null"
        ),
        "model.recurrence.decay=2": "model.recurrence.decay=2: it must be less than 1",
        "model.recurrence.decai=2": "unknown key model.recurrence.decai; did you mean model.recurrence.decay?",
    }
    for override, message in refused.items():
        with pytest.raises(ConfigError) as caught:
            load(Config, [EXTENSION, "model.recurrence.kind=decay", override])
        assert str(caught.value) == message


def test_what_it_holds_is_part_of_the_runs_identity(
    make_corpus: Callable[..., str], small_config: Callable[..., Config], tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    common = [EXTENSION, f"data={make_corpus()}", f"run={run}", "model.recurrence.kind=decay"]
    train(small_config(*common, "max_steps=3"))
    with pytest.raises(ConfigError, match=r"of another run: model\.recurrence\.decay was 0\.5 and is 0\.25; set it"):
        train(small_config(*common, "max_steps=5", "model.recurrence.decay=0.25"))
    with pytest.raises(ConfigError, match=r'model\.recurrence\.kind was "decay" and is "lstm"'):
        train(small_config(*common[:3], "max_steps=5"))


def test_another_process_evaluates_it(
    make_corpus: Callable[..., str], small_config: Callable[..., Config], tmp_path: Path
) -> None:
    """The run's own config.yaml names the extension."""
    run = str(tmp_path / "run")
    train(small_config(EXTENSION, f"data={make_corpus()}", f"run={run}", "max_steps=3", "model.recurrence.kind=trio"))
    assert yaml.safe_load(Path(run, "config.yaml").read_text())["extensions"] == ["support.toys"]
    tests = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "evaluate", f"run={run}", "--json"],
        cwd=tests.parent,
        env={"PATH": "", "PYTHONPATH": f"{tests.parent}:{tests}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert '"perplexity"' in done.stdout
