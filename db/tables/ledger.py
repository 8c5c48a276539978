"""The table of what asking language models cost and how it ended."""

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Integer
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base


class LedgerRow(Base):
    """`LedgerEntry`; `method` is empty at the stage of explaining, since keys hold no NULL."""

    __tablename__ = "ledger"
    __table_args__ = (ForeignKeyConstraint(["sae_key", "feature_index"], ["feature.sae_key", "feature.feature_index"]),)
    sae_key: Mapped[int] = mapped_column(Integer, primary_key=True)
    feature_index: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    stage: Mapped[str] = mapped_column(primary_key=True)
    explainer: Mapped[str] = mapped_column(primary_key=True)
    prompt_version: Mapped[str] = mapped_column(primary_key=True)
    method: Mapped[str] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"), primary_key=True)
    model: Mapped[str]
    reason: Mapped[str | None]
    texts: Mapped[list[str]]
    attempts: Mapped[int]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    assumed_tokens: Mapped[int]
    cost: Mapped[float | None]
