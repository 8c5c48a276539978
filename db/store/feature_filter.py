"""Which features a listing shows and in which order: the filter and the sort of `list_features`, as plain values."""

import math
from dataclasses import dataclass
from enum import StrEnum

from safe_sail.errors import BadInput

SPECIFIC_GAP, SPECIFIC_Q = 0.5, 0.05
"""A feature is specific to a concept above this rate gap and below this q-value, as `SaeScore.n_specific` counts."""


class FeatureSort(StrEnum):
    """Order of a listing; ties always by SAE and ascending index."""

    INDEX = "index"
    """Ascending index."""
    DENSITY = "density"
    """Descending density; features without contexts last."""
    SCORE = "score"
    """Descending rate gap for the filter's concept, or for each feature's best one in scope; unscored features last."""
    EXPLANATION = "explanation"
    """Descending score of the best judged explanation; unjudged features last."""
    PUBLISHED = "published"
    """Descending score that others published; features without one last."""
    RELEVANCE = "relevance"
    """Best match of the filter's text first; only with a text, and relevance is each database's own."""


INDEXED_SORTS = frozenset({FeatureSort.INDEX, FeatureSort.DENSITY, FeatureSort.SCORE, FeatureSort.EXPLANATION})
"""Orders in which features of one SAE stand in an index, so that a page without filters is a walk of its own length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureFilter:
    """Which features a listing shows; every field that is set must hold."""

    concept: str | None = None
    """Features with a score for this concept; `specific` and the two bounds below then speak of it."""
    category: str | None = None
    """The same for any concept of this category."""
    domain: str | None = None
    """The same for any concept of this domain."""
    specific: bool | None = None
    """True: specific to such a concept; False: to none."""
    min_rate_gap: float | None = None
    min_auroc: float | None = None
    explained: bool | None = None
    """True: with an explanation; False: without."""
    min_explanation_score: float | None = None
    """A judge gave an explanation of the feature at least this score."""
    collected: bool | None = None
    """True: with contexts; False: without."""
    min_density: float | None = None
    max_density: float | None = None
    tag: str | None = None
    """A source gives the feature this tag."""
    text: str | None = None
    """Words that an explanation of the feature holds, as in `db.search`."""

    def __post_init__(self) -> None:
        for name in ("min_rate_gap", "min_auroc", "min_explanation_score", "min_density", "max_density"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):  # the databases disagree on how NaN compares
                raise BadInput(f"the filter `{name}` must be a finite number; got {value}.")


EVERYTHING = FeatureFilter()
