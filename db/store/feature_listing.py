"""`list_features`: a page of features of one SAE or of all, filtered and sorted, as light rows.

1. The keys of the page are found by one query over narrow columns.
2. Then what the page shows of these few features is read.

A cursor holds the last row's sort value and key, so a page costs the same at any depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, exists, func, or_, select, tuple_
from sqlalchemy.orm import Session

from db import tables
from db.lookup import find_sae, require_concept, require_limit, require_place
from db.search import matches
from db.store.cursors import read_cursor, write_cursor
from db.store.feature_filter import SPECIFIC_GAP, SPECIFIC_Q, FeatureFilter, FeatureSort
from safe_sail.records import Estimate, FeatureId

EVERYTHING = FeatureFilter()


@dataclass(frozen=True, slots=True)
class FeatureListing:
    """One row of a listing: plain values, and estimates where there is an interval."""

    sae: str
    """Slug of the SAE."""
    index: int
    density: float | None
    """None before contexts are collected."""
    max_activation: float | None
    n_contexts: int | None
    concept: str | None
    """The one in the filter's scope with the largest rate gap (ties: name); None before scoring."""
    rate_gap: Estimate | None
    auroc: Estimate | None
    explanation: str | None
    """The one that judges score highest (unjudged last, ties: first stored); None before explaining."""
    explainer: str | None
    explanation_score: Estimate | None
    """Its best score; None before judging."""
    explanation_control: Estimate | None
    """The same judge's score of other features' explanations on this feature's contexts."""

    @property
    def feature(self) -> FeatureId:
        """Its name."""
        return FeatureId(sae=self.sae, index=self.index)


@dataclass(frozen=True, slots=True)
class FeaturePage:
    """A page of a listing."""

    rows: list[FeatureListing]
    total: int
    """Features that the filter lets through, on all pages."""
    next_cursor: str | None
    """Where the next page begins; None on the last."""


class _Key(NamedTuple):
    sae_key: int
    feature_index: int


def list_features(
    session: Session,
    sae: str | None,
    *,
    filters: FeatureFilter = EVERYTHING,
    sort: FeatureSort = FeatureSort.INDEX,
    cursor: str | None = None,
    limit: int = 50,
) -> FeaturePage:
    """A page of the features of an SAE, or of all where it is None, of which anything is known.

    Raises:
        NotFound: no SAE has this slug, or no concept, category or domain this name.
        BadInput: the cursor is not one of this order, or the limit is outside 1 to 1000.
    """
    require_limit(limit)
    sae_key = None if sae is None else find_sae(session, sae).sae_key
    _require_scope(session, filters)
    row = tables.FeatureRow
    conditions = [] if sae_key is None else [row.sae_key == sae_key]
    conditions += _conditions(session, filters)
    value, query = _sorted_keys(sort, filters, sae_key)
    total = session.scalar(select(func.count()).select_from(row).where(*conditions)) or 0
    query = query.where(*conditions)
    if cursor is not None:
        query = query.where(_after(sort, value, cursor))
    order = () if sort is FeatureSort.INDEX else (value.desc(),)
    keys = session.execute(query.order_by(*order, row.sae_key, row.feature_index).limit(limit + 1)).all()
    page = [_Key(one[0], one[1]) for one in keys[:limit]]
    more = write_cursor(sort, keys[limit - 1]) if len(keys) > limit else None
    return FeaturePage(_show(session, page, filters), total, more)


def _require_scope(session: Session, filters: FeatureFilter) -> None:
    if filters.concept is not None:
        require_concept(session, filters.concept)
    if filters.category is not None:
        require_place(session, "category", filters.category)
    if filters.domain is not None:
        require_place(session, "domain", filters.domain)


def _in_scope(filters: FeatureFilter) -> list[ColumnElement[bool]]:
    """Conditions on `concept_score`: its concept is one that the filter speaks of."""
    score, concept = tables.ConceptScoreRow, tables.ConceptRow
    found: list[ColumnElement[bool]] = []
    if filters.concept is not None:
        found.append(score.concept == filters.concept)
    if filters.category is not None:
        found.append(score.concept.in_(select(concept.name).where(concept.category == filters.category)))
    if filters.domain is not None:
        found.append(score.concept.in_(select(concept.name).where(concept.domain == filters.domain)))
    return found


def _conditions(session: Session, filters: FeatureFilter) -> list[ColumnElement[bool]]:
    row, explanation = tables.FeatureRow, tables.ExplanationRow
    found = _score_conditions(filters)
    if filters.explained is not None:
        is_explained = exists().where(*_same_feature(explanation))
        found.append(is_explained if filters.explained else ~is_explained)
    if filters.min_explanation_score is not None:
        judged = tables.ExplanationScoreRow
        same = (*_same_feature(explanation), judged.explanation_key == explanation.explanation_key)
        found.append(exists().where(*same, judged.score >= filters.min_explanation_score))
    if filters.collected is not None:
        found.append(row.density.is_not(None) if filters.collected else row.density.is_(None))
    if filters.min_density is not None:
        found.append(row.density >= filters.min_density)
    if filters.max_density is not None:
        found.append(row.density <= filters.max_density)
    if filters.tag is not None:
        found.append(exists().where(*_same_feature(tables.FeatureTagRow), tables.FeatureTagRow.tag == filters.tag))
    if filters.text is not None:
        found.append(exists().where(*_same_feature(explanation), matches(session, filters.text)))
    return found


def _score_conditions(filters: FeatureFilter) -> list[ColumnElement[bool]]:
    score = tables.ConceptScoreRow
    bounds = _in_scope(filters)
    specific = (*bounds, score.rate_gap > SPECIFIC_GAP, score.q_value < SPECIFIC_Q)
    if filters.min_rate_gap is not None:
        bounds.append(score.rate_gap >= filters.min_rate_gap)
    if filters.min_auroc is not None:
        bounds.append(score.auroc >= filters.min_auroc)
    found: list[ColumnElement[bool]] = [exists().where(*_same_feature(score), *bounds)] if bounds else []
    if filters.specific is not None:
        is_specific = exists().where(*_same_feature(score), *specific)
        found.append(is_specific if filters.specific else ~is_specific)
    return found


def _same_feature(
    other: type[tables.ConceptScoreRow | tables.ExplanationRow | tables.FeatureTagRow],
) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    row = tables.FeatureRow
    return other.sae_key == row.sae_key, other.feature_index == row.feature_index


# --------------------------------------------------------------------------------------------- order

_UNKNOWN = -1e300  # below everything that is sorted by: what was not measured comes last


def _sorted_keys(sort: FeatureSort, filters: FeatureFilter, sae_key: int | None) -> tuple[ColumnElement[Any], Any]:
    row = tables.FeatureRow
    if sort is FeatureSort.INDEX:
        return row.feature_index.expression, select(row.sae_key, row.feature_index, row.feature_index)
    if sort is FeatureSort.DENSITY:
        value: ColumnElement[Any] = func.coalesce(row.density, _UNKNOWN)
        return value, select(row.sae_key, row.feature_index, value)
    table = _best_values(sort, filters, sae_key).subquery("best")
    value = func.coalesce(table.c.value, _UNKNOWN)
    same = and_(table.c.sae_key == row.sae_key, table.c.feature_index == row.feature_index)
    return value, select(row.sae_key, row.feature_index, value).select_from(row).outerjoin(table, same)


def _best_values(sort: FeatureSort, filters: FeatureFilter, sae_key: int | None) -> Any:
    score, explanation, judged = tables.ConceptScoreRow, tables.ExplanationRow, tables.ExplanationScoreRow
    published = tables.PublishedScoreRow
    if sort is FeatureSort.SCORE:
        owner: Any = score
        query: Any = select(score.sae_key, score.feature_index, func.max(score.rate_gap).label("value"))
        query = query.where(*_in_scope(filters))
    elif sort is FeatureSort.EXPLANATION:
        owner = explanation
        query = select(explanation.sae_key, explanation.feature_index, func.max(judged.score).label("value"))
        query = query.join(judged, judged.explanation_key == explanation.explanation_key)
    else:
        owner = published
        query = select(published.sae_key, published.feature_index, func.max(published.value).label("value"))
    if sae_key is not None:
        query = query.where(owner.sae_key == sae_key)
    return query.group_by(owner.sae_key, owner.feature_index)


def _after(sort: FeatureSort, value: ColumnElement[Any], cursor: str) -> ColumnElement[bool]:
    row = tables.FeatureRow
    last_sae, last_index, last_value = read_cursor(sort, cursor)
    later = tuple_(row.sae_key, row.feature_index) > tuple_(last_sae, last_index)
    if sort is FeatureSort.INDEX:
        return later
    return or_(value < last_value, and_(value == last_value, later))


# --------------------------------------------------------------------------------------------- what a page shows


def load_feature_listings(session: Session, features: Sequence[FeatureId]) -> dict[FeatureId, FeatureListing]:
    """Rows of these features as a listing without filters shows them; one of which nothing is known has none."""
    sae, row = tables.SaeRow, tables.FeatureRow
    named = select(sae.slug, sae.sae_key).where(sae.slug.in_({one.sae for one in features}))
    keys = {one[0]: one[1] for one in session.execute(named)}
    page = [_Key(keys[one.sae], one.index) for one in dict.fromkeys(features) if one.sae in keys]
    if not page:
        return {}
    known = {
        _Key(one[0], one[1]) for one in session.execute(select(row.sae_key, row.feature_index).where(_is_on(row, page)))
    }
    shown = _show(session, [key for key in page if key in known], EVERYTHING)
    return {one.feature: one for one in shown}


def _show(session: Session, page: list[_Key], filters: FeatureFilter) -> list[FeatureListing]:
    if not page:
        return []
    row, sae = tables.FeatureRow, tables.SaeRow
    known = select(sae.sae_key, sae.slug).where(sae.sae_key.in_({one.sae_key for one in page}))
    slugs = {one[0]: one[1] for one in session.execute(known)}
    light = select(row.sae_key, row.feature_index, row.density, row.max_activation, row.n_contexts)
    numbers = {_Key(one[0], one[1]): one[2:] for one in session.execute(light.where(_is_on(row, page)))}
    best = _best_scores(session, page, filters)
    said = _best_explanations(session, page)
    return [
        FeatureListing(
            slugs[key.sae_key], key.feature_index, *numbers[key],
            *best.get(key, (None, None, None)), *said.get(key, (None, None, None, None)),
        )
        for key in page
    ]  # fmt: skip


def _is_on(
    row: type[tables.FeatureRow | tables.ConceptScoreRow | tables.ExplanationRow], page: Sequence[_Key]
) -> ColumnElement[bool]:
    """Condition: the row's feature is on the page; one range of an index for each SAE."""
    by_sae: dict[int, list[int]] = {}
    for key in page:
        by_sae.setdefault(key.sae_key, []).append(key.feature_index)
    return or_(*(and_(row.sae_key == sae, row.feature_index.in_(some)) for sae, some in by_sae.items()))


def _best_scores(session: Session, page: list[_Key], filters: FeatureFilter) -> dict[_Key, tuple[Any, ...]]:
    row = tables.ConceptScoreRow
    gap = (row.rate_gap, row.rate_gap_low, row.rate_gap_high, row.rate_gap_n, row.rate_gap_level)
    auroc = (row.auroc, row.auroc_low, row.auroc_high, row.auroc_n, row.auroc_level)
    query = select(row.sae_key, row.feature_index, row.concept, *gap, *auroc).where(_is_on(row, page))
    best: dict[_Key, tuple[Any, ...]] = {}
    for one in session.execute(query.where(*_in_scope(filters)).order_by(row.rate_gap.desc(), row.concept)):
        key = _Key(one[0], one[1])
        if key not in best:
            best[key] = (one[2], _estimate(one[3:8]), _estimate(one[8:13]))
    return best


def _best_explanations(session: Session, page: list[_Key]) -> dict[_Key, tuple[Any, ...]]:
    row, judged = tables.ExplanationRow, tables.ExplanationScoreRow
    score = (judged.score, judged.score_low, judged.score_high, judged.score_n, judged.score_level)
    control = (judged.control, judged.control_low, judged.control_high, judged.control_n, judged.control_level)
    found = session.execute(
        select(row.sae_key, row.feature_index, row.text, row.explainer, *score, *control)
        .outerjoin(judged, judged.explanation_key == row.explanation_key)
        .where(_is_on(row, page))
        .order_by(row.explanation_key, judged.method)
    )
    best: dict[_Key, Any] = {}
    for one in found:
        key, value = _Key(one[0], one[1]), one[4]
        if key not in best or (value is not None and (best[key][4] is None or value > best[key][4])):
            best[key] = one
    return {
        key: (one[2], one[3], _estimate(one[4:9]), _estimate(one[9:14])) if one[4] is not None
        else (one[2], one[3], None, None)
        for key, one in best.items()
    }  # fmt: skip


def _estimate(columns: Sequence[Any]) -> Estimate:
    value, low, high, n, level = columns
    return Estimate(value=value, low=low, high=high, n=n, level=level)
