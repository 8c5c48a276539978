"""Coordinates of line charts that the server makes as SVG: curves with interval bands, ticks and marks.

A chart repeats numbers that stand beside it in a table, so it is hidden from screen readers.
"""

import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

from api.pages.numbers import number
from safe_sail.records import Estimate

STYLES = 6
"""Styles of lines, `s1` to `s6`: each its own colour, dash and mark, so that none is told by colour alone."""


class Scale(StrEnum):
    """How values become heights."""

    LINEAR = "linear"
    LOG_COUNT = "log_count"
    """log(1 + value): counts from 0, over several orders of magnitude."""


class Point(NamedTuple):
    """One value of a curve, with its interval where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


class Series(NamedTuple):
    """One curve."""

    name: str
    points: Sequence[Point]
    is_control: bool = False
    """Drawn in the control's grey."""


class Mark(NamedTuple):
    """One point of a drawn curve, with what it says on hover."""

    x: float
    y: float
    title: str


class Line(NamedTuple):
    """A drawn curve: attributes of SVG paths."""

    name: str
    css: str
    """`s1` to `s6`, or `control`."""
    path: str
    band: str
    """Outline of the interval; empty where no point has one."""
    marks: list[Mark]


class Tick(NamedTuple):
    """One tick of an axis."""

    place: float
    label: str


class Chart(NamedTuple):
    """Everything a template needs to draw."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_label: str
    y_label: str


def estimates(values: Sequence[Estimate], start: float = 0.0) -> list[Point]:
    """Points of estimates at start, start + 1, ..."""
    return [Point(start + i, one.value, one.low, one.high) for i, one in enumerate(values)]


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    scale: Scale = Scale.LINEAR,
    y_range: tuple[float, float] | None = None,
    x_ticks: Sequence[float] | None = None,
    width: float = 480.0,
    height: float = 220.0,
) -> Chart:
    """The chart of some curves; each keeps the style of its place among those that are no control."""
    left, right, top, bottom = 44.0, width - 12.0, 12.0, height - 34.0
    points = [point for one in series for point in one.points]
    xs = sorted({point.x for point in points}) or [0.0]
    low, high = y_range or _extent(points)
    ticks = _count_ticks(high) if scale is Scale.LOG_COUNT else nice_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def at_x(x: float) -> float:
        return round(left + (right - left) * ((x - xs[0]) / (xs[-1] - xs[0]) if xs[-1] > xs[0] else 0.5), 1)

    def at_y(y: float) -> float:
        size = _size(y, scale)
        return round(bottom - (bottom - top) * (size - _size(low, scale)) / (_size(high, scale) - _size(low, scale)), 1)

    lines, place = [], 0
    for one in series:
        place += not one.is_control
        css = "control" if one.is_control else f"s{(place - 1) % STYLES + 1}"
        lines.append(_line(one, css, at_x, at_y))
    return Chart(
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        lines=lines,
        x_ticks=[Tick(at_x(x), number_tick(x)) for x in (xs if x_ticks is None else x_ticks)],
        y_ticks=[Tick(at_y(y), number_tick(y)) for y in ticks],
        x_label=x_label,
        y_label=y_label,
    )


def _line(series: Series, css: str, at_x: Callable[[float], float], at_y: Callable[[float], float]) -> Line:
    places = [(at_x(p.x), at_y(p.y)) for p in series.points]
    edges = [p for p in series.points if p.low is not None and p.high is not None]
    upper = [f"{at_x(p.x)},{at_y(p.high)}" for p in edges if p.high is not None]
    lower = [f"{at_x(p.x)},{at_y(p.low)}" for p in reversed(edges) if p.low is not None]
    return Line(
        name=series.name,
        css=css,
        path="M" + "L".join(f"{x},{y}" for x, y in places) if places else "",
        band="M" + "L".join((*upper, *lower)) + "Z" if edges else "",
        marks=[
            Mark(x, y, f"{series.name}, {number_tick(p.x)}: {point_text(p)}")
            for (x, y), p in zip(places, series.points, strict=True)
        ],
    )


def point_text(point: Point) -> str:
    """A point's value and interval as text."""
    interval = "" if point.low is None or point.high is None else f" [{number(point.low)}, {number(point.high)}]"
    return f"{number(point.y)}{interval}"


def _extent(points: Sequence[Point]) -> tuple[float, float]:
    edges = [value for p in points for value in (p.y, p.low, p.high) if value is not None]
    low, high = min(edges, default=0.0), max(edges, default=1.0)
    return (low - 0.5, high + 0.5) if low == high else (low, high)


def _size(value: float, scale: Scale) -> float:
    return math.log1p(max(value, 0.0)) if scale is Scale.LOG_COUNT else value


def nice_ticks(low: float, high: float, n: int = 4) -> list[float]:
    """About n round values that enclose low to high."""
    rough = (high - low) / n
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _count_ticks(high: float) -> list[float]:
    ticks = [0.0, 1.0]
    while ticks[-1] < high:
        ticks.append(ticks[-1] * (3 if str(ticks[-1])[0] == "1" else 10 / 3))
        ticks[-1] = float(round(ticks[-1]))
    return ticks


def number_tick(value: float) -> str:
    """A tick's value in as few digits as it needs."""
    text = f"{value:.6g}"
    return text.replace("-", "\u2212")
