"""Statements that are compiled once and run as text: for reads that a service answers a thousand times a second.

SQLAlchemy spends more on building a statement, its cache key and its result than SQLite on answering it. A `Prepared`
is an ordinary `select` with named `bindparam`s; what it gives are named tuples of the columns, as the column types
make them. No list of values can be bound.
"""

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Dialect, Select
from sqlalchemy.orm import Session

_Process = Callable[[Any], Any]
_Processors = tuple[tuple[int, _Process], ...]
"""By place of a column: what its type makes of the driver's value."""


class _Plan(NamedTuple):
    sql: str
    names: tuple[str, ...] | None
    """Parameters in their order, or None where the driver takes them by name."""
    make: Callable[..., Any]


class Prepared:
    """One statement, compiled at its first use on each kind of database."""

    def __init__(self, statement: Select[Any]) -> None:
        self._statement = statement
        self._plans: dict[str, _Plan] = {}
        self._processors: dict[str, _Processors] = {}

    def all(self, session: Session, values: Mapping[str, Any]) -> list[Any]:
        """All rows for these values of the parameters."""
        connection = session.connection()
        dialect = connection.dialect
        plan = self._plans.get(dialect.name) or self._plan(dialect)
        bound: Any = dict(values) if plan.names is None else tuple(values[name] for name in plan.names)
        result = connection.exec_driver_sql(plan.sql, bound)
        processors = self._processors.get(dialect.name)
        if processors is None:
            # the driver's codes of the columns' types come with the first answer; PostgreSQL's floats need them
            assert result.cursor is not None
            codes = [column[1] for column in result.cursor.description]
            processors = self._processors[dialect.name] = self._processors_of(dialect, codes)
        return [_row(plan, processors, row) for row in result.fetchall()]

    def _plan(self, dialect: Dialect) -> _Plan:
        compiled = self._statement.compile(dialect=dialect)
        names = [str(column.key) for column in self._statement.selected_columns]
        order = getattr(compiled, "positiontup", None)
        plan = _Plan(
            sql=str(compiled),
            names=None if order is None else tuple(order),
            make=getattr(namedtuple("Row", names), "_make"),  # noqa: B009 - mypy sees none
        )
        self._plans[dialect.name] = plan
        return plan

    def _processors_of(self, dialect: Dialect, codes: Sequence[Any]) -> _Processors:
        columns = zip(self._statement.selected_columns, codes, strict=True)
        found = [column.type.dialect_impl(dialect).result_processor(dialect, code) for column, code in columns]
        return tuple((i, process) for i, process in enumerate(found) if process is not None)


def _row(plan: _Plan, processors: _Processors, row: Any) -> Any:
    if not processors:
        return plan.make(row)
    values = list(row)
    for i, process in processors:
        values[i] = process(values[i])
    return plan.make(values)
