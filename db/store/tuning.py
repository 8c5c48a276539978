"""Studies that tune a model with a circuit, in the store: read whole; the same slug again replaces what was there."""

from sqlalchemy.orm import Session

from db import tables
from db.store import rows
from db.store.loading import Kept
from db.store.slugs import Named, list_named, load_named, require_subjects
from db.store.upserts import upsert
from db.store.whole import to_json
from safe_sail.records import TuningStudy

_STUDIES = Named(tables.TuningStudyRow, "tuning study", "list_tuning_studies")


def save_tuning_study(session: Session, study: TuningStudy, *, run_id: str) -> None:
    """Keeps a study; its model must be kept before.

    Raises:
        NotFound: the run or the model is not kept.
    """
    require_subjects(session, run_id, study.slug, study.model_id)
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
    return load_named(session, _STUDIES, TuningStudy, slug)


def list_tuning_studies(
    session: Session, *, model_id: str | None = None, limit: int = 100, after: str | None = None
) -> list[Kept[TuningStudy]]:
    """Studies by slug, of one model or of all; behind `after`, if it is given.

    Raises:
        BadInput: the limit is outside 1 to 1000.
    """
    where = () if model_id is None else (tables.TuningStudyRow.model_id == model_id,)
    return list_named(session, _STUDIES, TuningStudy, *where, limit=limit, after=after)
