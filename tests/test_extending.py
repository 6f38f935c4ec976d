"""docs/extending.md is right: what it shows is run as it stands there."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest
import yaml
from support.tables import tables_restored

from pipeline import config, load_config, prepare
from pipeline.cluster.backends import BACKENDS
from pipeline.config import KINDS, Config, EvaluateConfig, load
from pipeline.corpus.readers import READERS
from pipeline.evaluation import evaluate_split
from pipeline.model.tables import RECURRENCES
from pipeline.runner import train

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


def test_the_mingru_trains_and_passes_its_own_test(
    make_corpus: Callable[..., str],
    small_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {**vars(config)}
    exec(compile(block("# pipeline/config/schema.py"), "section", "exec"), names)
    monkeypatch.setattr(config, "MinGRUConfig", names["MinGRUConfig"], raising=False)
    KINDS["model.recurrence"]["mingru"] = names["MinGRUConfig"]
    mingru = module("pipeline.model.mingru", monkeypatch, code=block("# pipeline/model/mingru.py"))
    RECURRENCES[names["MinGRUConfig"]] = mingru.StackedMinGRU

    module("test_mingru", monkeypatch, code=block("# tests/model/test_mingru.py")).test_equals_a_loop()
    values = [f"model.recurrence.{key}={value}" for key, value in yaml.safe_load(block("hidden_size")).items()]
    common = [f"data={make_corpus()}", f"run={tmp_path / 'run'}", "model.recurrence.kind=mingru", *values]
    assert train(small_config(*common, "max_steps=3")).step == 3
    assert train(small_config(*common, "max_steps=5")).first_step == 3


def test_the_mixture_trains_and_is_evaluated(
    make_corpus: Callable[..., str],
    small_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "my_layers.py").write_text(block("# my_layers.py"))
    monkeypatch.syspath_prepend(tmp_path)
    run = str(tmp_path / "run")
    typed = ["extensions=[my_layers]", "model.softmax.kind=mixture", "model.softmax.num_components=5"]
    try:
        train(small_config(f"data={make_corpus()}", f"run={run}", "max_steps=60", *typed))
    finally:
        sys.modules.pop("my_layers", None)
    found = evaluate_split(load(EvaluateConfig, [f"run={run}", "accelerator=cpu"], name="evaluate"))
    assert found.score.nats_per_token < 4.2  # the first step's is log 62


@pytest.fixture
def from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Makes a module of a block of the page, and has the tables forget it afterwards."""
    names: list[str] = []

    def make(name: str) -> None:
        names.append(name)
        (tmp_path / f"{name}.py").write_text(block(f"# {name}.py"))

    monkeypatch.syspath_prepend(tmp_path)
    tables: list[dict[str, Any]] = [READERS, BACKENDS]
    before = [dict(table) for table in tables]
    yield make
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)
    for name in names:
        sys.modules.pop(name, None)


def test_the_format_is_read(from_outside: Callable[[str], None], tmp_path: Path) -> None:
    from_outside("my_formats")
    (tmp_path / "a.rot13").write_text("n frpbaq frpbaq\n" * 9)
    config = load_config("extensions=[my_formats]", f"corpus.train={tmp_path}/a.rot13", f"data={tmp_path}/data")
    assert prepare(config).splits["train"].num_tokens == 36
    with pa.memory_map(f"{tmp_path}/data/vocabulary.arrow") as file:
        assert "second" in pa.ipc.open_file(file).read_all().column("word").to_pylist()


def test_the_backend_is_taken_where_it_fits(
    from_outside: Callable[[str], None],
    make_corpus: Callable[..., str],
    small_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from_outside("my_backend")
    data, pinned = make_corpus(), list[set[int]]()
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cpus: pinned.append(cpus))
    for number, setting in enumerate(["0", "1"]):
        monkeypatch.setenv("PINNED", setting)
        train(small_config("extensions=[my_backend]", f"data={data}", f"run={tmp_path}/{number}", "max_steps=2"))
    assert pinned == [{min(os.sched_getaffinity(0))}]
