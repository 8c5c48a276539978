"""The table of what features do on texts that their largest activations did not choose."""

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Integer
from sqlalchemy.orm import Mapped, mapped_column

from db.packing import ZippedArray, ZippedTexts
from db.tables.base import Base, FloatArray, IntArray


class ContextSampleRow(Base):
    """`ContextSample`: all its contexts in one row, one after another, each with its kind."""

    __tablename__ = "context_sample"
    __table_args__ = (ForeignKeyConstraint(["sae_key", "feature_index"], ["feature.sae_key", "feature.feature_index"]),)
    sae_key: Mapped[int] = mapped_column(Integer, primary_key=True)
    feature_index: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    quantile_999: Mapped[float]
    kinds: Mapped[IntArray] = mapped_column(ZippedArray)
    lengths: Mapped[IntArray] = mapped_column(ZippedArray)
    peaks: Mapped[IntArray] = mapped_column(ZippedArray)
    token_ids: Mapped[IntArray] = mapped_column(ZippedArray)
    activations: Mapped[FloatArray] = mapped_column(ZippedArray)
    tokens: Mapped[list[str]] = mapped_column(ZippedTexts)
    source_ids: Mapped[list[str]] = mapped_column(ZippedTexts)
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))
