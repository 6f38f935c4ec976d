"""infra/: the image's recipe as far as it can be checked without a network, and examples that are what is rendered."""

import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from pipeline.submission.adaptors import ADAPTORS

ROOT = Path(__file__).resolve().parents[1]
INFRA = ROOT / "infra"
SECRET = re.compile(r"token|secret|passw|credential|api_?key|access_?key", re.IGNORECASE)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions(text):
    """(name, value) of each instruction of a Dockerfile, its lines joined."""
    plain = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = plain.replace("\\\n", "")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


IMAGE = instructions((INFRA / "Dockerfile").read_text())


def values(name):
    return [value for found, value in IMAGE if found == name]


def copied():
    """What is copied from the checkout, in order."""
    return [source for value in values("COPY") for source in shlex.split(value)[:-1]]


def test_the_base_is_slim_and_of_a_version():
    (base,) = values("FROM")
    found = re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-\w+", base)
    assert found and tuple(map(int, found[1].split("."))) >= (3, 11)


def test_nothing_is_fetched_but_by_apt_and_pip():
    assert values("ADD") == [] and not re.search(r"curl|wget|https?:|git ", " ".join(values("RUN")))


def test_the_image_runs_without_root_as_the_user_that_the_pods_have():
    assert IMAGE[-3][0] == "USER" and len(values("USER")) == 1
    user, group = values("USER")[0].split(":")
    assert user == group == str(yaml.safe_load((ROOT / "conf/via/kuberay.yaml").read_text())["user_id"])
    assert int(user) > 0 and f"--uid {user} --gid {group}" in " ".join(values("RUN"))


def test_no_variable_and_no_file_holds_a_secret():
    assert not [value for value in values("ARG") + values("ENV") + copied() if SECRET.search(value)]


def test_code_comes_after_the_dependencies():
    names = [f"{name} {value}" for name, value in IMAGE]
    dependencies = next(i for i, each in enumerate(names) if "--requirement" in each)
    code = [i for i, each in enumerate(names) if re.match("COPY (conf|pipeline|jobs) ", each)]
    assert len(code) == 3 and all(i > dependencies for i in code)


def test_dependencies_are_those_of_the_package_and_pinned(tmp_path):
    """The recipe's own program is run on pyproject.toml."""
    (run,) = (each for each in values("RUN") if "--requirement" in each)
    program = re.match(r'python -c "(.*?)" > requirements.txt', run)
    assert program and "--constraint constraints.txt" in run
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    done = subprocess.run([sys.executable, "-c", program[1]], cwd=tmp_path, capture_output=True, text=True, check=True)
    more = PROJECT["project"]["optional-dependencies"]
    assert done.stdout.splitlines() == [*PROJECT["project"]["dependencies"], *more["s3"], *more["submit"]]


def test_versions_that_the_recipe_gives_are_those_that_the_package_takes():
    given = dict(value.split("=") for value in values("ARG"))
    needed = {Requirement(each).name: Requirement(each).specifier for each in PROJECT["project"]["dependencies"]}
    (build,) = (Requirement(each).specifier for each in PROJECT["build-system"]["requires"])
    assert given["TORCH"] in needed["torch"] and given["SETUPTOOLS"] in build


def test_what_is_copied_is_there_and_all_else_is_kept_out():
    everything, *taken = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert everything == "*"
    names = {line[1:] for line in taken if line.startswith("!")}
    assert names == set(copied()) and all((ROOT / name).exists() for name in names)
    assert not [name for name in names if fnmatch.fnmatch(name, ".*")]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_what_the_image_runs_holds_before_shellcheck():
    for script in values("RUN"):
        done = subprocess.run(
            ["shellcheck", "--shell=sh", "-"],
            input=f"export TORCH=1 SETUPTOOLS=1\n{script}\n",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_package_can_be_built_of_what_is_copied(tmp_path):
    sources = tmp_path / "sources"
    sources.mkdir()
    for name in copied():
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, sources / name)
    command = [sys.executable, "-m", "pip", "wheel", str(sources), "--no-build-isolation", "--no-deps", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and len(list(tmp_path.glob("*.whl"))) == 1, done.stderr


def test_the_wheel_has_nothing_of_infra():
    assert not [name for name in PROJECT["tool"]["setuptools"]["packages"] if name.startswith("infra")]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The examples as they are rendered now."""
    folder = tmp_path_factory.mktemp("examples")
    command = [sys.executable, str(INFRA / "examples" / "render.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("kind", [kind for kind, module in ADAPTORS.items() if find_spec(module)])
def test_the_example_of_each_way_is_what_is_rendered(rendered, kind):
    (made,) = rendered.glob(f"{kind}.*")
    kept = INFRA / "examples" / made.name
    assert kept.exists() and kept.read_text() == made.read_text(), (
        f"{kept.name} is stale; `make examples` makes it anew"
    )
