"""Coordinates of the small drawings that the server makes as SVG: intervals with their control, and histograms.

A drawing repeats numbers that stand beside it as text, so it is hidden from screen readers.
"""

from collections.abc import Iterable
from typing import NamedTuple

from api.pages.numbers import count, number
from safe_sail.records import Estimate, Histogram

WIDTH = 132.0
NARROW = 84.0
_PAD = 5.0

HISTOGRAM_WIDTH = 480.0
HISTOGRAM_HEIGHT = 120.0


class IntervalFigure(NamedTuple):
    """Horizontal positions, in SVG units from 0 to its width."""

    width: float
    low: float
    high: float
    value: float
    reference: float
    """Where nothing would lie: 0 for a difference, 0.5 for AUROC."""
    control_low: float | None
    control_high: float | None
    control: float | None


def axis_start(estimates: Iterable[Estimate]) -> float:
    """Left end of a table's axis of differences: a little below zero, or -1 where an estimate lies lower."""
    return -1.0 if any(estimate.value < -0.2 for estimate in estimates) else -0.25


def interval_figure(
    estimate: Estimate,
    control: Estimate | None = None,
    *,
    start: float = 0.0,
    end: float = 1.0,
    reference: float = 0.0,
    width: float = WIDTH,
) -> IntervalFigure:
    """Positions of an estimate and its control on an axis from start to end; what lies outside is cut at the end."""

    def place(value: float) -> float:
        fraction = (min(max(value, start), end) - start) / (end - start)
        return round(_PAD + fraction * (width - 2 * _PAD), 1)

    return IntervalFigure(
        width=width,
        low=place(estimate.low),
        high=place(estimate.high),
        value=place(estimate.value),
        reference=place(reference),
        control_low=None if control is None else place(control.low),
        control_high=None if control is None else place(control.high),
        control=None if control is None else place(control.value),
    )


class SignedBar(NamedTuple):
    """A bar from the middle of an axis from -1 to 1, in SVG units."""

    width: float
    middle: float
    start: float
    length: float


def signed_bar(value: float) -> SignedBar:
    """The bar of a number in [-1, 1]; what lies outside is cut."""
    half = NARROW / 2
    length = round(half * min(abs(value), 1.0), 1)
    return SignedBar(NARROW, half, half if value >= 0 else half - length, length)


class Bar(NamedTuple):
    """One bar of a histogram, in SVG units, with what it says on hover."""

    x: float
    y: float
    width: float
    height: float
    title: str


class HistogramFigure(NamedTuple):
    """A histogram drawn from the left; heights are proportional to counts, a non-empty bin is at least visible."""

    width: float
    height: float
    bars: list[Bar]
    first_edge: str
    middle_edge: str
    last_edge: str
    summary: str


def histogram_figure(histogram: Histogram) -> HistogramFigure:
    """Bars of a histogram whose bins lie side by side at equal widths."""
    tallest = max(histogram.counts, default=0)
    width = HISTOGRAM_WIDTH / max(len(histogram.counts), 1)
    bars = []
    for position, n in enumerate(histogram.counts):
        height = 0.0 if n == 0 else max(HISTOGRAM_HEIGHT * n / tallest, 1.5)
        low, high = histogram.edges[position], histogram.edges[position + 1]
        bars.append(
            Bar(
                x=round(position * width + 0.75, 2),
                y=round(HISTOGRAM_HEIGHT - height, 2),
                width=round(width - 1.5, 2),
                height=round(height, 2),
                title=f"{number(low)} to {number(high)}: {count(n)} tokens",
            )
        )
    total = sum(histogram.counts)
    first, last = histogram.edges[0], histogram.edges[-1]
    return HistogramFigure(
        width=HISTOGRAM_WIDTH,
        height=HISTOGRAM_HEIGHT,
        bars=bars,
        first_edge=number(first),
        middle_edge=number((first + last) / 2),
        last_edge=number(last),
        summary=f"Histogram of {count(total)} positive activations between {number(first)} and {number(last)}; "
        f"the fullest bin holds {count(tallest)}.",
    )
