"""Where the points of a picture and their names stand, so that no name stands on another.

In: values on logarithmic axes. Out: domains, ticks, and for each name its side of the point and how far it is moved up
or down. Refuses nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ROW_PIXELS = 14.0  # a name's height
LETTER_PIXELS = 7.0  # of a letter's width, at most
POINT_PIXELS = 7.0  # from a point's middle to its name
MOVES_PIXELS = sorted((float(each) for each in range(-120, 121, 3)), key=abs)  # of a name, up and down
Side = Literal["right", "left"]
SIDES: tuple[Side, ...] = ("right", "left")
Box = tuple[float, float, float, float]  # left, right, below, above
LEADS = (  # what stands before the zeros of a tick, the rounder first
    (1.0,),
    (1.0, 3.0),
    (1.0, 2.0, 5.0),
    (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    tuple(half / 2 for half in range(2, 20)),
    tuple(tenth / 10 for tenth in range(10, 100)),
)
LEAST_RANGE = 1.3  # of an axis: high / low
FEWEST_TICKS = 3  # if there is room
TICK_PIXELS = 40.0  # between two ticks, at least


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A logarithmic axis.

    Attributes:
        low, high: its ends, in values.
        pixels: between them.
    """

    low: float
    high: float
    pixels: float

    def place(self, value: float) -> float:
        """Pixels from the low end."""
        return self.pixels * math.log(value / self.low) / math.log(self.high / self.low)

    def value(self, place: float) -> float:
        """Of a place."""
        return self.low * math.pow(self.high / self.low, place / self.pixels)

    @property
    def ticks(self) -> list[float]:
        """Round values on it, the roundest for which there is room."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found: list[float] = []
        for leads in LEADS:
            for tick in (lead * 10.0**power for power in powers for lead in leads):
                if self.low <= tick <= self.high and all(self._far(tick, other) for other in found):
                    found.append(tick)
            if len(found) >= FEWEST_TICKS:
                break
        return sorted(found)

    def _far(self, value: float, other: float) -> bool:
        return abs(self.place(value) - self.place(other)) >= TICK_PIXELS


@dataclass(frozen=True, kw_only=True)
class Label:
    """Where a name stands.

    Attributes:
        side: of its point.
        place: of its middle on the upright axis, in pixels.
    """

    side: Side
    place: float


def axis_of(values: Sequence[float], *, pixels: float, margin_pixels: float) -> Axis:
    """An axis that holds some values, all above 0, with a margin at both ends.

    Args:
        values: at least one.
        pixels: of the axis.
        margin_pixels: of each end.
    """
    low, high = min(values), max(values)
    if high < LEAST_RANGE * low:  # a small range is not to look like a large one
        middle = math.sqrt(low * high)
        low, high = middle / math.sqrt(LEAST_RANGE), middle * math.sqrt(LEAST_RANGE)
    beyond = math.pow(high / low, margin_pixels / (pixels - 2 * margin_pixels))
    return Axis(low=low / beyond, high=high * beyond, pixels=pixels)


def labels(names: Sequence[str], points: Sequence[tuple[float, float]], *, width_pixels: float) -> list[Label]:
    """A label for each point, as near as can be: on no other label, on no point, within the panel.

    Args:
        names: of the points.
        points: (from the left, from below), in pixels.
        width_pixels: of the panel.
    """
    taken = [(x - POINT_PIXELS, x + POINT_PIXELS, y - POINT_PIXELS, y + POINT_PIXELS) for x, y in points]
    found: list[Label] = []
    for name, (x, y) in zip(names, points, strict=True):
        length = POINT_PIXELS + LETTER_PIXELS * len(name)
        best: tuple[float, Label, Box] | None = None
        for moved in MOVES_PIXELS:
            for side in SIDES:
                low, high = (
                    (x + POINT_PIXELS + 1, x + length) if side == "right" else (x - length, x - POINT_PIXELS - 1)
                )
                box = (low, high, y + moved - ROW_PIXELS / 2, y + moved + ROW_PIXELS / 2)
                hits = sum(_overlap(box, other) for other in taken) + (low < 0 or high > width_pixels)
                cost = 100.0 * hits + abs(moved)
                if best is None or cost < best[0]:
                    best = cost, Label(side=side, place=y + moved), box
        assert best is not None
        taken.append(best[2])
        found.append(best[1])
    return found


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]
