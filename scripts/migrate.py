"""Bring a database to this program's schema; creates everything in an empty one.

Run: safe-sail migrate --database sqlite:///safe-sail.db
"""

from db.engine import database_name, make_engine
from db.migrate import upgrade
from scripts.options import DEFAULT_DATABASE, DatabaseUrl


def migrate(database: DatabaseUrl = DEFAULT_DATABASE) -> None:
    """Bring a database to this program's schema; creates everything in an empty one."""
    engine = make_engine(database)
    try:
        revisions = upgrade(engine)
    finally:
        engine.dispose()
    before = revisions.before or "empty"
    change = "already at" if revisions.before == revisions.after else f"{before} ->"
    print(f"{database_name(engine)}: {change} {revisions.after}")
