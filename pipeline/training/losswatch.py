"""Whether the loss of a step is in order: finite, and no spike above the steps before it.

In: the global losses of the steps, in nats per token, in order. Out: for each None, or one line of why not. It stops
nothing: what to do about a refused loss is the caller's to decide.

A verdict is a function of the loss and of the last `window_steps` losses in order, computed anew from them: running
sums would round by where they began. So a resumed run judges exactly as an undisturbed one, and ranks that are given
the same losses agree without a collective.
"""

import math
from collections import deque
from collections.abc import Sequence

# A constant history has no deviation of its own; this part of the mean, or of one nat if the mean is less, is then the
# deviation. It stands above the rounding of a float32 loss, about 1e-6 (of the mean, from its sum; of a nat, from
# logits in the tens), and below what sampling spreads real batches by, some 3 nats / sqrt(tokens): 3e-3 for a million.
LEAST_DEVIATION = 1e-5


def mean_and_deviation(history: Sequence[float]) -> tuple[float, float]:
    """The mean of some finite losses and their standard deviation, which is never 0.

    A drift is part of the deviation and so does not add up to a spike: after W losses that rise in equal steps, the
    next is sqrt(3·(W + 1) / (W - 1)) deviations above their mean: 3 for two losses, 1.75 for a hundred.
    """
    mean = math.fsum(history) / len(history)
    variance = math.fsum((each - mean) ** 2 for each in history) / len(history)
    return mean, max(math.sqrt(variance), LEAST_DEVIATION * max(1.0, mean))


class LossWatch:
    """Judges one loss after another against the last ones that were in order.

    Args:
        deviations: how many standard deviations above the mean are still in order; None judges no spikes.
        window_steps: losses that are compared with, two at least; until there are as many, none is a spike.
        history: that of another watch, to go on from it; of a longer one the last `window_steps` count.
    """

    def __init__(self, *, deviations: float | None, window_steps: int, history: Sequence[float] = ()) -> None:
        self.deviations = deviations
        self._history = deque(history, maxlen=window_steps)

    @property
    def history(self) -> list[float]:
        """The last losses that were in order, the newest last: all that a checkpoint need hold of the watch."""
        return list(self._history)

    def check(self, step: int, nats: float) -> str | None:
        """None if the loss is in order, and takes it into the history; else why not, and leaves the history alone.

        Args:
            step: named in the line.
            nats: the global loss of the step, per token, of float32's range.
        """
        nats = float(nats)  # numpy's own would not be a plain value in a checkpoint
        if not math.isfinite(nats):
            return f"loss is not finite ({nats}) at step {step}"
        if self.deviations is not None and len(self._history) == self._history.maxlen:
            mean, deviation = mean_and_deviation(self._history)
            above = (nats - mean) / deviation
            if above > self.deviations:
                return (
                    f"loss {nats:.6g} at step {step} is {above:.3g} deviations above the mean {mean:.6g}"
                    f" of the {len(self._history)} steps before"
                )
        self._history.append(nats)
        return None
