"""What a configuration leaves to the vocabulary: the cutoffs of the softmax."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.config import Config, load
from pipeline.corpus.manifest import read_manifest
from pipeline.errors import ConfigError
from pipeline.run.checkpoint import checkpoint_path, load_checkpoint, own_part
from pipeline.runner import train
from pipeline.training.parts import build_model
from pipeline.training.restore import load_trained
from pipeline.training.tiling import fitted_model, run_identity

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree"),  # Lightning 2.6, every fit
]


@pytest.mark.parametrize(
    ("vocab_size", "expected"),
    [
        (3, ("full", ())),
        (2000, ("full", ())),
        (2001, ("adaptive", (2000,))),
        (10_000, ("adaptive", (2000,))),
        (10_001, ("adaptive", (2000, 10_000))),
        (793_471, ("adaptive", (2000, 10_000))),
    ],
)
def test_cutoffs_that_nobody_gives_fit_the_vocabulary(vocab_size: int, expected: tuple[str, tuple[int, ...]]) -> None:
    model = load(Config, ["model.embedding_size=1", "model.recurrence.hidden_size=1"]).model
    found = fitted_model(model, vocab_size=vocab_size)
    assert (found.softmax.kind, found.softmax.cutoffs) == expected
    assert found.model_copy(update={"softmax": model.softmax}) == model
    assert fitted_model(found, vocab_size=vocab_size) == found
    assert build_model(model, vocab_size=vocab_size).softmax.cutoffs == expected[1]


def test_cutoffs_that_are_given_are_taken_as_they_are() -> None:
    model = load(Config, ["model.softmax.cutoffs=[3,2000]"]).model
    assert fitted_model(model, vocab_size=2001) == model
    for made in (fitted_model, build_model):
        with pytest.raises(ConfigError, match="cutoff 2000 is not below the vocabulary's 10 words"):
            made(model, vocab_size=10)


def test_the_default_is_what_it_was_for_a_vocabulary_that_it_fitted(make_corpus: Callable[..., str]) -> None:
    """So a run of before, whose configuration holds them, goes on."""
    before = load(Config, ["model.softmax.cutoffs=[2000,10000]"])
    now = load(Config, [])
    manifest = read_manifest(make_corpus())
    for vocab_size in (10_001, 44_000):
        fitted = now.model_copy(update={"model": fitted_model(now.model, vocab_size=vocab_size)})
        assert run_identity(fitted, manifest, total_steps=1) == run_identity(before, manifest, total_steps=1)


def test_a_run_holds_the_cutoffs_that_it_was_trained_with(
    make_corpus: Callable[..., str], small_config: Callable[..., Config], tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    overrides = [f"data={make_corpus()}", f"run={run}", "model.softmax.cutoffs=null"]
    train(small_config(*overrides, "max_steps=3"))
    softmax = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["softmax"]
    assert softmax == {"kind": "full"}
    identity = own_part(load_checkpoint(checkpoint_path(run, 3)))["identity"]
    assert {key: identity[key] for key in identity if "softmax" in key} == {"model.softmax.kind": '"full"'}
    assert load_trained(run, "best").model.softmax.cutoffs == ()
    assert train(small_config(*overrides, "max_steps=5")).first_step == 3
