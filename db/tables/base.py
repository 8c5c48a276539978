"""What every table is made of: names of constraints, types of columns."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import JSON, BigInteger, DateTime, Dialect, MetaData, Text
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator

from db.packing import PackedArray, PackedTexts

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.integer]


DESCENDING_INDEXES = ("ix_concept_score_best", "ix_concept_score_order", "ix_feature_listing_by_")
"""Beginnings of the names of indexes with a direction, which only revisions make: Alembic cannot compare them."""


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC: SQLite forgets the zone and PostgreSQL answers in its own, so both are normalised here."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Any zone to UTC; naive on SQLite."""
        if value is None:
            return None
        assert value.tzinfo is not None
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Back to an aware moment in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Names of constraints and types of columns for every table."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    # counts are 64 bits wide: a corpus may have more than 2**31 tokens
    type_annotation_map = {  # noqa: RUF012
        int: BigInteger,
        # PostgreSQL orders by the server's locale unless told: by code point, as SQLite does
        str: Text().with_variant(Text(collation="C"), "postgresql"),
        datetime: UtcDateTime,
        # not JSONB: it refuses NUL, forgets the order of keys and rewrites numbers; nothing searches in these
        dict[str, Any]: JSON,
        FloatArray: PackedArray,
        IntArray: PackedArray,
        list[str]: PackedTexts,
    }
