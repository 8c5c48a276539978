"""`upsert`: rows by key, the same statement for both databases."""

from typing import cast

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from db import tables
from db.store import rows


def insert_into(session: Session, row: type[tables.Base]) -> sqlite.Insert | postgresql.Insert:
    """An insert that may say what happens where a key is there already, of the session's kind of database."""
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    return insert(cast(Table, row.__table__))


def upsert(
    session: Session, row: type[tables.Base], columns: list[rows.Columns], *, key: tuple[str, ...], replace: bool = True
) -> None:
    """Rows by key: the same key again replaces the row, or with `replace` off leaves it.

    Raises:
        BadRecord: a value cannot be kept on both databases.
    """
    if not columns:
        return
    insert = insert_into(session, row)
    if replace:
        values = {name: insert.excluded[name] for name in columns[0] if name not in key}
        statement = insert.on_conflict_do_update(index_elements=key, set_=values)
    else:
        statement = insert.on_conflict_do_nothing(index_elements=key)
    session.execute(statement, [rows.keepable(one, key) for one in columns])
    session.expire_all()  # rows that the session has already read may have changed
