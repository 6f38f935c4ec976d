"""The phases of a preparation: tasks over items, in this process or others, and reports of how far they are.

In: what runs tasks, and what is reported to. Out: the results in the order of the items. Refuses nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import pyarrow as pa

from pipeline.config import import_extensions

Item = TypeVar("Item")
Result = TypeVar("Result")


class RunTasks(Protocol):
    """Runs a function over items and gives (index of the item, result) in the order in which they are done."""

    def __call__(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result]]: ...  # pragma: no cover


class Progress(Protocol):
    """What a preparation reports to while it runs."""

    def phase(self, name: str, *, num_tasks: int, num_bytes: int) -> None:
        """A phase begins.

        Args:
            name: of the phase.
            num_tasks: tasks in it.
            num_bytes: of input that they read; 0 if not known.
        """

    def advance(self, *, num_bytes: int, num_words: int) -> None:
        """A task of the phase is done."""

    def note(self, text: str) -> None:
        """One line about what was found."""


class NoProgress:
    """Drops every report."""

    def phase(self, name: str, *, num_tasks: int, num_bytes: int) -> None:
        """Nothing."""

    def advance(self, *, num_bytes: int, num_words: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Task(Generic[Item, Result]):
    """A function of one item, as it is run in whatever process: on one core, with the extensions imported."""

    function: Callable[[Item], Result]
    extensions: tuple[str, ...]

    def __call__(self, item: Item) -> Result:
        """The function's result."""
        import_extensions(self.extensions)
        with _one_core():
            return self.function(item)


@dataclass(frozen=True)
class Phases:
    """Runs the tasks of one phase after the other, and reports them."""

    run_tasks: RunTasks
    progress: Progress
    extensions: tuple[str, ...]

    def __call__(
        self,
        name: str,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        num_bytes: Callable[[Item], int] = lambda _: 0,
        num_words: Callable[[Result], int] = lambda _: 0,
    ) -> list[Result]:
        """Runs a phase; nothing happens if it has no items.

        Args:
            name: of the phase.
            function: the task.
            items: what it is run over.
            num_bytes: of input that the task of an item reads.
            num_words: that a result stands for.

        Returns:
            the results in the order of the items.
        """
        if not items:
            return []
        self.progress.phase(name, num_tasks=len(items), num_bytes=sum(map(num_bytes, items)))
        results: dict[int, Result] = {}
        for index, result in self.run_tasks(Task(function, self.extensions), items):
            results[index] = result
            self.progress.advance(num_bytes=num_bytes(items[index]), num_words=num_words(result))
        return [results[index] for index in range(len(items))]


@contextmanager
def _one_core() -> Iterator[None]:
    """Keeps Arrow to one core: tasks, not their threads, are what is spread over the cores."""
    before = pa.cpu_count()
    pa.set_cpu_count(1)
    try:
        yield
    finally:
        pa.set_cpu_count(before)
