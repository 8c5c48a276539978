"""Pages of live requests: ask for a trace, a comparison, a steered answer or a guard's verdict, and look at it.

A form posts, waits a little, and leads to the answer's own address, where a reader without JavaScript waits further.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session

from api.deps import JobIdentity, SessionDep, SettingsDep, ShortText
from api.live import RECORDS, LiveRecord, ask_and_wait, explanations_of, record_of
from api.offers import ORGANISM_MODELS, ORGANISM_SAES
from api.pages.prompting import Notes, chips, chosen_layer, differences, strips, strong_features
from api.pages.render import render
from api.routes.pages_jobs import form_fields, require_same_origin
from api.settings import ServiceSettings
from db import jobs
from db.store import list_direction_searches
from safe_sail.errors import BadInput, NotFound, SafeSailError
from safe_sail.records import GuardVerdict, Job, PromptComparison, PromptTrace, SaeComparison, SaeTrace, Steering
from safe_sail.settings.live import LIVE_KINDS

router = APIRouter(default_response_class=HTMLResponse)

Asking = Literal["trace", "compare", "steer", "guard"]
KINDS: Mapping[Asking, str] = {
    "trace": "trace-prompt",
    "compare": "compare-prompts",
    "steer": "steer-prompt",
    "guard": "guard-prompt",
}
WAIT_SECONDS = 8.0
"""How long a form waits before it leads on to a page that waits."""
_NESTED = ("scale", "alignment", "part")
"""Fields of the forms that belong to the inner settings."""


@router.api_route("/prompts", methods=["GET", "HEAD"])
def prompts(
    session: SessionDep,
    settings: SettingsDep,
    ask: Annotated[Asking, Query()] = "trace",
    sae: Annotated[ShortText | None, Query()] = None,
    feature: Annotated[int | None, Query(ge=0)] = None,
    direction: Annotated[ShortText | None, Query()] = None,
) -> str:
    """The form of one kind of live request."""
    told = {"sae": sae, "feature": feature, "direction": direction}
    return render("prompts.html", ask=ask, **_choices(session, settings), told=told, error=None)


@router.post("/prompts/{ask}", dependencies=[Depends(require_same_origin)])
async def ask_one(
    request: Request, ask: Asking, fields: Annotated[dict[str, str], Depends(form_fields)]
) -> RedirectResponse:
    """Asks, waits a little, and leads to the answer."""
    told = _settings_of(KINDS[ask], {name: value for name, value in fields.items() if value != ""})
    job = await ask_and_wait(request, KINDS[ask], told, seconds=WAIT_SECONDS)
    return RedirectResponse(f"/prompts/{job.job_id}", status_code=303)


def _settings_of(kind: str, fields: Mapping[str, str]) -> Any:
    values: dict[str, Any] = {name: value for name, value in fields.items() if name not in _NESTED}
    nested = {name: value for name, value in fields.items() if name in _NESTED}
    if nested:
        values["settings"] = nested
    if kind in ("trace-prompt", "compare-prompts") and "sae" in values:
        values["saes"] = (values.pop("sae"),)
    try:
        return TypeAdapter(LIVE_KINDS[kind]).validate_python(values)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise BadInput(f"this cannot be asked: {'; '.join(wrong)}.") from error


@router.api_route("/prompts/{job_id}", methods=["GET", "HEAD"])
def answer(
    session: SessionDep,
    settings: SettingsDep,
    job_id: JobIdentity,
    sae: Annotated[ShortText | None, Query()] = None,
) -> str:
    """The answer to a live request, or how it stands."""
    job = jobs.load_job(session, job_id)
    if job.kind not in RECORDS:
        raise NotFound(f"job {job_id} is a {job.kind}, no live request; its page is /jobs/{job_id}.")
    ask = next(name for name, kind in KINDS.items() if kind == job.kind)
    shown = {"ask": ask, "job": job, "told": _told(job), **_choices(session, settings)}
    if not job.state.is_end:
        return render("prompt_waits.html", **shown, events=jobs.list_events(session, job_id))
    try:
        record = record_of(job)
    except SafeSailError as error:  # shown above the form, with everything that was typed
        return render("prompts.html", **shown, error=str(error))
    page: str = _ANSWERS[type(record)](record, explanations_of(session, record), sae, shown)
    return page


def _trace_page(record: PromptTrace, notes: Notes, sae: str | None, shown: dict[str, Any]) -> str:
    layer = chosen_layer(record.layers, sae)
    if not isinstance(layer, SaeTrace):
        raise NotFound(f"this trace has no SAE `{sae}`; its page lists those it has.")
    return render(
        "prompt_trace.html",
        **shown,
        record=record,
        layer=layer,
        strips=strips(record, notes),
        chips=chips(record.text, layer, notes),
        strong=strong_features(record.text, layer, notes),
    )


def _comparison_page(record: PromptComparison, notes: Notes, sae: str | None, shown: dict[str, Any]) -> str:
    layer = chosen_layer(record.layers, sae)
    if not isinstance(layer, SaeComparison):
        raise NotFound(f"this comparison has no SAE `{sae}`; its page lists those it has.")
    return render(
        "prompt_comparison.html", **shown, record=record, layer=layer, lines=differences(record, layer, notes)
    )


def _steering_page(record: Steering, notes: Notes, sae: str | None, shown: dict[str, Any]) -> str:
    note = next(iter(notes.values()), None)
    return render("prompt_steered.html", **shown, record=record, note=note)


def _guard_page(record: GuardVerdict, notes: Notes, sae: str | None, shown: dict[str, Any]) -> str:
    return render("prompt_guarded.html", **shown, record=record)


_ANSWERS: dict[type[LiveRecord], Any] = {
    PromptTrace: _trace_page,
    PromptComparison: _comparison_page,
    Steering: _steering_page,
    GuardVerdict: _guard_page,
}


def _told(job: Job) -> dict[str, Any]:
    """What the form was told, field by field as the form has them."""
    told = {**job.settings, **job.settings.get("settings", {})}
    saes = told.pop("saes", None)
    return told | ({"sae": saes[0] if saes and len(saes) == 1 else None} if "saes" in job.settings else {})


def _choices(session: Session, settings: ServiceSettings) -> dict[str, Any]:
    """What a form offers."""
    searches = [kept.record for kept in list_direction_searches(session, limit=200)]
    ends = (end for found in searches for end in (found.direction, found.added) if end is not None)
    return {
        "models": (*ORGANISM_MODELS, *sorted(settings.models)),
        "saes": (*ORGANISM_SAES, *sorted(settings.saes)),
        "guards": sorted(settings.guards),
        "directions": sorted({end.slug for end in ends}),
    }
