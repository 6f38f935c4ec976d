"""`python -m jobs inspect`: what a prepared corpus holds, as tables or as JSON, and a picture of it.

In: `data=FOLDER`. Out: splits, words, what the first words cover, which held-out lines stand in train too, and the
first windows of lane 0; with `plot=FILE.svg` the counts over the ranks, as SVG and PNG. Refuses a corpus that is not
what its manifest says; without the extra `report` a picture, before the corpus is read.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from pipeline import storage
from pipeline.config import InspectConfig, given, load
from pipeline.corpus.duplicates import Duplicates
from pipeline.corpus.inspection import TRAIN, CountedWord, Inspection, inspect_corpus, rank_rows
from pipeline.corpus.manifest import Split
from pipeline.errors import ConfigError
from pipeline.masking import last_name
from pipeline.reporting import charts

MOST_POINTS = 800  # of a curve
WORD_WIDTH = 20  # of a word in a table
EXAMPLE_WORDS = 20  # of a line
MOST_CHARACTERS = 80  # of a word in a line


def main(arguments: Sequence[str]) -> None:
    """Runs the verb.

    Raises:
        PipelineError: the corpus is not whole, or the picture cannot be drawn or written.
    """
    config = load(InspectConfig, [each for each in arguments if each != "--json"], name="inspect")
    data = given("data", config.data)
    if config.plot is not None and not config.plot.endswith(".svg"):
        raise ConfigError(f"plot={config.plot} is no name of a picture; use plot=FILE.svg")
    if config.plot is not None:
        charts.check_installed(verb="inspect")
    found = _inspect_shown(data, config)
    if "--json" in arguments:
        print(json.dumps(as_json(data, found), allow_nan=False))
    else:
        _print(data, found, config)
    if config.plot is not None:
        for path in _draw(data, found, config.plot):
            if "--json" not in arguments:
                print(path)


def as_json(data: str, found: Inspection) -> dict[str, object]:
    """The object that `--json` prints; what is not known is null."""
    manifest, counts = found.manifest, found.vocabulary.counts
    return {
        "data": data,
        "fingerprint": manifest.fingerprint,
        "tool_version": manifest.tool_version,
        "splits": {
            name: {
                "shards": len(split.shards),
                "tokens": split.num_tokens,
                "lines": _num_lines(name, found),
                "unk": split.num_unk,
                "oov_rate": split.oov_rate,
                "replacement_chars": split.num_replacement_chars,
                "nul_bytes": split.num_nul_bytes,
                "null_rows": split.num_null_rows,
            }
            for name, split in manifest.splits.items()
        },
        "vocabulary": {
            "words": found.vocabulary.size,
            "fingerprint": manifest.vocabulary_fingerprint,
            "tokens": int(counts.sum()),
            "once": found.num_once,
            "never": found.num_never,
            "most_frequent": [asdict(each) for each in found.most_frequent],
            "least_frequent": [asdict(each) for each in found.least_frequent],
        },
        "coverage": [
            {"words": each.num_words, "tokens": each.num_tokens, "share": each.share} for each in found.coverage
        ],
        "duplicates": {
            name: {
                "lines": each.num_lines,
                "words": each.num_words,
                "compared_lines": each.num_compared,
                "duplicate_lines": each.num_duplicates,
                "duplicate_lines_without_unk": each.num_without_unk,
                "line_share": _ratio(each.num_duplicates, each.num_compared),
                "duplicate_words": each.num_duplicate_words,
                "word_share": _ratio(each.num_duplicate_words, each.num_words),
                "examples": found.examples[name],
            }
            for name, each in found.duplicates.items()
        },
        "windows": [asdict(each) for each in found.windows],
    }


def _inspect_shown(data: str, config: InspectConfig) -> Inspection:
    """Inspects a corpus; where standard error is a terminal, a bar shows how far it is."""
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), TextColumn("words"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading train", total=None)
        return inspect_corpus(
            data,
            num_words=config.words,
            num_windows=config.windows,
            bptt=config.bptt,
            min_words=config.min_words,
            progress=lambda words, total: bar.update(task, advance=words, total=total),
        )


def _draw(data: str, found: Inspection, path: str) -> Iterator[str]:
    """Writes the picture as SVG and as PNG; gives their paths."""
    counts = found.vocabulary.counts
    if not found.coverage:
        raise ConfigError(f"data={data} counts no word, so there is nothing to draw; leave plot out")
    drawing = charts.ranks(f"{last_name(data)}: {len(counts):,} words, {counts.sum():,} tokens of train")
    rows: charts.DataSets = {
        "ranks": rank_rows(counts, most=MOST_POINTS),
        "marks": [
            {"rank": each.num_words, "share": each.share}
            for each in found.coverage
            if 2 * each.num_words <= len(counts) or each is found.coverage[-1]  # else their labels overlap
        ],
    }
    for name, draw in ((path, charts.vector), (f"{path.removesuffix('.svg')}.png", charts.picture)):
        storage.publish_bytes(name, draw(drawing, rows))
        yield name


# --- for people


def _print(data: str, found: Inspection, config: InspectConfig) -> None:
    console = Console()
    lines = "documents" if found.manifest.configuration.get("eos") == "document" else "lines"
    vocabulary = found.vocabulary

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    say(f"{last_name(data)}, prepared by wordlanes {found.manifest.tool_version}")
    console.print(_splits(found, lines=lines))
    for line in _replaced(found.manifest.splits):
        say(line)
    say(
        f"\nvocabulary: {vocabulary.size:,} words;"
        f" in train {found.num_once:,} of them stand once, {found.num_never:,} never"
    )
    console.print(_words(found))
    if found.coverage:
        say("\nwhat the first words of the vocabulary cover of train, as the cutoffs of a softmax divide it")
        console.print(_coverage(found))
    if found.duplicates:
        say(
            f"\nheld-out {lines} that stand in train too, word for word unless they hold <unk>;"
            f" those with fewer than {config.min_words} words beside <unk> are not compared"
        )
        console.print(_duplicates(found.duplicates))
        for line in _examples(found):
            say(line)
    if found.windows:
        say(f"\nthe first windows of lane 0, stream.bptt={config.bptt}")
        console.print(_windows(found))


def _splits(found: Inspection, *, lines: str) -> Table:
    table = _right_aligned("split", "shards", "tokens", lines, "<unk>", "OOV rate")
    for name, split in found.manifest.splits.items():
        num_lines = _num_lines(name, found)
        table.add_row(
            name,
            f"{len(split.shards):,}",
            f"{split.num_tokens:,}",
            "" if num_lines is None else f"{num_lines:,}",
            f"{split.num_unk:,}",
            f"{split.oov_rate:.2%}",
        )
    return table


def _replaced(splits: dict[str, Split]) -> Iterator[str]:
    """What is not in the corpus as it was in the text, a line for each split that has any."""
    told = {name: line for name, split in splits.items() if (line := _odd(split))}
    yield from (f"{name}: {line}" for name, line in told.items())
    if not told:
        yield "nothing was replaced or passed over"


def _odd(split: Split) -> str:
    counts = (
        (split.num_replacement_chars, "U+FFFD, put in for bytes that are no UTF-8 or there before"),
        (split.num_nul_bytes, "NUL bytes"),
        (split.num_null_rows, "rows without text passed over"),
    )
    if all(count is None for count, _ in counts):
        return "what was replaced or passed over was not counted"
    return ", ".join(f"{count:,} {what}" for count, what in counts if count)


def _words(found: Inspection) -> Table:
    table = Table("id", "most frequent", "count", "share", "id", "least frequent", "count")
    for column in (*table.columns[0::4], *table.columns[2:4], table.columns[6]):
        column.justify = "right"
    for column in (table.columns[1], table.columns[5]):
        column.max_width, column.no_wrap, column.overflow = WORD_WIDTH, True, "ellipsis"
    total = max(int(found.vocabulary.counts.sum()), 1)
    for place, most in enumerate(found.most_frequent):
        least = found.least_frequent[place : place + 1]
        table.add_row(
            *_cells(most),
            f"{most.count / total:.2%}",
            *(cell for each in least for cell in _cells(each)),
        )
    return table


def _cells(word: CountedWord) -> tuple[str, Text, str]:
    return f"{word.id:,}", Text(escaped(word.word[:MOST_CHARACTERS])), f"{word.count:,}"


def _coverage(found: Inspection) -> Table:
    table = _right_aligned("first words", "tokens", "share", "beyond")
    for each in found.coverage:
        table.add_row(f"{each.num_words:,}", f"{each.num_tokens:,}", f"{each.share:.2%}", f"{1 - each.share:.2%}")
    table.columns[0].justify = "right"
    return table


def _duplicates(found: dict[str, Duplicates]) -> Table:
    table = _right_aligned("split", "compared", "in train", "share", "without <unk>", "words", "of all words")
    for name, each in found.items():
        table.add_row(
            name,
            f"{each.num_compared:,}",
            f"{each.num_duplicates:,}",
            _percent(_ratio(each.num_duplicates, each.num_compared)),
            f"{each.num_without_unk:,}",
            f"{each.num_duplicate_words:,}",
            _percent(_ratio(each.num_duplicate_words, each.num_words)),
        )
    return table


def _examples(found: Inspection) -> Iterator[str]:
    for name, examples in found.examples.items():
        for words in examples:
            yield f"{name}: {_line(words[:EXAMPLE_WORDS])}{' …' if len(words) > EXAMPLE_WORDS else ''}"


def _windows(found: Inspection) -> Table:
    table = Table("window", "", "words")
    table.columns[2].overflow = "fold"
    for number, window in enumerate(found.windows):
        table.add_row(str(number), "inputs", Text(_line(window.inputs)))
        table.add_row("", "targets", Text(_line(window.targets)))
    return table


def _line(words: Sequence[str]) -> str:
    return " ".join(escaped(each if len(each) <= MOST_CHARACTERS else f"{each[:MOST_CHARACTERS]}…") for each in words)


def escaped(text: str) -> str:
    """The text with what a terminal would obey or hide, such as control characters and turns of direction, escaped."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _right_aligned(*headers: str) -> Table:
    """A table whose columns but the first hold numbers."""
    table = Table(*headers)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _num_lines(split: str, found: Inspection) -> int | None:
    """Line ends of train; lines of another split, None where they were not counted."""
    if split == TRAIN:
        return int(found.vocabulary.counts[0])
    return found.duplicates[split].num_lines if split in found.duplicates else None


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"
