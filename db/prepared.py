"""Statements that are compiled once and run as text: for reads that a service answers a thousand times a second.

SQLAlchemy spends more on building a statement, its cache key and its result than SQLite on answering it. A `Prepared`
is an ordinary `select` with named `bindparam`s; what it gives are named tuples of the columns, as the column types
make them. No list of values can be bound.
"""

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Dialect, Select
from sqlalchemy.orm import Session

_Process = Callable[[Any], Any]
_Processors = tuple[tuple[int, _Process], ...]
"""By place of a column: what its type makes of the driver's value."""


class Run(Protocol):
    """Where prepared statements run: each gives rows of one snapshot of the database."""

    @property
    def dialect(self) -> Dialect:
        """The kind of database."""

    def all(self, statement: "Prepared", values: Mapping[str, Any]) -> list[Any]:
        """All rows of the statement for these values of its parameters."""


class Cursor(Protocol):
    """What is needed of a driver's cursor, or of SQLAlchemy's result around one."""

    @property
    def description(self) -> Any:
        """A column's name and type code, for each."""

    def fetchall(self) -> Sequence[Any]:
        """All rows."""


def run_in(session: Session) -> Run:
    """Statements run in the session's transaction; what the driver raises is SQLAlchemy's."""
    return _InSession(session)


class _InSession:
    def __init__(self, session: Session) -> None:
        self._connection = session.connection()
        self.dialect = self._connection.dialect

    def all(self, statement: "Prepared", values: Mapping[str, Any]) -> list[Any]:
        """All rows of the statement for these values of its parameters."""

        def execute(sql: str, bound: Any) -> Cursor:
            result = self._connection.exec_driver_sql(sql, bound)
            assert result.cursor is not None
            return result.cursor

        return statement.rows(self.dialect, execute, values)


class _Plan(NamedTuple):
    sql: str
    names: tuple[str, ...] | None
    """Parameters in their order, or None where the driver takes them by name."""
    given: Mapping[str, Any]
    """Parameters that stand in the statement itself."""
    make: Callable[..., Any]
    """Of a row's values."""


class Prepared:
    """One statement, compiled at its first use on each kind of database; its rows are tuples, with names if `named`."""

    def __init__(self, statement: Select[Any], *, named: bool = True) -> None:
        self._statement, self._named = statement, named
        self._plans: dict[str, _Plan] = {}
        self._processors: dict[str, _Processors] = {}

    def all(self, session: Session, values: Mapping[str, Any]) -> list[Any]:
        """All rows for these values of the parameters, in the session's transaction."""
        return run_in(session).all(self, values)

    def rows(self, dialect: Dialect, execute: Callable[[str, Any], Cursor], values: Mapping[str, Any]) -> list[Any]:
        """All rows for these values of the parameters; `execute` takes the SQL and what is bound to it."""
        plan = self._plans.get(dialect.name) or self._plan(dialect)
        bound: Any
        if plan.names is None:
            bound = {**plan.given, **values}
        else:
            bound = tuple(values[name] if name in values else plan.given[name] for name in plan.names)
        cursor = execute(plan.sql, bound)
        processors = self._processors.get(dialect.name)
        if processors is None:
            # the driver's codes of the columns' types come with the first answer; PostgreSQL's floats need them
            codes = [column[1] for column in cursor.description]
            processors = self._processors[dialect.name] = self._processors_of(dialect, codes)
        found = cursor.fetchall()
        if processors:
            return [_row(plan, processors, row) for row in found]
        return list(map(plan.make, found)) if self._named else list(found)

    def _plan(self, dialect: Dialect) -> _Plan:
        compiled = self._statement.compile(dialect=dialect)
        names = [str(column.key) for column in self._statement.selected_columns]
        order = getattr(compiled, "positiontup", None)
        plan = _Plan(
            sql=str(compiled),
            names=None if order is None else tuple(order),
            given={name: value for name, value in compiled.params.items() if value is not None},
            make=getattr(namedtuple("Row", names), "_make") if self._named else tuple,  # noqa: B009 - mypy sees none
        )
        self._plans[dialect.name] = plan
        return plan

    def _processors_of(self, dialect: Dialect, codes: Sequence[Any]) -> _Processors:
        columns = zip(self._statement.selected_columns, codes, strict=True)
        found = [column.type.dialect_impl(dialect).result_processor(dialect, code) for column, code in columns]
        return tuple((i, process) for i, process in enumerate(found) if process is not None)


def _row(plan: _Plan, processors: _Processors, row: Any) -> Any:
    values = list(row)
    for i, process in processors:
        values[i] = process(values[i])
    return plan.make(values)
