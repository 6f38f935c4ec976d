"""What a function gave where it ran elsewhere: its result, or the user's error as a value."""

from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import PipelineError

Item = TypeVar("Item")
Result = TypeVar("Result")


def returned(function: Callable[[Item], Result], item: Item) -> Result | PipelineError:
    """Runs in a worker. A user's error comes back as a value: raised, Ray would wrap it and print its stack."""
    try:
        return function(item)
    except PipelineError as error:
        return error.with_traceback(None)


def unwrapped(found: Result | PipelineError) -> Result:
    """The result; raises the error if it is one."""
    if isinstance(found, PipelineError):
        raise found
    return found


def one_line(error: object) -> str:
    """The beginning of an error's text, without line breaks."""
    return " ".join(str(error).split())[:200]
