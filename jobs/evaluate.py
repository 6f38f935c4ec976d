"""`python -m jobs evaluate`: perplexity of a trained model on a split, as a table or as JSON."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table

from pipeline.config import EvaluateConfig, load
from pipeline.corpus.manifest import read_manifest, verify_corpus
from pipeline.errors import ConfigError, CorpusError
from pipeline.scoring.perplexity import PROTOCOL, Score, finite, score_tokens, score_unigram, shown_number
from pipeline.training.parts import choose_device, open_split, settle_numerics
from pipeline.training.restore import TrainedModel, load_trained


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A split's scores and what they mean."""

    split: str
    score: Score
    unigram: Score
    oov_rate: float
    trained: TrainedModel


def main(arguments: Sequence[str]) -> None:
    """Scores the split and prints the result."""
    config = load(EvaluateConfig, [each for each in arguments if each != "--json"], name="evaluate")
    evaluation = evaluate(config)
    if "--json" in arguments:
        print(json.dumps(as_json(evaluation), allow_nan=False))
    else:
        Console().print(_table(evaluation))


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Scores a split with the model of a run.

    Raises:
        ConfigError: `run` is missing or no run.
        CorpusError: the corpus is missing or damaged, of another vocabulary, or without the split.
        CheckpointError: there is no whole checkpoint.
    """
    if config.run is None:
        raise ConfigError("run=null is not given; use run=FOLDER")
    device = choose_device(config.accelerator)
    settle_numerics()
    trained = load_trained(config.run, config.checkpoint)
    data = config.data or trained.config.data
    assert data is not None
    manifest = read_manifest(data)
    if manifest.vocabulary_fingerprint != trained.vocabulary_fingerprint:
        raise CorpusError(
            f"data={data} has vocabulary {manifest.vocabulary_fingerprint[:12]}, the run was trained with"
            f" {trained.vocabulary_fingerprint[:12]}; prepare it with corpus.vocabulary.path=VOCABULARY of the run's"
            " corpus"
        )
    tokens = open_split(data, manifest, config.split)
    vocabulary = verify_corpus(data, manifest.only(config.split), digests=True, num_threads=os.cpu_count() or 1)
    unigram = score_unigram(tokens, counts_V=vocabulary.counts)
    with Progress(
        *Progress.get_default_columns(), TextColumn("words"), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task(f"scoring {config.split}", total=len(tokens))
        score = score_tokens(trained.model.to(device), tokens, progress=lambda words: bar.advance(task, words))
    return Evaluation(
        split=config.split,
        score=score,
        unigram=unigram,
        oov_rate=manifest.splits[config.split].oov_rate,
        trained=trained,
    )


def as_json(evaluation: Evaluation) -> dict[str, str | int | float | None]:
    """The object that `--json` prints; what is not a finite number is null."""
    return {
        "split": evaluation.split,
        "perplexity": finite(evaluation.score.perplexity),
        "nats_per_token": finite(evaluation.score.nats_per_token),
        "targets": evaluation.score.num_targets,
        "oov_rate": evaluation.oov_rate,
        "protocol": PROTOCOL,
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
    table.add_row("protocol", PROTOCOL)
    return table
