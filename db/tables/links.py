"""Tables of links between features and the parts of a model."""

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index, Integer
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base


class LinkStudyRow(Base):
    """`LinkStudy` without its links; `record` is that as one JSON text."""

    __tablename__ = "link_study"
    slug: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("model.model_id"), index=True)
    sae_key: Mapped[int] = mapped_column(Integer, ForeignKey("sae.sae_key"), index=True)
    n_tested: Mapped[int]
    n_linked: Mapped[int]
    n_linked_shuffled: Mapped[int]
    record: Mapped[list[str]]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))


class FeatureLinkRow(Base):
    """`FeatureLink`: what lists filter and sort by, and `record`, the whole as one JSON text."""

    __tablename__ = "feature_link"
    __table_args__ = (
        ForeignKeyConstraint(["sae_key", "feature_index"], ["feature.sae_key", "feature.feature_index"]),
        Index(None, "sae_key", "feature_index", "strength"),
        Index(None, "kind", "target", "strength"),
    )
    study: Mapped[str] = mapped_column(ForeignKey("link_study.slug", ondelete="CASCADE"), primary_key=True)
    place: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    """Its place in the study."""
    sae_key: Mapped[int] = mapped_column(Integer)
    feature_index: Mapped[int] = mapped_column(Integer)
    concept: Mapped[str]
    kind: Mapped[str]
    target: Mapped[str]
    flow: Mapped[str]
    is_linked: Mapped[bool]
    is_direct: Mapped[bool]
    strength: Mapped[float]
    record: Mapped[list[str]]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))
