"""Everything that is known of one feature, or of many, by four statements: as rows, or as records."""

from collections import namedtuple
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from sqlalchemy import Select, bindparam, select
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
    """The same as the database gives it, arrays unpacked, contexts as `db.packing.pack_contexts` wrote them."""

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
    return bundle_of(feature, feature_rows(run_in(session), feature))


def bundle_of(feature: FeatureId, found: FeatureRows) -> FeatureBundle:
    """The records of what the database gave."""
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
    kept = run.all(_ONE_CONTEXTS, key)
    explanations = list(_with_scores(run.all(_ONE_EXPLANATIONS, key)))
    return FeatureRows(sae, kept[0] if kept else None, run.all(_ONE_CONCEPT_SCORES, key), explanations)


def rows_of_features(session: Session, sae: str, indices: Sequence[int]) -> list[FeatureRows]:
    """The same for many features of an SAE, in the order of the indices, by four statements in all.

    Raises:
        NotFound: the SAE is not kept, or an index is beyond its width.
    """
    owner = sae_row(run_in(session), sae)
    for index in indices:
        if index >= owner.width:
            raise no_feature(FeatureId(sae=sae, index=index), owner.width)

    def found(query: Select[Any], row: Any) -> dict[int, list[Any]]:
        query = query.where(row.sae_key == owner.sae_key, row.feature_index.in_(indices))
        return {index: list(some) for index, some in groupby(session.execute(query), lambda one: one.feature_index)}

    contexts, scores = found(_CONTEXTS, tables.FeatureRow), found(_CONCEPT_SCORES, tables.ConceptScoreRow)
    said = found(_EXPLANATIONS, tables.ExplanationRow)
    return [
        FeatureRows(
            owner, contexts[i][0] if i in contexts else None, scores.get(i, []), list(_with_scores(said.get(i, ())))
        )
        for i in indices
    ]


_CONTEXTS = (
    select(
        *(column for column in tables.FeatureRow.__table__.c if column.key != "run_id"),
        *(column for column in tables.ContextsRow.__table__.c if column.key not in ("sae_key", "feature_index")),
    )
    .join_from(tables.FeatureRow, tables.ContextsRow)
    .order_by(tables.FeatureRow.feature_index)
)
_CONCEPT_SCORES = select(*tables.ConceptScoreRow.__table__.c).order_by(
    tables.ConceptScoreRow.feature_index, tables.ConceptScoreRow.rate_gap.desc(), tables.ConceptScoreRow.concept
)
_SCORED = [column for column in tables.ExplanationScoreRow.__table__.c if column.key != "explanation_key"]
_EXPLANATIONS = (
    select(*tables.ExplanationRow.__table__.c, *(column.label(f"judged_{column.key}") for column in _SCORED))
    .outerjoin_from(tables.ExplanationRow, tables.ExplanationScoreRow)
    .order_by(
        tables.ExplanationRow.feature_index,
        tables.ExplanationRow.explainer,
        tables.ExplanationRow.prompt_version,
        tables.ExplanationScoreRow.method,
    )
)


def _of_one(query: Select[Any], row: Any) -> Prepared:
    is_it = (row.sae_key == bindparam("sae_key"), row.feature_index == bindparam("feature_index"))
    return Prepared(query.where(*is_it))


_ONE_CONTEXTS = _of_one(_CONTEXTS, tables.FeatureRow)
_ONE_CONCEPT_SCORES = _of_one(_CONCEPT_SCORES, tables.ConceptScoreRow)
_ONE_EXPLANATIONS = _of_one(_EXPLANATIONS, tables.ExplanationRow)


def _with_scores(found: Iterable[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """Explanations with their scores, from one row for each score, or one for an explanation without any."""
    for _, some in groupby(found, lambda row: row.explanation_key):
        lines = list(some)
        scores = [_Scored._make(line[-len(_SCORED) :]) for line in lines if line.judged_method is not None]
        yield lines[0], scores


_Scored = namedtuple("_Scored", [column.key for column in _SCORED])  # type: ignore[misc]
