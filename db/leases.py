"""Jobs as their workers see them: claim, heartbeat, fence, end.

1. `claim` takes the first waiting job, or one whose worker has not been heard of for the length of a lease, in one
   statement: two workers never have one job. A job that killed its workers `MAX_IDLE_ATTEMPTS` times without going on
   is given up.
2. `heartbeat` renews the lease, keeps the progress and tells whether to stop.
3. `fence` is what makes a worker harmless that was thought dead (a stopped process, a cut connection): every
   transaction in which it saves results checks, under a lock, that it still holds the job.
4. `finish`, `fail`, `stop_cancelled` and `release` end it.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, Engine, func, literal, or_, select, true, update
from sqlalchemy.orm import Session

from db.engine import reading, writing
from db.jobs import add_event, as_json, database_now, end_job, job_of
from db.tables import JobRow
from safe_sail.errors import LeaseLost
from safe_sail.records import Job, JobError, JobProgress, JobState

LEASE_SECONDS = 30.0
"""A worker not heard of for so long is taken for dead; it says that it lives three times as often."""
MAX_IDLE_ATTEMPTS = 5
"""Attempts without any progress after which a job is given up; a crash now and then must not end a long job."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One attempt at a job by one worker."""

    job: Job
    token: str
    """Names the attempt; the lease is the worker's for as long as the row has this token."""


# ------------------------------------------------------------------------------------------------------ 1. claim


def claim(
    engine: Engine, worker: str, *, lease_s: float = LEASE_SECONDS, kinds: Collection[str] | None = None
) -> Claim | None:
    """The job that this worker has from now on; None where nothing waits. A larger priority first, then the older.

    `kinds` are those that this worker takes; None takes all.
    """
    of_kind = true() if kinds is None else JobRow.kind.in_(sorted(kinds))
    with reading(engine) as session:  # most looks find nothing, and need no writer's turn for it
        now = database_now(session)
        waits = select(JobRow.job_key).where(or_(JobRow.state == JobState.QUEUED, _expired(now)), of_kind).limit(1)
        if session.scalar(waits) is None:
            return None
    with writing(engine) as session:
        now = database_now(session)
        _bury(session, now)
        token = uuid4().hex
        first = (
            select(JobRow.job_key)
            .where(or_(JobRow.state == JobState.QUEUED, _expired(now)), of_kind)
            .order_by(JobRow.priority.desc(), JobRow.job_key)
            .limit(1)
            .with_for_update(skip_locked=True)  # PostgreSQL; on SQLite the transaction is the only writer
        )
        taken = session.scalars(
            update(JobRow)
            .where(JobRow.job_key == first.scalar_subquery())
            .values(
                state=str(JobState.RUNNING), worker=worker, lease_token=token, heartbeat=now,
                lease_until=now + timedelta(seconds=lease_s), attempts=JobRow.attempts + 1,
                idle_attempts=JobRow.idle_attempts + 1,
                started=func.coalesce(JobRow.started, literal(now, JobRow.started.type)),
            )
            .returning(JobRow)
        ).one_or_none()  # fmt: skip
        if taken is None:
            return None
        add_event(session, taken, "state", {"state": JobState.RUNNING, "attempt": taken.attempts}, now)
        return Claim(job_of(taken), token)


def _expired(now: datetime) -> ColumnElement[bool]:
    return (JobRow.state == JobState.RUNNING) & (JobRow.lease_until < now)


def _bury(session: Session, now: datetime) -> None:
    """Ends what nobody should take up again: cancelled or hopeless jobs of dead workers, and jobs past their time."""
    hopeless = _expired(now) & (JobRow.cancel_requested | (JobRow.idle_attempts >= MAX_IDLE_ATTEMPTS))
    late = (JobRow.state == JobState.QUEUED) & (JobRow.deadline < now)
    for row in session.scalars(select(JobRow).where(hopeless | late).with_for_update(skip_locked=True)):
        if row.state == JobState.QUEUED:
            message = "no worker took it in time; start one with `safe-sail worker`, or ask again."
            end_job(session, row, JobState.FAILED, now, error=JobError(type="DeadlinePassed", message=message))
        elif row.cancel_requested:
            end_job(session, row, JobState.CANCELLED, now)
        else:
            message = (
                f"its worker died {row.idle_attempts} times in a row without any progress; the worker's log says more."
            )
            end_job(session, row, JobState.FAILED, now, error=JobError(type="WorkerDied", message=message))


# ---------------------------------------------------------------------------------------------- 2. and 3. holding it


def heartbeat(
    engine: Engine, held: Claim, progress: JobProgress | None = None, *, lease_s: float = LEASE_SECONDS
) -> bool:
    """Whether the job should go on: its lease is renewed and the progress, if it is news, is kept and told.

    Raises:
        LeaseLost: the lease ran out and another worker has the job, or it has ended.
    """
    with writing(engine) as session:
        row = _held_row(session, held)
        now = database_now(session)
        row.heartbeat, row.lease_until = now, now + timedelta(seconds=lease_s)
        if progress is not None:
            data = {"step": progress.step, "n_done": progress.n_done, "n_total": progress.n_total}
            row.progress = as_json(data)
            if progress.n_done > 0:
                row.idle_attempts = 0
            add_event(session, row, "progress", data, now)
        return not row.cancel_requested


def fence(held: Claim) -> Callable[[Session], None]:
    """A check for the beginning of a write transaction: it raises `LeaseLost` unless the claim still holds.

    The row stays locked until the transaction ends, so that nobody can claim the job before what is saved is seen.
    """

    def check(session: Session) -> None:
        query = select(JobRow.lease_token).where(JobRow.job_id == held.job.job_id)
        if session.scalar(query.with_for_update(read=True)) != held.token:
            raise _lost(held)

    return check


def _held_row(session: Session, held: Claim) -> JobRow:
    query = select(JobRow).where(JobRow.job_id == held.job.job_id, JobRow.lease_token == held.token)
    row = session.scalars(query.with_for_update()).one_or_none()
    if row is None:
        raise _lost(held)
    return row


def _lost(held: Claim) -> LeaseLost:
    return LeaseLost(
        f"job {held.job.job_id}: this worker was not heard of for the length of its lease and the job was given to "
        f"another; what was saved before stays."
    )


# ------------------------------------------------------------------------------------------------------ 4. ends


def finish(engine: Engine, held: Claim, result: Mapping[str, Any]) -> None:
    """The job is done.

    Raises:
        LeaseLost: the claim does not hold any more.
        BadRecord: the result is no JSON.
    """
    with writing(engine) as session:
        end_job(session, _held_row(session, held), JobState.DONE, database_now(session), result=result)


def fail(engine: Engine, held: Claim, error: JobError) -> None:
    """The job failed.

    Raises:
        LeaseLost: the claim does not hold any more.
    """
    with writing(engine) as session:
        end_job(session, _held_row(session, held), JobState.FAILED, database_now(session), error=error)


def stop_cancelled(engine: Engine, held: Claim) -> None:
    """The job has stopped because somebody cancelled it.

    Raises:
        LeaseLost: the claim does not hold any more.
    """
    with writing(engine) as session:
        end_job(session, _held_row(session, held), JobState.CANCELLED, database_now(session))


def release(engine: Engine, held: Claim, *, idle: bool = False) -> None:
    """The job waits again at its place, because its worker must end; such an attempt counts as idle only if asked.

    Raises:
        LeaseLost: the claim does not hold any more.
    """
    with writing(engine) as session:
        row = _held_row(session, held)
        row.state = str(JobState.QUEUED)
        row.worker = row.lease_token = row.lease_until = None
        if not idle:
            row.idle_attempts = max(0, row.idle_attempts - 1)
        add_event(session, row, "state", {"state": JobState.QUEUED}, database_now(session))
