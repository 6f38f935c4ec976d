"""Pieces of a page. Whatever comes from a file is text: it is masked and escaped here, once."""

import html
import json
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime

from pipeline.masking import masked

UNKNOWN = "–"


def text(value: object) -> str:
    """A value as it stands in a page: without secrets, and no markup."""
    return html.escape(masked(str(value)))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Collection[str] = ()) -> str:
    """A table.

    Args:
        header: names of the columns.
        rows: their cells, as plain text.
        numbers: columns that are set to the right.
    """
    kinds = [' class="number"' if name in numbers else "" for name in header]

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(f"<{tag}{kind}>{text(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    body = "\n".join(f"<tr>{line('td', cells)}</tr>" for cells in rows)
    return f'<div class="table"><table>\n<tr>{line("th", header)}</tr>\n{body}\n</table></div>'


def pairs(items: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A list of names, each with its lines."""
    parts = (
        f"<dt>{text(name)}</dt><dd>{''.join(f'<p>{text(line)}</p>' for line in lines)}</dd>" for name, lines in items
    )
    return "<dl>\n" + "\n".join(parts) + "\n</dl>"


def data_script(name: str, value: object) -> str:
    """A value as JSON that a script of the page reads; no text in it can end the element."""
    content = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{content}</script>'


def number(value: float | None, shown: str = ",.0f") -> str:
    """A number as people read it; a dash for none."""
    return UNKNOWN if value is None else format(value, shown)


def counted(value: int, thing: str) -> str:
    """A number with its noun: 1 step, 2 steps."""
    return f"{value:,} {thing}{'' if value == 1 else 's'}"


def when(time_seconds: float) -> str:
    """A time in UTC, which is the same wherever the page is read."""
    return datetime.fromtimestamp(time_seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
