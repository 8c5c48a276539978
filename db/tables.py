"""The tables: one class a table, no logic. `db/store` turns records into their rows and back.

Every row carries the run that wrote it. An `Estimate` called `x` is five columns: x, x_low, x_high, x_n, x_level.
A row of `feature` exists as soon as anything is known of a feature; its numbers are NULL until contexts are collected.
"""

from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from db.packing import PackedArray, PackedTexts

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.integer]


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC: SQLite forgets the zone and PostgreSQL answers in its own, so both are normalised here."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Any zone to UTC; naive on SQLite."""
        if value is None:
            return None
        assert value.tzinfo is not None
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Back to an aware moment in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Names of constraints and types of columns for every table."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    # counts are 64 bits wide: a corpus may have more than 2**31 tokens
    type_annotation_map = {  # noqa: RUF012
        int: BigInteger,
        # PostgreSQL orders by the server's locale unless told: by code point, as SQLite does
        str: Text().with_variant(Text(collation="C"), "postgresql"),
        datetime: UtcDateTime,
        # not JSONB: it refuses NUL, forgets the order of keys and rewrites numbers; nothing searches in these
        dict[str, Any]: JSON,
        FloatArray: PackedArray,
        IntArray: PackedArray,
        list[str]: PackedTexts,
    }


class RunRow(Base):
    """`RunInfo`."""

    __tablename__ = "run"
    run_id: Mapped[str] = mapped_column(primary_key=True)
    command: Mapped[str]
    seed: Mapped[int]
    settings: Mapped[dict[str, Any]]
    git_commit: Mapped[str | None]
    versions: Mapped[dict[str, Any]]
    device: Mapped[str]
    started: Mapped[datetime] = mapped_column(index=True)
    finished: Mapped[datetime | None]


class ModelRow(Base):
    """`ModelRef`."""

    __tablename__ = "model"
    model_id: Mapped[str] = mapped_column(primary_key=True)
    architecture: Mapped[str]
    n_layers: Mapped[int]
    n_heads: Mapped[int]
    d_head: Mapped[int]
    d_model: Mapped[int]
    d_mlp: Mapped[int]
    d_vocab: Mapped[int]
    source: Mapped[str]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))


class SaeRow(Base):
    """`SaeRef`; the number `sae_key` stands for the slug in the large tables."""

    __tablename__ = "sae"
    __table_args__ = (UniqueConstraint("slug"),)
    sae_key: Mapped[int] = mapped_column(Integer, primary_key=True)
    slug: Mapped[str]
    release: Mapped[str | None]
    sae_id: Mapped[str]
    model_id: Mapped[str | None] = mapped_column(ForeignKey("model.model_id"), index=True)
    site: Mapped[str]
    d_in: Mapped[int]
    width: Mapped[int]
    architecture: Mapped[str]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))


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


class ConceptRow(Base):
    """`Concept`."""

    __tablename__ = "concept"
    name: Mapped[str] = mapped_column(primary_key=True)
    category: Mapped[str]
    domain: Mapped[str]
    harmful: Mapped[bool]
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


class FeatureRow(Base):
    """One feature: the light half of `TopContexts`, which listings sort and filter."""

    __tablename__ = "feature"
    __table_args__ = (Index(None, "sae_key", "density"),)
    sae_key: Mapped[int] = mapped_column(Integer, ForeignKey("sae.sae_key"), primary_key=True)
    feature_index: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    n_tokens_seen: Mapped[int | None]
    density: Mapped[float | None]
    max_activation: Mapped[float | None]
    n_contexts: Mapped[int | None]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))


class ContextsRow(Base):
    """The heavy half of `TopContexts`: all contexts of one feature in one row, one after another."""

    __tablename__ = "contexts"
    __table_args__ = (ForeignKeyConstraint(["sae_key", "feature_index"], ["feature.sae_key", "feature.feature_index"]),)
    sae_key: Mapped[int] = mapped_column(Integer, primary_key=True)
    feature_index: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    lengths: Mapped[IntArray]
    peaks: Mapped[IntArray]
    token_ids: Mapped[IntArray]
    activations: Mapped[FloatArray]
    tokens: Mapped[list[str]]
    source_ids: Mapped[list[str]]
    histogram_edges: Mapped[FloatArray | None]
    histogram_counts: Mapped[IntArray | None]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))


class ConceptScoreRow(Base):
    """`ConceptScore`."""

    __tablename__ = "concept_score"
    __table_args__ = (
        ForeignKeyConstraint(["sae_key", "feature_index"], ["feature.sae_key", "feature.feature_index"]),
        Index(None, "sae_key", "concept", "rate_gap"),
        Index(None, "sae_key", "feature_index", "rate_gap"),
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
