"""`python -m jobs train`: trains a language model on a prepared corpus, or goes on with a run."""

import logging
from collections.abc import Sequence

from pipeline.config import Config, load
from pipeline.training.trainer import Outcome, train


def main(arguments: Sequence[str]) -> None:
    """Trains and says how it ended."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # it tells of itself; set after its import
    report(train(load(Config, arguments)))


def report(outcome: Outcome) -> None:
    """One line on the end of a run."""
    if outcome.first_step == outcome.step:
        print(f"{outcome.run} is finished at step {outcome.step}; raise max_epochs or max_steps to go on")
    else:
        print(f"{outcome.run} is trained to step {outcome.step} (from step {outcome.first_step})")
