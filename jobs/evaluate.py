"""`python -m jobs evaluate`: perplexity of a trained model on a split, as a table or as JSON."""

import json
from collections.abc import Sequence

from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table

from pipeline.config import EvaluateConfig, load
from pipeline.evaluation import Evaluation, evaluate_split
from pipeline.scoring.perplexity import finite, protocol_of, shown_number


def main(arguments: Sequence[str]) -> None:
    """Scores the split and prints the result."""
    config = load(EvaluateConfig, [each for each in arguments if each != "--json"], name="evaluate")
    evaluation = evaluate_shown(config)
    if "--json" in arguments:
        print(json.dumps(as_json(evaluation), allow_nan=False))
    else:
        Console().print(_table(evaluation))


def evaluate_shown(config: EvaluateConfig) -> Evaluation:
    """Scores a split; where standard error is a terminal, a bar shows how far it is."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return evaluate_split(config)
    with Progress(*Progress.get_default_columns(), TextColumn("words"), console=console, transient=True) as bar:
        task = bar.add_task(f"scoring {config.split}", total=None)
        return evaluate_split(config, progress=lambda words, total: bar.update(task, advance=words, total=total))


def as_json(evaluation: Evaluation) -> dict[str, str | int | float | None]:
    """The object that `--json` prints; what is not a finite number is null."""
    return {
        "split": evaluation.split,
        "perplexity": finite(evaluation.score.perplexity),
        "nats_per_token": finite(evaluation.score.nats_per_token),
        "targets": evaluation.score.num_targets,
        "oov_rate": evaluation.oov_rate,
        "protocol": protocol_of(evaluation.trained.model),
    }


def _table(evaluation: Evaluation) -> Table:
    trained = evaluation.trained
    table = Table(show_header=False)
    table.add_row("split", evaluation.split)
    table.add_row("perplexity", shown_number(evaluation.score.perplexity))
    table.add_row("nats per token", shown_number(evaluation.score.nats_per_token, digits=4))
    table.add_row("targets", f"{evaluation.score.num_targets:,}")
    table.add_row("OOV rate", f"{evaluation.oov_rate:.2%}")
    table.add_row("unigram perplexity", shown_number(evaluation.unigram.perplexity))
    table.add_row("checkpoint", f"step {trained.step}, {trained.chosen}")
    table.add_row("protocol", protocol_of(trained.model))
    return table
