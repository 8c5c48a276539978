"""A job: a command that was asked for through the service, where it stands, and what it said on the way."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


class JobState(StrEnum):
    """Where a job stands; the last three are ends."""

    QUEUED = "queued"
    """Waits for a worker."""
    RUNNING = "running"
    """A worker has it, or had it when it died: after its lease another takes it up."""
    DONE = "done"
    """The command came to its end; `result` says what it brought."""
    FAILED = "failed"
    """The command raised an error, or its workers died again and again; `error` says which."""
    CANCELLED = "cancelled"
    """Somebody asked for its end; what it had saved before stays."""

    @property
    def is_end(self) -> bool:
        """Whether a job in this state moves only when it is retried."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobError:
    """Why a job failed."""

    type: str
    """Name of the error's class, as `safe_sail.errors` has it; `Internal` for a mistake of the program."""
    message: str
    """What was expected, what came and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobProgress:
    """How far the current step of a job is."""

    step: str
    """What is being done, in a word or two."""
    n_done: int
    """Items of this step that are done."""
    n_total: int | None
    """Items of this step; None where nobody knows before its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A command that was asked for, and where it stands."""

    job_id: str
    kind: str
    """Name of the command."""
    settings: Mapping[str, Any]
    """What the command is told; the kind's settings type with every default filled in."""
    state: JobState
    created: datetime
    started: datetime | None
    """When a worker first took it; None before."""
    finished: datetime | None
    """When it came to its end; None before."""
    attempts: int
    """How often a worker took it."""
    cancel_requested: bool
    """Whether its worker was told to stop; it does at its next step."""
    worker: str | None
    """Who has it: machine and process; None where nobody does."""
    heartbeat: datetime | None
    """When its worker was last heard of."""
    progress: JobProgress | None
    """The last step that was heard of."""
    error: JobError | None
    """Of a failed job."""
    result: Mapping[str, Any] | None
    """Of a job that is done: its runs and counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobEvent:
    """One thing that happened to a job."""

    number: int
    """Counted from 1 in each job, without gaps."""
    at: datetime
    kind: str
    """`state`: it moved to `data.state`; `progress`: a step went on; `cancel-requested`; `lease-expired`."""
    data: Mapping[str, Any]
