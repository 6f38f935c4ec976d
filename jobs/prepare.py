"""`prepare`: raw text → a prepared corpus.

In: overrides such as `data=FOLDER corpus.train=FILES`. Out: the corpus folder, and a table of what it holds.
Refuses: a missing `data`, and what `pipeline.corpus.prepare` refuses.
"""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pipeline.cluster.tasks import task_runner
from pipeline.config import Config, load
from pipeline.corpus.manifest import Manifest, Split
from pipeline.corpus.prepare import prepare
from pipeline.interface import check_preparation


class Bar:
    """Draws the phases of a preparation; without a terminal, one line for each phase when it is done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._begun_seconds = 0.0
        self._done_bytes = self._done_words = 0
        self._name = ""
        self.read_bytes = 0

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_phase()
        self._bar.stop()

    def phase(self, name: str, *, num_tasks: int, num_bytes: int) -> None:
        """A phase begins."""
        self._end_phase()
        self._name, self._begun_seconds = name, time.monotonic()
        self._done_bytes = self._done_words = 0
        self._task = self._bar.add_task(name, total=num_tasks, speed="")
        if name == "read":
            self.read_bytes = num_bytes

    def advance(self, *, num_bytes: int, num_words: int) -> None:
        """A task of the phase is done."""
        assert self._task is not None
        self._done_bytes += num_bytes
        self._done_words += num_words
        self._bar.update(self._task, advance=1, speed=self._speed())

    def note(self, text: str) -> None:
        """One line about what was found."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _speed(self) -> str:
        seconds = max(time.monotonic() - self._begun_seconds, 1e-9)
        speeds = [f"{self._done_bytes / seconds / 1e6:.1f} MB/s"] if self._done_bytes else []
        if self._done_words:
            speeds.append(f"{self._done_words / seconds:,.0f} words/s")
        return ", ".join(speeds)

    def _end_phase(self) -> None:
        if self._task is not None and not self._console.is_terminal:
            seconds = time.monotonic() - self._begun_seconds
            self._console.print(f"{self._name}: {seconds:.1f} s {self._speed()}".rstrip(), highlight=False)
        self._task = None


def main(arguments: Sequence[str]) -> None:
    """Runs the verb.

    Raises:
        PipelineError: the configuration or the text cannot be.
    """
    config = load(Config, arguments)
    data = check_preparation(config)
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
        )
        seconds = time.monotonic() - ready_seconds
    around_seconds = time.monotonic() - begun_seconds - seconds
    console.print(_table(manifest))
    for line in _lines(manifest, data=data, read_bytes=bar.read_bytes, seconds=seconds, around_seconds=around_seconds):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(manifest: Manifest) -> Table:
    table = Table("split", "shards", "tokens", "OOV rate")
    for name, split in manifest.splits.items():
        table.add_row(name, f"{len(split.shards):,}", f"{split.num_tokens:,}", f"{split.oov_rate:.4%}")
    return table


def _lines(manifest: Manifest, *, data: str, read_bytes: int, seconds: float, around_seconds: float) -> list[str]:
    """What else the corpus holds, and how long it took.

    Args:
        manifest: the corpus.
        data: its folder.
        read_bytes: size of the input, 0 if not known.
        seconds: of the preparation.
        around_seconds: to start and stop what ran its tasks.
    """
    num_tokens = sum(split.num_tokens for split in manifest.splits.values())
    speed = f"{read_bytes / seconds / 1e6:.1f} MB/s, " if read_bytes else ""
    return [
        *(f"{name}: {odd}" for name, split in manifest.splits.items() if (odd := _odd(split))),
        f"vocabulary: {manifest.vocab_size:,} words",
        f"time: {seconds:.1f} s ({speed}{num_tokens / seconds:,.0f} tokens/s),"
        f" and {around_seconds:.1f} s to start and stop the workers",
        f"data: {data}",
    ]


def _odd(split: Split) -> str:
    """Unusual characters and missing rows of a split's text, counted in a line; empty if there are none or none were
    counted."""
    counts = (
        (split.num_replacement_chars, "U+FFFD, put in for bytes that are no UTF-8 or there before"),
        (split.num_nul_bytes, "NUL bytes"),
        (split.num_null_rows, "rows without text passed over"),
    )
    return ", ".join(f"{count:,} {what}" for count, what in counts if count)
