"""Tables of jobs: what was asked for, who has it until when, and what happened to it."""

from datetime import datetime

from sqlalchemy import Boolean, ForeignKey, Index, Integer
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base


class JobRow(Base):
    """`Job`, and the lease of its worker. JSON is text: nothing searches in it, and numbers come back as they were."""

    __tablename__ = "job"
    __table_args__ = (Index("ix_job_state_priority", "state", "priority", "job_key"),)
    job_key: Mapped[int] = mapped_column(Integer, primary_key=True)
    job_id: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str]
    settings: Mapped[str]
    state: Mapped[str]
    priority: Mapped[int] = mapped_column(Integer)
    """Larger goes first."""
    idempotency_key: Mapped[str | None] = mapped_column(unique=True)
    created: Mapped[datetime]
    deadline: Mapped[datetime | None]
    """A job that no worker has taken by then fails."""
    started: Mapped[datetime | None]
    finished: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(Integer)
    idle_attempts: Mapped[int] = mapped_column(Integer)
    """Attempts since the job last went on; a job that kills its workers is given up by this."""
    cancel_requested: Mapped[bool] = mapped_column(Boolean)
    worker: Mapped[str | None]
    lease_token: Mapped[str | None]
    """Names one attempt; whoever writes for the job holds it."""
    lease_until: Mapped[datetime | None]
    heartbeat: Mapped[datetime | None]
    n_events: Mapped[int] = mapped_column(Integer)
    progress: Mapped[str | None]
    error: Mapped[str | None]
    result: Mapped[str | None]


class JobEventRow(Base):
    """`JobEvent`. Numbers are given under the job's row lock, so they are committed in their order."""

    __tablename__ = "job_event"
    job_key: Mapped[int] = mapped_column(Integer, ForeignKey("job.job_key"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    kind: Mapped[str]
    data: Mapped[str]
