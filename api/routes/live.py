"""Live requests over REST: a prompt traced, two compared, one steered, one judged by a guard; a worker does it."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field, TypeAdapter, create_model
from sqlalchemy import Engine
from starlette.responses import JSONResponse

from api.live import RECORDS, ask_and_wait, explanations_of, record_of, strict
from api.wire import as_wire, wire_type
from db.engine import reading
from safe_sail.records import Job
from safe_sail.settings.live import ComparePromptsJob, GuardPromptJob, SteerPromptJob, TracePromptJob

router = APIRouter(tags=["live"])

Wait = Annotated[
    float, Query(ge=0, le=60, description="Seconds to wait for the answer; after them 202 and the job's address.")
]
_LATER: dict[int | str, dict[str, Any]] = {
    202: {"model": Job, "description": "Not answered in time: the job, and in `Location` its address."}
}


class _Answer(BaseModel):
    job_id: str = Field(description="Job that computed it; its address keeps the record for a while.")
    explanations: dict[str, dict[int, str]] = Field(
        description="By SAE and feature, the explanation that judges score highest, where there is one."
    )


def _answer_type(record: type) -> type[_Answer]:
    return create_model(
        f"{record.__name__}Answer", __base__=_Answer, __doc__=f"A {record.__name__} and what is said of its features.",
        record=(wire_type(record), Field(description="What was found.")),
    )  # fmt: skip


_ANSWERS = {kind: _answer_type(record) for kind, record in RECORDS.items()}

TraceBody: Any = Annotated[strict(TracePromptJob), Body(description="Prompt, model and SAEs.")]
CompareBody: Any = Annotated[strict(ComparePromptsJob), Body(description="Two prompts, model and SAEs.")]
SteerBody: Any = Annotated[strict(SteerPromptJob), Body(description="Prompt, and a feature or a direction.")]
GuardBody: Any = Annotated[strict(GuardPromptJob), Body(description="Prompt and guard.")]


async def _answered(request: Request, kind: str, told: object, wait: float) -> Response:
    job = await ask_and_wait(request, kind, told, seconds=wait)
    if not job.state.is_end:
        content = TypeAdapter(Job).dump_python(job, mode="json")
        return JSONResponse(content, status_code=202, headers={"Location": f"/v1/jobs/{job.job_id}"})
    return JSONResponse(await run_in_threadpool(_content, request.app.state.engine, job))


def _content(engine: Engine, job: Job) -> dict[str, Any]:
    record = record_of(job)
    said: dict[str, dict[int, str]] = {}
    with reading(engine) as session:
        for feature, text in explanations_of(session, record).items():
            said.setdefault(feature.sae, {})[feature.index] = text
    return {"job_id": job.job_id, "explanations": said, "record": as_wire(record)}


@router.post("/trace", response_model=_ANSWERS["trace-prompt"], responses=_LATER)
async def trace(request: Request, asked: TraceBody, wait: Wait = 10.0) -> Response:
    """Every token's features by normalised activation, over a prompt and its answer, layer by layer."""
    return await _answered(request, "trace-prompt", asked, wait)


@router.post("/compare-prompts", response_model=_ANSWERS["compare-prompts"], responses=_LATER)
async def compare(request: Request, asked: CompareBody, wait: Wait = 10.0) -> Response:
    """Features that differ most between two prompts, beside what exchanged tokens give."""
    return await _answered(request, "compare-prompts", asked, wait)


@router.post("/steer", response_model=_ANSWERS["steer-prompt"], responses=_LATER)
async def steer(request: Request, asked: SteerBody, wait: Wait = 10.0) -> Response:
    """A prompt's answer, plain and with a feature or a direction added or ablated; both labelled."""
    return await _answered(request, "steer-prompt", asked, wait)


@router.post("/guard", response_model=_ANSWERS["guard-prompt"], responses=_LATER)
async def guard(request: Request, asked: GuardBody, wait: Wait = 10.0) -> Response:
    """A kept guard's verdict on a prompt: the chance that its answer would be unsafe, and whether it is refused."""
    return await _answered(request, "guard-prompt", asked, wait)
