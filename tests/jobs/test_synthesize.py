"""`synthesize` as it is typed: what it prints and refuses, that it goes on after a kill, and that prepare reads it."""

import subprocess
import sys
import time

import pytest
from support.typed import ROOT, typed

from jobs import synthesize
from pipeline.corpus.manifest import read_manifest
from pipeline.errors import ConfigError

SMALL_PARTS = "import pipeline.corpus.synthesis as s; s.Synthesis.__init__.__defaults__ = (200_000, 1);"


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.txt")}


def test_it_prints_what_it_made_and_a_rerun_makes_nothing(tmp_path, capsys):
    typed_here = [f"to={tmp_path}/made", "num_words=50000", "seed=5"]
    synthesize.main(typed_here)
    lines = capsys.readouterr().out.splitlines()
    assert "text: 50,000 words, of which 50,000 were made now" in lines and f"to: {tmp_path}/made" in lines
    assert any(line.startswith("synthesize: ") and line.endswith(" words/s") for line in lines)
    before = files_of(tmp_path / "made")
    assert [len(text.split()) for text in before.values()] == [50_000]
    synthesize.main(typed_here)
    assert "text: 50,000 words, of which 0 were made now" in capsys.readouterr().out
    assert files_of(tmp_path / "made") == before


def test_prepare_reads_just_these_words(tmp_path):
    assert typed("synthesize", f"to={tmp_path}/made", "num_words=50000").returncode == 0
    done = typed("prepare", f"data={tmp_path}/data", f"corpus.train={tmp_path}/made", "corpus.words=whitespace")
    assert (done.returncode, done.stderr) == (0, "")
    num_lines = (tmp_path / "made" / "00000.txt").read_bytes().count(b"\n")
    assert read_manifest(f"{tmp_path}/data").splits["train"].num_tokens == 50_000 + num_lines
    assert "read as text like the rest" not in done.stdout  # neither the record nor the lock


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "to=null is not given; use to=FOLDER"),
        (["to=a", "num_words=0"], "num_words=0"),
        (["to=a", "num_words=1e9"], "num_words=1"),
        (["to=a", f"seed={1 << 63}"], f"seed={1 << 63}"),
        (["to=a", "seed=-1"], "seed=-1"),
    ],
)
def test_it_refuses(more, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        synthesize.main(more)
    assert told in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_another_text_is_refused_before_anything_is_started(tmp_path, monkeypatch):
    synthesize.main([f"to={tmp_path}", "num_words=1000"])
    monkeypatch.delattr(synthesize, "task_runner")
    with pytest.raises(ConfigError, match="give the same num_words and seed"):
        synthesize.main([f"to={tmp_path}", "num_words=1000", "seed=2"])


def command(to, *more):
    """The verb with small parts, so that there are many."""
    arguments = [f"to={to}", "num_words=3000000", *more]
    code = f"from jobs.synthesize import main; {SMALL_PARTS} main({arguments!r})"
    return [sys.executable, "-c", code]


def test_a_killed_command_goes_on(tmp_path):
    killed = subprocess.Popen(command(tmp_path / "a"), cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "a" / "00001.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    killed.kill()
    assert killed.wait() == -9
    first = tmp_path / "a" / "00000.txt"
    made = first.stat().st_mtime_ns
    for folder in ("a", "b"):
        done = subprocess.run(command(tmp_path / folder), cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    assert first.stat().st_mtime_ns == made
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert len(files_of(tmp_path / "a")) == 15
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
def test_ray_with_two_tasks_writes_the_same_bytes(tmp_path):
    """Also what an end in the middle left is gone on with by other means."""
    for folder, more in (("one", []), ("two", ["cluster=local", "cluster.num_cpus=2"])):
        done = typed("synthesize", f"to={tmp_path / folder}", "num_words=21000000", *more)
        assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "one" / "00001.txt").unlink()
    done = typed("synthesize", f"to={tmp_path / 'one'}", "num_words=21000000", "cluster=local")
    assert "of which 10,000,000 were made now" in done.stdout
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert [len(text.split()) for _, text in sorted(files_of(tmp_path / "two").items())] == [10**7, 10**7, 10**6]
