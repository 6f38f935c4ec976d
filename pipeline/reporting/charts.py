"""The charts of a report, as specifications of Vega-Lite without data, which are drawn in a browser or to a picture.

In: rows by name of data set (`course.py` says what is in them). Out: drawings; the script that draws them in a page
without network; PNG. The only home of altair and vl-convert, which the extra `report` brings. Refuses to begin without.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from pipeline.errors import ConfigError
from pipeline.reporting.course import Row

if TYPE_CHECKING:
    import altair as alt

Specification = dict[str, Any]  # of Vega-Lite, a JSON object
DataSets = Mapping[str, Sequence[Row]]

WIDTH = 800  # pixels; the page scales a chart down where there is less room
PICTURE_SCALE = 1.5
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


def check_installed() -> None:
    """Refuses an installation without the extra.

    Raises:
        ConfigError: altair or vl-convert is missing.
    """
    try:
        import altair  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"report needs {error.name}, which is not installed; install it by `pip install 'wordlanes[report]'`"
        ) from error


def drawings(data: DataSets) -> dict[str, Drawing]:
    """The charts that have something to show, by name.

    Args:
        data: the sets `training`, `validations`, `course`, `goodput` and `clusters`.
    """
    found: list[Drawing] = []
    curves = "Thin lines are training, as logged; thick ones with points are validation. Lower is better."
    if data["training"] or data["validations"]:
        found.append(
            Drawing(name="perplexity-tokens", caption=curves, specification=_curves("tokens", "tokens seen", "~s"))
        )
    if any("hours" in row for row in (*data["training"], *data["validations"])):
        caption = f"{curves} Hours count from the run's first start, whatever it did."
        specification = _curves("hours", "hours since the first start", "~g")
        found.append(Drawing(name="perplexity-hours", caption=caption, specification=specification))
    if data["goodput"]:
        caption = "Each bar is all time from a run's first start to its last sign of life."
        found.append(Drawing(name="goodput", caption=caption, specification=_goodput()))
    if data["course"]:
        caption = "Training speed of all ranks together. Vertical lines are what happened; point at one for its cause."
        found.append(Drawing(name="speed", caption=caption, specification=_speed()))
    if data["clusters"]:
        caption = "Loss of the targets of each cluster of the softmax: how much is learned about rare words."
        found.append(Drawing(name="clusters", caption=caption, specification=_clusters()))
    return {drawing.name: drawing for drawing in found}


def script() -> str:
    """The libraries that draw, as one script without any address to load from."""
    import vl_convert

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_version())
    return bundle.replace("</script", "<\\/script")


def picture(drawing: Drawing, data: DataSets) -> bytes:
    """A chart as PNG, on white."""
    import vl_convert

    specification = drawing.specification | {"datasets": data, "background": "white", "padding": 12}
    return bytes(
        vl_convert.vegalite_to_png(
            json.dumps(specification), vl_version=_version(), scale=PICTURE_SCALE, allowed_base_urls=[]
        )
    )


def _version() -> str:
    """Of Vega-Lite, which altair's specifications are made for: 6.1."""
    import altair as alt

    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def _curves(place: str, title: str, number: str) -> Specification:
    """Perplexity of all runs over tokens or hours, on a logarithmic axis."""
    import altair as alt

    encoding: dict[str, Any] = {
        "x": alt.X(place, type="quantitative", title=title, axis=alt.Axis(format=number)),
        "y": alt.Y("perplexity:Q", title="perplexity", scale=alt.Scale(type="log", zero=False, nice=False)),
        "color": _run_color(),
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


def _goodput() -> Specification:
    """Where the time of each run went, as one bar of a hundred percent."""
    import altair as alt

    color = alt.Color(
        "category:N",
        title=None,
        sort=[*CATEGORY_COLORS],
        scale=alt.Scale(domain=[*CATEGORY_COLORS], range=[*CATEGORY_COLORS.values()]),
    )
    told = ["run:N", "category:N", alt.Tooltip("seconds:Q", format=",.1f"), alt.Tooltip("share:Q", format=".1%")]
    bars = alt.Chart(alt.NamedData("goodput")).mark_bar(height=22)
    return _made(
        bars.encode(
            x=alt.X("share:Q", title="share of the time", stack=True, axis=alt.Axis(format="%"), scale=_whole()),
            y=alt.Y("run:N", title=None, sort=None),
            color=color,
            order=alt.Order("order:Q"),
            tooltip=told,
        ).properties(width=WIDTH, height=alt.Step(36))
    )


def _whole() -> "alt.Scale":
    import altair as alt

    return alt.Scale(domain=[0, 1])


def _speed() -> Specification:
    """The speed of each run over its hours, and lines where something happened; one panel below the other."""
    import altair as alt

    kinds = alt.Scale(domain=[*EVENT_COLORS], range=[*EVENT_COLORS.values()])
    hours = alt.X("hours:Q", title="hours since the first start")
    line = alt.Chart().transform_filter("isValid(datum.speed)").mark_line(strokeWidth=1.2, color=RUN_COLORS[0])
    rules = alt.Chart().transform_filter("isValid(datum.event)").mark_rule(strokeWidth=2)
    return _made(
        alt.layer(
            line.encode(x=hours, y=alt.Y("speed:Q", title="words/s", axis=alt.Axis(format="~s"))),
            rules.encode(
                x=hours,
                color=alt.Color("event:N", title=None, scale=kinds),
                tooltip=[alt.Tooltip("hours:Q", format=".3f"), "event:N", "what:N"],
            ),
            data=alt.NamedData("course"),
        )
        .properties(width=WIDTH, height=140)
        .facet(row=alt.Row("run:N", title=None, sort=None, header=_header()))
    )


def _clusters() -> Specification:
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
        .facet(row=alt.Row("run:N", title=None, sort=None, header=_header()))
    )


def _header() -> "alt.Header":
    """The name of a run above its panel."""
    import altair as alt

    return alt.Header(labelOrient="top", labelAnchor="start", labelFontWeight="bold", labelFontSize=13)


def _run_color() -> "alt.Color":
    import altair as alt

    return alt.Color("run:N", title=None, sort=None, scale=alt.Scale(range=RUN_COLORS))


def _made(chart: "alt.TopLevelMixin") -> Specification:
    """The specification of a chart in the style of the page."""
    styled = cast(Any, chart).configure(
        background="transparent",
        font="system-ui, sans-serif",
        view={"stroke": None},
        axis={"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "gridColor": "#8884"},
        legend={"orient": "top", "labelFontSize": 12, "labelLimit": 400, "columns": 4},
    )
    found: Specification = styled.to_dict()
    return found
