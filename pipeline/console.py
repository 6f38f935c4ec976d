"""What a process tells on its standard error: one line an event, warnings with their rank."""

import errno
import io
import logging
import os
import sys
import warnings
from collections.abc import Collection
from typing import Any

from pipeline.masking import masked

NO_TERMINAL = errno.EIO  # what a write to a terminal that has gone fails with
NO_READER = errno.EPIPE


class Lasting(io.FileIO):
    """A standard stream on which writes go nowhere once its terminal or reader is gone, instead of failing.

    Args:
        descriptor: of the stream.
        passed: failures that are passed over.
    """

    def __init__(self, descriptor: int, *, passed: Collection[int]) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._passed = passed

    def write(self, data: Any, /) -> int:  # noqa: ANN401  (anything with bytes)
        """All of it, here or nowhere."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in self._passed:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(data)


class Masked(io.TextIOWrapper):
    """A standard stream on which no secret is written, whoever writes: stacks too, and what libraries print."""

    def write(self, text: str, /) -> int:
        """Writes the text without its secrets."""
        super().write(masked(text))
        return len(text)


class MaskedFormatter(logging.Formatter):
    """Log lines without secrets, wherever they go."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return masked(super().format(record))


def _outlive_terminal() -> None:
    """No command fails for what it tells; where the reader of its results is gone, that is told elsewhere."""
    if sys.stderr is not None and sys.stderr is sys.__stderr__:
        sys.stderr = _lasting(sys.stderr, passed={NO_TERMINAL, NO_READER})
    if sys.stdout is not None and sys.stdout is sys.__stdout__:
        sys.stdout = _lasting(sys.stdout, passed={NO_TERMINAL})


def _lasting(stream: Any, *, passed: Collection[int]) -> io.TextIOWrapper:  # noqa: ANN401  (the stream as it was)
    stream.flush()
    return Masked(
        io.BufferedWriter(Lasting(stream.fileno(), passed=passed)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
    )


def set_up(rank: int = 0) -> None:
    """Sets up logging for a process of the command line; those of other ranks than the first tell warnings only."""
    _outlive_terminal()
    root = logging.StreamHandler()
    root.setFormatter(MaskedFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[root], force=True)
    pipeline = logging.getLogger("pipeline")
    pipeline.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    pipeline.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(MaskedFormatter("%(message)s" if rank == 0 else f"rank {rank}: %(message)s"))
    pipeline.handlers = [handler]
    quiet_lightning()
    warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")  # only slower
    # Lightning 2.6 calls a function of torch's that torch has deprecated (`_pytree.py`), on every fit
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"lightning\.pytorch\.utilities\._pytree")


def quiet_lightning() -> None:
    """Keeps Lightning from telling of itself; after its import, which sets its loggers up."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
