"""Bringing a database to this program's schema, and refusing one of another.

One tree of revisions serves both databases (`db/migrations`). An upgrade is one transaction under one lock: two
programs that start at once on an empty database do not meet, and a revision that fails leaves nothing behind.
"""

from pathlib import Path
from typing import NamedTuple

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect

from db.engine import database_name, sqlite_file, translated, write_connection
from db.tables import Base
from safe_sail.errors import SchemaOutOfDate

_ADVISORY_LOCK = 0x5AFE_5A11  # any number that stays the same: PostgreSQL's lock for programs that agree on it


class Upgraded(NamedTuple):
    """Revisions before and after an upgrade; None before the first."""

    before: str | None
    after: str


def upgrade(engine: Engine, revision: str = "head") -> Upgraded:
    """Brings the database to a revision, creating everything in an empty one; does nothing where it is there already.

    Raises:
        DatabaseUnreachable: the database cannot be opened or written.
        SchemaOutOfDate: its revision is newer than this program, or its tables are not ours.
    """
    with write_connection(engine, mode="migrate") as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
        before = MigrationContext.configure(connection).get_current_revision()
        _refuse_foreign(engine, connection, before)
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        after = MigrationContext.configure(connection).get_current_revision()
        assert after is not None
        return Upgraded(before, after)


def head_revision() -> str:
    """The revision that this program is written for."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def current_revision(engine: Engine) -> str | None:
    """The database's revision; None where it has none or a SQLite file does not exist (it is not created).

    Raises:
        DatabaseUnreachable: the database cannot be opened.
    """
    path = sqlite_file(engine)
    if path is not None and not path.exists():
        return None
    with translated(engine), engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def require_head(engine: Engine) -> None:
    """Nothing, where the database is at this program's revision.

    Raises:
        DatabaseUnreachable: the database cannot be opened.
        SchemaOutOfDate: it is empty, older or newer; the message says what to type.
    """
    current, head = current_revision(engine), head_revision()
    if current == head:
        return
    if current is None:
        raise SchemaOutOfDate(f"{database_name(engine)} holds no schema yet; type {_advice(engine)}.")
    if current not in _known_revisions():
        raise _newer(engine, current)
    raise SchemaOutOfDate(
        f"{database_name(engine)} is at revision {current}, this program needs {head}; type {_advice(engine)}."
    )


def _refuse_foreign(engine: Engine, connection: Connection, before: str | None) -> None:
    if before is not None and before not in _known_revisions():
        raise _newer(engine, before)
    if before is None and (ours := set(inspect(connection).get_table_names()) & set(Base.metadata.tables)):
        raise SchemaOutOfDate(
            f"{database_name(engine)} has tables of our names ({', '.join(sorted(ours))}) but no revision; expected an "
            f"empty database or one that `safe-sail migrate` made. Name another."
        )


def _newer(engine: Engine, revision: str) -> SchemaOutOfDate:
    return SchemaOutOfDate(
        f"{database_name(engine)} is at revision {revision}, which this program does not know (its newest is "
        f"{head_revision()}); a newer Safe-SAIL wrote it. Install that version or name another database."
    )


def _advice(engine: Engine) -> str:
    return f"`safe-sail migrate --database {database_name(engine)}`"


def _known_revisions() -> set[str]:
    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config
