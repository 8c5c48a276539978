"""Studies that tune a model with a circuit, in the store: read whole; the same slug again replaces what was there."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables
from db.lookup import require_limit
from db.packing import is_plain_text
from db.store import rows
from db.store.loading import Kept
from db.store.saving import require_run, upsert
from db.store.whole import from_json, to_json
from safe_sail.errors import NotFound
from safe_sail.records import TuningStudy


def save_tuning_study(session: Session, study: TuningStudy, *, run_id: str) -> None:
    """Keeps a study; its model must be kept before.

    Raises:
        NotFound: the run or the model is not kept.
    """
    require_run(session, run_id)
    if session.get(tables.ModelRow, study.model_id) is None:
        raise NotFound(f"model `{study.model_id}` of {study.slug} is not in the database; save the model first.")
    columns: rows.Columns = {
        "slug": study.slug,
        "model_id": study.model_id,
        "record": [to_json(study)],
        "run_id": run_id,
    }
    upsert(session, tables.TuningStudyRow, [columns], key=("slug",))


def load_tuning_study(session: Session, slug: str) -> Kept[TuningStudy]:
    """One study.

    Raises:
        NotFound: no study has this slug.
    """
    row = session.get(tables.TuningStudyRow, slug) if is_plain_text(slug) else None
    if row is None:
        raise NotFound(f"no tuning study is called `{slug}`; `list_tuning_studies` names those kept.")
    return Kept(from_json(TuningStudy, row.record[0]), row.run_id)


def list_tuning_studies(session: Session, *, model_id: str | None = None, limit: int = 100) -> list[Kept[TuningStudy]]:
    """Studies by slug, of one model or of all.

    Raises:
        BadInput: the limit is outside 1 to 1000.
    """
    require_limit(limit)
    query = select(tables.TuningStudyRow).order_by(tables.TuningStudyRow.slug).limit(limit)
    if model_id is not None:
        query = query.where(tables.TuningStudyRow.model_id == model_id)
    return [Kept(from_json(TuningStudy, row.record[0]), row.run_id) for row in session.scalars(query)]
