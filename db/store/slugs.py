"""Rows that are named by a slug and hold a record whole: one function for everything that methods keep so."""

from typing import Any, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from db import tables
from db.lookup import require_limit
from db.packing import is_plain_text
from db.store.loading import Kept
from db.store.saving import require_run
from db.store.whole import from_json
from safe_sail.errors import NotFound

T = TypeVar("T")


class Named(NamedTuple):
    """A table whose rows have a slug, a record and a run, and the words for what is in it."""

    table: Any
    noun: str
    """What one of them is, as `search for a circuit`."""
    listed_by: str
    """Function that names those kept."""


def row_named(session: Session, of: Named, slug: str) -> Any:
    """The row.

    Raises:
        NotFound: nothing has this slug.
    """
    row = session.get(of.table, slug) if is_plain_text(slug) else None
    if row is None:
        raise NotFound(f"no {of.noun} is called `{slug}`; `{of.listed_by}` names those kept.")
    return row


def load_named(session: Session, of: Named, kind: type[T], slug: str) -> Kept[T]:
    """The record, whole.

    Raises:
        NotFound: nothing has this slug.
    """
    return kept(kind, row_named(session, of, slug))


def list_named(
    session: Session, of: Named, kind: type[T], *where: ColumnElement[bool], limit: int, after: str | None = None
) -> list[Kept[T]]:
    """Records by slug, of the rows for which all conditions hold, from behind a slug on if one is given.

    Raises:
        BadInput: the limit is outside 1 to 1000.
    """
    require_limit(limit)
    columns = select(of.table.record, of.table.run_id).where(*where).order_by(of.table.slug).limit(limit)
    if after is not None:
        columns = columns.where(of.table.slug > after)
    return [Kept(from_json(kind, record[0]), run_id) for record, run_id in session.execute(columns)]


def kept(kind: type[T], row: Any) -> Kept[T]:
    """The record of a row, with its run."""
    return Kept(from_json(kind, row.record[0]), row.run_id)


def require_subjects(session: Session, run_id: str, slug: str, *model_ids: str) -> None:
    """Refuses a record whose run or one of whose models is not kept.

    Raises:
        NotFound: one is not.
    """
    require_run(session, run_id)
    for model_id in model_ids:
        if session.get(tables.ModelRow, model_id) is None:
            raise NotFound(f"model `{model_id}` of {slug} is not in the database; save the model first.")
