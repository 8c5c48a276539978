"""A flat map of features: near each other where they tell the same concepts apart.

A feature is the vector of its rate gaps on all concepts. The map shows the two directions along which these vectors
spread most (principal components), and says how much of the spread they hold. A concept that a feature was not scored
on counts as a gap of 0: candidates are chosen by their gap, so one that was left out had a small one.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from db.store import FeatureGaps
from safe_sail.records import Concept, FeatureId

WIDTH, HEIGHT = 760.0, 440.0
_PAD = 26.0
_FEWEST = 6
"""Features below which a map says nothing that the lists do not."""


class Spot(NamedTuple):
    """One feature on the map."""

    feature: FeatureId
    x: float
    y: float
    css: str
    """Style of its best concept's domain, `s1` to `s6`."""
    concept: str
    gap: float


class Place(NamedTuple):
    """A concept's name, near the middle of the features that it is best for."""

    name: str
    x: float
    """Middle of the name."""
    y: float
    """Its baseline."""
    anchor: tuple[float, float] | None
    """Middle of the features, where the name had to stand off it."""


class FeatureMap(NamedTuple):
    """The map."""

    width: float
    height: float
    spots: list[Spot]
    places: list[Place]
    domains: list[tuple[str, str]]
    """Name and style."""
    held: float
    """Share of the spread that the two axes hold."""
    scored: float
    """Share of the gaps that were measured; the others count as 0."""


def feature_map(found: Sequence[FeatureGaps], concepts: Sequence[Concept]) -> FeatureMap | None:
    """The map of these features; None where there are too few, or they do not differ."""
    if len(found) < _FEWEST or len(concepts) < 3:
        return None
    known = [gap for one in found for gap in one.gaps if gap is not None]
    gaps = np.array([[0.0 if gap is None else gap for gap in one.gaps] for one in found], np.float64)
    centred = gaps - gaps.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    spread = float((sizes**2).sum())
    if spread < 1e-12:
        return None
    flat = left[:, :2] * sizes[:2]
    signs = np.where(flat[np.abs(flat).argmax(axis=0), [0, 1]] < 0, -1.0, 1.0)  # the sign of a component is free
    x, y = _fit(flat[:, 0] * signs[0], WIDTH), _fit(flat[:, 1] * signs[1], HEIGHT)
    best = gaps.argmax(axis=1)
    styles = {domain: f"s{i % 6 + 1}" for i, domain in enumerate(dict.fromkeys(one.domain for one in concepts))}
    spots = [
        Spot(
            one.feature,
            round(float(x[i]), 1),
            round(float(y[i]), 1),
            styles[concepts[best[i]].domain],
            concepts[best[i]].name,
            float(gaps[i, best[i]]),
        )
        for i, one in enumerate(found)
    ]
    return FeatureMap(
        WIDTH,
        HEIGHT,
        spots,
        _places(spots),
        list(styles.items()),
        float((sizes[:2] ** 2).sum()) / spread,
        len(known) / gaps.size,
    )


def _fit(values: np.ndarray, size: float) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return _PAD + (values - low) / max(high - low, 1e-12) * (size - 2 * _PAD)


_LETTER, _LINE, _DOT = 9.0, 17.0, 7.0
"""Width of a letter and height of a line of names at most, and how far a dot reaches."""
_WORTH = 30.0
"""A name goes so far from its middle to leave one more dot uncovered."""


def _places(spots: Sequence[Spot]) -> list[Place]:
    """A name for each concept, none over another, and over as few dots as can be had near its features' middle.

    Concepts that are best for more features come first (ties: name). A name is left out where there is no room.
    """
    dots = np.array([(spot.x, spot.y) for spot in spots])
    mine: dict[str, list[Spot]] = {}
    for spot in spots:
        mine.setdefault(spot.concept, []).append(spot)
    placed: list[Place] = []
    for name in sorted(mine, key=lambda name: (-len(mine[name]), name)):
        x, y = (float(np.median([spot[i] for spot in mine[name]])) for i in (1, 2))
        half = len(name) * _LETTER / 2
        free = [
            (at_x, at_y) for at_x, at_y in _around(x, y, half)
            if not any(_touch(at_x, at_y, name, other) for other in placed)
        ]  # fmt: skip
        if free:
            costs = [_covered(dots, *at, half) + math.dist(at, (x, y)) / _WORTH for at in free]
            at_x, at_y = free[costs.index(min(costs))]
            stands_off = abs(at_y - y) > 2 * _LINE or abs(at_x - x) > half + 2 * _LINE
            anchor = (round(x, 1), round(y, 1)) if stands_off else None
            placed.append(Place(name, round(at_x, 1), round(at_y, 1), anchor))
    return placed


def _around(x: float, y: float, half: float) -> list[tuple[float, float]]:
    """Places on the map for a name of this half width: above the point, below it and beside it, by lines."""
    baselines = [y + side * (_DOT + 2 + n * _LINE) + (_LINE - 5) * (side > 0) for n in range(26) for side in (-1, 1)]
    found = [(at_x, at_y) for at_y in (y + 4, *baselines) for at_x in (x, x - half - 2 * _DOT, x + half + 2 * _DOT)]
    return [
        (at_x, at_y) for at_x, at_y in found if half <= at_x <= WIDTH - half and _LINE <= at_y <= HEIGHT - 4
    ]  # fmt: skip


def _covered(dots: np.ndarray, x: float, y: float, half: float) -> int:
    """Dots that a name with this baseline lies over; its letters reach from 12 above it to 4 below."""
    beside = np.abs(dots[:, 0] - x) < half + _DOT
    level = np.abs(dots[:, 1] - (y - 4)) < _LINE / 2 + _DOT
    return int((beside & level).sum())


def _touch(x: float, y: float, name: str, other: Place) -> bool:
    return abs(y - other.y) < _LINE and abs(x - other.x) < (len(name) + len(other.name)) * _LETTER / 2
