"""What asking language models cost and how it ended, in the store.

An entry's run is part of its key: a later run adds an entry and never replaces what an earlier one paid.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.lookup import find_feature, find_sae
from db.store import rows
from db.store.feature_rows import touch
from db.store.loading import Kept
from db.store.saving import require_run
from db.store.upserts import upsert
from db.tables import LedgerRow
from safe_sail.records import FeatureId, JudgeMethod, LedgerEntry, Stage

_KEY = ("sae_key", "feature_index", "stage", "explainer", "prompt_version", "method", "run_id")


def save_ledger_entries(session: Session, entries: Iterable[LedgerEntry], *, run_id: str) -> None:
    """Keeps what a run spent on features; the same feature, stage and method again replaces the run's own entry.

    Raises:
        NotFound: the run or an SAE is not kept, or a feature lies beyond its SAE's width.
        BadRecord: a name or number cannot be kept.
    """
    require_run(session, run_id)
    for entry in entries:
        sae_key = find_feature(session, entry.feature).sae_key
        feature: rows.Columns = {"sae_key": sae_key, "feature_index": entry.feature.index, "run_id": run_id}
        touch(session, [feature])
        upsert(session, LedgerRow, [_columns(entry) | feature], key=_KEY)


class LedgerTotal(NamedTuple):
    """What asking one model at one stage took, over all runs."""

    model: str
    stage: str
    attempts: int
    prompt_tokens: int
    completion_tokens: int
    assumed_tokens: int
    cost: float
    """US dollars, of the entries whose price is known."""
    n_unpriced: int
    """Entries whose price is not known."""


def ledger_totals(session: Session) -> list[LedgerTotal]:
    """Sums over the whole ledger, by model and stage."""
    row = LedgerRow
    sums = [func.sum(getattr(row, name)) for name in _COUNTS]
    unpriced = func.count().filter(row.cost.is_(None))
    query = select(row.model, row.stage, *sums, func.coalesce(func.sum(row.cost), 0.0), unpriced)
    found = session.execute(query.group_by(row.model, row.stage).order_by(row.model, row.stage))
    return [
        LedgerTotal(
            model=model, stage=stage, cost=float(cost), n_unpriced=n,
            **dict(zip(_COUNTS, map(int, counts), strict=True)),
        )
        for model, stage, *counts, cost, n in found
    ]  # fmt: skip


_COUNTS = ("attempts", "prompt_tokens", "completion_tokens", "assumed_tokens")


def load_ledger(session: Session, feature: FeatureId) -> list[Kept[LedgerEntry]]:
    """What was spent on a feature, by stage, explainer, version, method and run; empty where nobody was asked.

    Raises:
        NotFound: the SAE is not kept, or the index is beyond its width.
    """
    row = LedgerRow
    sae_key = find_feature(session, feature).sae_key
    query = select(row).where(row.sae_key == sae_key, row.feature_index == feature.index)
    ordered = query.order_by(row.stage, row.explainer, row.prompt_version, row.method, row.run_id)
    return [Kept(_entry(one, feature), one.run_id) for one in session.scalars(ordered)]


def features_failed(
    session: Session,
    sae: str,
    stage: Stage,
    *,
    reasons: Collection[str],
    model: str,
    explainer: str,
    prompt_version: str,
    method: JudgeMethod | None = None,
) -> set[int]:
    """Indices of the SAE's features that ended for one of these reasons when this model was asked.

    Raises:
        NotFound: no SAE has this slug.
    """
    row = LedgerRow
    query = select(row.feature_index).where(
        row.sae_key == find_sae(session, sae).sae_key,
        row.stage == stage,
        row.model == model,
        row.explainer == explainer,
        row.prompt_version == prompt_version,
        row.method == (method or ""),
        row.reason.in_(reasons),
    )
    return set(session.scalars(query.distinct()))


def _columns(entry: LedgerEntry) -> rows.Columns:
    return {
        "stage": str(entry.stage),
        "explainer": entry.explainer,
        "prompt_version": entry.prompt_version,
        "method": str(entry.method or ""),
        "model": entry.model,
        "reason": entry.reason,
        # a model may write NUL or half a character, which a column of text cannot hold
        "texts": [entry.message] if entry.raw is None else [entry.message, entry.raw],
        "attempts": entry.attempts,
        "prompt_tokens": entry.prompt_tokens,
        "completion_tokens": entry.completion_tokens,
        "assumed_tokens": entry.assumed_tokens,
        "cost": entry.cost,
    }


def _entry(row: LedgerRow, feature: FeatureId) -> LedgerEntry:
    return LedgerEntry(
        feature=feature,
        stage=Stage(row.stage),
        explainer=row.explainer,
        prompt_version=row.prompt_version,
        method=JudgeMethod(row.method) if row.method else None,
        model=row.model,
        reason=row.reason,
        message=row.texts[0],
        raw=row.texts[1] if len(row.texts) > 1 else None,
        attempts=row.attempts,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        assumed_tokens=row.assumed_tokens,
        cost=row.cost,
    )
