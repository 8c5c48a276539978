"""Jobs: ask for a command, see where it stands, follow it, cancel it, try it again. A worker runs them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy import Engine

from api.deps import JobIdentity, SessionDep, SettingsDep, WritingDep
from api.job_requests import AnyJobRequest, JobRequest, settings_as_json
from api.links import link_next
from api.schemas import JobList
from db import jobs
from db.engine import reading
from safe_sail.records import Job, JobEvent, JobState
from safe_sail.settings.jobs import JOB_KINDS

router = APIRouter(tags=["jobs"])

TAIL_SECONDS = 0.5
"""Pause between two looks for new events of a followed job."""

_AT_ONCE = 200

EventNumber = Annotated[
    int,
    Header(
        alias="Last-Event-ID",
        ge=0,
        lt=2**31,
        description="Number of the last event that was seen: the stream goes on after it.",
    ),
]


@router.post("/jobs", status_code=202)
def post_job(
    response: Response,
    session: WritingDep,
    settings: SettingsDep,
    asked: Annotated[JobRequest, Body(description="Kind and settings of the job.")],
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=200,
            pattern=r"^[\x21-\x7e]+$",
            description="The same key with the same request names the same job, however often it comes.",
        ),
    ] = None,
) -> Job:
    """Asks for a job; it waits for a worker, and `Location` is its address."""
    assert isinstance(asked, AnyJobRequest)
    settings.offers().require(asked.settings)
    job, _ = jobs.enqueue(session, asked.kind, settings_as_json(asked), idempotency_key=idempotency_key)
    response.headers["Location"] = f"/v1/jobs/{job.job_id}"
    return job


@router.get("/jobs")
def get_jobs(
    request: Request,
    response: Response,
    session: SessionDep,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    kind: Annotated[
        str | None,
        Query(max_length=200, description=f"Only jobs of this kind: {', '.join(JOB_KINDS)}."),
    ] = None,
    cursor: Annotated[str | None, Query(max_length=300, description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="Jobs on a page.")] = 50,
) -> JobList:
    """Jobs, newest first, page by page."""
    states = () if state is None else (state,)
    page = jobs.list_jobs(session, states=states, kind=kind, cursor=cursor, limit=limit)
    link_next(request, response, page.next_cursor)
    return JobList(items=page.jobs, next_cursor=page.next_cursor)


@router.get("/jobs/{job_id}")
def get_job(session: SessionDep, job_id: JobIdentity) -> Job:
    """One job: its settings, where it stands, and what it brought."""
    return jobs.load_job(session, job_id)


@router.post("/jobs/{job_id}/cancel")
def cancel_job(session: WritingDep, job_id: JobIdentity) -> Job:
    """Tells a job to end: a waiting one ends now, a running one at its next step; what it saved stays."""
    return jobs.request_cancel(session, job_id)


@router.post("/jobs/{job_id}/retry")
def retry_job(session: WritingDep, job_id: JobIdentity) -> Job:
    """Lets a failed or cancelled job wait again; it does only what is missing, where its command can."""
    return jobs.retry(session, job_id)


def known_job(request: Request, job_id: JobIdentity) -> str:
    """The id, once it is known that there is such a job: a stream that has begun cannot become a 404."""
    with reading(request.app.state.engine) as session:
        return jobs.load_job(session, job_id).job_id


@router.get("/jobs/{job_id}/events", response_class=EventSourceResponse)
async def follow_job(
    request: Request,
    job_id: Annotated[str, Depends(known_job)],
    last_event_id: EventNumber = 0,
) -> AsyncIterator[ServerSentEvent]:
    """What happens to the job, as server-sent events, from the first or after `Last-Event-ID` until it has ended."""
    engine: Engine = request.app.state.engine
    seen, ended = last_event_id, False
    while not ended:
        news, ended = await run_in_threadpool(_news, engine, job_id, seen)
        for event in news:
            seen = event.number
            yield ServerSentEvent(data=event, event=event.kind, id=str(event.number))
        if not ended:
            await asyncio.sleep(TAIL_SECONDS)


def _news(engine: Engine, job_id: str, seen: int) -> tuple[list[JobEvent], bool]:
    """Events after the last one seen, and whether the job has ended and these are all."""
    with reading(engine) as session:
        news = jobs.list_events(session, job_id, after=seen, limit=_AT_ONCE)
        return news, jobs.load_job(session, job_id).state.is_end and len(news) < _AT_ONCE
