"""docs/extending.md is right: what it shows is run as it stands there."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from support.tables import tables_restored

from pipeline import config
from pipeline.config import KINDS, Config, EvaluateConfig, load
from pipeline.model.tables import RECURRENCES
from pipeline.training.trainer import train

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree"),  # Lightning 2.6, every fit
]

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"^```\w*\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


def block(start: str) -> str:
    """The one code block that begins so."""
    (found,) = (each for each in BLOCKS if each.startswith(start))
    return found


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    with tables_restored():
        yield


def module(name: str, monkeypatch: pytest.MonkeyPatch, *, code: str) -> ModuleType:
    """A module of the page, as if its file were there."""
    made = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, made)
    exec(compile(code, name, "exec"), made.__dict__)
    return made


def test_the_gru_trains_and_passes_its_own_test(
    make_corpus: Callable[..., str],
    small_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {**vars(config)}
    exec(compile(block("# pipeline/config.py"), "section", "exec"), names)
    monkeypatch.setattr(config, "GRUConfig", names["GRUConfig"], raising=False)
    KINDS["model.recurrence"]["gru"] = names["GRUConfig"]
    gru = module("pipeline.model.gru", monkeypatch, code=block("# pipeline/model/gru.py"))
    RECURRENCES[names["GRUConfig"]] = gru.StackedGRU

    module(
        "test_gru", monkeypatch, code=block("# tests/model/test_gru.py")
    ).test_equals_torchs_own_with_several_layers()
    values = [f"model.recurrence.{key}={value}" for key, value in yaml.safe_load(block("hidden_size")).items()]
    common = [f"data={make_corpus()}", f"run={tmp_path / 'run'}", "model.recurrence.kind=gru", *values]
    assert train(small_config(*common, "max_steps=3")).step == 3
    assert train(small_config(*common, "max_steps=5")).first_step == 3


def test_the_mixture_trains_and_is_evaluated(
    make_corpus: Callable[..., str],
    small_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from jobs.evaluate import evaluate

    (tmp_path / "my_layers.py").write_text(block("# my_layers.py"))
    monkeypatch.syspath_prepend(tmp_path)
    run = str(tmp_path / "run")
    typed = ["extensions=[my_layers]", "model.softmax.kind=mixture", "model.softmax.num_components=5"]
    try:
        train(small_config(f"data={make_corpus()}", f"run={run}", "max_steps=60", *typed))
    finally:
        sys.modules.pop("my_layers", None)
    found = evaluate(load(EvaluateConfig, [f"run={run}", "accelerator=cpu"], name="evaluate"))
    assert found.score.nats_per_token < 4.2  # the first step's is log 62
