"""`list_*`: what the service shows in tables, as light rows; records are loaded one by one with `load_*`.

A page of features is found in two steps: the keys of the page by one query over narrow columns, then what the page
shows of these few features. A cursor holds the last row's sort value and index, so a page costs the same at any depth.
"""

import base64
import binascii
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select
from sqlalchemy.orm import Session

from db import tables
from db.lookup import find_sae, require_concept, require_limit
from db.packing import is_plain_text
from db.search import matches
from db.store import rows
from db.store.loading import Kept
from safe_sail.errors import BadInput
from safe_sail.records import ModelRef, SaeFacts, SaeRef, SaeScore

# --------------------------------------------------------------------------------------------- models and SAEs


@dataclass(frozen=True, kw_only=True, slots=True)
class SaeListing:
    """One SAE and what is known of it."""

    sae: SaeRef
    run_id: str
    facts: Kept[SaeFacts] | None
    """None where it was not measured yet."""
    scores: tuple[Kept[SaeScore], ...]
    """By descending rate gap (ties: concept)."""
    n_collected: int
    """Features whose contexts were collected."""
    n_explained: int
    """Features with an explanation."""


def list_models(session: Session) -> list[Kept[ModelRef]]:
    """All models, by id."""
    row = tables.ModelRow
    return [Kept(rows.model_of(one), one.run_id) for one in session.scalars(select(row).order_by(row.model_id))]


def list_saes(session: Session, *, model_id: str | None = None) -> list[SaeListing]:
    """All SAEs, or those of a model, by slug, with facts and scores; five queries however many there are."""
    sae, facts, score = tables.SaeRow, tables.SaeFactsRow, tables.SaeScoreRow
    query = select(sae).order_by(sae.slug)
    if model_id is not None:
        if not is_plain_text(model_id):
            return []
        query = query.where(sae.model_id == model_id)
    found = session.scalars(query).all()
    slugs = {one.sae_key: one.slug for one in found}
    facts_of = {one.sae_key: one for one in session.scalars(select(facts).where(facts.sae_key.in_(slugs)))}
    scores: dict[int, list[Kept[SaeScore]]] = {key: [] for key in slugs}
    ordered = select(score).where(score.sae_key.in_(slugs)).order_by(score.rate_gap.desc(), score.concept)
    for one in session.scalars(ordered):
        scores[one.sae_key].append(Kept(rows.sae_score_of(one, slugs[one.sae_key]), one.run_id))
    collected = _count_features(session, tables.ContextsRow)
    explained = _count_features(session, tables.ExplanationRow)
    return [
        SaeListing(
            sae=rows.sae_of(one),
            run_id=one.run_id,
            facts=_kept_facts(facts_of.get(one.sae_key), one.slug),
            scores=tuple(scores[one.sae_key]),
            n_collected=collected.get(one.sae_key, 0),
            n_explained=explained.get(one.sae_key, 0),
        )
        for one in found
    ]


def _kept_facts(row: tables.SaeFactsRow | None, slug: str) -> Kept[SaeFacts] | None:
    return None if row is None else Kept(rows.facts_of(row, slug), row.run_id)


def _count_features(session: Session, row: type[tables.ContextsRow | tables.ExplanationRow]) -> dict[int, int]:
    query = select(row.sae_key, func.count(row.feature_index.distinct())).group_by(row.sae_key)
    return {one[0]: one[1] for one in session.execute(query)}


# --------------------------------------------------------------------------------------------- features


class FeatureSort(StrEnum):
    """Order of a listing; ties always by ascending index."""

    INDEX = "index"
    """Ascending index."""
    DENSITY = "density"
    """Descending density; features without contexts last."""
    SCORE = "score"
    """Descending rate gap for the filter's concept, or for each feature's best concept; unscored features last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureFilter:
    """Which features a listing shows; every field that is set must hold."""

    concept: str | None = None
    """Features with a score for this concept; the two bounds below then speak of it, else of any concept."""
    min_rate_gap: float | None = None
    min_auroc: float | None = None
    explained: bool | None = None
    """True: with an explanation; False: without."""
    collected: bool | None = None
    """True: with contexts; False: without."""
    min_density: float | None = None
    max_density: float | None = None
    text: str | None = None
    """Words that an explanation of the feature holds, as in `db.search`."""

    def __post_init__(self) -> None:
        for name in ("min_rate_gap", "min_auroc", "min_density", "max_density"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):  # the databases disagree on how NaN compares
                raise BadInput(f"the filter `{name}` must be a finite number; got {value}.")


@dataclass(frozen=True, slots=True)
class FeatureListing:
    """One row of a listing: plain values."""

    index: int
    density: float | None
    """None before contexts are collected."""
    max_activation: float | None
    n_contexts: int | None
    concept: str | None
    """The filter's concept, or the one with the largest rate gap (ties: name); None before scoring."""
    rate_gap: float | None
    auroc: float | None
    explanation: str | None
    """The one that judges score highest (unjudged last, ties: first stored); None before explaining."""
    explainer: str | None
    explanation_score: float | None
    """Its best score; None before judging."""


@dataclass(frozen=True, slots=True)
class FeaturePage:
    """A page of a listing."""

    rows: list[FeatureListing]
    total: int
    """Features that the filter lets through, on all pages."""
    next_cursor: str | None
    """Where the next page begins; None on the last."""


def list_features(
    session: Session,
    sae: str,
    *,
    filters: FeatureFilter = FeatureFilter(),
    sort: FeatureSort = FeatureSort.INDEX,
    cursor: str | None = None,
    limit: int = 50,
) -> FeaturePage:
    """A page of the SAE's features of which anything is known; empty where nothing was collected yet.

    Raises:
        NotFound: no SAE has this slug, or no concept this name.
        BadInput: the cursor is not one of this order, or the limit is outside 1 to 1000.
    """
    require_limit(limit)
    sae_key = find_sae(session, sae).sae_key
    if filters.concept is not None:
        require_concept(session, filters.concept)
    row = tables.FeatureRow
    conditions = [row.sae_key == sae_key, *_conditions(session, filters)]
    value, query = _sorted_keys(sort, filters.concept, sae_key)
    total = session.scalar(select(func.count()).select_from(row).where(*conditions)) or 0
    query = query.where(*conditions)
    if cursor is not None:
        query = query.where(_after(sort, value, cursor))
    order = row.feature_index if sort is FeatureSort.INDEX else value.desc()
    keys = session.execute(query.order_by(order, row.feature_index).limit(limit + 1)).all()
    page = [index for index, _ in keys[:limit]]
    more = _write_cursor(sort, keys[limit - 1]) if len(keys) > limit else None
    return FeaturePage(_show(session, sae_key, page, filters.concept), total, more)


def _conditions(session: Session, filters: FeatureFilter) -> list[ColumnElement[bool]]:
    row, score, explanation = tables.FeatureRow, tables.ConceptScoreRow, tables.ExplanationRow
    found: list[ColumnElement[bool]] = []
    bounds: list[ColumnElement[bool]] = []
    if filters.concept is not None:
        bounds.append(score.concept == filters.concept)
    if filters.min_rate_gap is not None:
        bounds.append(score.rate_gap >= filters.min_rate_gap)
    if filters.min_auroc is not None:
        bounds.append(score.auroc >= filters.min_auroc)
    if bounds:
        found.append(exists().where(*_same_feature(score), *bounds))
    if filters.explained is not None:
        is_explained = exists().where(*_same_feature(explanation))
        found.append(is_explained if filters.explained else ~is_explained)
    if filters.collected is not None:
        found.append(row.density.is_not(None) if filters.collected else row.density.is_(None))
    if filters.min_density is not None:
        found.append(row.density >= filters.min_density)
    if filters.max_density is not None:
        found.append(row.density <= filters.max_density)
    if filters.text is not None:
        found.append(exists().where(*_same_feature(explanation), matches(session, filters.text)))
    return found


def _same_feature(
    other: type[tables.ConceptScoreRow | tables.ExplanationRow],
) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    row = tables.FeatureRow
    return other.sae_key == row.sae_key, other.feature_index == row.feature_index


# --------------------------------------------------------------------------------------------- order and cursor

_UNKNOWN = -2.0  # below every density and rate gap: what was not measured comes last


def _sorted_keys(sort: FeatureSort, concept: str | None, sae_key: int) -> tuple[ColumnElement[Any], Select[Any]]:
    row, score = tables.FeatureRow, tables.ConceptScoreRow
    if sort is not FeatureSort.SCORE:
        value: ColumnElement[Any] = func.coalesce(row.density, _UNKNOWN) if sort is FeatureSort.DENSITY else (
            row.feature_index.expression
        )  # fmt: skip
        return value, select(row.feature_index, value)
    best = select(score.feature_index, func.max(score.rate_gap).label("rate_gap")).where(score.sae_key == sae_key)
    if concept is not None:
        best = best.where(score.concept == concept)
    table = best.group_by(score.feature_index).subquery("best")
    value = func.coalesce(table.c.rate_gap, _UNKNOWN)
    query = select(row.feature_index, value).select_from(row)
    return value, query.outerjoin(table, table.c.feature_index == row.feature_index)


def _after(sort: FeatureSort, value: ColumnElement[Any], cursor: str) -> ColumnElement[bool]:
    index = tables.FeatureRow.feature_index
    last_value, last_index = _read_cursor(sort, cursor)
    if sort is FeatureSort.INDEX:
        return index > last_index
    return or_(value < last_value, and_(value == last_value, index > last_index))


def _write_cursor(sort: FeatureSort, last: Sequence[Any]) -> str:
    index, value = last
    return base64.urlsafe_b64encode(json.dumps([sort, value, index]).encode()).decode().rstrip("=")


def _read_cursor(sort: FeatureSort, cursor: str) -> tuple[float, int]:
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        kind, value, index = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if kind != sort or type(value) not in (int, float) or type(index) is not int or not 0 <= index < 2**31:
            raise ValueError("other fields than expected")
        return float(value), index
    except (ValueError, TypeError, OverflowError, binascii.Error) as error:
        raise BadInput(
            f"`{cursor[:80]!r}` is no cursor of a listing sorted by `{sort}`; pass on `next_cursor` of the page "
            f"before, with the same order, or leave it out."
        ) from error


# --------------------------------------------------------------------------------------------- what a page shows


def _show(session: Session, sae_key: int, page: list[int], concept: str | None) -> list[FeatureListing]:
    row, score = tables.FeatureRow, tables.ConceptScoreRow
    light = {
        index: (density, peak, n)
        for index, density, peak, n in session.execute(
            select(row.feature_index, row.density, row.max_activation, row.n_contexts).where(
                row.sae_key == sae_key, row.feature_index.in_(page)
            )
        )
    }
    scores = select(score.feature_index, score.concept, score.rate_gap, score.auroc).where(
        score.sae_key == sae_key, score.feature_index.in_(page)
    )
    if concept is not None:
        scores = scores.where(score.concept == concept)
    best: dict[int, tuple[Any, ...]] = {}
    for index, *rest in session.execute(scores.order_by(score.rate_gap.desc(), score.concept)):
        best.setdefault(index, tuple(rest))
    said = _best_explanations(session, sae_key, page)
    nothing = (None, None, None)
    return [
        FeatureListing(index, *light[index], *best.get(index, nothing), *said.get(index, nothing)) for index in page
    ]


def _best_explanations(session: Session, sae_key: int, page: list[int]) -> dict[int, tuple[Any, ...]]:
    row, score = tables.ExplanationRow, tables.ExplanationScoreRow
    found = session.execute(
        select(row.feature_index, row.text, row.explainer, func.max(score.score))
        .outerjoin(score, score.explanation_key == row.explanation_key)
        .where(row.sae_key == sae_key, row.feature_index.in_(page))
        .group_by(row.explanation_key)
        .order_by(row.explanation_key)
    )
    best: dict[int, tuple[Any, ...]] = {}
    for index, *rest in found:
        value = rest[2]
        if index not in best or (value is not None and (best[index][2] is None or value > best[index][2])):
            best[index] = tuple(rest)
    return best
