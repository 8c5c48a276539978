"""Tables of features: what they fire on, what is said of them, and how far that can be trusted."""

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Integer, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base, FloatArray, IntArray


class FeatureRow(Base):
    """One feature: the light half of `TopContexts`."""

    __tablename__ = "feature"
    sae_key: Mapped[int] = mapped_column(Integer, ForeignKey("sae.sae_key"), primary_key=True)
    feature_index: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    n_tokens_seen: Mapped[int | None]
    density: Mapped[float | None]
    max_activation: Mapped[float | None]
    n_contexts: Mapped[int | None]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))


class ContextsRow(Base):
    """The heavy half of `TopContexts`: all contexts of one feature in one row."""

    __tablename__ = "contexts"
    __table_args__ = (ForeignKeyConstraint(["sae_key", "feature_index"], ["feature.sae_key", "feature.feature_index"]),)
    sae_key: Mapped[int] = mapped_column(Integer, primary_key=True)
    feature_index: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    contexts: Mapped[bytes]
    """As `db.packing.pack_contexts` writes them."""
    histogram_edges: Mapped[FloatArray | None]
    histogram_counts: Mapped[IntArray | None]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))


class ExplanationRow(Base):
    """`Explanation`; its text is searched through what `db/search.py` builds beside this table."""

    __tablename__ = "explanation"
    __table_args__ = (
        UniqueConstraint("sae_key", "feature_index", "explainer", "prompt_version"),
        ForeignKeyConstraint(["sae_key", "feature_index"], ["feature.sae_key", "feature.feature_index"]),
    )
    explanation_key: Mapped[int] = mapped_column(Integer, primary_key=True)
    sae_key: Mapped[int] = mapped_column(Integer)
    feature_index: Mapped[int] = mapped_column(Integer)
    explainer: Mapped[str]
    prompt_version: Mapped[str]
    text: Mapped[str]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))


class ExplanationScoreRow(Base):
    """`ExplanationScore`."""

    __tablename__ = "explanation_score"
    explanation_key: Mapped[int] = mapped_column(
        Integer, ForeignKey("explanation.explanation_key", ondelete="CASCADE"), primary_key=True
    )
    method: Mapped[str] = mapped_column(primary_key=True)
    score: Mapped[float]
    score_low: Mapped[float]
    score_high: Mapped[float]
    score_n: Mapped[int]
    score_level: Mapped[float]
    control: Mapped[float]
    control_low: Mapped[float]
    control_high: Mapped[float]
    control_n: Mapped[int]
    control_level: Mapped[float]
    n_excluded: Mapped[int]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))
