"""Orders as `submit` makes them of what is typed."""

from functools import lru_cache

from pipeline.submission.submitting import order_of
from support.typed import over

SMALL = ["experiment=demo", "tracking.kind=none"]


@lru_cache  # half a second of Hydra's work each
def order(*typed, verb="train"):
    """The order of `submit VERB ...`, checked; nothing is written."""
    text = ["corpus.train=s3://bucket/text", "corpus.valid=null", "corpus.test=null"] if verb == "prepare" else []
    return order_of(verb, over(text, *typed))
