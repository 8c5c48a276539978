"""Alembic's environment: runs revisions on the connection that `db.migrate.upgrade` hands over.

For writing a new revision: `alembic -x url=sqlite:///scratch.db revision --autogenerate -m "What it brings"`, on a
database that `safe-sail migrate` has brought to the last one.
"""

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Connection
from sqlalchemy.types import TypeDecorator

from db.engine import make_engine, write_connection
from db.search import SEARCH_OBJECTS
from db.tables import DESCENDING_INDEXES, Base


def include_object(thing: Any, name: str | None, kind: str, reflected: bool, compared: Any) -> bool:
    """Leaves out what the metadata does not know: what `db.search.create_search` builds, indexes with a direction."""
    return not (name or "").startswith((*SEARCH_OBJECTS, *DESCENDING_INDEXES))


def render_item(kind: str, thing: Any, autogen: AutogenContext) -> str | Literal[False]:
    """Column types as SQLAlchemy's own, so that a revision stays true when our types change."""
    return f"sa.{thing.impl!r}" if kind == "type" and isinstance(thing, TypeDecorator) else False


def run(connection: Connection) -> None:
    """Runs the revisions inside the connection's transaction."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        transactional_ddl=True,
        include_object=include_object,
        render_item=render_item,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    engine = make_engine(context.get_x_argument(as_dictionary=True)["url"])
    with write_connection(engine, mode="migrate") as own:
        run(own)
    engine.dispose()
