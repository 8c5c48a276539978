"""`load_feature`: everything that is known of one feature, by four statements that are compiled once."""

from collections import namedtuple
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from db import tables
from db.lookup import no_feature
from db.prepared import Prepared, Run, run_in
from db.store import rows
from db.store.loading import Explained, Kept, join_scores
from db.store.names import sae_row
from safe_sail.records import ConceptScore, FeatureId, SaeRef, TopContexts


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


class FeatureRows(NamedTuple):
    """The same as the database gives it, arrays unpacked."""

    sae: Any
    contexts: Any
    """One row, or None where no contexts were collected yet."""
    concept_scores: list[Any]
    explanations: list[tuple[Any, list[Any]]]
    """Each with the rows of its scores."""


def load_feature(session: Session, feature: FeatureId) -> FeatureBundle:
    """Everything that is known of one feature.

    Raises:
        NotFound: the SAE is not kept, or the index is beyond its width.
    """
    found = feature_rows(run_in(session), feature)
    kept = found.contexts
    return FeatureBundle(
        feature=feature,
        sae=rows.sae_of(found.sae),
        top_contexts=None if kept is None else Kept(rows.top_contexts_of(kept, kept, feature.sae), kept.run_id),
        concept_scores=tuple(Kept(rows.concept_score_of(one, feature.sae), one.run_id) for one in found.concept_scores),
        explanations=tuple(join_scores(row, scores, feature.sae) for row, scores in found.explanations),
    )


def feature_rows(run: Run, feature: FeatureId) -> FeatureRows:
    """The same without records; `run` runs the statements in one snapshot.

    Raises:
        NotFound: as `load_feature`.
    """
    sae = sae_row(run, feature.sae)
    if feature.index >= sae.width:
        raise no_feature(feature, sae.width)
    key = {"sae_key": sae.sae_key, "feature_index": feature.index}
    kept = run.all(_CONTEXTS, key)
    explanations = list(_with_scores(run.all(_EXPLANATIONS, key)))
    return FeatureRows(sae, kept[0] if kept else None, run.all(_CONCEPT_SCORES, key), explanations)


_KEY: dict[str, Any] = {"sae_key": bindparam("sae_key"), "feature_index": bindparam("feature_index")}
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


def _with_scores(found: Sequence[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """Explanations with their scores, from one row for each score, or one for an explanation without any."""
    for _, some in groupby(found, lambda row: row.explanation_key):
        lines = list(some)
        scores = [_Scored._make(line[-len(_SCORED) :]) for line in lines if line.judged_method is not None]
        yield lines[0], scores


_Scored = namedtuple("_Scored", [column.key for column in _SCORED])  # type: ignore[misc]
