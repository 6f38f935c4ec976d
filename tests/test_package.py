"""The package as `pip install .` installs it: complete, and at work away from the checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "pipeline", "jobs", "conf")
SMALL = [
    "model.embedding_size=6",
    "model.hidden_size=6",
    "stream.num_lanes=4",
    "stream.bptt=7",
    "max_steps=6",
    "accelerator=cpu",
    "tracking.kind=none",
    "logging.progress=false",
]

Run = Callable[..., subprocess.CompletedProcess[str]]


def run_pip(*arguments: str) -> None:
    """Runs pip without the network."""
    command = [sys.executable, "-m", "pip", "--no-cache-dir", *arguments, "--no-deps", "--no-index"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which a wheel is installed that was built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("package")
    sources = folder / "sources"
    sources.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, sources / name)
    run_pip("wheel", str(sources), "--no-build-isolation", "--wheel-dir", str(folder))
    (wheel,) = folder.glob("*.whl")
    run_pip("install", str(wheel), "--target", str(folder / "installed"))
    return folder / "installed"


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Run:
    """Runs a command in an empty folder, where only the installed package can be imported."""
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}

    def run_command(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return run_command


def test_the_list_of_packages_is_complete() -> None:
    """setuptools' `find` cannot place conf/, so pyproject.toml lists each folder."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for top in ("pipeline", "jobs") for path in (ROOT / top).rglob("*.py")}
    assert listed == sorted({*(".".join(folder.parts) for folder in folders), "pipeline.conf"})


@pytest.mark.slow
def test_the_package_brings_all_its_files(installed: Path) -> None:
    found = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    modules = {str(path.relative_to(ROOT)) for top in ("pipeline", "jobs") for path in (ROOT / top).rglob("*.py")}
    conf = {f"pipeline/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert modules | conf | {"pipeline/py.typed", "bin/wordlanes"} <= found
    assert [name for name in found if name.endswith("dist-info/licenses/LICENSE")]


@pytest.mark.slow
def test_the_verbs_run_away_from_the_checkout(run: Run, installed: Path, tmp_path: Path) -> None:
    where = run("-c", "import pipeline.config, jobs; print(pipeline.config.CONF, jobs.__file__)").stdout.split()
    assert where == [str(installed / "pipeline" / "conf"), str(installed / "jobs" / "__init__.py")]

    def verb(*arguments: str) -> str:
        done = run(str(installed / "bin" / "wordlanes"), *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("one two three four five six seven\n" * 60)
    assert verb().startswith("usage: wordlanes VERB [key=value ...]\n")
    verb("prepare", "data=data", "corpus.train=train.txt", "corpus.valid=valid.txt", "corpus.test=test.txt")
    assert verb("verify", "data=data").startswith("ok: ")
    verb("train", "data=data", "run=run", *SMALL, "cluster.num_workers=2")
    assert json.loads(verb("evaluate", "run=run", "accelerator=cpu", "--json"))["targets"] == 480
    assert json.loads(verb("status", "run=run", "--json"))["step"] == 6


@pytest.mark.slow
def test_the_example_runs_away_from_the_checkout(run: Run, tmp_path: Path) -> None:
    example = shutil.copy(ROOT / "examples" / "python_interface.py", tmp_path)
    done = run(str(example))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^trained to step \d+ \(from step 0\)$", done.stdout, flags=re.M)


@pytest.mark.slow
def test_a_mistake_names_the_command_that_was_typed(run: Run, installed: Path) -> None:
    line = "error: data=nowhere holds no manifest.json; prepare the corpus with `{} prepare`, or mend the path\n"
    assert run(str(installed / "bin" / "wordlanes"), "verify", "data=nowhere").stderr == line.format("wordlanes")
    assert run("-m", "jobs", "verify", "data=nowhere").stderr == line.format("python -m jobs")
