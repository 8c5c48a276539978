"""The table of what changing features does to their model."""

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Integer
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base


class InterventionScoreRow(Base):
    """`InterventionScore`, whole as one JSON text."""

    __tablename__ = "intervention_score"
    __table_args__ = (ForeignKeyConstraint(["sae_key", "feature_index"], ["feature.sae_key", "feature.feature_index"]),)
    sae_key: Mapped[int] = mapped_column(Integer, primary_key=True)
    feature_index: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    intervention: Mapped[str] = mapped_column(primary_key=True)
    prompts: Mapped[str] = mapped_column(primary_key=True)
    record: Mapped[list[str]]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))
