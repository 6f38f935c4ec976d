"""Fixtures of the tests that do harm to runs, or move them from one cluster to another."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.faulty_runs import Draw, World


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs are that nothing happens to."""
    return tmp_path_factory.mktemp("undisturbed")


@pytest.fixture(scope="session")
def undisturbed() -> dict[tuple[str, ...], str]:
    """Runs that nothing happened to: made when first needed."""
    return {}


@pytest.fixture
def world(
    make_corpus: Callable[..., str],
    tmp_path: Path,
    shared_folder: Path,
    undisturbed: dict[tuple[str, ...], str],
) -> Iterator[World]:
    """A corpus and the commands on it, of which none outlives the test."""
    data = make_corpus(train=3000, valid=150, test=170)
    world = World(folder=tmp_path, data=data, undisturbed=undisturbed, shared_folder=shared_folder)
    yield world
    world.end()


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> Draw:
    """What is left to chance, by the seed and the test's name."""
    return Draw(request.node.name)
