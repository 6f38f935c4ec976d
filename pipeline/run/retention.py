"""Which checkpoints are kept: pure arithmetic on their steps.

In: the steps of the committed checkpoints, the validations and what is configured. Out: the steps to keep; the caller
removes the others. The newest is always among them.
"""

import math
from collections.abc import Mapping, Sequence


def steps_to_keep(
    steps: Sequence[int],
    *,
    validations: Mapping[int, float],
    keep_last: int,
    keep_best: int,
    keep_every_steps: int | None,
) -> set[int]:
    """The steps whose checkpoints are kept, for any one of three reasons.

    Args:
        steps: of the committed checkpoints, rising.
        validations: nats per token by step; of steps without a checkpoint too, which count for nothing.
        keep_last: the newest that are kept; below 1 it is still the newest one.
        keep_best: the validated ones of the lowest nats that are kept, of equals the earlier. NaN is never best.
        keep_every_steps: keeps each step that is a multiple of it; None keeps none for that.
    """
    newest = steps[-max(1, keep_last) :]
    validated = [step for step in steps if not math.isnan(validations.get(step, math.nan))]
    best = sorted(validated, key=lambda step: (validations[step], step))[:keep_best]
    spaced = [step for step in steps if keep_every_steps is not None and step % keep_every_steps == 0]
    return {*newest, *best, *spaced}
