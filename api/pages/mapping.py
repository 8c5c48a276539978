"""A flat map of features: near each other where they tell the same concepts apart.

A feature is the vector of its rate gaps on all concepts. The map shows the two directions along which these vectors
spread most (principal components), and says how much of the spread they hold. A concept that a feature was not scored
on counts as a gap of 0: candidates are chosen by their gap, so one that was left out had a small one.
"""

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
    """A concept's name, at the middle of the features that it is best for."""

    name: str
    x: float
    y: float


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
        [_place(name, spots) for name in dict.fromkeys(spot.concept for spot in spots)],
        list(styles.items()),
        float((sizes[:2] ** 2).sum()) / spread,
        len(known) / gaps.size,
    )


def _fit(values: np.ndarray, size: float) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return _PAD + (values - low) / max(high - low, 1e-12) * (size - 2 * _PAD)


def _place(name: str, spots: Sequence[Spot]) -> Place:
    mine = [spot for spot in spots if spot.concept == name]
    x, y = (float(np.median([spot[i] for spot in mine])) for i in (1, 2))
    return Place(name, round(min(max(x, 60.0), WIDTH - 60.0), 1), round(y, 1))
