"""The phases of a preparation: tasks over items, in this process or others, and reports of how far they are.

In: what runs tasks, and what is reported to. Out: the results in the order of the items. Refuses a phase of which a
task failed, once the others are done: then a rerun has only that one to do.
"""

import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar, runtime_checkable

import pyarrow as pa

from pipeline.config import import_extensions
from pipeline.corpus.units import Source, WorkUnit
from pipeline.errors import ClusterError, PipelineError
from pipeline.masking import masked

Item = TypeVar("Item")
Result = TypeVar("Result")
Outcome = Literal["done", "kept", "failed"]

NUM_NAMED_TASKS = 3  # of those that failed
NUM_HOPELESS_TASKS = 100  # so many failed and none was done: the others would fare no better


class RunTasks(Protocol):
    """Runs a function over items and gives (index of the item, result or error) in the order in which they are done."""

    def __call__(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result | PipelineError]]: ...  # pragma: no cover


class Progress(Protocol):
    """What a preparation reports to while it runs."""

    def phase(self, name: str, *, num_tasks: int, num_bytes: int) -> None:
        """A phase begins.

        Args:
            name: of the phase.
            num_tasks: tasks in it.
            num_bytes: of input that they read; 0 if not known.
        """

    def advance(self, *, num_bytes: int, num_words: int, outcome: Outcome, peak_bytes: int) -> None:
        """A task of the phase has ended.

        Args:
            num_bytes: of input that stood before it; of these it read none if its result was kept.
            num_words: that its result stands for.
            outcome: whether it was done now, was found done and so kept, or failed.
            peak_bytes: the most memory that its process has had so far; 0 if not known.
        """

    def note(self, text: str) -> None:
        """One line about what was found."""


class NoProgress:
    """Drops every report."""

    def phase(self, name: str, *, num_tasks: int, num_bytes: int) -> None:
        """Nothing."""

    def advance(self, *, num_bytes: int, num_words: int, outcome: Outcome, peak_bytes: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Kept(Generic[Result]):
    """What a task returns whose result was there already: so that nobody takes it for quick work."""

    result: Result


@dataclass(frozen=True)
class Ended(Generic[Result]):
    """What comes back from the process of a task: its result, whether it was kept, and the process's peak memory."""

    result: Result
    is_kept: bool
    peak_bytes: int


@dataclass(frozen=True)
class Task(Generic[Item, Result]):
    """A function of one item, as it is run in whatever process: on one core, with the extensions imported."""

    function: Callable[[Item], Result | Kept[Result]]
    extensions: tuple[str, ...]

    def __call__(self, item: Item) -> Ended[Result]:
        """The function's result, and what it took."""
        import_extensions(self.extensions)
        with _one_core():
            found = self.function(item)
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        if isinstance(found, Kept):
            return Ended(found.result, is_kept=True, peak_bytes=peak_bytes)
        return Ended(found, is_kept=False, peak_bytes=peak_bytes)


@dataclass(frozen=True)
class Phases:
    """Runs the tasks of one phase after the other, and reports them."""

    run_tasks: RunTasks
    progress: Progress
    extensions: tuple[str, ...]

    def __call__(
        self,
        name: str,
        function: Callable[[Item], Result | Kept[Result]],
        items: Sequence[Item],
        *,
        num_bytes: Callable[[Item], int] = lambda _: 0,
        num_words: Callable[[Result], int] = lambda _: 0,
        several: "Several[Item, Result] | None" = None,
    ) -> list[Result]:
        """Runs a phase; nothing happens if it has no items.

        Args:
            name: of the phase.
            function: the task; `Kept(result)` says that the result was there already.
            items: what it is run over.
            num_bytes: of input that the task of an item reads.
            num_words: that a result stands for.
            several: how an item is taken apart whose worker died again and again, so that what is in it and did not
                kill it is done, and what did is named.

        Returns:
            the results in the order of the items.

        Raises:
            PipelineError: tasks failed; it names the first of them and how many there are. The others are done.
        """
        if not items:
            return []
        self.progress.phase(name, num_tasks=len(items), num_bytes=sum(map(num_bytes, items)))
        results: dict[int, Result] = {}
        failed = _Failed(name, num_tasks=len(items))
        apart: list[int] = []
        for index, ended in self.run_tasks(Task(function, self.extensions), items):
            item = items[index]
            if isinstance(ended, ClusterError) and several is not None and len(several.apart(item)) > 1:
                apart.append(index)
                continue
            if isinstance(ended, PipelineError):
                failed.add(index, item, ended)
                self.progress.advance(num_bytes=num_bytes(item), num_words=0, outcome="failed", peak_bytes=0)
                if not results and failed.number == NUM_HOPELESS_TASKS:
                    break
                continue
            results[index] = ended.result
            self.progress.advance(
                num_bytes=num_bytes(item),
                num_words=num_words(ended.result),
                outcome="kept" if ended.is_kept else "done",
                peak_bytes=ended.peak_bytes,
            )
        if apart and several is not None:
            whole = {index: items[index] for index in apart}
            self._take_apart(name, function, whole, several=several, results=results, failed=failed)
        if failed.number:
            raise failed.error(num_done=len(results))
        return [results[index] for index in range(len(items))]

    def _take_apart(
        self,
        name: str,
        function: Callable[[Item], Result | Kept[Result]],
        items: Mapping[int, Item],
        *,
        several: "Several[Item, Result]",
        results: dict[int, Result],
        failed: "_Failed",
    ) -> None:
        """Runs what is in some items, each by itself, as a phase of its own; adds to results and failures."""
        parts = [(index, part) for index, item in items.items() for part in several.apart(item)]
        self.progress.phase(f"{name}, one by one", num_tasks=len(parts), num_bytes=0)
        found: dict[int, Result] = {}
        for number, ended in self.run_tasks(Task(function, self.extensions), [part for _, part in parts]):
            index, part = parts[number]
            if isinstance(ended, PipelineError):
                failed.add(index, part, ended)
                self.progress.advance(num_bytes=0, num_words=0, outcome="failed", peak_bytes=0)
                continue
            found[number] = ended.result
            self.progress.advance(num_bytes=0, num_words=0, outcome="done", peak_bytes=ended.peak_bytes)
        for index in items:
            of_item = [number for number, (owner, _) in enumerate(parts) if owner == index]
            if all(number in found for number in of_item):
                results[index] = several.together([found[number] for number in of_item])


@dataclass(frozen=True)
class Several(Generic[Item, Result]):
    """Items of several parts.

    Attributes:
        apart: an item → its parts, as items.
        together: the results of all parts of an item → its result.
    """

    apart: Callable[[Item], Sequence[Item]]
    together: Callable[[Sequence[Result]], Result]


class _Failed:
    """The tasks of a phase that failed: how many, and the first of them.

    Args:
        phase: its name.
        num_tasks: tasks in it.
    """

    def __init__(self, phase: str, *, num_tasks: int) -> None:
        self._phase, self._num_tasks = phase, num_tasks
        self._first: list[tuple[int, PipelineError]] = []  # by index: the order of workers leaves no trace
        self.number = 0

    def add(self, index: int, item: object, error: PipelineError) -> None:
        """One more, which is named by what it was to read."""
        self.number += 1
        named = (index, type(error)(self._message(index, item, error)))
        self._first = sorted([*self._first, named], key=lambda each: each[0])[:NUM_NAMED_TASKS]

    def _message(self, index: int, item: object, error: PipelineError) -> str:
        message, read = str(error), read_by(item)
        if read is None:  # of a worker that died nobody would know at what
            name = f", {item.name}" if isinstance(item, Named) else ""
            task = f"task {index + 1:,} of {self._phase}{name}"
            return f"{task}: {message}" if isinstance(error, ClusterError) else message
        path = masked(read.path)
        span = f" (in {read.name})" if isinstance(read, WorkUnit) else ""
        return f"{'' if path in message else f'{path}: '}{message}{span}"

    def error(self, *, num_done: int) -> PipelineError:
        """The one error of the phase."""
        _, error = self._first[0]
        if self.number == 1:
            return error
        tried = self.number + num_done == self._num_tasks
        which = f"{self.number:,} of {self._num_tasks:,} tasks of {self._phase} failed"
        told = " | ".join(str(each) for _, each in self._first)
        rest = f" | and {self.number - len(self._first):,} more" if self.number > len(self._first) else ""
        others = "the others are done" if tried else "none was done, and the others were not tried"
        return type(error)(f"{which}, {others}: {told}{rest}")


@runtime_checkable
class Named(Protocol):
    """An item that reads several files, or none."""

    @property
    def name(self) -> str:
        """For people."""


def read_by(item: object) -> WorkUnit | Source | None:
    """What a task reads of the input: its item, or the `unit` of that, or the same of one of several in a tuple."""
    match item:
        case WorkUnit() | Source():
            return item
        case object(unit=WorkUnit() | Source() as unit):
            return unit
        case tuple():
            return next((found for each in item if (found := read_by(each)) is not None), None)
    return None


@contextmanager
def _one_core() -> Iterator[None]:
    """Keeps Arrow to one core: tasks, not their threads, are what is spread over the cores."""
    before = pa.cpu_count()
    pa.set_cpu_count(1)
    try:
        yield
    finally:
        pa.set_cpu_count(before)
