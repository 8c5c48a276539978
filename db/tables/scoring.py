"""Tables of how SAEs and their features carry concepts."""

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index, Integer
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base


class SaeFactsRow(Base):
    """`SaeFacts`."""

    __tablename__ = "sae_facts"
    sae_key: Mapped[int] = mapped_column(Integer, ForeignKey("sae.sae_key"), primary_key=True)
    l0: Mapped[float]
    explained_variance: Mapped[float]
    ce_recovered: Mapped[float]
    dead_share: Mapped[float]
    n_tokens: Mapped[int]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))


class SaeScoreRow(Base):
    """`SaeScore`."""

    __tablename__ = "sae_score"
    sae_key: Mapped[int] = mapped_column(Integer, ForeignKey("sae.sae_key"), primary_key=True)
    concept: Mapped[str] = mapped_column(ForeignKey("concept.name"), primary_key=True, index=True)
    best_feature: Mapped[int] = mapped_column(Integer)
    auroc: Mapped[float]
    auroc_low: Mapped[float]
    auroc_high: Mapped[float]
    auroc_n: Mapped[int]
    auroc_level: Mapped[float]
    rate_gap: Mapped[float]
    rate_gap_low: Mapped[float]
    rate_gap_high: Mapped[float]
    rate_gap_n: Mapped[int]
    rate_gap_level: Mapped[float]
    f1: Mapped[float]
    f1_low: Mapped[float]
    f1_high: Mapped[float]
    f1_n: Mapped[int]
    f1_level: Mapped[float]
    control_rate_gap: Mapped[float]
    control_rate_gap_low: Mapped[float]
    control_rate_gap_high: Mapped[float]
    control_rate_gap_n: Mapped[int]
    control_rate_gap_level: Mapped[float]
    n_specific: Mapped[int]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))


class SaeSpecificityRow(Base):
    """`SaeSpecificity`, whole as one JSON text."""

    __tablename__ = "sae_specificity"
    sae_key: Mapped[int] = mapped_column(Integer, ForeignKey("sae.sae_key"), primary_key=True)
    concept: Mapped[str] = mapped_column(ForeignKey("concept.name"), primary_key=True)
    record: Mapped[list[str]]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))


class SaeRankingRow(Base):
    """`SaeRanking`, whole as one JSON text; a place holds among the SAEs of its run only."""

    __tablename__ = "sae_ranking"
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"), primary_key=True)
    sae_key: Mapped[int] = mapped_column(Integer, ForeignKey("sae.sae_key"), primary_key=True)
    record: Mapped[list[str]]


class ConceptScoreRow(Base):
    """`ConceptScore`."""

    __tablename__ = "concept_score"
    __table_args__ = (
        ForeignKeyConstraint(["sae_key", "feature_index"], ["feature.sae_key", "feature.feature_index"]),
        Index(None, "sae_key", "concept", "rate_gap"),
    )
    sae_key: Mapped[int] = mapped_column(Integer, primary_key=True)
    feature_index: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    concept: Mapped[str] = mapped_column(ForeignKey("concept.name"), primary_key=True)
    auroc: Mapped[float]
    auroc_low: Mapped[float]
    auroc_high: Mapped[float]
    auroc_n: Mapped[int]
    auroc_level: Mapped[float]
    rate_positive: Mapped[float]
    rate_negative: Mapped[float]
    rate_gap: Mapped[float]
    rate_gap_low: Mapped[float]
    rate_gap_high: Mapped[float]
    rate_gap_n: Mapped[int]
    rate_gap_level: Mapped[float]
    n_positive: Mapped[int]
    n_negative: Mapped[int]
    q_value: Mapped[float]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))
