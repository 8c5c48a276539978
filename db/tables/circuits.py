"""Tables of safety circuits."""

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base


class CircuitRow(Base):
    """`Circuit` without its members."""

    __tablename__ = "circuit"
    slug: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("model.model_id"), index=True)
    behaviour: Mapped[str]
    method: Mapped[str]
    ablation: Mapped[str]
    n_heads: Mapped[int]
    n_neurons: Mapped[int]
    n_features: Mapped[int]
    start_model: Mapped[str | None]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))


class CircuitMemberRow(Base):
    """`CircuitMember`: `unit` as `L3.H5`, `L3.N902` or `sae-slug/4711`; `place` keeps the order."""

    __tablename__ = "circuit_member"
    circuit: Mapped[str] = mapped_column(ForeignKey("circuit.slug", ondelete="CASCADE"), primary_key=True)
    unit: Mapped[str] = mapped_column(primary_key=True, index=True)
    place: Mapped[int]
    probability: Mapped[float]


class CircuitSearchRow(Base):
    """`CircuitSearch`: `record` is the whole as one JSON text; `circuit` and `alone` point at their rows."""

    __tablename__ = "circuit_search"
    slug: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("model.model_id"), index=True)
    objective: Mapped[str]
    circuit: Mapped[str] = mapped_column(ForeignKey("circuit.slug"))
    alone: Mapped[str | None] = mapped_column(ForeignKey("circuit.slug"))
    record: Mapped[list[str]]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))


class CircuitEvaluationRow(Base):
    """`CircuitEvaluation`, whole as one JSON text."""

    __tablename__ = "circuit_evaluation"
    circuit: Mapped[str] = mapped_column(ForeignKey("circuit.slug", ondelete="CASCADE"), primary_key=True)
    ablation: Mapped[str] = mapped_column(primary_key=True)
    record: Mapped[list[str]]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))
