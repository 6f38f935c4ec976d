"""`prepare`: raw text → a prepared corpus.

In: overrides such as `data=FOLDER corpus.train=FILES`. Out: the corpus folder, and a table of what it holds.
Refuses: a missing `data`, and what `pipeline.corpus.prepare` refuses.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from pipeline.cluster.tasks import task_runner
from pipeline.config import Config, load
from pipeline.corpus.manifest import Manifest, Split
from pipeline.corpus.phases import Outcome
from pipeline.corpus.prepare import prepare
from pipeline.interface import check_preparation
from pipeline.submission.standing import shown_seconds

Clock = Callable[[], float]

PLAIN_SECONDS = 30.0  # between lines where there is no terminal to draw on
READ = "read"  # the phase that `reading` runs
ODD: tuple[Outcome, ...] = ("kept", "failed")  # outcomes that are told beside the number of tasks


@dataclass
class Reported:
    """A phase, as far as it is. What was kept was read by nobody: it counts for no speed, and so not for the time left.

    Attributes:
        name: of the phase.
        num_tasks, num_bytes: that it has; bytes are 0 if not known.
        clock: seconds since any moment.
        outcomes: of its tasks that have ended.
        passed_bytes: of these tasks.
        read_bytes, read_words: of those that were done and not kept.
        ended_seconds: on the clock; None while it goes on.
    """

    name: str
    num_tasks: int
    num_bytes: int
    clock: Clock
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    passed_bytes: int = 0
    read_bytes: int = 0
    read_words: int = 0
    ended_seconds: float | None = None

    def __post_init__(self) -> None:
        self._begun_seconds = self.clock()

    @property
    def seconds(self) -> float:
        """Since it began, until now or its end."""
        return max((self.ended_seconds or self.clock()) - self._begun_seconds, 1e-9)

    def advance(self, *, num_bytes: int, num_words: int, outcome: Outcome) -> None:
        """A task has ended."""
        self.outcomes[outcome] += 1
        self.passed_bytes += num_bytes
        if outcome == "done":
            self.read_bytes += num_bytes
            self.read_words += num_words

    def end(self) -> None:
        """Its clock stops."""
        self.ended_seconds = self.clock()

    def told(self) -> str:
        """How far it is, in a line without its name."""
        passed = f", {self.passed_bytes / 1e6:,.0f} of {self.num_bytes / 1e6:,.0f} MB" if self.num_bytes else ""
        ended = self.ended_seconds is not None
        parts = [
            f"{self._tasks()} in {self.seconds:.1f} s" if ended else f"{self._tasks()}{passed} in {self.seconds:.0f} s",
            *_speeds(self.read_bytes, self.read_words, self.seconds),
            "" if ended else self._left(),
        ]
        return ", ".join(part for part in parts if part)

    def _tasks(self) -> str:
        num_ended = self.outcomes.total()
        number = f"{num_ended:,} of {self.num_tasks:,} tasks" if num_ended < self.num_tasks else _counted(num_ended)
        odd = ", ".join(f"{self.outcomes[each]:,} {each}" for each in ODD if self.outcomes[each])
        return f"{number} ({odd})" if odd else number

    def _left(self) -> str:
        """By the bytes that are left, or the tasks where bytes are not known."""
        left, worked = self.num_bytes - self.passed_bytes, self.read_bytes
        if not self.num_bytes:
            left, worked = self.num_tasks - self.outcomes.total(), self.outcomes["done"]
        return f"{shown_seconds(left / worked * self.seconds)} left" if worked else ""


class Bar:
    """Shows the phases of a preparation: as bars in a terminal, else as a line now and then and one at a phase's end.

    Args:
        console: where to.
        clock: seconds since any moment.
        every_seconds: between lines where there is no terminal.
    """

    def __init__(
        self, console: Console, *, clock: Clock = time.monotonic, every_seconds: float = PLAIN_SECONDS
    ) -> None:
        self._console, self._clock = console, clock
        self._bar = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(20),
            Told(),
            console=console,
            disable=not console.is_terminal,
        )
        self._phases: list[Reported] = []
        self._drawn: TaskID | None = None
        self._lock = threading.Lock()  # between what is reported and the lines about it
        self._ended = threading.Event()
        self._lines = threading.Thread(target=self._tell, args=(every_seconds,), name="progress", daemon=True)
        self.peak_bytes = 0

    def __enter__(self) -> "Bar":
        self._bar.start()
        if self._bar.disable:
            self._lines.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._lines.ident is not None:
            self._lines.join()
        self._end_phase()
        self._bar.stop()

    @property
    def outcomes(self) -> Counter[Outcome]:
        """How the tasks of all phases ended."""
        return sum((phase.outcomes for phase in self._phases), Counter())

    @property
    def input(self) -> Reported | None:
        """The phase that reads the input, if its bytes are known; None if there was none."""
        return next((phase for phase in self._phases if phase.name == READ and phase.num_bytes), None)

    def speeds(self, seconds: float) -> Iterator[str]:
        """Of the whole, by the bytes of input and the words that were read in some seconds; without what was kept."""
        num_bytes = self.input.read_bytes if self.input else 0
        return _speeds(num_bytes, max((phase.read_words for phase in self._phases), default=0), seconds)

    def phase(self, name: str, *, num_tasks: int, num_bytes: int) -> None:
        """A phase begins."""
        self._end_phase()
        with self._lock:
            self._phases.append(Reported(name, num_tasks, num_bytes, self._clock))
        self._drawn = self._bar.add_task(name, total=num_bytes or num_tasks, phase=self._phases[-1])

    def advance(self, *, num_bytes: int, num_words: int, outcome: Outcome, peak_bytes: int) -> None:
        """A task of the phase has ended."""
        phase = self._phases[-1]
        with self._lock:
            phase.advance(num_bytes=num_bytes, num_words=num_words, outcome=outcome)
            self.peak_bytes = max(self.peak_bytes, peak_bytes)
        assert self._drawn is not None
        self._bar.update(self._drawn, advance=num_bytes if phase.num_bytes else 1)

    def note(self, text: str) -> None:
        """One line about what was found."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def tell(self) -> None:
        """One line about how far the phase is; none between phases."""
        with self._lock:
            phase = self._phases[-1] if self._phases else None
            if phase is not None and phase.ended_seconds is None:
                self.note(f"{phase.name}: {phase.told()}")

    def _tell(self, every_seconds: float) -> None:
        while not self._ended.wait(every_seconds):
            self.tell()

    def _end_phase(self) -> None:
        with self._lock:
            if self._phases and self._phases[-1].ended_seconds is None:
                self._phases[-1].end()
                if self._bar.disable:
                    self.note(f"{self._phases[-1].name}: {self._phases[-1].told()}")


class Told(ProgressColumn):
    """What is told of a phase beside its bar."""

    def render(self, task: Task) -> Text:
        """Anew at each look at the clock."""
        phase: Reported = task.fields["phase"]
        return Text(phase.told())


def main(arguments: Sequence[str]) -> None:
    """Runs the verb.

    Raises:
        PipelineError: the configuration or the text cannot be.
    """
    config = load(Config, arguments)
    data, sources = check_preparation(config)
    console = Console()
    begun_seconds = time.monotonic()
    with task_runner(config.cluster) as run_tasks, Bar(console) as bar:
        ready_seconds = time.monotonic()
        manifest = prepare(
            config.corpus,
            data,
            run_tasks=run_tasks,
            keep_ids=config.prepare.keep_ids,
            progress=bar,
            extensions=config.extensions,
            sources=sources,
        )
        seconds = time.monotonic() - ready_seconds
    around_seconds = time.monotonic() - begun_seconds - seconds
    console.print(_table(manifest))
    for line in _lines(manifest, bar, data=data, seconds=seconds, around_seconds=around_seconds):
        bar.note(line)


def _table(manifest: Manifest) -> Table:
    table = Table("split", "shards", "tokens", "OOV rate")
    for name, split in manifest.splits.items():
        table.add_row(name, f"{len(split.shards):,}", f"{split.num_tokens:,}", f"{split.oov_rate:.4%}")
    return table


def _lines(manifest: Manifest, bar: Bar, *, data: str, seconds: float, around_seconds: float) -> list[str]:
    """What else the corpus holds, and what it took.

    Args:
        manifest: the corpus.
        bar: what was reported meanwhile.
        data: its folder.
        seconds: of the preparation.
        around_seconds: to start and stop what ran its tasks.
    """
    num_words = sum(split.num_tokens for split in manifest.splits.values())
    size = f" in {bar.input.num_bytes / 1e6:,.1f} MB" if bar.input else ""
    speeds = ", ".join(bar.speeds(seconds))
    kept = f", {bar.outcomes['kept']:,} kept" if bar.outcomes["kept"] else ""
    return [
        *(f"{name}: {odd}" for name, split in manifest.splits.items() if (odd := _odd(split))),
        f"text: {num_words:,} words with <eos>{size}",
        f"vocabulary: {manifest.vocab_size:,} words",
        f"time: {seconds:.1f} s{f' ({speeds})' if speeds else ''},"
        f" and {around_seconds:.1f} s to start and stop the workers",
        f"tasks: {bar.outcomes.total():,}{kept}; peak memory of a task: {bar.peak_bytes / 1e6:,.0f} MB",
        f"data: {data}",
    ]


def _speeds(num_bytes: int, num_words: int, seconds: float) -> Iterator[str]:
    if num_bytes:
        yield f"{num_bytes / seconds / 1e6:,.1f} MB/s"
    if num_words:
        yield f"{num_words / seconds:,.0f} words/s"


def _counted(num_tasks: int) -> str:
    return "1 task" if num_tasks == 1 else f"{num_tasks:,} tasks"


def _odd(split: Split) -> str:
    """Unusual characters and missing rows of a split's text, counted in a line; empty if there are none or none were
    counted."""
    counts = (
        (split.num_replacement_chars, "U+FFFD, put in for bytes that are no UTF-8 or there before"),
        (split.num_nul_bytes, "NUL bytes"),
        (split.num_null_rows, "rows without text passed over"),
    )
    return ", ".join(f"{count:,} {what}" for count, what in counts if count)
