"""Which code runs: version, commit, whether tracked files differ."""

import subprocess
from pathlib import Path

import pytest

import pipeline
from pipeline.provenance import CodeVersion, _of_folder, code_version


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
