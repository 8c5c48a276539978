"""Rows of features and of what lists show of them, which every writer of features keeps equal to its tables.

`touch` makes sure that a feature has both; `refresh_listing` writes anew what a list shows, from the tables that hold
it, and is the last step of whatever saves contexts, scores or explanations.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, or_, select
from sqlalchemy.orm import Session, aliased

from db import tables
from db.store import rows
from db.store.upserts import insert_into, upsert

KEY = ("sae_key", "feature_index")
ESTIMATE = ("", "_low", "_high", "_n", "_level")
"""What follows the name of an estimate in the names of its columns."""


def touch(session: Session, features: Sequence[rows.Columns]) -> None:
    """Makes sure that each feature has a row and a line in lists, without changing one that is there."""
    upsert(session, tables.FeatureRow, list(features), key=KEY, replace=False)
    lines = [{name: one[name] for name in KEY} for one in features]
    upsert(session, tables.FeatureListingRow, lines, key=KEY, replace=False)


def refresh_listing(session: Session, features: Sequence[rows.Columns]) -> None:
    """Writes the lines of these features anew: those of their best concept and of their best explanation."""
    if not features:
        return
    shown = _shown({(one["sae_key"], one["feature_index"]) for one in features})
    insert = insert_into(session, tables.FeatureListingRow)
    names = [column.name for column in insert.table.c]
    values = {name: insert.excluded[name] for name in names if name not in KEY}
    statement = insert.from_select(names, shown).on_conflict_do_update(index_elements=KEY, set_=values)
    session.execute(statement)
    session.expire_all()


def among(row: Any, keys: set[tuple[int, int]]) -> ColumnElement[bool]:
    """That a row is of one of these features."""
    by_sae: dict[int, list[int]] = {}
    for sae_key, index in sorted(keys):
        by_sae.setdefault(sae_key, []).append(index)
    return or_(*(and_(row.sae_key == sae, row.feature_index.in_(some)) for sae, some in by_sae.items()))


def _shown(keys: set[tuple[int, int]]) -> Select[Any]:
    """The columns of `feature_listing` as the other tables have them.

    The best concept has the largest rate gap (ties: name); the best explanation is the one that judges score highest
    (unjudged last, ties: first stored), at its best score.
    """
    row, score = tables.FeatureRow, tables.ConceptScoreRow
    said, judged = tables.ExplanationRow, tables.ExplanationScoreRow
    other, told, told_judged = aliased(score), aliased(said), aliased(judged)
    concept = select(other.concept).where(other.sae_key == row.sae_key, other.feature_index == row.feature_index)
    concept = concept.order_by(other.rate_gap.desc(), other.concept).limit(1)
    best = select(told.explanation_key).where(told.sae_key == row.sae_key, told.feature_index == row.feature_index)
    best = best.outerjoin(told_judged, told_judged.explanation_key == told.explanation_key)
    best = best.order_by(told_judged.score.is_(None), told_judged.score.desc(), told.explanation_key).limit(1)
    verdict = aliased(judged)
    method = select(verdict.method).where(verdict.explanation_key == said.explanation_key)
    method = method.order_by(verdict.score.desc(), verdict.method).limit(1)
    of_score = [getattr(score, f"{name}{part}") for name in ("rate_gap", "auroc") for part in ESTIMATE]
    of_verdict = [getattr(judged, f"{name}{part}") for name in ("score", "control") for part in ESTIMATE]
    return (
        select(
            row.sae_key, row.feature_index, row.density, row.max_activation, row.n_contexts,
            score.concept, *of_score, said.text, said.explainer, *of_verdict,
        )
        .select_from(row)
        .outerjoin(
            score,
            and_(
                score.sae_key == row.sae_key, score.feature_index == row.feature_index,
                score.concept == concept.correlate(row).scalar_subquery(),
            ),
        )
        .outerjoin(said, said.explanation_key == best.correlate(row).scalar_subquery())
        .outerjoin(
            judged,
            and_(
                judged.explanation_key == said.explanation_key,
                judged.method == method.correlate(said).scalar_subquery(),
            ),
        )
        .where(among(row, keys))
    )  # fmt: skip
