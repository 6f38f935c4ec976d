"""Every error that a user can cause, as one tree.

    PipelineError
    ├── ConfigError      a key, a value or a combination that cannot be
    ├── CorpusError      input text or a prepared corpus that is missing, damaged or of another kind
    ├── CheckpointError  a checkpoint that is missing, damaged or of another run
    ├── ClusterError     a task or a worker that was lost and could not be replaced
    └── LossError        a loss that is not finite, or a spike

A message is one line that names the value found, the value needed and the mend. The command line prints it
without a stack trace and exits with code 2. What is our own mistake raises `AssertionError` instead.
"""

from pipeline.masking import masked


class PipelineError(Exception):
    """A user's mistake or a broken input; the message is one line, without secrets."""

    def __init__(self, *message: object) -> None:
        super().__init__(*(masked(each) if isinstance(each, str) else each for each in message))


class ConfigError(PipelineError):
    """The configuration asks for what cannot be."""


class CorpusError(PipelineError):
    """Text or a prepared corpus is missing, damaged or of another kind."""


class CheckpointError(PipelineError):
    """A checkpoint is missing, damaged or belongs to another run."""


class ClusterError(PipelineError):
    """A task or a worker was lost and could not be replaced."""


class LossError(PipelineError):
    """A loss is not finite or a spike, and the run was to stop then."""


class Stopped(Exception):  # noqa: N818 it is no error: all is saved
    """A run was asked to stop, and has.

    Attributes:
        cause: the signal's name.
    """

    def __init__(self, message: str, *, cause: str) -> None:
        super().__init__(masked(message))
        self.cause = cause


def reason_of(error: BaseException) -> str:
    """The text of an error of any library, on one line and without secrets; its type if it has no text."""
    return masked(" ".join(str(error).split())) or type(error).__name__
