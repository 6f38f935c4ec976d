"""`python -m jobs train`: trains a language model on a prepared corpus, or goes on with a run; n-grams are counted.

torch and lightning, which take seconds to import, are imported when the configuration is known to be right, and by the
processes that need them.
"""

import os
from collections.abc import Sequence

from rich.console import Console

from jobs.prepare import Bar
from pipeline import storage
from pipeline.config import Config, NgramConfig, load
from pipeline.ngram_run import train_ngrams
from pipeline.run.tracking import what_waits
from pipeline.runner import conclude, launch, plan_run


def main(arguments: Sequence[str]) -> None:
    """Trains and says how it ended, and how to send what a dashboard has not got yet."""
    config = load(Config, arguments)
    if isinstance(config.model, NgramConfig):
        with Bar(Console()) as bar:
            counted = train_ngrams(config, progress=bar)
        print(counted.line)
        return
    plan = plan_run(config, os.environ)
    try:
        result = launch(plan)
        print(conclude(plan, result).line)
    finally:
        if plan.writes and config.tracking.kind != "none" and (line := what_waits(storage.absolute(plan.job.run))):
            print(line)
