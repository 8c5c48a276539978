"""What features carry each concept, over one SAE or all: counts, best features, and gaps on all concepts together."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from db import tables
from db.lookup import find_sae
from db.store.feature_filter import SPECIFIC_GAP, SPECIFIC_Q
from db.store.loading import list_concepts
from safe_sail.records import Concept, Estimate, FeatureId


@dataclass(frozen=True, kw_only=True, slots=True)
class ConceptLandscape:
    """One concept and the features that were scored on it."""

    concept: Concept
    n_scored: int
    n_specific: int
    """Rate gap above one half and q below 0.05."""
    best: tuple[FeatureId, ...]
    """By descending rate gap (ties: SAE, then index)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureGaps:
    """One feature's rate gaps on the same concepts as its neighbours; None where it was not scored."""

    feature: FeatureId
    gaps: tuple[float | None, ...]


def list_landscape(session: Session, sae: str | None, *, n_best: int = 3) -> list[ConceptLandscape]:
    """Concepts by domain, category and name, with counts and best features; only those with scored features.

    Raises:
        NotFound: no SAE has this slug.
    """
    row = tables.ConceptScoreRow
    slugs = _saes(session, sae)
    of_these = row.sae_key.in_(slugs)
    scored = _counts(session, of_these)
    specific = _counts(session, of_these, row.rate_gap > SPECIFIC_GAP, row.q_value < SPECIFIC_Q)
    return [
        ConceptLandscape(
            concept=one,
            n_scored=scored[one.name],
            n_specific=specific.get(one.name, 0),
            best=_best(session, slugs, one.name, n_best),
        )
        for one in list_concepts(session)
        if one.name in scored
    ]


def list_feature_gaps(
    session: Session, sae: str | None, concepts: Sequence[str], *, limit: int = 600
) -> list[FeatureGaps]:
    """Gaps on these concepts of features that are specific to something, largest gap first.

    Raises:
        NotFound: no SAE has this slug.
    """
    row = tables.ConceptScoreRow
    slugs = _saes(session, sae)
    largest = func.max(row.rate_gap)
    found = session.execute(
        select(row.sae_key, row.feature_index)
        .where(row.sae_key.in_(slugs), row.rate_gap > SPECIFIC_GAP, row.q_value < SPECIFIC_Q)
        .group_by(row.sae_key, row.feature_index)
        .order_by(largest.desc(), row.sae_key, row.feature_index)
        .limit(limit)
    ).all()
    wanted: dict[int, list[int]] = {}
    for sae_key, index in found:
        wanted.setdefault(sae_key, []).append(index)
    gaps: dict[tuple[int, int], dict[str, float]] = {}
    for sae_key, some in wanted.items():
        query = select(row.feature_index, row.concept, row.rate_gap)
        for index, concept, gap in session.execute(query.where(row.sae_key == sae_key, row.feature_index.in_(some))):
            gaps.setdefault((sae_key, index), {})[concept] = gap
    return [
        FeatureGaps(
            feature=FeatureId(sae=slugs[sae_key], index=index),
            gaps=tuple(gaps[sae_key, index].get(name) for name in concepts),
        )
        for sae_key, index in found
    ]


def load_gaps(session: Session, wanted: Sequence[tuple[FeatureId, str]]) -> dict[tuple[FeatureId, str], Estimate]:
    """Rate gaps of features on concepts; a pair that was not scored has none."""
    row, sae = tables.ConceptScoreRow, tables.SaeRow
    found: dict[tuple[FeatureId, str], Estimate] = {}
    columns = (row.rate_gap, row.rate_gap_low, row.rate_gap_high, row.rate_gap_n, row.rate_gap_level)
    for slug in dict.fromkeys(feature.sae for feature, _ in wanted):
        indices = {feature.index for feature, _ in wanted if feature.sae == slug}
        query = select(row.feature_index, row.concept, *columns).join(sae, sae.sae_key == row.sae_key)
        for index, concept, *rest in session.execute(query.where(sae.slug == slug, row.feature_index.in_(indices))):
            value, low, high, n, level = rest
            estimate = Estimate(value=value, low=low, high=high, n=int(n), level=level)
            found[FeatureId(sae=slug, index=index), concept] = estimate
    return {pair: found[pair] for pair in wanted if pair in found}


def _saes(session: Session, sae: str | None) -> dict[int, str]:
    if sae is not None:
        return {find_sae(session, sae).sae_key: sae}
    row = tables.SaeRow
    return {one[0]: one[1] for one in session.execute(select(row.sae_key, row.slug).order_by(row.sae_key))}


def _counts(session: Session, *conditions: ColumnElement[bool]) -> dict[str, int]:
    row = tables.ConceptScoreRow
    query = select(row.concept, func.count()).where(*conditions).group_by(row.concept)
    return {one[0]: one[1] for one in session.execute(query)}


def _best(session: Session, slugs: dict[int, str], concept: str, n_best: int) -> tuple[FeatureId, ...]:
    """One short walk along an index for each SAE: over all at once, the database would sort every score."""
    row = tables.ConceptScoreRow
    found: list[tuple[float, int, int]] = []
    for sae_key in slugs:
        query = (
            select(row.rate_gap, row.feature_index)
            .where(row.sae_key == sae_key, row.concept == concept)
            .order_by(row.rate_gap.desc(), row.feature_index)
            .limit(n_best)
        )
        found += [(-gap, sae_key, index) for gap, index in session.execute(query)]
    return tuple(FeatureId(sae=slugs[sae_key], index=index) for _, sae_key, index in sorted(found)[:n_best])
