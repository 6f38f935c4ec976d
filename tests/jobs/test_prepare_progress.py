"""What `prepare` shows while it works: a line now and then, a bar in a terminal; and what it says at the end."""

import io
import re
import threading

import pytest
from rich.console import Console

from jobs import prepare
from jobs.prepare import Bar, Reported
from pipeline import interface
from pipeline.corpus import prepare as module


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def bar_on(file, clock, **more):
    return Bar(Console(file=file, width=200), clock=clock, **more)


def told(bar, file):
    """The one line that is told now."""
    before = file.tell()
    bar.tell()
    return file.getvalue()[before:]


def test_lines_of_a_phase(clock):
    file = io.StringIO()
    with bar_on(file, clock) as bar:
        assert told(bar, file) == ""
        bar.phase("read", num_tasks=4, num_bytes=40_000_000)
        clock.now += 30
        assert told(bar, file) == "read: 0 of 4 tasks, 0 of 40 MB in 30 s\n"
        bar.advance(num_bytes=10_000_000, num_words=2_000_000, outcome="done", peak_bytes=5)
        clock.now += 10
        assert told(bar, file) == "read: 1 of 4 tasks, 10 of 40 MB in 40 s, 0.2 MB/s, 50,000 words/s, 2 min left\n"
        bar.advance(num_bytes=10_000_000, num_words=0, outcome="failed", peak_bytes=9)
        bar.advance(num_bytes=10_000_000, num_words=0, outcome="done", peak_bytes=7)
        clock.now += 60
        assert told(bar, file).endswith(
            "3 of 4 tasks (1 failed), 30 of 40 MB in 100 s, 0.2 MB/s, 20,000 words/s, 50 s left\n"
        )
        bar.advance(num_bytes=10_000_000, num_words=0, outcome="done", peak_bytes=0)
        before = file.tell()
        bar.phase("merge", num_tasks=1, num_bytes=0)
        assert file.getvalue()[before:] == "read: 4 tasks (1 failed) in 100.0 s, 0.3 MB/s, 20,000 words/s\n"
        clock.now += 1
        assert told(bar, file) == "merge: 0 of 1 tasks in 1 s\n"
        assert bar.peak_bytes == 9
    assert file.getvalue().endswith("merge: 0 of 1 tasks in 1.0 s\n")
    assert told(bar, file) == ""


def test_the_time_left_is_not_fooled_by_what_was_kept(clock):
    phase = Reported("read", 1000, 1_000_000_000, clock)
    for _ in range(990):
        phase.advance(num_bytes=1_000_000, num_words=1000, outcome="kept")
    clock.now += 1
    assert (
        phase.told() == "990 of 1,000 tasks (990 kept), 990 of 1,000 MB in 1 s"
    )  # nothing says how long the rest takes
    clock.now += 19
    phase.advance(num_bytes=1_000_000, num_words=1000, outcome="done")
    assert phase.told() == "991 of 1,000 tasks (990 kept), 991 of 1,000 MB in 20 s, 0.1 MB/s, 50 words/s, 3 min left"
    phase.end()
    clock.now += 1000
    assert phase.told() == "991 of 1,000 tasks (990 kept) in 20.0 s, 0.1 MB/s, 50 words/s"


def test_where_bytes_are_not_known_tasks_tell_the_time_left(clock):
    phase = Reported("merge", 5, 0, clock)
    phase.advance(num_bytes=0, num_words=0, outcome="kept")
    clock.now += 10
    assert phase.told() == "1 of 5 tasks (1 kept) in 10 s"
    phase.advance(num_bytes=0, num_words=0, outcome="done")
    assert phase.told() == "2 of 5 tasks (1 kept) in 10 s, 30 s left"


def test_bytes_decide_the_time_left_and_not_tasks(clock):
    phase = Reported("read", 2, 1_000_000, clock)
    clock.now += 10
    phase.advance(num_bytes=100_000, num_words=0, outcome="done")
    assert phase.told().endswith(", 90 s left")


class Awaited(io.StringIO):
    """Tells when a line has come."""

    def __init__(self):
        super().__init__()
        self.line = threading.Event()

    def write(self, text):
        self.line.set()
        return super().write(text)


def test_a_line_comes_while_one_long_task_tells_nothing(clock):
    file = Awaited()
    with bar_on(file, clock, every_seconds=0.01) as bar:
        bar.phase("read", num_tasks=1, num_bytes=5_000_000)
        assert file.line.wait(60)  # the task goes on until then
        bar.advance(num_bytes=5_000_000, num_words=0, outcome="done", peak_bytes=0)
    assert file.getvalue().startswith("read: 0 of 1 tasks, 0 of 5 MB in 0 s\n")
    assert "progress" not in [thread.name for thread in threading.enumerate()]


def test_a_terminal_has_a_bar_and_no_lines(clock):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120)
    with Bar(console, clock=clock, every_seconds=0.0) as bar:
        assert "progress" not in [thread.name for thread in threading.enumerate()]
        bar.phase("read", num_tasks=2, num_bytes=4_000_000)
        clock.now += 2
        bar.advance(num_bytes=2_000_000, num_words=10, outcome="done", peak_bytes=0)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "1 of 2 tasks in 2.0 s, 1.0 MB/s, 5 words/s" in shown and "━" in shown
    assert "read:" not in shown


@pytest.fixture
def arguments(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"one two {number}\n" for number in range(1000)))
    return [f"corpus.train={tmp_path}/a.txt", f"data={tmp_path}/data", "corpus.unit_bytes=4096", "cluster=none"]


def last_lines(capsys):
    return dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if ": " in line)


def test_the_last_lines_say_what_it_took(arguments, capsys):
    prepare.main(arguments)
    lines = last_lines(capsys)
    assert lines["text"] == "4,000 words with <eos> in 0.0 MB"
    assert re.fullmatch(
        r"[\d.]+ s \([\d,.]+ MB/s, [\d,]+ words/s\), and [\d.]+ s to start and stop the workers", lines["time"]
    )
    number, peak = re.fullmatch(r"(\d+); peak memory of a task: ([\d,]+) MB", lines["tasks"]).groups()
    assert int(number) > 8 and int(peak.replace(",", "")) > 50
    prepare.main(arguments)
    assert "words/s" not in last_lines(capsys)["time"]  # all of it was kept


def test_the_text_is_listed_once(arguments, monkeypatch):
    """With a thousand files in an object store each look takes a while."""
    calls, plain = [], module.list_sources
    monkeypatch.setattr(module, "list_sources", lambda corpus: calls.append(1) or plain(corpus))
    prepare.main(arguments)
    interface.prepare(interface.load_config(*arguments))
    assert len(calls) == 2


def test_only_what_is_read_counts_as_text(clock):
    """The check reads shards, and the text's bytes are not known where a data set is read."""
    with bar_on(io.StringIO(), clock) as bar:
        bar.phase("read", num_tasks=1, num_bytes=0)
        bar.phase("check", num_tasks=1, num_bytes=7)
        assert bar.input is None


def test_a_rerun_says_what_was_kept(arguments, capsys, monkeypatch):
    class Rerun:
        """A preparation whose tasks were found done but for one."""

        def __init__(self, prepare):
            self.prepare = prepare

        def __call__(self, *args, progress, **kw):
            progress.phase("read", num_tasks=3, num_bytes=9_000_000)
            for outcome in ("kept", "kept", "done"):
                progress.advance(num_bytes=3_000_000, num_words=300, outcome=outcome, peak_bytes=210_000_000)
            return self.prepare(*args, progress=None, **kw)

    monkeypatch.setattr(prepare, "prepare", Rerun(prepare.prepare))
    prepare.main(arguments)
    lines = last_lines(capsys)
    assert lines["tasks"] == "3, 2 kept; peak memory of a task: 210 MB"
    assert re.match(r"3 tasks \(2 kept\) in [\d.]+ s, [\d,.]+ MB/s, [\d,]+ words/s", lines["read"])
    assert lines["text"].endswith(" in 9.0 MB")
    seconds = float(lines["time"].split()[0])
    assert float(re.search(r"\(([\d,.]+) MB/s", lines["time"])[1].replace(",", "")) <= 3 / max(seconds - 0.05, 1e-9)
