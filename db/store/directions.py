"""Refusal directions in the store: what was found, the search behind it, and its evaluation.

Rule of keys as in `saving`: the same slug again replaces what was there. A search that is saved again takes the
evaluation and the reading of its former direction away, since they describe other numbers.
"""

import numpy as np
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from db import tables
from db.lookup import require_limit
from db.packing import is_plain_text
from db.store import rows
from db.store.loading import Kept
from db.store.saving import require_run, upsert
from db.store.whole import from_json, to_json
from safe_sail.errors import NotFound
from safe_sail.records import Direction, DirectionEvaluation, DirectionReading, DirectionSearch
from safe_sail.sites import Site


def save_direction_search(session: Session, search: DirectionSearch, *, run_id: str) -> None:
    """Keeps a search and the directions it ended with; its model must be kept before.

    Raises:
        NotFound: the run or the model is not kept.
    """
    require_run(session, run_id)
    if session.get(tables.ModelRow, search.model_id) is None:
        raise NotFound(f"model `{search.model_id}` of {search.slug} is not in the database; save the model first.")
    for direction in {one.slug: one for one in (search.direction, search.added) if one is not None}.values():
        for row in (tables.DirectionEvaluationRow, tables.DirectionReadingRow):
            session.execute(delete(row).where(row.direction == direction.slug))
        upsert(session, tables.DirectionRow, [_columns(direction) | {"run_id": run_id}], key=("slug",))
    columns: rows.Columns = {
        "slug": search.slug,
        "model_id": search.model_id,
        "outcome": search.outcome,
        "direction": search.direction and search.direction.slug,
        "added": search.added and search.added.slug,
        "record": [to_json(search)],
        "run_id": run_id,
    }
    upsert(session, tables.DirectionSearchRow, [columns], key=("slug",))


def save_direction_evaluation(session: Session, evaluation: DirectionEvaluation, *, run_id: str) -> None:
    """Keeps what a direction does on held-out prompts.

    Raises:
        NotFound: the run or the direction is not kept.
    """
    require_run(session, run_id)
    _row(session, evaluation.direction)
    columns: rows.Columns = {
        "direction": evaluation.direction,
        "record": [to_json(evaluation)],
        "run_id": run_id,
    }
    upsert(session, tables.DirectionEvaluationRow, [columns], key=("direction",))


def save_direction_reading(session: Session, reading: DirectionReading, *, run_id: str) -> None:
    """Keeps where prompts stand along a direction and which features write it.

    Raises:
        NotFound: the run or the direction is not kept.
    """
    require_run(session, run_id)
    _row(session, reading.direction)
    columns: rows.Columns = {"direction": reading.direction, "record": [to_json(reading)], "run_id": run_id}
    upsert(session, tables.DirectionReadingRow, [columns], key=("direction",))


def load_direction(session: Session, slug: str) -> Kept[Direction]:
    """One direction.

    Raises:
        NotFound: no direction has this slug.
    """
    row = _row(session, slug)
    return Kept(_direction(row), row.run_id)


def load_direction_search(session: Session, slug: str) -> Kept[DirectionSearch]:
    """One search, whole.

    Raises:
        NotFound: no search has this slug.
    """
    row = session.get(tables.DirectionSearchRow, slug) if is_plain_text(slug) else None
    if row is None:
        raise NotFound(f"no search for a direction is called `{slug}`; `list_direction_searches` names those kept.")
    return Kept(from_json(DirectionSearch, row.record[0]), row.run_id)


def load_direction_evaluation(session: Session, slug: str) -> Kept[DirectionEvaluation] | None:
    """Evaluation of a direction, or None where it was not evaluated.

    Raises:
        NotFound: no direction has this slug.
    """
    _row(session, slug)
    row = session.get(tables.DirectionEvaluationRow, slug)
    return None if row is None else Kept(from_json(DirectionEvaluation, row.record[0]), row.run_id)


def load_direction_reading(session: Session, slug: str) -> Kept[DirectionReading] | None:
    """Reading of a direction, or None where it was not read.

    Raises:
        NotFound: no direction has this slug.
    """
    _row(session, slug)
    row = session.get(tables.DirectionReadingRow, slug)
    return None if row is None else Kept(from_json(DirectionReading, row.record[0]), row.run_id)


def list_direction_searches(
    session: Session, *, model_id: str | None = None, limit: int = 100
) -> list[Kept[DirectionSearch]]:
    """Searches by slug, of one model or of all.

    Raises:
        BadInput: the limit is outside 1 to 1000.
    """
    require_limit(limit)
    query = select(tables.DirectionSearchRow).order_by(tables.DirectionSearchRow.slug).limit(limit)
    if model_id is not None:
        query = query.where(tables.DirectionSearchRow.model_id == model_id)
    return [Kept(from_json(DirectionSearch, row.record[0]), row.run_id) for row in session.scalars(query)]


def _row(session: Session, slug: str) -> tables.DirectionRow:
    row = session.get(tables.DirectionRow, slug) if is_plain_text(slug) else None
    if row is None:
        raise NotFound(f"no direction is called `{slug}`; `list_direction_searches` names those kept.")
    return row


def _columns(direction: Direction) -> rows.Columns:
    return {
        "slug": direction.slug,
        "model_id": direction.model_id,
        "site": str(direction.site),
        "position": direction.position,
        "estimator": direction.estimator,
        "vectors": np.array(direction.vectors, np.dtype("<f8")),
    }


def _direction(row: tables.DirectionRow) -> Direction:
    return Direction(
        slug=row.slug,
        model_id=row.model_id,
        site=Site.parse(row.site),
        position=row.position,
        estimator=row.estimator,
        vectors=tuple(tuple(vector) for vector in row.vectors.tolist()),
    )
