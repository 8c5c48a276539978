"""Refusal directions in the store: what was found, the search behind it, and its evaluation.

Rule of keys as in `saving`: the same slug again replaces what was there. A search that is saved again takes the
evaluation and the reading of its former direction away, since they describe other numbers.
"""

import numpy as np
from sqlalchemy import delete
from sqlalchemy.orm import Session

from db import tables
from db.store import rows
from db.store.loading import Kept
from db.store.saving import require_run
from db.store.slugs import Named, kept, list_named, load_named, require_subjects, row_named
from db.store.upserts import upsert
from db.store.whole import to_json
from safe_sail.records import Direction, DirectionEvaluation, DirectionReading, DirectionSearch
from safe_sail.sites import Site

_DIRECTIONS = Named(tables.DirectionRow, "direction", "list_direction_searches")
_SEARCHES = Named(tables.DirectionSearchRow, "search for a direction", "list_direction_searches")


def save_direction_search(session: Session, search: DirectionSearch, *, run_id: str) -> None:
    """Keeps a search and the directions it ended with; its model must be kept before.

    Raises:
        NotFound: the run or the model is not kept.
    """
    require_subjects(session, run_id, search.slug, search.model_id)
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
    row_named(session, _DIRECTIONS, evaluation.direction)
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
    row_named(session, _DIRECTIONS, reading.direction)
    columns: rows.Columns = {"direction": reading.direction, "record": [to_json(reading)], "run_id": run_id}
    upsert(session, tables.DirectionReadingRow, [columns], key=("direction",))


def load_direction(session: Session, slug: str) -> Kept[Direction]:
    """One direction.

    Raises:
        NotFound: no direction has this slug.
    """
    row: tables.DirectionRow = row_named(session, _DIRECTIONS, slug)
    return Kept(_direction(row), row.run_id)


def load_direction_search(session: Session, slug: str) -> Kept[DirectionSearch]:
    """One search, whole.

    Raises:
        NotFound: no search has this slug.
    """
    return load_named(session, _SEARCHES, DirectionSearch, slug)


def load_direction_evaluation(session: Session, slug: str) -> Kept[DirectionEvaluation] | None:
    """Evaluation of a direction, or None where it was not evaluated.

    Raises:
        NotFound: no direction has this slug.
    """
    row_named(session, _DIRECTIONS, slug)
    row = session.get(tables.DirectionEvaluationRow, slug)
    return None if row is None else kept(DirectionEvaluation, row)


def load_direction_reading(session: Session, slug: str) -> Kept[DirectionReading] | None:
    """Reading of a direction, or None where it was not read.

    Raises:
        NotFound: no direction has this slug.
    """
    row_named(session, _DIRECTIONS, slug)
    row = session.get(tables.DirectionReadingRow, slug)
    return None if row is None else kept(DirectionReading, row)


def list_direction_searches(
    session: Session, *, model_id: str | None = None, limit: int = 100, after: str | None = None
) -> list[Kept[DirectionSearch]]:
    """Searches by slug, of one model or of all; behind `after`, if it is given.

    Raises:
        BadInput: the limit is outside 1 to 1000.
    """
    where = () if model_id is None else (tables.DirectionSearchRow.model_id == model_id,)
    return list_named(session, _SEARCHES, DirectionSearch, *where, limit=limit, after=after)


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
