"""`load_*`: rows into records. What was not collected yet is empty or None; what cannot exist is `NotFound`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from db import tables
from db.lookup import find_feature, find_sae, require_limit
from db.packing import is_plain_text
from db.store import rows
from safe_sail.errors import NotFound
from safe_sail.records import (
    Concept,
    ConceptScore,
    Explanation,
    ExplanationScore,
    FeatureId,
    ModelRef,
    RunInfo,
    SaeFacts,
    SaeRef,
    SaeScore,
    TopContexts,
)

R = TypeVar("R", covariant=True)


@dataclass(frozen=True, slots=True)
class Kept(Generic[R]):
    """A record and the run that wrote it."""

    record: R
    run_id: str


@dataclass(frozen=True, slots=True)
class Explained:
    """An explanation and how it was judged."""

    explanation: Kept[Explanation]
    scores: tuple[Kept[ExplanationScore], ...]
    """By method."""


# --------------------------------------------------------------------------------------------- runs, models, SAEs


def load_run(session: Session, run_id: str) -> RunInfo:
    """One run.

    Raises:
        NotFound: no run has this id.
    """
    row = session.get(tables.RunRow, run_id) if is_plain_text(run_id) else None
    if row is None:
        raise NotFound(f"no run is called `{run_id}`.")
    return rows.run_of(row)


def list_runs(session: Session, *, limit: int = 100, after: tuple[datetime, str] | None = None) -> list[RunInfo]:
    """Runs, newest first (ties: descending id); from behind the one of this start and id on, if one is given.

    Raises:
        BadInput: the limit is outside 1 to 1000.
    """
    require_limit(limit)
    row = tables.RunRow
    query = select(row).order_by(row.started.desc(), row.run_id.desc()).limit(limit)
    if after is not None:
        started, run_id = after
        query = query.where(or_(row.started < started, and_(row.started == started, row.run_id < run_id)))
    return [rows.run_of(one) for one in session.scalars(query)]


def load_model(session: Session, model_id: str) -> ModelRef:
    """One model.

    Raises:
        NotFound: no model has this id.
    """
    row = session.get(tables.ModelRow, model_id) if is_plain_text(model_id) else None
    if row is None:
        raise NotFound(f"no model is called `{model_id}`; `list_models` names those in the database.")
    return rows.model_of(row)


def load_sae(session: Session, slug: str) -> SaeRef:
    """One SAE.

    Raises:
        NotFound: no SAE has this slug.
    """
    return rows.sae_of(find_sae(session, slug))


def load_sae_facts(session: Session, slug: str) -> Kept[SaeFacts] | None:
    """How well an SAE reconstructs; None where it was not measured yet.

    Raises:
        NotFound: no SAE has this slug.
    """
    row = session.get(tables.SaeFactsRow, find_sae(session, slug).sae_key)
    return None if row is None else Kept(rows.facts_of(row, slug), row.run_id)


def load_sae_scores(session: Session, slug: str) -> list[Kept[SaeScore]]:
    """How specifically an SAE carries each concept, by descending rate gap (ties: concept); empty before scoring.

    Raises:
        NotFound: no SAE has this slug.
    """
    row = tables.SaeScoreRow
    sae_key = find_sae(session, slug).sae_key
    found = session.scalars(select(row).where(row.sae_key == sae_key).order_by(row.rate_gap.desc(), row.concept))
    return [Kept(rows.sae_score_of(one, slug), one.run_id) for one in found]


def list_concepts(session: Session) -> list[Concept]:
    """All concepts, by domain, category and name."""
    row = tables.ConceptRow
    return [rows.concept_of(one) for one in session.scalars(select(row).order_by(row.domain, row.category, row.name))]


# --------------------------------------------------------------------------------------------- one feature


def load_top_contexts(session: Session, feature: FeatureId) -> Kept[TopContexts] | None:
    """What a feature fires on; None where no contexts were collected yet.

    Raises:
        NotFound: the SAE is not kept, or the index is beyond its width.
    """
    return _top_contexts(session, find_feature(session, feature).sae_key, feature)


def load_concept_scores(session: Session, feature: FeatureId) -> list[Kept[ConceptScore]]:
    """How well a feature tells each concept, by descending rate gap (ties: concept); empty before scoring.

    Raises:
        NotFound: the SAE is not kept, or the index is beyond its width.
    """
    return _concept_scores(session, find_feature(session, feature).sae_key, feature)


def load_explanations(session: Session, feature: FeatureId) -> list[Kept[Explanation]]:
    """Explanations of a feature, by explainer and prompt version; empty before explaining.

    Raises:
        NotFound: the SAE is not kept, or the index is beyond its width.
    """
    return [one.explanation for one in _explained(session, find_feature(session, feature).sae_key, feature)]


def load_explanation_scores(session: Session, feature: FeatureId) -> list[Kept[ExplanationScore]]:
    """Scores of all explanations of a feature, by explainer, prompt version and method; empty before judging.

    Raises:
        NotFound: the SAE is not kept, or the index is beyond its width.
    """
    explained = _explained(session, find_feature(session, feature).sae_key, feature)
    return [score for one in explained for score in one.scores]


def _top_contexts(session: Session, sae_key: int, feature: FeatureId) -> Kept[TopContexts] | None:
    light = session.get(tables.FeatureRow, (sae_key, feature.index))
    heavy = session.get(tables.ContextsRow, (sae_key, feature.index))
    if light is None or heavy is None:
        return None
    return Kept(rows.top_contexts_of(light, heavy, feature.sae), heavy.run_id)


def _concept_scores(session: Session, sae_key: int, feature: FeatureId) -> list[Kept[ConceptScore]]:
    row = tables.ConceptScoreRow
    found = session.scalars(
        select(row)
        .where(row.sae_key == sae_key, row.feature_index == feature.index)
        .order_by(row.rate_gap.desc(), row.concept)
    )
    return [Kept(rows.concept_score_of(one, feature.sae), one.run_id) for one in found]


def _explained(session: Session, sae_key: int, feature: FeatureId) -> list[Explained]:
    row, score = tables.ExplanationRow, tables.ExplanationScoreRow
    found = session.scalars(
        select(row)
        .where(row.sae_key == sae_key, row.feature_index == feature.index)
        .order_by(row.explainer, row.prompt_version)
    ).all()
    scores: dict[int, list[tables.ExplanationScoreRow]] = {}
    keys = [one.explanation_key for one in found]
    for one in session.scalars(select(score).where(score.explanation_key.in_(keys)).order_by(score.method)):
        scores.setdefault(one.explanation_key, []).append(one)
    return [join_scores(one, scores.get(one.explanation_key, ()), feature.sae) for one in found]


def join_scores(row: Any, scores: Sequence[Any], sae: str) -> Explained:
    """An explanation and its scores, from their rows."""
    explanation = rows.explanation_of(row, sae)
    judged = tuple(Kept(rows.explanation_score_of(score, explanation), score.run_id) for score in scores)
    return Explained(Kept(explanation, row.run_id), judged)


# --------------------------------------------------------------------------------------------- resuming


class FeatureKind(StrEnum):
    """What may have been done for a feature."""

    TOP_CONTEXTS = "top_contexts"
    CONCEPT_SCORES = "concept_scores"
    EXPLANATIONS = "explanations"
    EXPLANATION_SCORES = "explanation_scores"


def features_done(
    session: Session,
    sae: str,
    kind: FeatureKind,
    *,
    concept: str | None = None,
    explainer: str | None = None,
    prompt_version: str | None = None,
    method: str | None = None,
    run_id: str | None = None,
) -> set[int]:
    """Indices of the SAE's features that already have results of a kind, so that a command can skip them.

    Each further argument counts only results of that concept, explainer, prompt version, judging method or run; one
    that results of this kind do not have narrows nothing.

    Raises:
        NotFound: no SAE has this slug.
    """
    sae_key = find_sae(session, sae).sae_key
    contexts, concept_score = tables.ContextsRow, tables.ConceptScoreRow
    explanation, score = tables.ExplanationRow, tables.ExplanationScoreRow
    narrowed: list[tuple[InstrumentedAttribute[str], str | None]]
    if kind is FeatureKind.TOP_CONTEXTS:
        query = select(contexts.feature_index).where(contexts.sae_key == sae_key)
        narrowed = [(contexts.run_id, run_id)]
    elif kind is FeatureKind.CONCEPT_SCORES:
        query = select(concept_score.feature_index).where(concept_score.sae_key == sae_key)
        narrowed = [(concept_score.concept, concept), (concept_score.run_id, run_id)]
    else:
        query = select(explanation.feature_index).where(explanation.sae_key == sae_key)
        narrowed = [(explanation.explainer, explainer), (explanation.prompt_version, prompt_version)]
        if kind is FeatureKind.EXPLANATIONS:
            narrowed += [(explanation.run_id, run_id)]
        else:
            query = query.join(score, score.explanation_key == explanation.explanation_key)
            narrowed += [(score.method, method), (score.run_id, run_id)]
    wanted = [column == value for column, value in narrowed if value is not None]
    return set(session.scalars(query.where(*wanted).distinct()))
