"""Statements of feature listings, compiled once for each shape of a request: which filters are given, in which order.

1. Keys: the features that the filters let through, in order, as (sae_key, feature_index, value). Features that have a
   value to sort by are found by one statement, walking an index where there is one; those without come after them and
   are found by another, which is only asked when the first runs dry.
2. A page: the first keys, each with its line of `feature_listing`. Where the filter speaks of concepts, the best of
   those is looked up for the features of the page alone.
"""

from collections.abc import Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    and_,
    bindparam,
    exists,
    func,
    literal,
    or_,
    select,
    tuple_,
)
from sqlalchemy.orm import aliased
from sqlalchemy.sql.selectable import FromClause

from db import tables
from db.prepared import Prepared
from db.search import features_that_match, matches_in_order
from db.store.feature_filter import SPECIFIC_GAP, SPECIFIC_Q, FeatureFilter, FeatureSort
from db.store.feature_rows import ESTIMATE, among

UNKNOWN = -1e300
"""Below everything that is sorted by: what was not measured comes last."""

_SCOPE = frozenset({"concept", "category", "domain"})
_NEEDS_SCORE = _SCOPE | {"min_rate_gap", "min_auroc"}


_FILTERS = tuple(FeatureFilter.__dataclass_fields__)
_values_of = attrgetter(*_FILTERS)


class Shape(NamedTuple):
    """What decides the statements of a listing; values are bound."""

    on_sqlite: bool
    sort: FeatureSort
    of_one_sae: bool
    after: bool
    """A cursor says where the page before ended."""
    given: frozenset[str]
    """Filters that are set."""
    specific: bool | None
    explained: bool | None
    collected: bool | None
    estimates: bool
    """Whether a page shows slugs, controls and the intervals of its numbers; reading all of their columns takes longer
    than all else."""


class _Owner(NamedTuple):
    """The columns that name a feature in whatever table a statement walks along."""

    sae_key: Any
    feature_index: Any


def shape_of(
    filters: FeatureFilter, sort: FeatureSort, *, of_one_sae: bool, after: bool, on_sqlite: bool, estimates: bool
) -> Shape:
    """The shape of a request."""
    given = frozenset(name for name, value in zip(_FILTERS, _values_of(filters), strict=True) if value is not None)
    flags = (filters.specific, filters.explained, filters.collected)
    return Shape(on_sqlite, sort, of_one_sae, after, given - {"specific", "explained", "collected"}, *flags, estimates)


@lru_cache(maxsize=512)
def page_statement(shape: Shape) -> Prepared:
    """A page's features that have a value to sort by."""
    if shape.sort in (FeatureSort.INDEX, *_STORED) and not shape.given & (_SCOPE | {"text"}):
        return Prepared(_walked(shape), named=shape.estimates)
    keys = _known_keys(shape)
    page = keys.limit(bindparam("n", type_=Integer)).cte("page")
    return Prepared(_shown(page, shape, by_index=shape.sort is FeatureSort.INDEX), named=shape.estimates)


@lru_cache(maxsize=512)
def rest_statement(shape: Shape) -> Prepared | None:
    """A page's features without such a value, which come last; None where no feature can be without."""
    if shape.sort in (FeatureSort.INDEX, FeatureSort.RELEVANCE):
        return None
    if shape.sort is FeatureSort.SCORE and shape.given & _NEEDS_SCORE:
        return None
    row = tables.FeatureListingRow
    owner = _Owner(row.sae_key, row.feature_index)
    keys: Any = select(row.sae_key, row.feature_index, literal(UNKNOWN).label("value"))
    keys = keys.where(*_of_sae(shape, owner), _has_no_value(shape), *_conditions(shape, owner))
    if shape.after:
        keys = keys.where(_later(shape, owner))
    keys = keys.order_by(row.sae_key, row.feature_index).limit(bindparam("n", type_=Integer))
    return Prepared(_shown(keys.cte("page"), shape, by_index=True), named=shape.estimates)


@lru_cache(maxsize=512)
def count_statement(shape: Shape) -> Prepared:
    """How many features the filters let through."""
    row = tables.FeatureListingRow
    owner = _Owner(row.sae_key, row.feature_index)
    return Prepared(
        select(func.count().label("total")).select_from(row).where(*_of_sae(shape, owner), *_conditions(shape, owner))
    )


def statement_of_features(keys: Sequence[tuple[int, int]]) -> Select[Any]:
    """The same columns for these features."""
    row = tables.FeatureListingRow
    page: Any = select(row.sae_key, row.feature_index, literal(UNKNOWN).label("value")).where(among(row, set(keys)))
    everything = shape_of(
        FeatureFilter(), FeatureSort.INDEX, of_one_sae=False, after=False, on_sqlite=True, estimates=True
    )
    return _shown(page.cte("page"), everything, by_index=True)


# --------------------------------------------------------------------------------------------- 1. keys


def _known_keys(shape: Shape) -> Select[Any]:
    if shape.sort is FeatureSort.SCORE and shape.given & _SCOPE:
        return _keys_by_score_in_scope(shape)
    if shape.on_sqlite and shape.of_one_sae and shape.sort is FeatureSort.INDEX and "text" in shape.given:
        said, others = tables.ExplanationRow, shape._replace(given=shape.given - {"text"})
        found = matches_in_order(after=shape.after)
        return found.where(*_conditions(others, _Owner(said.sae_key, said.feature_index)))
    row = tables.FeatureListingRow
    owner, known = _Owner(row.sae_key, row.feature_index), []
    value: ColumnElement[Any] = row.feature_index.expression
    if shape.sort in (FeatureSort.RELEVANCE, FeatureSort.PUBLISHED):
        best = _best_values(shape).subquery("best")
        owner, value = _Owner(best.c.sae_key, best.c.feature_index), best.c.value
    elif shape.sort is not FeatureSort.INDEX:
        stored = _STORED[shape.sort]
        # few features hold the words: they are found first and then sorted; the sum keeps SQLite off the index
        value = stored + 0.0 if "text" in shape.given else stored.expression
        known.append(value.is_not(None))
    keys = select(owner.sae_key, owner.feature_index, value.label("value"))
    keys = keys.where(*_of_sae(shape, owner), *known, *_conditions(shape, owner))
    return _ordered(shape, keys, owner, value)


_STORED: dict[FeatureSort, Any] = {
    FeatureSort.DENSITY: tables.FeatureListingRow.density,
    FeatureSort.SCORE: tables.FeatureListingRow.rate_gap,
    FeatureSort.EXPLANATION: tables.FeatureListingRow.score,
}
"""Orders that walk along an index of the column."""


def _keys_by_score_in_scope(shape: Shape) -> Select[Any]:
    """Scores by descending rate gap, each feature at its best one in scope: a walk along an index of rate gaps."""
    score, other = aliased(tables.ConceptScoreRow), aliased(tables.ConceptScoreRow)
    owner = _Owner(score.sae_key, score.feature_index)
    larger = or_(other.rate_gap > score.rate_gap, and_(other.rate_gap == score.rate_gap, other.concept < score.concept))
    beaten = exists().where(
        *_same(other, owner), other.rate_gap >= score.rate_gap, larger, *_in_scope(shape.given, other)
    )
    keys: Any = select(score.sae_key, score.feature_index, score.rate_gap.label("value"))
    keys = keys.where(*_of_sae(shape, owner), *_in_scope(shape.given, score), *_conditions(shape, owner))
    if "concept" not in shape.given:  # a feature has one score on a concept
        keys = keys.where(~beaten)
    value = score.rate_gap + 0.0 if "text" in shape.given else score.rate_gap.expression  # as above
    return _ordered(shape, keys, owner, value)


def _best_values(shape: Shape) -> Select[Any]:
    if shape.sort is FeatureSort.RELEVANCE:
        hit = _hits(shape)
        grouped = select(hit.c.sae_key, hit.c.feature_index, func.max(hit.c.relevance).label("value"))
        return grouped.group_by(hit.c.sae_key, hit.c.feature_index)
    row = tables.PublishedScoreRow
    query: Any = select(row.sae_key, row.feature_index, func.max(row.value).label("value"))
    query = query.where(*_of_sae(shape, _Owner(row.sae_key, row.feature_index)))
    best: Select[Any] = query.group_by(row.sae_key, row.feature_index)
    return best


def _has_no_value(shape: Shape) -> ColumnElement[bool]:
    row = tables.FeatureListingRow
    if shape.sort is FeatureSort.PUBLISHED:
        return ~exists().where(*_same(tables.PublishedScoreRow, _Owner(row.sae_key, row.feature_index)))
    is_unknown: ColumnElement[bool] = _STORED[shape.sort].is_(None)
    return is_unknown


def _ordered(shape: Shape, keys: Select[Any], owner: _Owner, value: ColumnElement[Any]) -> Select[Any]:
    if shape.sort is FeatureSort.INDEX:
        keys = keys.where(_later(shape, owner)) if shape.after else keys
        return keys.order_by(owner.sae_key, owner.feature_index)
    if shape.after:
        last: Any = bindparam("last_value")
        # the first condition bounds the walk along an index, which a database does not see in the second
        keys = keys.where(value <= last, or_(value < last, _later(shape, owner)))
    return keys.order_by(value.desc(), owner.sae_key, owner.feature_index)


def _of_sae(shape: Shape, owner: _Owner) -> list[ColumnElement[bool]]:
    return [owner.sae_key == bindparam("sae_key")] if shape.of_one_sae else []


def _later(shape: Shape, owner: _Owner) -> ColumnElement[bool]:
    if shape.of_one_sae:
        return owner.feature_index > bindparam("last_index")  # type: ignore[no-any-return]
    last = tuple_(bindparam("last_sae", type_=Integer), bindparam("last_index", type_=Integer))
    return tuple_(owner.sae_key, owner.feature_index) > last


# --------------------------------------------------------------------------------------------- filters


def _conditions(shape: Shape, owner: _Owner) -> list[ColumnElement[bool]]:
    tag, given, found = tables.FeatureTagRow, shape.given, _score_conditions(shape, owner)
    if "tag" in given:
        found.append(exists().where(*_same(tag, owner), tag.tag == bindparam("tag")))
    if "text" in given and shape.sort is not FeatureSort.RELEVANCE:
        hit = _hits(shape)
        if shape.of_one_sae:
            found.append(owner.feature_index.in_(select(hit.c.feature_index)))
        else:
            found.append(tuple_(owner.sae_key, owner.feature_index).in_(select(hit.c.sae_key, hit.c.feature_index)))
    return found + _listing_conditions(shape, owner)


def _hits(shape: Shape) -> FromClause:
    """Features with an explanation that matches the text."""
    row = tables.ExplanationRow
    found = features_that_match(shape.on_sqlite, ranked=shape.sort is FeatureSort.RELEVANCE)
    if shape.of_one_sae:
        found = found.where(row.sae_key + 0 == bindparam("sae_key"))  # the sum keeps SQLite from using this index
    return found.subquery("matching")


def _listing_conditions(shape: Shape, owner: _Owner) -> list[ColumnElement[bool]]:
    """Conditions on what the feature's own line shows."""
    row = tables.FeatureListingRow
    found: list[ColumnElement[bool]] = []
    for wanted, column in ((shape.collected, row.density), (shape.explained, row.text)):
        if wanted is not None:
            found.append(column.is_not(None) if wanted else column.is_(None))
    if "min_density" in shape.given:
        found.append(row.density >= bindparam("min_density"))
    if "max_density" in shape.given:
        found.append(row.density <= bindparam("max_density"))
    if "min_explanation_score" in shape.given:
        found.append(row.score >= bindparam("min_explanation_score"))
    if not found or owner.sae_key is row.sae_key:
        return found
    return [exists().where(*_same(row, owner), *found)]


def _score_conditions(shape: Shape, owner: _Owner) -> list[ColumnElement[bool]]:
    score = tables.ConceptScoreRow
    bounds = _in_scope(shape.given, score)
    specific = (*bounds, score.rate_gap > SPECIFIC_GAP, score.q_value < SPECIFIC_Q)
    if "min_rate_gap" in shape.given:
        bounds.append(score.rate_gap >= bindparam("min_rate_gap"))
    if "min_auroc" in shape.given:
        bounds.append(score.auroc >= bindparam("min_auroc"))
    found: list[ColumnElement[bool]] = [exists().where(*_same(score, owner), *bounds)] if bounds else []
    if shape.specific is not None:
        is_specific = exists().where(*_same(score, owner), *specific)
        found.append(is_specific if shape.specific else ~is_specific)
    return found


def _in_scope(given: frozenset[str], score: Any) -> list[ColumnElement[bool]]:
    """Conditions on a concept score: its concept is one that the filter speaks of."""
    concept = tables.ConceptRow
    found: list[ColumnElement[bool]] = []
    if "concept" in given:
        found.append(score.concept == bindparam("concept"))
    if "category" in given:
        found.append(score.concept.in_(select(concept.name).where(concept.category == bindparam("category"))))
    if "domain" in given:
        found.append(score.concept.in_(select(concept.name).where(concept.domain == bindparam("domain"))))
    return found


def _same(other: Any, owner: _Owner) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return other.sae_key == owner.sae_key, other.feature_index == owner.feature_index


# --------------------------------------------------------------------------------------------- 2. what a page shows


def _columns(shape: Shape, score: Any) -> list[ColumnElement[Any]]:
    """What is shown of a feature, its concept's part from `score`."""
    row = tables.FeatureListingRow
    light = [row.density, row.max_activation, row.n_contexts, score.concept]
    if not shape.estimates:  # what an index holds on SQLite, so that a page is read from it alone
        return [*light, score.rate_gap, score.auroc, row.text, row.explainer, row.score]
    columns = [tables.SaeRow.slug, *light]
    columns += [getattr(score, f"{name}{part}") for name in ("rate_gap", "auroc") for part in ESTIMATE]
    columns += [row.text, row.explainer]
    return columns + [getattr(row, f"{name}{part}") for name in ("score", "control") for part in ESTIMATE]


def _walked(shape: Shape) -> Select[Any]:
    """A page where keys and what is shown stand in one table: walked along once."""
    row, sae = tables.FeatureListingRow, tables.SaeRow
    owner = _Owner(row.sae_key, row.feature_index)
    value = _STORED.get(shape.sort, row.feature_index).expression
    shown = select(*owner, value.label("value"), *_columns(shape, row))
    if shape.estimates:
        shown = shown.join(sae, sae.sae_key == row.sae_key)
    shown = shown.where(*_of_sae(shape, owner), value.is_not(None), *_conditions(shape, owner))
    return _ordered(shape, shown, owner, value).limit(bindparam("n", type_=Integer))


def _shown(page: FromClause, shape: Shape, *, by_index: bool) -> Select[Any]:
    """The page's features in its order with what is shown of them."""
    row, sae = tables.FeatureListingRow, tables.SaeRow
    owner = _Owner(page.c.sae_key, page.c.feature_index)
    score: Any = tables.ConceptScoreRow if shape.given & _SCOPE else row
    shown = select(*owner, page.c.value, *_columns(shape, score))
    shown = shown.select_from(page).join(row, and_(*_same(row, owner)))
    if shape.estimates:
        shown = shown.join(sae, sae.sae_key == page.c.sae_key)
    if score is not row:
        best = aliased(score)
        concept = select(best.concept).where(*_same(best, owner), *_in_scope(shape.given, best))
        concept = concept.order_by(best.rate_gap.desc(), best.concept).limit(1)
        is_best = score.concept == concept.correlate(page).scalar_subquery()
        shown = shown.outerjoin(score, and_(*_same(score, owner), is_best))
    return shown.order_by(*(() if by_index else (page.c.value.desc(),)), *owner)
