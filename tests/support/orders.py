"""Orders as `submit` makes them of what is typed."""

from functools import lru_cache

from pipeline.config import SubmitConfig, load
from pipeline.submission.submitting import order_of

SMALL = ["experiment=demo", "tracking.kind=none"]


def order(*typed, verb="train"):
    """The order of `submit VERB ...`, checked; nothing is written."""
    config = _config(typed)
    passed_on = tuple(each for each in typed if not each.startswith(("via=", "via.")))
    return order_of(config, verb=verb, arguments=passed_on)


@lru_cache
def _config(typed):
    """Frozen, and half a second of Hydra's work."""
    return load(SubmitConfig, typed, name="submit")
