"""Engines and transactions: `make_engine`, then `with reading(engine) as session` or `with writing(engine) as session`.

1. A URL becomes an engine: `sqlite:///FILE` or `postgresql://USER@HOST/NAME`. Nothing is opened yet.
2. A SQLite connection gets its pragmas once; transactions begin as their mode says: a reader deferred and unable to
   write, a writer at once (`BEGIN IMMEDIATE`), so that it waits before it reads and never has to give up half-way.
3. Errors of the driver become `DatabaseUnreachable` or `SchemaOutOfDate`; anything else is a bug and passes through.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, make_url
from sqlalchemy.orm import Session

from db.locking import WAIT_SECONDS, WAL_RESET_FIXED, file_lock
from safe_sail.errors import DatabaseUnreachable, SchemaOutOfDate, StoreError

Mode = Literal["read", "write", "migrate"]
Synchronous = Literal["NORMAL", "FULL"]

_POOL: dict[str, Any] = {"pool_size": 8, "max_overflow": 40}  # a web server's 40 threads never wait for a connection
_CONNECT_SECONDS = 10

# ---------------------------------------------------------------------------------------------- 1. URL to engine


def make_engine(url: str | URL, *, read_only: bool = False, synchronous: Synchronous = "NORMAL") -> Engine:
    """Engine of a database URL; connects at first use. A missing SQLite file is created unless `read_only`.

    `synchronous="NORMAL"` survives the death of a process; after a power cut the last transactions may be missing.
    `"FULL"` waits for the disk at each commit and keeps them.

    Raises:
        DatabaseUnreachable: the URL cannot be read, names another kind of database, or its driver is not installed.
    """
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError) as error:
        raise DatabaseUnreachable(f"a database URL is expected, {_EXAMPLES}; this text is none.") from error
    kind = parsed.get_backend_name() if parsed.drivername in _DRIVERS else None
    if kind == "sqlite":
        return _sqlite_engine(parsed, read_only, synchronous)
    if kind == "postgresql":
        return _postgresql_engine(parsed, read_only)
    raise DatabaseUnreachable(f"databases of kind `{parsed.drivername}` are not supported; expected {_EXAMPLES}.")


_EXAMPLES = "`sqlite:///FILE` or `postgresql://USER@HOST/NAME`"
_DRIVERS = ("sqlite", "sqlite+pysqlite", "postgresql", "postgresql+psycopg")


def database_name(engine: Engine) -> str:
    """The engine's URL without its password, for messages."""
    path = sqlite_file(engine)
    return f"sqlite:///{path}" if path is not None else engine.url.render_as_string(hide_password=True)


def sqlite_file(engine: Engine) -> Path | None:
    """File of a SQLite database; None for PostgreSQL."""
    if engine.dialect.name != "sqlite":
        return None
    return Path(engine.get_execution_options()["sqlite_file"])


def _sqlite_engine(url: URL, read_only: bool, synchronous: Synchronous) -> Engine:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise DatabaseUnreachable(
            "a SQLite database needs a file, as in `sqlite:///safe-sail.db`; one in memory would be lost with its "
            "connection."
        )
    if url.query:
        raise DatabaseUnreachable(f"a SQLite URL takes no options; got {', '.join(url.query)}. Name only the file.")
    path = Path(url.database).absolute()
    if read_only:
        url = url.set(database=f"file:{quote(str(path))}", query={"mode": "ro", "uri": "true"})
    engine = create_engine(
        url,
        # without a level of its own the driver never begins or commits for us
        connect_args={"isolation_level": None, "timeout": WAIT_SECONDS},
        execution_options={"sqlite_file": str(path)},
        **_POOL,
    )
    event.listen(engine, "connect", lambda connection, _: _set_pragmas(connection, read_only, synchronous))
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _postgresql_engine(url: URL, read_only: bool) -> Engine:
    connect: dict[str, Any] = {} if "connect_timeout" in url.query else {"connect_timeout": _CONNECT_SECONDS}
    try:
        engine = create_engine(
            url.set(drivername="postgresql+psycopg"), connect_args=connect, pool_pre_ping=True, **_POOL
        )
    except ImportError as error:
        raise DatabaseUnreachable(
            "the driver of PostgreSQL is not installed; type `pip install 'safe-sail[postgres]'`."
        ) from error
    return engine.execution_options(postgresql_readonly=True) if read_only else engine


# --------------------------------------------------------------------------------------- 2. pragmas and begin modes


def _set_pragmas(connection: sqlite3.Connection, read_only: bool, synchronous: Synchronous) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA legacy_alter_table = OFF")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    if not read_only:
        _set_wal(connection)


def _set_wal(connection: sqlite3.Connection) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            # the change needs the file alone, and SQLite refuses at once instead of waiting when two connections try
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    mode: Mode = connection.get_execution_options().get("begin_mode", "read")
    if connection.info.get("begin_mode") != mode:
        connection.exec_driver_sql(f"PRAGMA query_only = {'ON' if mode == 'read' else 'OFF'}")
        # a rebuilt table is dropped for a moment; with foreign keys on that would delete the rows that refer to it
        connection.exec_driver_sql(f"PRAGMA foreign_keys = {'OFF' if mode == 'migrate' else 'ON'}")
        connection.info["begin_mode"] = mode
    connection.exec_driver_sql("BEGIN DEFERRED" if mode == "read" else "BEGIN IMMEDIATE")


def lock_path(database: Path) -> Path:
    """Lock file of a SQLite file."""
    return database.with_name(database.name + ".lock")


def write_lock(engine: Engine, *, always: bool = False) -> AbstractContextManager[None]:
    """Lock that a writer holds on an SQLite older than the WAL-reset fix, or always; nothing on PostgreSQL."""
    path = sqlite_file(engine)
    if path is None or not (always or sqlite3.sqlite_version_info < WAL_RESET_FIXED):
        return nullcontext()
    return file_lock(lock_path(path))


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """Session of one read transaction: a single snapshot, and a write in it is refused by the database.

    Raises:
        DatabaseUnreachable: the database cannot be opened, does not answer, or is damaged.
        SchemaOutOfDate: a table or column is missing.
    """
    # a PostgreSQL snapshot lasts for the whole transaction only from this level on; SQLite's always does
    options: dict[str, Any] = {"begin_mode": "read"}
    if engine.dialect.name == "postgresql":
        options |= {"postgresql_readonly": True, "isolation_level": "REPEATABLE READ"}
    with translated(engine), Session(engine.execution_options(**options), autoflush=False) as session:
        yield session


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """Session of one write transaction: committed at the end of the block, undone whole if the block raises.

    One writer at a time on SQLite; a second waits up to 30 s. So compute outside the block, and save a long search in
    portions. Do not nest.

    Raises:
        DatabaseUnreachable: the database cannot be opened, does not answer, is damaged, read-only, full, or kept by
            another writer.
        SchemaOutOfDate: a table or column is missing.
    """
    options = engine.execution_options(begin_mode="write")
    with translated(engine), write_lock(engine), Session(options, autoflush=False) as session, session.begin():
        fence = engine.get_execution_options().get("fence")
        if fence is not None:
            fence(session)
        yield session


def fenced(engine: Engine, fence: Callable[[Session], None]) -> Engine:
    """The same engine, each of whose `writing` begins with this check; what it raises undoes the transaction."""
    return engine.execution_options(fence=fence)


@contextmanager
def write_connection(engine: Engine, mode: Mode = "write") -> Iterator[Connection]:
    """The same as `writing`, as a bare connection; for changes of the schema."""
    with (
        translated(engine),
        write_lock(engine, always=mode == "migrate"),
        engine.execution_options(begin_mode=mode).begin() as connection,
    ):
        yield connection


def checkpoint(engine: Engine) -> None:
    """Moves the write-ahead log of a SQLite file into the file and empties it; nothing to do on PostgreSQL.

    Raises:
        DatabaseUnreachable: as for `writing`.
    """
    if sqlite_file(engine) is None:
        return
    with translated(engine), write_lock(engine):
        raw = engine.raw_connection()
        try:
            raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            raw.close()


def find_damage(engine: Engine) -> list[str]:
    """What SQLite's `quick_check` and foreign key check find wrong with the file; empty when it is sound.

    Reads the whole file. PostgreSQL checks its pages itself; the answer there is always empty.

    Raises:
        DatabaseUnreachable: the file is so damaged that it cannot be opened.
    """
    if sqlite_file(engine) is None:
        return []
    with reading(engine) as session:
        connection = session.connection()
        try:
            pages = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA quick_check")]
        except exc.DatabaseError as error:  # the check gives up where a table's first page is no page
            return [str(error.orig)]
        if pages != ["ok"]:
            return pages
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check")
        return [f"{row[0]}: row {row[1]} refers to a missing row of {row[2]}" for row in broken]


# ------------------------------------------------------------------------------------------------------- 3. errors

_MISSING_IN_POSTGRESQL = ("42P01", "42703")  # undefined table, undefined column
_READ_ONLY_IN_POSTGRESQL = "25006"


@contextmanager
def translated(engine: Engine) -> Iterator[None]:
    """Turns what the driver raises in the block into errors of ours, where they mean something to the caller."""
    try:
        yield
    except exc.TimeoutError as error:
        raise DatabaseUnreachable(f"{database_name(engine)}: no connection became free in time.") from error
    except exc.DBAPIError as error:
        meaning = _meaning(engine, error)
        if meaning is None:
            raise
        raise meaning from error


def _meaning(engine: Engine, error: exc.DBAPIError) -> StoreError | None:
    said = str(error.orig).strip()
    name = database_name(engine)
    sqlstate = getattr(error.orig, "sqlstate", None)
    if sqlstate in _MISSING_IN_POSTGRESQL or said.startswith(("no such table", "no such column")):
        return SchemaOutOfDate(f"{name} lacks a part of the schema ({said}); type `safe-sail migrate`.")
    if isinstance(error.orig, sqlite3.Error):
        return _sqlite_meaning(name, said, error.orig)
    if isinstance(error, exc.OperationalError) or sqlstate == _READ_ONLY_IN_POSTGRESQL:
        return DatabaseUnreachable(f"{name} does not answer as expected: {said}")
    return None


def _sqlite_meaning(name: str, said: str, error: sqlite3.Error) -> StoreError | None:
    advice = {
        sqlite3.SQLITE_CANTOPEN: "the folder must exist and the file be readable; `safe-sail migrate` creates the file",
        sqlite3.SQLITE_NOTADB: "the file is no SQLite database or its head is damaged; restore it or name another",
        sqlite3.SQLITE_CORRUPT: "the file is damaged; restore a copy",
        sqlite3.SQLITE_READONLY: "it is open for reading only",
        sqlite3.SQLITE_BUSY: f"another writer has kept it for {WAIT_SECONDS:g} s; wait for it or end it",
        sqlite3.SQLITE_LOCKED: "another connection of this process keeps it",
        sqlite3.SQLITE_FULL: "the disk is full",
        sqlite3.SQLITE_IOERR: "the disk or its mount fails",
        sqlite3.SQLITE_PERM: "access to the file is denied",
        sqlite3.SQLITE_PROTOCOL: "its file system cannot lock; keep it on a local disk",
    }.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)  # the low byte is the primary code
    return None if advice is None else DatabaseUnreachable(f"{name}: {said}; {advice}.")
