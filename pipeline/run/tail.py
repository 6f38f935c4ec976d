"""What is added to a file of lines, read from where the last look ended."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from pipeline import storage

Item = TypeVar("Item")


class Tail(Generic[Item]):
    """A file that grows. Of an object, which is replaced whole, each look reads all.

    Args:
        path: of the file, which need not be there yet.
        parse: the items of some whole lines.
        read: all items of the object; only where the path is in an object store.

    Attributes:
        restarted: whether the last look found another file than the one before, or a shorter one, and read it all.
    """

    def __init__(self, path: str, *, parse: Callable[[bytes], list[Item]], read: Callable[[], list[Item]]) -> None:
        self.restarted = False
        self._path, self._parse, self._read = path, parse, read
        self._local = storage.is_local(path)
        self._num_items = 0  # of an object
        self._file: os.stat_result | None = None
        self._offset = 0  # up to which all lines are read

    def new(self) -> list[Item]:
        """The items that came since the last look; none while the file is not there.

        Raises:
            ConfigError: the store does not serve.
        """
        if self._local:
            return self._new_of_file()
        items = self._read()
        self.restarted = len(items) < self._num_items
        new = items if self.restarted else items[self._num_items :]
        self._num_items = len(items)
        return new

    def _new_of_file(self) -> list[Item]:
        with suppress(OSError), Path(self._path).open("rb") as file:
            there = os.fstat(file.fileno())
            before, self._file = self._file, there
            self.restarted = before is not None and (
                not os.path.samestat(before, there) or there.st_size < self._offset
            )
            if self.restarted:
                self._offset = 0
            file.seek(self._offset)
            content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            self._offset += len(whole)
            return self._parse(whole)
        return []
