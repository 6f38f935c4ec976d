"""`python -m jobs compare`: experiments on one corpus, trained, scored and side by side: the ladder.

In: `experiments=[A,B] data=FOLDER`. Out: a table or JSON; with `plot=FILE.svg` perplexity against parameters, words and
seconds, as SVG and PNG. Each run is trained by `train` in a process of its own: so none begins with what another has
left in memory, one that is killed ends no other, and a signal reaches the one that trains. The exit code is 2 if one of
them failed.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.again import Child
from pipeline import storage
from pipeline.comparison import Comparison, Measured, Row, Rung, compare
from pipeline.config import CompareConfig, EvaluateConfig, load
from pipeline.errors import ConfigError, PipelineError
from pipeline.masking import last_name
from pipeline.reporting import charts

if TYPE_CHECKING:
    from pipeline.evaluation import Evaluation
    from pipeline.scoring.perplexity import Score

Point = dict[str, str | int | float]  # of the picture

STANDARD_ERROR = 2  # where what `train` prints goes; the results are to stand alone
COLUMNS = ("rung", "test", "valid", "params", "words", "epochs", "update s", "all s", "words/s")
PIPE_WIDTH = 1000  # so that rows stay whole where there is no terminal


def main(arguments: Sequence[str]) -> None:
    """Trains, scores, and prints the ladder.

    Raises:
        PipelineError: a run cannot be, or one has failed; then after what there is was printed.
        Stopped: someone asked for it; all is saved.
    """
    config = load(CompareConfig, [each for each in arguments if each != "--json"], name="compare")
    if config.plot is not None:
        _check_plot(config.plot)
        charts.check_installed(verb="compare")
    found = compare(config, train=_train, evaluate=_evaluate)
    if "--json" in arguments:
        print(json.dumps(as_json(found), allow_nan=False))
    else:
        _print(found)
    if config.plot is not None:
        for path in _draw(found, config.plot):
            if "--json" not in arguments:
                print(path)
    if found.failures:
        named = "; ".join(f"{row.experiment} ({row.failure})" for row in found.failures)
        raise PipelineError(
            f"{len(found.failures)} of {len(found.rows)} experiments failed: {named}; mend them and run the same"
            " command, or leave them out"
        )


def _check_plot(path: str) -> None:
    """Refuses a picture that could not be written, before hours have passed."""
    if not path.endswith(".svg"):
        raise ConfigError(f"plot={path} is no name of a picture; use plot=FILE.svg")
    if storage.is_local(path):
        there = next(each for each in Path(storage.absolute(path)).parents if each.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise ConfigError(f"plot={path} cannot be written: {there} is no folder to write in; use another FILE.svg")


def _train(rung: Rung) -> int:
    """Trains a rung; returns the exit code, that of the signal that reached this process if there was one."""
    with Child() as child:
        code = child.run(["train", *rung.arguments], told={}, output=STANDARD_ERROR)
    return code if child.received is None else 128 + child.received


def _evaluate(config: EvaluateConfig) -> "Evaluation":
    from jobs.evaluate import evaluate_shown

    return evaluate_shown(config)


def as_json(found: Comparison) -> dict[str, object]:
    """The object that `--json` prints; what is not known or not finite is null."""
    split = found.manifest.splits[found.split]
    return {
        "data": found.data,
        "fingerprint": found.manifest.fingerprint,
        "vocabulary": {"words": found.manifest.vocab_size, "fingerprint": found.manifest.vocabulary_fingerprint},
        "train_words": found.manifest.splits["train"].num_tokens,
        "split": found.split,
        "targets": split.num_tokens,
        "oov_rate": split.oov_rate,
        "runs": found.runs,
        "unigram": found.unigram and _score_as_json(found.unigram),
        "experiments": [_row_as_json(row) for row in found.rows],
    }


def _score_as_json(score: "Score") -> dict[str, float | None]:
    from pipeline.scoring.perplexity import finite

    return {"perplexity": finite(score.perplexity), "nats_per_token": finite(score.nats_per_token)}


def _row_as_json(row: Row) -> dict[str, object]:
    about: dict[str, object] = {"experiment": row.experiment, "run": row.run, "failure": row.failure}
    if (measured := row.measured) is None:
        return about
    from pipeline.scoring.perplexity import finite

    return {
        **about,
        **_score_as_json(measured.score),
        "protocol": measured.protocol,
        "valid_perplexity": None if measured.valid is None else finite(measured.valid),
        "parameters": measured.num_parameters,
        "words": measured.num_words,
        "epochs": measured.epochs,
        "seconds": {"all": measured.all_seconds} | {str(each): spent for each, spent in measured.seconds.items()},
        "words_per_second": measured.words_per_second,
        "step": measured.step,
        "checkpoint": measured.checkpoint,
    }


def _print(found: Comparison) -> None:
    console = Console()
    console = console if console.is_terminal else Console(width=PIPE_WIDTH)
    split = found.manifest.splits[found.split]
    console.print(_table(found))
    for line in (
        f"{found.split} of {found.data}: {split.num_tokens:,} targets, OOV rate {split.oov_rate:.2%}",
        *dict.fromkeys(row.measured.protocol for row in found.rows if row.measured is not None),
        f"the runs are in {found.runs}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(found: Comparison) -> Table:
    table = Table(*COLUMNS, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, show_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    table.columns[1].header = found.split
    if found.unigram is not None:
        table.add_row("unigram", *_unigram(found, found.unigram))
    for name, row in zip(short_names([row.experiment for row in found.rows]), found.rows, strict=True):
        cells = ["failed"] if row.measured is None else _cells(row.measured)
        table.add_row(Text(name), *cells)
    return table


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the words that all of them begin with: [ladder_gru, ladder_lstm] → [gru, lstm]."""
    common, _, _ = names[0].rpartition("_")
    while common and not all(name.startswith(f"{common}_") for name in names):
        common, _, _ = common.rpartition("_")
    return [name.removeprefix(f"{common}_") for name in names] if len(names) > 1 else list(names)


def _unigram(found: Comparison, score: "Score") -> list[str]:
    from pipeline.scoring.perplexity import shown_number

    words = found.manifest.splits["train"].num_tokens
    return [shown_number(score.perplexity), "", _rounded(found.manifest.vocab_size), _rounded(words), "1.00"]


def _cells(measured: Measured) -> list[str]:
    from pipeline.scoring.perplexity import shown_number

    speed = measured.words_per_second
    return [
        shown_number(measured.score.perplexity),
        "" if measured.valid is None else shown_number(measured.valid),
        _rounded(measured.num_parameters),
        _rounded(measured.num_words),
        f"{measured.epochs:.2f}",
        f"{measured.seconds['productive']:,.0f}",
        f"{measured.all_seconds:,.0f}",
        "" if speed is None else f"{speed:,.0f}",
    ]


def _rounded(number: int) -> str:
    """A count as people read it; `--json` has it whole."""
    for unit, size in (("", 1), ("k", 1_000), ("M", 1_000_000)):
        if number < 1000 * size:
            return f"{number / size:.{0 if size == 1 else 2}f}{unit}"
    return f"{number / 1e9:,.2f}G"


def _draw(found: Comparison, path: str) -> Iterator[str]:
    """Writes the picture as SVG and as PNG; gives their paths."""
    names = short_names([row.experiment for row in found.rows])
    measured: list[Point] = [
        {
            "rung": name,
            "perplexity": row.measured.score.perplexity,
            "parameters": row.measured.num_parameters,
            "words": row.measured.num_words,
            "seconds": row.measured.all_seconds,
        }
        for name, row in zip(names, found.rows, strict=True)
        if row.measured is not None and math.isfinite(row.measured.score.perplexity)
    ]
    if not measured:
        return
    words = found.manifest.splits["train"].num_tokens
    title = f"{last_name(found.data)}, {words:,} words of train: perplexity of {found.split}"
    drawing, rows = charts.ladder(measured, title=title)
    for name, draw in ((path, charts.vector), (f"{path.removesuffix('.svg')}.png", charts.picture)):
        storage.publish_bytes(name, draw(drawing, rows))
        yield name
