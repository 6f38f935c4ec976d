"""Every recurrence of the package that is trained in steps, each so small that it trains in a blink."""

from pipeline.config import KINDS
from pipeline.model.tables import RECURRENCES

RECURRENT = [kind for kind, section in KINDS["model.recurrence"].items() if section in RECURRENCES]
SMALL = {
    "transformer": {"hidden_size": 6, "num_heads": 2, "feed_forward_size": 9, "memory_size": 9},
}


def small(kind: str) -> list[str]:
    """The overrides that choose it."""
    values = SMALL.get(kind, {"hidden_size": 5})
    return [f"model.recurrence.kind={kind}", *(f"model.recurrence.{key}={value}" for key, value in values.items())]
