"""Statements that are compiled once and run as text: for reads that a service answers a thousand times a second.

SQLAlchemy spends more on building a statement, its cache key and its result than SQLite on answering it. A `Prepared`
is an ordinary `select` with named `bindparam`s; what it gives are named tuples of the columns, as the column types
make them. No list of values can be bound.
"""

from collections import namedtuple
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Dialect, Select
from sqlalchemy.orm import Session

_Process = Callable[[Any], Any]


class _Plan(NamedTuple):
    sql: str
    names: tuple[str, ...] | None
    """Parameters in their order, or None where the driver takes them by name."""
    processors: tuple[tuple[int, _Process], ...]
    make: Callable[..., Any]


class Prepared:
    """One statement, compiled at its first use on each kind of database."""

    def __init__(self, statement: Select[Any]) -> None:
        self._statement = statement
        self._plans: dict[str, _Plan] = {}

    def all(self, session: Session, values: Mapping[str, Any]) -> list[Any]:
        """All rows for these values of the parameters."""
        connection = session.connection()
        plan = self._plans.get(connection.dialect.name) or self._plan(connection.dialect)
        bound: Any = dict(values) if plan.names is None else tuple(values[name] for name in plan.names)
        rows = connection.exec_driver_sql(plan.sql, bound).fetchall()
        return [_row(plan, row) for row in rows]

    def _plan(self, dialect: Dialect) -> _Plan:
        compiled = self._statement.compile(dialect=dialect)
        columns = list(self._statement.selected_columns)
        processors = (
            (i, column.type.dialect_impl(dialect).result_processor(dialect, None)) for i, column in enumerate(columns)
        )
        order = getattr(compiled, "positiontup", None)
        plan = _Plan(
            sql=str(compiled),
            names=None if order is None else tuple(order),
            processors=tuple((i, process) for i, process in processors if process is not None),
            make=getattr(namedtuple("Row", [str(column.key) for column in columns]), "_make"),  # noqa: B009 - mypy sees none
        )
        self._plans[dialect.name] = plan
        return plan


def _row(plan: _Plan, row: Any) -> Any:
    if not plan.processors:
        return plan.make(row)
    values = list(row)
    for i, process in plan.processors:
        values[i] = process(values[i])
    return plan.make(values)
