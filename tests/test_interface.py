"""The Python interface: its example, its agreement with the command line, and what it refuses."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import pipeline
from jobs.__main__ import main
from pipeline import evaluate, load_config, load_model, prepare, train
from pipeline.errors import CheckpointError, ConfigError

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "python_interface.py"


def run_example(folder: Path) -> str:
    """What the example prints, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLE), str(folder)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the example has run, and what it printed."""
    folder = tmp_path_factory.mktemp("example")
    return folder, run_example(folder)


def test_the_example_learns_its_text(example: tuple[Path, str]) -> None:
    _, printed = example
    perplexity, unigram = (float(found) for found in re.findall(r"^perplexity ([\d.]+)", printed, flags=re.M))
    assert 1 < perplexity < 2  # a word of the text leaves one to three choices
    assert unigram > 7


def test_a_second_call_finds_all_of_it_done(example: tuple[Path, str]) -> None:
    folder, printed = example
    assert run_example(folder) == printed.replace("(from step 0)", "(from step 328)")


def test_the_interface_scores_as_the_command_does(
    example: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(example[0] / "run")
    assert main(["evaluate", f"run={run}", "split=valid", "checkpoint=last", "accelerator=cpu", "--json"]) == 0
    typed = json.loads(capsys.readouterr().out)
    scores = evaluate(run, split="valid", checkpoint="last", accelerator="cpu")
    assert (scores.score.perplexity, scores.score.num_targets) == (typed["perplexity"], typed["targets"])


def test_a_model_comes_back_with_its_run(example: tuple[Path, str]) -> None:
    trained = load_model(str(example[0] / "run"), checkpoint=328)
    assert (trained.step, trained.config.stream.bptt) == (328, 16)
    assert trained.model.embedding_VE.device == torch.device("cpu") and not trained.model.training


def test_each_name_is_there_when_it_is_asked_for() -> None:
    assert all(callable(getattr(pipeline, name)) for name in pipeline.__all__)
    with pytest.raises(AttributeError, match="module 'pipeline' has no attribute 'evaluat'"):
        _ = pipeline.evaluat


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: load_config("max_step=3"), "unknown key max_step; did you mean max_steps?"),
        (lambda run: load_config("data=a", "data=b"), "data is given twice, as a and as b; give it once"),
        (lambda run: prepare(load_config()), "data=null is not given; use data=FOLDER"),
        (lambda run: prepare(load_config(f"data={run}")), "is a run folder"),
        (lambda run: train(load_config("data=a")), "run=null is not given; use run=FOLDER"),
        (lambda run: evaluate(run, checkpoint="bset"), "checkpoint=bset: it must be best, last or a step"),
        (lambda run: evaluate(run, accelerator="gpu"), 'accelerator="gpu": it must be'),
        (lambda run: load_model(run, checkpoint="first"), "checkpoint=first: it must be best, last or a step"),
    ],
)
def test_mistakes_are_refused_as_on_the_command_line(
    call: Callable[[str], object], message: str, example: tuple[Path, str]
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        call(str(example[0] / "run"))


def test_a_checkpoint_that_is_not_there_is_named(example: tuple[Path, str]) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint of step 5; use one of"):
        load_model(str(example[0] / "run"), checkpoint=5)
