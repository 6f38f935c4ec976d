"""`python -m jobs horizon`: how far back a model hears, as tables or as JSON, and a picture of it.

In: `run=FOLDER`, or `run=[A,B]` to see several side by side. Out: how the norm of the loss's gradient falls with the
distance, and perplexity by how many words a model is given; with `plot=FILE.svg` both, as SVG and PNG. Refuses what
`pipeline/horizon.py` refuses; without the extra `report` a picture, before a run is read.
"""

import json
import math
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from pipeline import storage
from pipeline.config import HorizonConfig, load
from pipeline.errors import ConfigError
from pipeline.horizon import HEARD, Horizon, find_horizons, protocol
from pipeline.masking import masked
from pipeline.reporting import charts
from pipeline.scoring.perplexity import finite, shown_number

SHOWN_DISTANCES = (0, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000)
MARKED_STEPS = 7  # of the project's own claim
WHOLE = "all"


def main(arguments: Sequence[str]) -> None:
    """Runs the verb.

    Raises:
        PipelineError: a run or its corpus is not whole, or the picture cannot be drawn or written.
    """
    config = load(HorizonConfig, [each for each in arguments if each != "--json"], name="horizon")
    if config.plot is not None and not config.plot.endswith(".svg"):
        raise ConfigError(f"plot={config.plot} is no name of a picture; use plot=FILE.svg")
    if config.plot is not None:
        charts.check_installed(verb="horizon")
    found = _find_shown(config)
    if "--json" in arguments:
        print(json.dumps(as_json(config, found), allow_nan=False))
    else:
        _print(config, found)
    if config.plot is not None:
        for path in _draw(config, found, config.plot):
            if "--json" not in arguments:
                print(path)


def as_json(config: HorizonConfig, found: Sequence[Horizon]) -> dict[str, object]:
    """The object that `--json` prints; what is not a finite number is null."""
    return {
        "split": config.split,
        "targets": config.targets,
        "protocol": protocol(config),
        "heard_share": HEARD,
        "runs": [
            {
                "run": masked(each.name),
                "step": each.trained.step,
                "steps_heard": each.heard,
                "gradient": [
                    {"steps": steps, "norm": finite(norm), "share": finite(share)}
                    for steps, (norm, share) in enumerate(zip(each.norms, each.shares, strict=True))
                ],
                "contexts": [
                    {
                        "words": num_words,
                        "perplexity": finite(score.perplexity),
                        "nats_per_token": finite(score.nats_per_token),
                    }
                    for num_words, score in (*each.by_context.items(), (None, each.whole))
                ],
            }
            for each in found
        ],
    }


def _find_shown(config: HorizonConfig) -> list[Horizon]:
    """Finds the horizons; where standard error is a terminal, a bar shows how far it is."""
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), TextColumn("words"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks = {}

        def show(name: str, num_words: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(f"reading with {masked(name)}", total=total)
            bar.update(tasks[name], advance=num_words)

        return find_horizons(config, progress=show)


# --- for people


def _print(config: HorizonConfig, found: Sequence[Horizon]) -> None:
    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    distances = [each for each in SHOWN_DISTANCES if each < config.distances] + [config.distances]
    gradients = _table("steps back", found)
    for distance in distances:
        gradients.add_row(f"{distance:,}", *(f"{each.shares[distance]:.2%}" for each in found))
    contexts = _table("words given", found)
    for num_words in config.contexts:
        scores = (each.by_context[num_words] for each in found)
        contexts.add_row(f"{num_words:,}", *(shown_number(score.perplexity) for score in scores))
    contexts.add_row(WHOLE, *(shown_number(each.whole.perplexity) for each in found))
    say("the gradient's norm by the steps back from the word before the target, over that of this word")
    console.print(gradients)
    say("\nperplexity by how many words are given before the target")
    console.print(contexts)
    for each in found:
        say(f"{masked(each.name)}: {_heard(each, config)}")
    if len({each.trained.vocabulary_fingerprint for each in found}) > 1:
        say("the runs have different vocabularies, so their perplexities cannot be compared")
    say(f"protocol: {protocol(config)}")


def _heard(found: Horizon, config: HorizonConfig) -> str:
    """What the numbers say, in words."""
    if found.heard is None:
        return "hears no word before the target, since its gradient is zero"
    further = " or more" if found.heard == config.distances else ""
    share = f"{found.shares[found.heard]:.1%} of that of the nearest word, and {HEARD:.0%} counts as heard"
    return f"hears {found.heard} steps back{further}, where the gradient is {share}"


def _table(first: str, found: Sequence[Horizon]) -> Table:
    """A table of numbers, a column for each run."""
    table = Table()
    for header in (first, *(masked(each.name) for each in found)):
        table.add_column(Text(header), justify="right")
    return table


def _draw(config: HorizonConfig, found: Sequence[Horizon], path: str) -> Iterator[str]:
    """Writes the picture as SVG and as PNG; gives their paths."""
    contexts = [*map(str, config.contexts), WHOLE]
    drawing = charts.horizon(
        [masked(each.name) for each in found],
        contexts,
        title=f"How far back a model hears: {config.targets:,} targets of {config.split}",
    )
    rows: charts.DataSets = {
        "marks": [
            {"steps": MARKED_STEPS, "label": f"{MARKED_STEPS} steps"},
            {"share": HEARD, "label": f"{HEARD:.0%}, counts as heard"},
        ],
        "gradients": [
            {"run": masked(each.name), "steps": steps, "share": share}
            for each in found
            for steps, share in enumerate(each.shares)
        ],
        "contexts": [
            {"run": masked(each.name), "words": words, "perplexity": score.perplexity}
            for each in found
            for words, score in zip(contexts, (*each.by_context.values(), each.whole), strict=True)
            if math.isfinite(score.perplexity)
        ],
    }
    for name, draw in ((path, charts.vector), (f"{path.removesuffix('.svg')}.png", charts.picture)):
        storage.publish_bytes(name, draw(drawing, rows))
        yield name
