"""Tables of refusal directions."""

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base, FloatArray


class DirectionRow(Base):
    """`Direction`; `vectors` holds its rows, float64."""

    __tablename__ = "direction"
    slug: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("model.model_id"), index=True)
    site: Mapped[str]
    position: Mapped[int]
    estimator: Mapped[str]
    vectors: Mapped[FloatArray]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))


class DirectionSearchRow(Base):
    """`DirectionSearch`: `record` is the whole as one JSON text; `direction` and `added` point at their rows."""

    __tablename__ = "direction_search"
    slug: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("model.model_id"), index=True)
    outcome: Mapped[str]
    direction: Mapped[str | None] = mapped_column(ForeignKey("direction.slug"))
    added: Mapped[str | None] = mapped_column(ForeignKey("direction.slug"))
    record: Mapped[list[str]]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))


class DirectionReadingRow(Base):
    """`DirectionReading`, whole as one JSON text."""

    __tablename__ = "direction_reading"
    direction: Mapped[str] = mapped_column(ForeignKey("direction.slug", ondelete="CASCADE"), primary_key=True)
    record: Mapped[list[str]]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))


class DirectionEvaluationRow(Base):
    """`DirectionEvaluation`, whole as one JSON text."""

    __tablename__ = "direction_evaluation"
    direction: Mapped[str] = mapped_column(ForeignKey("direction.slug", ondelete="CASCADE"), primary_key=True)
    record: Mapped[list[str]]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))
