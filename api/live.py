"""Live requests: a job that goes before all others, and somebody who waits for it, but not for ever.

1. The request becomes a job, which any worker that takes live ones may run; it is given up if none takes it.
2. Its end is looked for, first often, then less so, until the deadline of who waits.
3. Records of old live requests are forgotten: they hold what people typed.
"""

import asyncio
import dataclasses
from typing import Any, TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from pydantic import ConfigDict, TypeAdapter
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from api.settings import ServiceSettings
from db import jobs, store
from db.engine import reading, writing
from db.migrate import require_head
from db.store.whole import from_json, to_json
from safe_sail import errors
from safe_sail.errors import BadInput, JobConflict, JobFailed, NotFound, StoreError
from safe_sail.records import (
    FeatureId,
    GuardVerdict,
    Job,
    JobState,
    PromptComparison,
    PromptTrace,
    Steering,
)
from safe_sail.settings.live import LIVE_KINDS

LIVE_PRIORITY = 10
"""Before every job that nobody waits for: those have 0."""
TAKEN_WITHIN_SECONDS = 600.0
"""A live request that no worker takes for so long is given up: nobody waits any more."""
KEPT_REQUESTS = 500
"""Live requests whose records stay; older ones are forgotten when a new one comes."""
SHARE_OF_ANSWER = 0.8
"""Of the time in which an answer must begin: the rest is for the answer itself."""
FIRST_LOOK_SECONDS, SLOWEST_LOOK_SECONDS, SLOWER = 0.02, 0.25, 1.3

RECORDS: dict[str, type] = {
    "trace-prompt": PromptTrace,
    "compare-prompts": PromptComparison,
    "steer-prompt": Steering,
    "guard-prompt": GuardVerdict,
}
"""What each kind of live request brings."""

LiveRecord = PromptTrace | PromptComparison | Steering | GuardVerdict
T = TypeVar("T")


def strict(settings: type[T]) -> type[T]:
    """The settings as the body of a request: what is unknown or not finite is refused."""
    return dataclasses.make_dataclass(
        settings.__name__, [], bases=(settings,), frozen=True, kw_only=True, slots=True,
        namespace={"__pydantic_config__": ConfigDict(extra="forbid", allow_inf_nan=False), "__doc__": settings.__doc__},
    )  # fmt: skip


def ask(engine: Engine, settings: ServiceSettings, kind: str, told: object) -> Job:
    """The job of a live request; it waits for a worker now.

    Raises:
        NotOffered: it names what the server does not offer.
    """
    settings.offers().require(told)
    adapter: TypeAdapter[Any] = TypeAdapter(LIVE_KINDS[kind])
    values: dict[str, Any] = adapter.dump_python(told, mode="json")
    require_head(engine)
    with writing(engine) as session:
        jobs.forget_ended(session, LIVE_KINDS, keep=KEPT_REQUESTS)
        job, _ = jobs.enqueue(session, kind, values, priority=LIVE_PRIORITY, wait_s=TAKEN_WITHIN_SECONDS)
    return job


async def ask_and_wait(request: Request, kind: str, told: object, *, seconds: float) -> Job:
    """The job of a live request, ended, or as it stands when the time is over or the service would give up."""
    state = request.app.state
    seconds = min(seconds, SHARE_OF_ANSWER * state.settings.request_seconds)
    job = await run_in_threadpool(ask, state.write_engine, state.settings, kind, told)
    loop = asyncio.get_running_loop()
    end, pause = loop.time() + seconds, FIRST_LOOK_SECONDS
    while not job.state.is_end and loop.time() < end:
        await asyncio.sleep(min(pause, max(0.0, end - loop.time())))
        pause = min(pause * SLOWER, SLOWEST_LOOK_SECONDS)
        job = await run_in_threadpool(_look, state.engine, job.job_id)
    return job


def _look(engine: Engine, job_id: str) -> Job:
    with reading(engine) as session:
        return jobs.load_job(session, job_id)


def record_of(job: Job) -> LiveRecord:
    """The record that a live request brought.

    Raises:
        NotFound: the job is none of a live request, or has not ended.
        BadInput, StoreError: the request could not be answered; the error is the worker's.
        JobFailed: it failed for another reason.
        JobConflict: somebody cancelled it.
    """
    if job.kind not in RECORDS or not job.state.is_end:
        raise NotFound(
            f"job {job.job_id} is a {job.kind} that is {job.state}; only an ended live request has a record."
        )
    if job.state is JobState.CANCELLED:
        raise JobConflict(f"job {job.job_id} was cancelled before it was answered; ask again.")
    if job.error is not None:
        said = getattr(errors, job.error.type, None)
        if isinstance(said, type) and issubclass(said, BadInput | StoreError):
            raise said(job.error.message)
        raise JobFailed(f"{job.error.type}: {job.error.message}")
    assert job.result is not None
    found: LiveRecord = from_json(RECORDS[job.kind], to_json(job.result["record"]))
    return found


def explanations_of(session: Session, record: LiveRecord) -> dict[FeatureId, str]:
    """What is said of the record's features: of each the explanation that judges score highest."""
    known = store.load_feature_listings(session, sorted(features_of(record)))
    return {feature: row.explanation for feature, row in known.items() if row.explanation}


def features_of(record: LiveRecord) -> set[FeatureId]:
    """Features that the record names."""
    if isinstance(record, PromptTrace):
        of_tokens = {(layer.sae, one.index) for layer in record.layers for row in layer.top for one in row}
        of_text = {(layer.sae, one.index) for layer in record.layers for one in layer.strongest}
        return {FeatureId(sae=sae, index=index) for sae, index in of_tokens | of_text}
    if isinstance(record, PromptComparison):
        return {FeatureId(sae=layer.sae, index=one.index) for layer in record.layers for one in layer.features}
    if isinstance(record, Steering) and "/" in record.target:
        return {FeatureId.parse(record.target)}
    return set()
