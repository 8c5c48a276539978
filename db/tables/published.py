"""Tables of what others published about features."""

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index, Integer
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base


class PublishedScoreRow(Base):
    """`PublishedScore`."""

    __tablename__ = "published_score"
    __table_args__ = (ForeignKeyConstraint(["sae_key", "feature_index"], ["feature.sae_key", "feature.feature_index"]),)
    sae_key: Mapped[int] = mapped_column(Integer, primary_key=True)
    feature_index: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    source: Mapped[str] = mapped_column(primary_key=True)
    method: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[float]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))


class FeatureTagRow(Base):
    """One tag of `FeatureTags`; `place` is its place among them."""

    __tablename__ = "feature_tag"
    __table_args__ = (
        ForeignKeyConstraint(["sae_key", "feature_index"], ["feature.sae_key", "feature.feature_index"]),
        Index(None, "sae_key", "tag"),
    )
    sae_key: Mapped[int] = mapped_column(Integer, primary_key=True)
    feature_index: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    source: Mapped[str] = mapped_column(primary_key=True)
    tag: Mapped[str] = mapped_column(primary_key=True)
    place: Mapped[int]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))
