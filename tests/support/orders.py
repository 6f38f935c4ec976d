"""Orders as `submit` makes them of what is typed."""

from functools import lru_cache

from pipeline.submission.submitting import order_of

SMALL = ["experiment=demo", "tracking.kind=none"]


@lru_cache  # half a second of Hydra's work each
def order(*typed, verb="train"):
    """The order of `submit VERB ...`, checked; nothing is written."""
    return order_of(verb, typed)
