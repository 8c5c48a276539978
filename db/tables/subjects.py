"""Tables of what is studied, and of the runs that wrote it."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Integer, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base


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


class ConceptRow(Base):
    """`Concept`."""

    __tablename__ = "concept"
    name: Mapped[str] = mapped_column(primary_key=True)
    category: Mapped[str]
    domain: Mapped[str]
    harmful: Mapped[bool]
    run_id: Mapped[str] = mapped_column(ForeignKey("run.run_id"))
