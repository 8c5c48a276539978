"""Reads past SQLAlchemy's session, for what a service answers a thousand times a second: one open connection a thread.

A session, its transaction and its connection's way through the pool cost more than a short read. `DirectReads` runs
prepared statements (`db.prepared`) in a snapshot on the driver's own connection. It says nothing of what went wrong:
a connection that failed is closed, and `DirectReadFailed` sends its caller to the ordinary way, whose errors explain
themselves.
"""

import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Dialect, Engine, exc

from db.prepared import Prepared


class DirectReadFailed(Exception):
    """The driver refused; read by a session instead."""


class DirectReads:
    """Snapshots of one database, on a connection for each thread that asks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._own = threading.local()
        self._open: list[Any] = []
        self.on_sqlite = engine.dialect.name == "sqlite"

    @contextmanager
    def snapshot(self) -> Iterator["DirectRun"]:
        """Where statements run, all on one state of the database.

        Raises:
            DirectReadFailed: the database cannot be reached, or refuses a statement.
        """
        try:
            connection = getattr(self._own, "connection", None) or self._connect()
            cursor = connection.cursor()
            cursor.execute("BEGIN DEFERRED" if self.on_sqlite else "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            try:
                yield DirectRun(self._engine.dialect, cursor)
            finally:
                cursor.execute("COMMIT")
        except (exc.DBAPIError, exc.TimeoutError, self._engine.dialect.loaded_dbapi.Error) as error:
            self._forget()
            raise DirectReadFailed(str(error)) from error

    def close(self) -> None:
        """Closes every connection; no thread may be reading."""
        for connection in self._open:
            connection.close()
        self._open.clear()

    def _connect(self) -> Any:
        """The driver's connection, as the engine opens it, taken out of its pool."""
        proxy = self._engine.raw_connection()
        connection = proxy.driver_connection
        proxy.detach()
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA query_only = ON")
            connection.execute("PRAGMA busy_timeout = 0")  # whoever would wait takes the ordinary way
        else:
            connection.autocommit = True  # type: ignore[union-attr]
        self._own.connection = connection
        self._open.append(connection)
        return connection

    def _forget(self) -> None:
        connection = self._own.__dict__.pop("connection", None)
        if connection is not None:
            self._open.remove(connection)
            with suppress(Exception):  # it failed already, and another one takes its place
                connection.close()


class DirectRun:
    """`db.prepared.Run` on a driver's cursor."""

    def __init__(self, dialect: Dialect, cursor: Any) -> None:
        self.dialect = dialect
        self._cursor = cursor

    def all(self, statement: Prepared, values: Mapping[str, Any]) -> list[Any]:
        """All rows of the statement for these values of its parameters."""
        return statement.rows(self.dialect, self._execute, values)

    def _execute(self, sql: str, bound: Any) -> Any:
        self._cursor.execute(sql, bound)
        return self._cursor
