"""A folder of texts for tests of whole preparations."""

import pytest
from support.corpora import words


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text(words(number, 200))
    (tmp_path / "valid.txt").write_text(words(7, 50))
    return folder
