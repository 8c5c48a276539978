"""`list_models` and `list_saes`: what the service shows in tables, as light rows; records are loaded one by one."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db import tables
from db.packing import is_plain_text
from db.store import rows
from db.store.loading import Kept
from safe_sail.records import ModelRef, SaeFacts, SaeRef, SaeScore


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
