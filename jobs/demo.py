"""`python -m jobs demo`: the whole path on the documentation of this Python, and a table of what came out."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jobs import prepare, train
from jobs.evaluate import evaluate_shown
from jobs.python_docs import list_packages, write_splits
from pipeline import storage
from pipeline.config import Config, EvaluateConfig, load
from pipeline.corpus.manifest import Manifest, read_manifest
from pipeline.errors import ConfigError
from pipeline.evaluation import Evaluation
from pipeline.run.records import METRICS_NAME, read_records, speed_of
from pipeline.scoring.perplexity import shown_number

TEXT = "runs/demo/text"  # as conf/experiment/demo.yaml names it


def main(arguments: Sequence[str]) -> None:
    """Prepares, trains, evaluates; each step goes on from what an earlier call has finished."""
    for argument in arguments:
        if argument.startswith("experiment="):
            raise ConfigError(f"{argument}: the demo has its own experiment; leave it out, or use prepare and train")
    overrides = ["experiment=demo", *arguments]
    config = load(Config, overrides)
    if config.data is None or config.run is None:
        raise ConfigError("the demo needs data=FOLDER and run=FOLDER; leave them out for its own")
    if config.corpus.test is None and not config.corpus.test_fraction:
        raise ConfigError("corpus.test=null leaves the demo no test split to score; leave it as it is")
    print("1/3 prepare", flush=True)
    versions = write_splits(list_packages(), TEXT, held_out_share=0.05)
    print("text of", ", ".join(f"{name} {version}" for name, version in versions.items()), flush=True)
    prepare.main(overrides)
    print("2/3 train", flush=True)
    train.main(overrides)
    print("3/3 evaluate", flush=True)
    places = [f"run={config.run}", f"data={config.data}", f"accelerator={config.accelerator}"]
    request = load(EvaluateConfig, places, name="evaluate")  # the test split, the best checkpoint
    Console().print(_table(storage.absolute(config.run), read_manifest(config.data), evaluate_shown(request)))


def _table(run: str, manifest: Manifest, evaluation: Evaluation) -> Table:
    table = Table(show_header=False)
    for name, split in manifest.splits.items():
        table.add_row(f"words of {name}", f"{split.num_tokens:,}")
    table.add_row("vocabulary", f"{manifest.vocab_size:,} words")
    table.add_row("OOV rate of test", f"{evaluation.oov_rate:.2%}")
    table.add_row("unigram perplexity", shown_number(evaluation.unigram.perplexity, digits=1))
    perplexity = shown_number(evaluation.score.perplexity, digits=1)
    table.add_row("LSTM perplexity", f"{perplexity} on {evaluation.score.num_targets:,} tokens")
    table.add_row("training speed", f"{_words_per_second(run):,.0f} words/s")
    table.add_row("checkpoint", _from_here(evaluation.trained.path))
    table.add_row("the curves", _curves(run))
    return table


def _words_per_second(run: str) -> float:
    """Over all logged steps."""
    return speed_of(read_records(storage.join(run, METRICS_NAME))) or 0.0


def _curves(run: str) -> str:
    """The command that draws what the tracker kept, in the terminal."""
    folder = Path(run, "wandb")
    if not folder.exists():
        return _from_here(str(Path(run, METRICS_NAME)))
    return f"{_from_here(str(Path(sys.executable).parent / 'wandb'))} leet {_from_here(str(folder))}"


def _from_here(path: str) -> str:
    """The path as one types it: relative where it lies below the working folder."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
