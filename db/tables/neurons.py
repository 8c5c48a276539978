"""Tables of safety neurons: searches with the change scores behind them, comparisons of two aims, guards."""

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base


class NeuronSearchRow(Base):
    """`NeuronSearch` in `record` and its `NeuronChange` in `change`, each whole as one JSON text."""

    __tablename__ = "neuron_search"
    slug: Mapped[str] = mapped_column(primary_key=True)
    first_model: Mapped[str] = mapped_column(ForeignKey("model.model_id"), index=True)
    second_model: Mapped[str] = mapped_column(ForeignKey("model.model_id"), index=True)
    record: Mapped[list[str]]
    change: Mapped[list[str]]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))


class NeuronTaxRow(Base):
    """`NeuronTax`, whole as one JSON text."""

    __tablename__ = "neuron_tax"
    slug: Mapped[str] = mapped_column(primary_key=True)
    base_model: Mapped[str] = mapped_column(ForeignKey("model.model_id"), index=True)
    record: Mapped[list[str]]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))


class GuardRow(Base):
    """`GuardEvaluation`, whole as one JSON text."""

    __tablename__ = "guard"
    slug: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("model.model_id"), index=True)
    record: Mapped[list[str]]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))
