"""`load_*`: rows into records. What was not collected yet is empty or None; what cannot exist is `NotFound`."""

from collections import namedtuple
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import Any, Generic, TypeVar

from sqlalchemy import bindparam, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from db import tables
from db.lookup import find_feature, find_sae, require_limit
from db.packing import is_plain_text
from db.prepared import Prepared
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


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureBundle:
    """Everything that is known of one feature."""

    feature: FeatureId
    sae: SaeRef
    top_contexts: Kept[TopContexts] | None
    """None where no contexts were collected yet."""
    concept_scores: tuple[Kept[ConceptScore], ...]
    """By descending rate gap (ties: concept)."""
    explanations: tuple[Explained, ...]
    """By explainer and prompt version."""


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


def list_runs(session: Session, *, limit: int = 100) -> list[RunInfo]:
    """Runs, newest first.

    Raises:
        BadInput: the limit is outside 1 to 1000.
    """
    require_limit(limit)
    found = session.scalars(
        select(tables.RunRow).order_by(tables.RunRow.started.desc(), tables.RunRow.run_id.desc()).limit(limit)
    )
    return [rows.run_of(row) for row in found]


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


def load_feature(session: Session, feature: FeatureId) -> FeatureBundle:
    """Everything that is known of one feature.

    Raises:
        NotFound: the SAE is not kept, or the index is beyond its width.
    """
    sae = _one_sae(session, feature)
    key = {"sae_key": sae.sae_key, "feature_index": feature.index}
    kept = _CONTEXTS.all(session, key)
    found = None if not kept else Kept(rows.top_contexts_of(kept[0], kept[0], feature.sae), kept[0].run_id)
    scores = _CONCEPT_SCORES.all(session, key)
    judged = _EXPLANATIONS.all(session, key)
    return FeatureBundle(
        feature=feature,
        sae=rows.sae_of(sae),
        top_contexts=found,
        concept_scores=tuple(Kept(rows.concept_score_of(one, feature.sae), one.run_id) for one in scores),
        explanations=tuple(_judged(judged, feature.sae)),
    )


_KEY: dict[str, Any] = {"sae_key": bindparam("sae_key"), "feature_index": bindparam("feature_index")}
_SAE = Prepared(select(*tables.SaeRow.__table__.c).where(tables.SaeRow.slug == bindparam("slug")))
_CONTEXTS = Prepared(
    select(
        *(column for column in tables.FeatureRow.__table__.c if column.key != "run_id"),
        *(column for column in tables.ContextsRow.__table__.c if column.key not in _KEY),
    )
    .join_from(tables.FeatureRow, tables.ContextsRow)
    .where(*(getattr(tables.FeatureRow, name) == value for name, value in _KEY.items()))
)
_CONCEPT_SCORES = Prepared(
    select(*tables.ConceptScoreRow.__table__.c)
    .where(*(getattr(tables.ConceptScoreRow, name) == value for name, value in _KEY.items()))
    .order_by(tables.ConceptScoreRow.rate_gap.desc(), tables.ConceptScoreRow.concept)
)
_SCORED = [column for column in tables.ExplanationScoreRow.__table__.c if column.key != "explanation_key"]
_EXPLANATIONS = Prepared(
    select(*tables.ExplanationRow.__table__.c, *(column.label(f"judged_{column.key}") for column in _SCORED))
    .outerjoin_from(tables.ExplanationRow, tables.ExplanationScoreRow)
    .where(*(getattr(tables.ExplanationRow, name) == value for name, value in _KEY.items()))
    .order_by(tables.ExplanationRow.explainer, tables.ExplanationRow.prompt_version, tables.ExplanationScoreRow.method)
)


def _one_sae(session: Session, feature: FeatureId) -> Any:
    found = _SAE.all(session, {"slug": feature.sae}) if is_plain_text(feature.sae) else []
    if not found or feature.index >= found[0].width:
        find_feature(session, feature)  # says which of the two is wrong
    return found[0]


def _judged(found: Sequence[Any], sae: str) -> Iterator[Explained]:
    """Explanations with their scores, from one row for each score, or one for an explanation without any."""
    for _, some in groupby(found, lambda row: row.explanation_key):
        lines = list(some)
        scores = [_Scored._make(line[-len(_SCORED) :]) for line in lines if line.judged_method is not None]
        yield _join(lines[0], scores, sae)


_Scored = namedtuple("_Scored", [column.key for column in _SCORED])  # type: ignore[misc]


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
    return [_join(one, scores.get(one.explanation_key, ()), feature.sae) for one in found]


def _join(row: Any, scores: Sequence[Any], sae: str) -> Explained:
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
