"""What a command and its workers tell each other of a run.

Imports neither torch nor lightning, so that a command is quick.
"""

from dataclasses import dataclass

from pipeline.config import Config

ATTEMPT_NAME = "attempt"
LEAST_EXCHANGE_SECONDS = 1800.0  # torch's own limit for an exchange of gradients


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker is told.

    Attributes:
        config: of the run, with its places absolute.
        total_steps: of the run.
        steps_per_epoch: for people.
        attempt: number of this call of the command.
        corpus: fingerprint of the manifest that the command read; each worker must find the same.
    """

    config: Config
    total_steps: int
    steps_per_epoch: int
    attempt: int
    corpus: str


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How the workers ended.

    Attributes:
        step: updates made.
        stop: the signal that they were asked to stop by; None: they came to the end.
        bad: (step, why) of a loss that is out of order.
        lost: what is to be said of a run folder that was removed or replaced meanwhile.
    """

    step: int
    stop: str | None = None
    bad: tuple[int, str] | None = None
    lost: str | None = None


def exchange_seconds(config: Config) -> float:
    """After which torch gives an exchange of gradients up; the watchdog speaks before it."""
    return max(LEAST_EXCHANGE_SECONDS, 2 * (config.guard.hang_seconds or 0.0))
