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


_LETTER, _LINE, _ABOVE = 8.0, 17.0, 9.0
"""Width of a letter and height of a line of names at most, and how far a name stands above the middle."""


def _places(spots: Sequence[Spot]) -> list[Place]:
    """A name for each concept, none over another: moved up or down by lines, or left out where there is no room.

    Concepts that are best for more features come first (ties: name).
    """
    mine: dict[str, list[Spot]] = {}
    for spot in spots:
        mine.setdefault(spot.concept, []).append(spot)
    placed: list[Place] = []
    for name in sorted(mine, key=lambda name: (-len(mine[name]), name)):
        middle = tuple(round(float(np.median([spot[i] for spot in mine[name]])), 1) for i in (1, 2))
        half = len(name) * _LETTER / 2
        x = round(min(max(middle[0], half), WIDTH - half), 1)
        for lines in range(int(HEIGHT // _LINE)):
            free = [
                y for y in (middle[1] - _ABOVE - lines * _LINE, middle[1] - _ABOVE + lines * _LINE)
                if _LINE <= y <= HEIGHT - 4 and not any(_touch(x, y, name, other) for other in placed)
            ]  # fmt: skip
            if free:
                placed.append(Place(name, x, round(free[0], 1), (middle[0], middle[1]) if lines else None))
                break
    return placed


def _touch(x: float, y: float, name: str, other: Place) -> bool:
    return abs(y - other.y) < _LINE and abs(x - other.x) < (len(name) + len(other.name)) * _LETTER / 2
