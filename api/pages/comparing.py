"""SAEs side by side: L0_t curves as small charts on one scale, and I_CDF by concept.

A curve of one concept is a count. Over several concepts it is the mean, with 1.96 standard errors over concepts.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from api.pages.charts import Chart, Point, Scale, Series, line_chart
from safe_sail.records import SaeSpecificity


class Panel(NamedTuple):
    """One SAE's chart."""

    slug: str
    chart: Chart


def curves(found: Sequence[SaeSpecificity], name: str) -> list[Series]:
    """L0_t of an SAE and the same with swapped texts, mean over the concepts given; none where nothing was scored.

    Concepts are averaged over the thresholds that all share.
    """
    if not found:
        return []
    shared = set(found[0].thresholds).intersection(*(one.thresholds for one in found[1:]))
    places = [[one.thresholds.index(t) for t in sorted(shared)] for one in found]
    observed = [[one.l0[i] for i in at] for one, at in zip(found, places, strict=True)]
    swapped = [[one.l0_null[i] for i in at] for one, at in zip(found, places, strict=True)]
    return [
        Series(name, _mean_curve(sorted(shared), observed)),
        Series(f"{name}, swapped", _mean_curve(sorted(shared), swapped), is_control=True),
    ]


def panels(by_sae: Mapping[str, Sequence[Series]]) -> list[Panel]:
    """A chart for each SAE that has curves, all on one scale."""
    points = [point for some in by_sae.values() for one in some for point in one.points]
    top = max((value for p in points for value in (p.y, p.high) if value is not None), default=1.0)
    return [
        Panel(
            slug,
            line_chart(
                some,
                x_label="t",
                y_label="features",
                scale=Scale.LOG_COUNT,
                y_range=(0.0, max(top, 1.0)),
                x_ticks=[p.x for i, p in enumerate(some[0].points) if i % 2 == 0],
                width=300.0,
                height=200.0,
            ),
        )
        for slug, some in by_sae.items()
        if some
    ]


def _mean_curve(thresholds: Sequence[float], counts: Sequence[Sequence[int]]) -> list[Point]:
    found = []
    for t, values in zip(thresholds, zip(*counts, strict=True), strict=True):
        mean = fmean(values)
        if len(values) < 2:
            found.append(Point(t, mean))
            continue
        half = 1.96 * stdev(values) / math.sqrt(len(values))
        found.append(Point(t, mean, max(mean - half, 0.0), mean + half))
    return found
