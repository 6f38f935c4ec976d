"""Which code runs: version, commit, whether tracked files differ."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import pytest

import pipeline
from pipeline.provenance import CodeVersion, _gpus, _of_folder, _processor, code_version, environment


def git(folder: Path, *arguments: str) -> str:
    person = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *person, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "pipeline"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "pipeline")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return folder


def test_a_checkout_has_a_commit_and_is_dirty_once_a_tracked_file_differs(package: Path) -> None:
    head = git(package, "rev-parse", "HEAD")
    assert _of_folder(package) == CodeVersion(pipeline.__version__, head, dirty=False)
    (package / "untracked.py").touch()
    assert _of_folder(package).dirty is False
    (package / "__init__.py").write_text("x = 1\n")
    assert _of_folder(package) == CodeVersion(pipeline.__version__, head, dirty=True)


def test_a_package_that_is_installed_below_another_checkout_has_no_commit(package: Path) -> None:
    installed = package.parent / "venv" / "pipeline"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    assert _of_folder(installed) == CodeVersion(pipeline.__version__, None, dirty=None)


def test_a_checkout_without_a_commit_or_a_machine_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "__init__.py").touch()
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "__init__.py")
    assert _of_folder(tmp_path).commit is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_version() == CodeVersion(pipeline.__version__, None, dirty=None)


def test_an_environment_names_packages_and_machine_without_importing_them() -> None:
    found = environment()
    assert found["python"] == platform.python_version()
    assert found["torch"] == importlib.metadata.version("torch")
    assert all(isinstance(value, str) and value for value in found.values())


def test_processors_and_gpus_are_told_by_name_and_number(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Some CPU @ 3 GHz\nflags : fpu\n")
    assert _processor(tmp_path / "cpuinfo").startswith("Some CPU @ 3 GHz, ")
    assert _processor(tmp_path / "none").startswith(f"{platform.machine()}, ")
    for place, model in enumerate(["NVIDIA H200", "NVIDIA H200", "NVIDIA T4"]):
        (tmp_path / "gpus" / f"{place}").mkdir(parents=True)
        (tmp_path / "gpus" / f"{place}" / "information").write_text(f"Model: \t\t {model}\nIRQ: 9\n")
    assert _gpus(tmp_path / "gpus") == "2 x NVIDIA H200, 1 x NVIDIA T4"
    assert _gpus(tmp_path / "none") is None
