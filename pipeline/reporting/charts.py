"""The charts of runs and of a corpus, as specifications of Vega-Lite without data, drawn in a browser or to a picture.

In: rows by name of data set (`course.py` says what is in those of runs). Out: drawings; the script that draws them in a
page without network; PNG and SVG. The only home of altair and vl-convert, which the extra `report` brings. Refuses to
begin without.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from pipeline.errors import ConfigError
from pipeline.reporting.course import Row
from pipeline.reporting.labels import POINT_PIXELS, Axis, axis_of, labels

if TYPE_CHECKING:
    import altair as alt

Specification = dict[str, Any]  # of Vega-Lite, a JSON object
DataSets = Mapping[str, Sequence[Row]]

HOURS = "hours since the first start"
FROM_START = "Hours count from a run's first start, whatever it did."
WIDTH = 800  # pixels; the page scales a chart down where there is less room
PICTURE_SCALE = 1.5
RANKS_HEIGHT = 260
SHARE_DECADES = 5  # of a gradient that are drawn; further below, a curve is on the axis
MARK_COLOR = "#555555"
LADDER_WIDTH, LADDER_HEIGHT = 270, 340
LADDER_PANELS = {"parameters": "parameters", "words": "words seen", "seconds": "seconds of training"}
LABEL_ALIGN: dict[str, Literal["left", "right"]] = {"right": "left", "left": "right"}  # by the side of the point
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-left", "triangle-right"]
# legible on white and on black, and told apart by those who see fewer colours
RUN_COLORS = ["#3b82d0", "#e07b39", "#2a9d8f", "#b0569b", "#8c8c3e", "#d1495b", "#6d6fc4", "#8a6d5a"]
CATEGORY_COLORS = {
    "productive": "#2a9d8f",
    "replaying": "#e9a23b",
    "checkpoints": "#8467c9",
    "validating": "#4c8fd6",
    "starting": "#94a3b3",
    "down": "#d1495b",
}
EVENT_COLORS = {"start": "#94a3b3", "fault": "#d1495b", "stop": "#e9a23b", "resize": "#4c8fd6", "skip": "#8467c9"}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A chart.

    Attributes:
        name: [a-z-], of its place in the page and of its picture.
        caption: what is seen and how to read it.
        specification: names the data sets that it draws.
    """

    name: str
    caption: str
    specification: Specification


def check_installed(*, verb: str) -> None:
    """Refuses an installation without the extra.

    Args:
        verb: what needs it.

    Raises:
        ConfigError: altair or vl-convert is missing.
    """
    try:
        import altair  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"{verb} needs {error.name}, which is not installed; install it by `pip install 'wordlanes[report]'`"
        ) from error


def drawings(data: DataSets) -> dict[str, Drawing]:
    """The charts that have something to show, by name.

    Args:
        data: the sets that `course.py` makes, of all runs.
    """
    runs = [*dict.fromkeys(str(row["run"]) for row in data["goodput"])]
    events = {row.get("event") for row in data["course"]}
    curves = [*data["training"], *data["validations"]]
    there = {
        "perplexity-tokens": bool(curves),
        "perplexity-hours": any("hours" in row for row in curves),
        "clusters": bool(data["clusters"]),
    }
    lines = "Thin lines are training, as logged; thick ones with points are validation. Lower is better."
    drawn = [
        ("perplexity-tokens", lines, _curves(runs, "tokens", "tokens seen", "~s")),
        ("perplexity-hours", f"{lines} {FROM_START}", _curves(runs, "hours", HOURS, "~g")),
        ("goodput", "All time from a run's first start to its last sign of life.", _goodput(runs)),
        ("speed", f"Of all ranks together. Vertical lines are what happened. {FROM_START}", _speed(runs, events)),
        ("clusters", "Loss of the targets in each cluster of the softmax; tails have rare words.", _clusters(runs)),
    ]
    return {
        name: Drawing(name=name, caption=caption, specification=specification)
        for name, caption, specification in drawn
        if there.get(name, True)
    }


def ranks(title: str) -> Drawing:
    """The count of the word at each rank and, below it, what the first words of a vocabulary cover.

    Args:
        title: names the corpus.

    Returns:
        a drawing of the data sets `ranks`, rows of `rank`, `count` and `share` as `corpus.inspection.rank_rows` makes
        them, and `marks`, the cutoffs: rows of `rank` and `share`.
    """
    import altair as alt

    lines, marks = alt.Chart(alt.NamedData("ranks")), alt.Chart(alt.NamedData("marks"))
    by_count, first = (_decades(alt.X("rank:Q"), title) for title in ("rank of the word by count", "first words"))
    count = _decades(alt.Y("count:Q"), "count in train")
    share = alt.Y("share:Q", title="share of train's tokens", scale=_whole(), axis=alt.Axis(format="%"))
    rules = marks.mark_rule(strokeDash=[4, 4], color=MARK_COLOR)
    cutoffs = marks.mark_text(dy=-8, fontSize=12).encode(y=alt.value(0), text=alt.Text("rank:Q", format=","))
    shares = marks.mark_text(align="right", dx=-6, dy=-8, fontSize=12).encode(
        y=share, text=alt.Text("share:Q", format=".1%")
    )
    counts = lines.transform_filter("isValid(datum.count)").mark_line(strokeWidth=2).encode(y=count)
    covered = lines.mark_line(strokeWidth=2).encode(y=share)
    chart = alt.vconcat(
        alt.layer(rules, cutoffs, counts).encode(x=by_count).properties(width=WIDTH, height=RANKS_HEIGHT),
        alt.layer(rules, shares, covered).encode(x=first).properties(width=WIDTH, height=RANKS_HEIGHT),
        title=alt.TitleParams(title, anchor="start", offset=16),
    )
    caption = "Above, how often the word of each rank stands in train; below, how much of train the first words cover."
    return Drawing(name="ranks", caption=caption, specification=_made(chart))


def ladder(rungs: Sequence[Row], *, title: str) -> tuple[Drawing, DataSets]:
    """Perplexity against what it took, a panel for each: each rung is a point with its name.

    Args:
        rungs: at least one: `rung`, `perplexity`, and numbers by the names of `LADDER_PANELS`; one that is 0 has no
            place on its axis.
        title: of the picture.

    Returns:
        the drawing, and the data sets that it draws.
    """
    import altair as alt

    names = [str(rung["rung"]) for rung in rungs]
    upright = axis_of(_numbers(rungs, "perplexity"), pixels=LADDER_HEIGHT, margin_pixels=24)
    panels, data = [], {}
    for place, (panel, what) in enumerate(LADDER_PANELS.items()):
        drawn = [rung for rung in rungs if float(rung[panel]) > 0]
        if not drawn:
            continue
        across = axis_of(_numbers(drawn, panel), pixels=LADDER_WIDTH, margin_pixels=20)
        data[panel] = _labelled(drawn, panel, across=across, upright=upright)
        x = alt.X(f"{panel}:Q", title=what, scale=_log(across), axis=alt.Axis(values=across.ticks, format="~s"))
        numbers = alt.Axis(values=upright.ticks, format="~r", labels=place == 0, ticks=place == 0)
        y = alt.Y("perplexity:Q", title="perplexity" if place == 0 else None, scale=_log(upright), axis=numbers)
        color = _run_color(names, legend=None, field="rung")
        base = alt.Chart(alt.NamedData(panel)).encode(x=x)
        points = base.mark_point(filled=True, size=90, opacity=1).encode(
            y=y,
            color=color,
            shape=alt.Shape("rung:N", legend=None, scale=alt.Scale(domain=names, range=_cycled(SHAPES, names))),
        )
        texts = [
            base.transform_filter(alt.datum.side == side)
            .mark_text(align=LABEL_ALIGN[side], dx=dx, fontSize=12, fontWeight="bold")
            .encode(y=alt.Y("label:Q", scale=_log(upright)), text="rung:N", color=color)
            for side, dx in (("right", POINT_PIXELS), ("left", -POINT_PIXELS))
        ]
        leads = base.transform_filter(alt.datum.is_moved).mark_rule(color=MARK_COLOR, strokeWidth=0.7)
        leads = leads.encode(y=y, y2="label:Q")
        panels.append(alt.layer(leads, points, *texts).properties(width=LADDER_WIDTH, height=LADDER_HEIGHT))
    chart = alt.hconcat(*panels, spacing=18, title=alt.TitleParams(title, anchor="start", offset=14))
    caption = "Lower is better. All axes are logarithmic; seconds are those of starts, updates, validations and saving."
    return Drawing(name="ladder", caption=caption, specification=_made(chart)), data


def _labelled(rungs: Sequence[Row], panel: str, *, across: Axis, upright: Axis) -> list[Row]:
    """The points of a panel, each with the side of its name and the value at which that stands."""
    points = [(across.place(float(rung[panel])), upright.place(float(rung["perplexity"]))) for rung in rungs]
    placed = labels([str(rung["rung"]) for rung in rungs], points, width_pixels=across.pixels)
    return [
        {
            **rung,
            "side": label.side,
            "label": upright.value(label.place),
            "is_moved": abs(label.place - y) > POINT_PIXELS,
        }
        for rung, label, (_, y) in zip(rungs, placed, points, strict=True)
    ]


def _numbers(rows: Sequence[Row], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def _log(axis: Axis) -> "alt.Scale":
    import altair as alt

    return alt.Scale(type="log", domain=[axis.low, axis.high], nice=False)


def _cycled(values: Sequence[str], names: Sequence[str]) -> list[str]:
    """One for each name."""
    return [values[place % len(values)] for place, _ in enumerate(names)]


def horizon(runs: Sequence[str], contexts: Sequence[str], *, title: str) -> Drawing:
    """How fast the gradient fades with the steps back and, below it, what context gains.

    Args:
        runs: their names.
        contexts: the numbers of words, in their order, as the rows have them.
        title: of the whole.

    Returns:
        a drawing of the data sets `gradients`, rows of `run`, `steps` and `share`; `contexts`, rows of `run`, `words`
        and `perplexity`; and `marks`, rows of `steps` or of `share`, each with a `label`.
    """
    import altair as alt

    color = _run_color(runs, legend=_legend(3))
    steps = alt.X("steps:Q", title="steps back from the word before the target", axis=alt.Axis(tickMinStep=1))
    shares = alt.Axis(format="~%", values=[10.0**-power for power in range(SHARE_DECADES + 1)])
    share = alt.Y("share:Q", title="gradient, of the nearest word's", axis=shares, scale=alt.Scale(type="log"))
    fading = alt.Chart(alt.NamedData("gradients")).mark_line(strokeWidth=2)
    fading = fading.transform_calculate(share=f"max(datum.share, 1e-{SHARE_DECADES})")
    marks = alt.Chart(alt.NamedData("marks"))
    upright, level = (marks.transform_filter(f"isValid(datum.{key})") for key in ("steps", "share"))
    words = alt.X("words:O", title="words given before the target", sort=[*contexts], axis=alt.Axis(labelAngle=0))
    perplexity = alt.Y("perplexity:Q", title="perplexity", scale=alt.Scale(type="log", nice=False, padding=12))
    gains = alt.Chart(alt.NamedData("contexts")).encode(x=words, y=perplexity, color=color)
    label = alt.Text("label:N")
    chart = alt.vconcat(
        alt.layer(
            upright.mark_rule(strokeDash=[4, 4], color=MARK_COLOR).encode(x=steps),
            level.mark_rule(strokeDash=[4, 4], color=MARK_COLOR).encode(y=share),
            upright.mark_text(align="left", dx=6, dy=8, fontSize=12).encode(x=steps, y=alt.value(0), text=label),
            level.mark_text(align="right", dx=-6, dy=-8, fontSize=12).encode(x=alt.value(WIDTH), y=share, text=label),
            fading.encode(x=steps, y=share, color=color),
        ).properties(width=WIDTH, height=RANKS_HEIGHT),
        alt.layer(gains.mark_line(strokeWidth=2), gains.mark_point(filled=True, size=45, opacity=1)).properties(
            width=WIDTH, height=RANKS_HEIGHT
        ),
        title=alt.TitleParams(title, anchor="start", offset=16),
    )
    caption = "Above, what of the gradient is left so many steps back; below, what more words before a target gain."
    return Drawing(name="horizon", caption=caption, specification=_made(chart))


def _decades(channel: Any, title: str) -> Any:  # noqa: ANN401  (alt.X or alt.Y, whose setters are the same)
    """A channel on a logarithmic axis with a line for each power of ten."""
    import altair as alt

    axis = alt.Axis(format="~s", values=[10**power for power in range(13)])
    return channel.title(title).scale(type="log", nice=False).axis(axis)


def script() -> str:
    """The libraries that draw, as one script without any address to load from."""
    import vl_convert

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_version())
    return bundle.replace("</script", "<\\/script")


def picture(drawing: Drawing, data: DataSets) -> bytes:
    """A chart as PNG, on white."""
    import vl_convert

    filled = _filled(drawing, data)
    return bytes(vl_convert.vegalite_to_png(filled, vl_version=_version(), scale=PICTURE_SCALE, allowed_base_urls=[]))


def vector(drawing: Drawing, data: DataSets) -> bytes:
    """A chart as SVG, on white."""
    import vl_convert

    return vl_convert.vegalite_to_svg(_filled(drawing, data), vl_version=_version(), allowed_base_urls=[]).encode()


def _filled(drawing: Drawing, data: DataSets) -> str:
    """The specification with its data."""
    return json.dumps(drawing.specification | {"datasets": data, "background": "white", "padding": 12})


def _version() -> str:
    """Of Vega-Lite, which altair's specifications are made for: 6.1."""
    import altair as alt

    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def _curves(runs: Sequence[str], place: str, title: str, number: str) -> Specification:
    """Perplexity of all runs over tokens or hours, on a logarithmic axis."""
    import altair as alt

    encoding: dict[str, Any] = {
        "x": alt.X(place, type="quantitative", title=title, axis=alt.Axis(format=number, tickCount=10)),
        "y": alt.Y("perplexity:Q", title="perplexity", scale=alt.Scale(type="log", nice=False)),
        "color": _run_color(runs, legend=_legend(3)),
    }
    told = [
        alt.Tooltip("run:N"),
        alt.Tooltip("step:Q", format=","),
        alt.Tooltip("tokens:Q", format=","),
        alt.Tooltip("hours:Q", format=".3f"),
        alt.Tooltip("perplexity:Q", format=",.2f"),
    ]
    training, validations = alt.NamedData("training"), alt.NamedData("validations")
    has_place = f"isValid(datum.{place}) && isValid(datum.perplexity)"
    thin = alt.Chart(training).mark_line(strokeWidth=1, opacity=0.55)
    thick = alt.Chart(validations).mark_line(strokeWidth=2.5)
    points = alt.Chart(validations).mark_point(filled=True, size=45, opacity=1)
    return _made(
        alt.layer(
            thin.transform_filter(has_place).encode(**encoding),
            thick.transform_filter(has_place).encode(**encoding),
            points.transform_filter(has_place).encode(**encoding, tooltip=told),
        ).properties(width=WIDTH, height=320)
    )


def _goodput(runs: Sequence[str]) -> Specification:
    """Where the time of each run went, as one bar of a hundred percent."""
    import altair as alt

    color = alt.Color(
        "category:N",
        title=None,
        sort=[*CATEGORY_COLORS],
        legend=_legend(6),
        scale=alt.Scale(domain=[*CATEGORY_COLORS], range=[*CATEGORY_COLORS.values()]),
    )
    told = ["run:N", "category:N", alt.Tooltip("seconds:Q", format=",.1f"), alt.Tooltip("share:Q", format=".1%")]
    bars = alt.Chart(alt.NamedData("goodput")).mark_bar(height=22)
    return _made(
        bars.encode(
            x=alt.X("share:Q", title="share of the time", stack=True, axis=alt.Axis(format="%"), scale=_whole()),
            y=alt.Y("run:N", title=None, sort=[*runs]),
            color=color,
            order=alt.Order("order:Q"),
            tooltip=told,
        ).properties(width=WIDTH, height=alt.Step(36))
    )


def _whole() -> "alt.Scale":
    import altair as alt

    return alt.Scale(domain=[0, 1])


def _speed(runs: Sequence[str], events: Collection[str | int | float | None]) -> Specification:
    """The speed of each run over its hours, and lines where something happened; one panel below the other.

    Args:
        runs: their names.
        events: the kinds that happened.
    """
    import altair as alt

    colors = {kind: color for kind, color in EVENT_COLORS.items() if kind in events}
    kinds = alt.Scale(domain=[*colors], range=[*colors.values()])
    hours = alt.X("hours:Q", title=HOURS, axis=alt.Axis(format="~g", tickCount=10))
    line = alt.Chart().transform_filter("isValid(datum.speed)").mark_line(strokeWidth=1.2, color=RUN_COLORS[0])
    rules = alt.Chart().transform_filter("isValid(datum.event)").mark_rule(strokeWidth=2)
    return _made(
        alt.layer(
            line.encode(x=hours, y=alt.Y("speed:Q", title="words/s", axis=alt.Axis(format="~s")), detail="attempt:N"),
            rules.encode(
                x=hours,
                color=alt.Color("event:N", title=None, scale=kinds, legend=_legend(6)),
                tooltip=[alt.Tooltip("hours:Q", format=".3f"), "event:N", "what:N"],
            ),
            data=alt.NamedData("course"),
        )
        .properties(width=WIDTH, height=140)
        .facet(row=_panels(runs))
    )


def _clusters(runs: Sequence[str]) -> Specification:
    """Nats per target of each cluster over the tokens, one panel for each run."""
    import altair as alt

    return _made(
        alt.Chart(alt.NamedData("clusters"))
        .mark_line(strokeWidth=1.5)
        .encode(
            x=alt.X("tokens:Q", title="tokens seen", axis=alt.Axis(format="~s")),
            y=alt.Y("nats:Q", title="nats per target", scale=alt.Scale(zero=False)),
            color=alt.Color("cluster:N", title="cluster", sort=None, scale=alt.Scale(range=RUN_COLORS)),
        )
        .properties(width=WIDTH, height=180)
        .facet(row=_panels(runs))
    )


def _panels(runs: Sequence[str]) -> "alt.Row":
    """One panel below the other, the name of a run above each."""
    import altair as alt

    header = alt.Header(labelOrient="top", labelAnchor="start", labelFontWeight="bold", labelFontSize=13)
    return alt.Row("run:N", title=None, sort=[*runs], header=header)


def _run_color(runs: Sequence[str], *, legend: "alt.Legend | None", field: str = "run") -> "alt.Color":
    """A run has its color in every chart."""
    import altair as alt

    scale = alt.Scale(domain=[*runs], range=_cycled(RUN_COLORS, runs))
    return alt.Color(f"{field}:N", title=None, scale=scale, legend=legend)


def _legend(columns: int) -> "alt.Legend":
    import altair as alt

    return alt.Legend(columns=columns)


def _made(chart: "alt.TopLevelMixin") -> Specification:
    """The specification of a chart in the style of the page."""
    styled = cast(Any, chart).configure(
        background="transparent",
        font="system-ui, sans-serif",
        view={"stroke": None},
        axis={"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "gridColor": "#8883"},
        legend={"orient": "top", "labelFontSize": 12, "labelLimit": 240, "symbolOpacity": 1},
    )
    found: Specification = styled.to_dict()
    return found
