"""The pages for people: each file that they name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "infra" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FOLDERS = ("pipeline", "jobs", "conf", "tests", "docs", "examples", "benchmarks", "infra")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./]*)", text)
    shown = re.findall(r"^# ([\w./]+)$", text, flags=re.MULTILINE)  # files that a page's own blocks make
    made = {
        *shown,
        "conf/model/recurrence/mingru.yaml",
        "conf/model/recurrence/KIND.yaml",
        "conf/model/softmax/KIND.yaml",
    }
    assert [path for path in named if not (ROOT / path).exists() and path not in made] == []
