"""Jobs as those see them who ask for them: enqueue, look, cancel, retry, and read what happened.

The other half, what a worker does with a job, is `db.leases`. Every change of a job and the event that tells of it are
one transaction, and events are numbered under the lock of the job's row: who reads them by number misses none.
"""

import base64
import binascii
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from db.lookup import require_limit
from db.packing import is_plain_text
from db.tables import JobEventRow, JobRow
from safe_sail.errors import BadInput, BadRecord, IdempotencyKeyReused, JobConflict, NotFound
from safe_sail.records import Job, JobError, JobEvent, JobProgress, JobState

_FIELDS = 200
"""Characters of an idempotency key at most."""


@dataclass(frozen=True, slots=True)
class JobPage:
    """A page of jobs, newest first."""

    jobs: list[Job]
    next_cursor: str | None
    """Where the next page begins; None on the last."""


def database_now(session: Session) -> datetime:
    """The moment by the clock that all programs on this database share: PostgreSQL's, or this machine's for a file."""
    if session.get_bind().dialect.name != "postgresql":
        return datetime.now(UTC)
    now = session.scalar(select(func.clock_timestamp()))
    assert isinstance(now, datetime)
    return now.astimezone(UTC)


# ------------------------------------------------------------------------------------------------------ asking


def enqueue(
    session: Session,
    kind: str,
    settings: Mapping[str, Any],
    *,
    idempotency_key: str | None = None,
    priority: int = 0,
    wait_s: float | None = None,
) -> tuple[Job, bool]:
    """The job that now waits, and whether it is new: the same idempotency key with the same request names one job.

    A larger priority goes first. A job that no worker has taken after `wait_s` seconds fails.

    Raises:
        IdempotencyKeyReused: the key came before with another request.
        BadRecord: the settings are no JSON, or hold half a character.
    """
    text = as_json(settings)
    if idempotency_key is not None:
        if not (0 < len(idempotency_key) <= _FIELDS and is_plain_text(idempotency_key)):
            raise BadInput(f"an idempotency key has 1 to {_FIELDS} characters; got {len(idempotency_key)}.")
        if session.get_bind().dialect.name == "postgresql":  # a second request with this key waits for the first
            session.execute(select(func.pg_advisory_xact_lock(func.hashtext(idempotency_key))))
        known = session.scalars(select(JobRow).where(JobRow.idempotency_key == idempotency_key)).one_or_none()
        if known is not None:
            if (known.kind, known.settings) != (kind, text):
                raise IdempotencyKeyReused(
                    f"the idempotency key of job {known.job_id} came with another kind or other settings; give a new "
                    f"request a new key."
                )
            return job_of(known), False
    now = database_now(session)
    row = JobRow(
        job_id=f"{now:%Y%m%dT%H%M%S}-{uuid4().hex[:12]}", kind=kind, settings=text, state=str(JobState.QUEUED),
        priority=priority, idempotency_key=idempotency_key, created=now,
        deadline=None if wait_s is None else now + timedelta(seconds=wait_s), started=None, finished=None, attempts=0,
        idle_attempts=0, cancel_requested=False, worker=None, lease_token=None, lease_until=None, heartbeat=None,
        n_events=0, progress=None, error=None, result=None,
    )  # fmt: skip
    session.add(row)
    session.flush()
    add_event(session, row, "state", {"state": JobState.QUEUED}, now)
    return job_of(row), True


def request_cancel(session: Session, job_id: str) -> Job:
    """The job after it was told to end: a waiting one has ended, a running one ends at its next step.

    Raises:
        NotFound: no job has this id.
        JobConflict: the job has ended already.
    """
    row = find_job(session, job_id, lock=True)
    now = database_now(session)
    if JobState(row.state).is_end:
        raise JobConflict(f"job {job_id} is {row.state} already; there is nothing to cancel.")
    if row.state == JobState.QUEUED:
        end_job(session, row, JobState.CANCELLED, now)
    elif not row.cancel_requested:
        row.cancel_requested = True
        add_event(session, row, "cancel-requested", {}, now)
    return job_of(row)


def retry(session: Session, job_id: str) -> Job:
    """The failed or cancelled job, waiting again; what it had saved before stays.

    Raises:
        NotFound: no job has this id.
        JobConflict: the job has not ended, or is done.
    """
    row = find_job(session, job_id, lock=True)
    if row.state not in (JobState.FAILED, JobState.CANCELLED):
        raise JobConflict(f"job {job_id} is {row.state}; only a failed or cancelled job is tried again.")
    row.state = str(JobState.QUEUED)
    row.cancel_requested = False
    row.idle_attempts = 0
    row.deadline = row.finished = row.error = row.progress = None
    add_event(session, row, "state", {"state": JobState.QUEUED}, database_now(session))
    return job_of(row)


def forget_ended(session: Session, kinds: Collection[str], *, keep: int) -> int:
    """Number of ended jobs of these kinds that are gone now with their events: all but the newest `keep` jobs."""
    of_kind = JobRow.kind.in_(sorted(kinds))
    oldest_kept = select(JobRow.job_key).where(of_kind).order_by(JobRow.job_key.desc()).offset(keep - 1).limit(1)
    border = session.scalar(oldest_kept)
    if border is None:
        return 0
    ends = [str(state) for state in JobState if state.is_end]
    gone = list(session.scalars(select(JobRow.job_key).where(of_kind, JobRow.job_key < border, JobRow.state.in_(ends))))
    session.execute(delete(JobEventRow).where(JobEventRow.job_key.in_(gone)))
    session.execute(delete(JobRow).where(JobRow.job_key.in_(gone)))
    return len(gone)


# ------------------------------------------------------------------------------------------------------ looking


def load_job(session: Session, job_id: str) -> Job:
    """One job.

    Raises:
        NotFound: no job has this id.
    """
    return job_of(find_job(session, job_id))


def list_jobs(
    session: Session,
    *,
    states: Sequence[JobState] = (),
    kind: str | None = None,
    but: Collection[str] = (),
    cursor: str | None = None,
    limit: int = 50,
) -> JobPage:
    """A page of jobs, newest first; of one kind, or of all `but` some.

    Raises:
        BadInput: the cursor is none, or the limit is outside 1 to 1000.
    """
    require_limit(limit)
    query = select(JobRow).order_by(JobRow.job_key.desc()).limit(limit + 1)
    if states:
        query = query.where(JobRow.state.in_([str(state) for state in states]))
    if kind is not None:
        query = query.where(JobRow.kind == kind)
    if but:
        query = query.where(JobRow.kind.not_in(sorted(but)))
    if cursor is not None:
        query = query.where(JobRow.job_key < _read_cursor(cursor))
    found = session.scalars(query).all()
    more = _write_cursor(found[limit - 1].job_key) if len(found) > limit else None
    return JobPage([job_of(row) for row in found[:limit]], more)


def list_events(session: Session, job_id: str, *, after: int = 0, limit: int = 200) -> list[JobEvent]:
    """What happened to a job after the event of this number, in order.

    Raises:
        NotFound: no job has this id.
    """
    require_limit(limit)
    key = find_job(session, job_id).job_key
    row = JobEventRow
    query = select(row).where(row.job_key == key, row.number > after).order_by(row.number).limit(limit)
    return [JobEvent(number=e.number, at=e.at, kind=e.kind, data=json.loads(e.data)) for e in session.scalars(query)]


def count_jobs(session: Session, *, but: Collection[str] = ()) -> dict[JobState, int]:
    """Number of jobs in each state that has some, of all kinds `but` some."""
    query = select(JobRow.state, func.count()).group_by(JobRow.state)
    if but:
        query = query.where(JobRow.kind.not_in(sorted(but)))
    return {JobState(state): n for state, n in session.execute(query)}


# ------------------------------------------------------------------------------------------------------ shared steps


def find_job(session: Session, job_id: str, *, lock: bool = False) -> JobRow:
    """Row of a job, locked for this transaction if asked.

    Raises:
        NotFound: no job has this id.
    """
    query = select(JobRow).where(JobRow.job_id == job_id)
    row = None
    if is_plain_text(job_id):
        row = session.scalars(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFound(f"no job is called `{job_id}`; the list of jobs names those in the database.")
    return row


def add_event(session: Session, row: JobRow, kind: str, data: Mapping[str, Any], now: datetime) -> None:
    """Tells of a change of the job; the caller holds the lock of its row."""
    row.n_events += 1
    session.add(JobEventRow(job_key=row.job_key, number=row.n_events, at=now, kind=kind, data=as_json(data)))
    session.flush()


def end_job(
    session: Session,
    row: JobRow,
    state: JobState,
    now: datetime,
    *,
    error: JobError | None = None,
    result: Mapping[str, Any] | None = None,
) -> None:
    """Moves a job to an end and takes it from its worker; the caller holds the lock of its row."""
    row.state = str(state)
    row.finished = now
    row.worker = row.lease_token = row.lease_until = None
    row.error = None if error is None else as_json({"type": error.type, "message": error.message})
    row.result = None if result is None else as_json(result)
    said = {"state": state} | ({} if error is None else {"error": error.type})
    add_event(session, row, "state", said, now)


def as_json(values: Mapping[str, Any]) -> str:
    """The values as JSON, the same text for the same values.

    Raises:
        BadRecord: a value is no JSON, or a text holds half a character.
    """
    try:
        text = json.dumps(dict(values), allow_nan=False, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise BadRecord(f"what is kept of a job must be JSON values: {error}.") from error
    if not is_plain_text(text):
        raise BadRecord("what is kept of a job holds half a character, which no text column can keep.")
    return text


def job_of(row: JobRow) -> Job:
    """The record of a row."""
    return Job(
        job_id=row.job_id, kind=row.kind, settings=json.loads(row.settings), state=JobState(row.state),
        created=row.created, started=row.started, finished=row.finished, attempts=row.attempts,
        cancel_requested=row.cancel_requested, worker=row.worker, heartbeat=row.heartbeat,
        progress=None if row.progress is None else JobProgress(**json.loads(row.progress)),
        error=None if row.error is None else JobError(**json.loads(row.error)),
        result=None if row.result is None else json.loads(row.result),
    )  # fmt: skip


def _write_cursor(key: int) -> str:
    return base64.urlsafe_b64encode(json.dumps(["job", key]).encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> int:
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        kind, key = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if kind != "job" or type(key) is not int or not 0 < key < 2**31:
            raise ValueError("other fields than expected")
    except (ValueError, TypeError, binascii.Error) as error:
        raise BadInput(f"`{cursor[:80]!r}` is no cursor of a list of jobs; pass on `next_cursor`.") from error
    return key
