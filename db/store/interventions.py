"""What changing features does to their model, in the store: whole, one JSON text a score."""

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables
from db.lookup import find_feature
from db.store.loading import Kept
from db.store.saving import FeatureWriter, chunks, require_run
from db.store.upserts import upsert
from db.store.whole import from_json, to_json
from safe_sail.records import FeatureId, InterventionScore


def save_intervention_scores(session: Session, scores: Iterable[InterventionScore], *, run_id: str) -> None:
    """Keeps scores; one of the same feature, intervention and prompts is replaced.

    Raises:
        NotFound: the run or an SAE is not kept.
        BadRecord: a feature lies beyond its SAE's width, or a name cannot be kept.
    """
    require_run(session, run_id)
    writer = FeatureWriter(session, run_id)
    for chunk in chunks(scores):
        writer.touch([one.feature for one in chunk])
        columns = [
            {"intervention": str(one.intervention), "prompts": one.prompts, "record": [to_json(one)]}
            | writer.key_of(one.feature)
            for one in chunk
        ]
        key = ("sae_key", "feature_index", "intervention", "prompts")
        upsert(session, tables.InterventionScoreRow, columns, key=key)


def load_intervention_scores(session: Session, feature: FeatureId) -> list[Kept[InterventionScore]]:
    """Scores of a feature, by intervention and prompts; empty before it was changed.

    Raises:
        NotFound: the SAE is not kept, or the index is beyond its width.
    """
    row = tables.InterventionScoreRow
    found = session.scalars(
        select(row)
        .where(row.sae_key == find_feature(session, feature).sae_key, row.feature_index == feature.index)
        .order_by(row.intervention, row.prompts)
    )
    return [Kept(from_json(InterventionScore, one.record[0]), one.run_id) for one in found]
