"""Pages of jobs: ask for one, see them all, follow one. Forms post here and lead on to a page; no script is needed."""

import json
import re
from dataclasses import MISSING, fields
from typing import Annotated, Any, get_origin, get_type_hints
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from api.deps import JobIdentity, SessionDep, SettingsDep, WritingDep
from api.job_requests import REQUEST_TYPES, settings_as_json
from api.pages.render import render
from api.pages.views import address
from db import jobs
from safe_sail.errors import BadInput
from safe_sail.records import JobState
from safe_sail.settings.jobs import JOB_KINDS
from safe_sail.settings.live import LIVE_KINDS

MAX_FORM_BYTES = 100_000
SHOWN_EVENTS = 1000
_FLAT_LIST = re.compile(r"\[\s[^\[\]{}\"]*\]")
"""A list of numbers: no text, whose brackets and spaces are its own."""


async def require_same_origin(request: Request) -> None:
    """Refuses a form that another site sent through the reader's browser.

    Our pages send no referrer, and a form's Origin is then `null`; browsers say where it came from in Sec-Fetch-Site.

    Raises:
        HTTPException: the request did not come from a page of this service.
    """
    site = request.headers.get("sec-fetch-site", "nothing")
    if site != "same-origin":
        raise HTTPException(
            403,
            f"A form is taken from this service's own pages alone; the browser said Sec-Fetch-Site `{site[:20]}`. "
            f"Programs use POST /v1/jobs.",
        )


async def form_fields(request: Request) -> dict[str, str]:
    """Fields of a form, the first value of each.

    Raises:
        BadInput: the form is too large or is no text.
    """
    body = await request.body()
    if len(body) > MAX_FORM_BYTES:
        raise BadInput(f"a form has at most {MAX_FORM_BYTES} bytes; got {len(body)}.")
    try:
        return {name: values[0] for name, values in parse_qs(body.decode("utf-8"), keep_blank_values=True).items()}
    except ValueError as error:
        raise BadInput("a form is UTF-8 text with fields as `name=value`.") from error


router = APIRouter(default_response_class=HTMLResponse)
forms = APIRouter(dependencies=[Depends(require_same_origin)])


@router.api_route("/jobs", methods=["GET", "HEAD"])
def all_jobs(
    session: SessionDep,
    settings: SettingsDep,
    kind: Annotated[str | None, Query(max_length=200)] = None,
    state: Annotated[JobState | None, Query()] = None,
    cursor: Annotated[str | None, Query(max_length=300)] = None,
) -> str:
    """Jobs, newest first, and the form of the kind that is asked for; live requests have pages of their own."""
    states = () if state is None else (state,)
    page = jobs.list_jobs(session, states=states, but=LIVE_KINDS, cursor=cursor, limit=settings.default_limit)
    wanted = kind if kind is not None and kind in JOB_KINDS else next(iter(JOB_KINDS))
    return render(
        "jobs.html",
        page=page,
        counts=jobs.count_jobs(session, but=LIVE_KINDS),
        state=state,
        kinds=list(JOB_KINDS),
        kind=wanted,
        settings=_defaults(wanted),
        next_page=page.next_cursor and address("/jobs", {"state": state, "cursor": page.next_cursor}),
    )


def _defaults(kind: str) -> str:
    """Every setting of a kind with its default, as JSON; what must be told stands there empty, to be filled in."""
    of = JOB_KINDS[kind]
    hints = get_type_hints(of)
    values = {
        one.name: ([""] if get_origin(hints[one.name]) is tuple else "") if one.default is MISSING else one.default
        for one in fields(of)
    }
    return json.dumps(to_jsonable_python(values), indent=2, ensure_ascii=False)


@forms.post("/jobs")
def ask(
    session: WritingDep, settings: SettingsDep, fields: Annotated[dict[str, str], Depends(form_fields)]
) -> RedirectResponse:
    """Asks for a job, and leads to its page."""
    kind = fields.get("kind", "")
    if kind not in REQUEST_TYPES:
        raise BadInput(f"there is no kind of job `{kind[:100]}`; known are {', '.join(REQUEST_TYPES)}.")
    try:
        told: Any = json.loads(fields.get("settings") or "{}")
        asked = REQUEST_TYPES[kind].model_validate_json(json.dumps({"kind": kind, "settings": told}))
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise BadInput(f"settings of {kind} cannot be used: {'; '.join(wrong)}.") from error
    except ValueError as error:
        raise BadInput(f"settings are JSON; this text is none: {error}.") from error
    settings.offers().require(asked.settings)
    job, _ = jobs.enqueue(session, asked.kind, settings_as_json(asked))
    return RedirectResponse(f"/jobs/{job.job_id}", status_code=303)


@router.api_route("/jobs/{job_id}", methods=["GET", "HEAD"])
def one_job(session: SessionDep, job_id: JobIdentity) -> str:
    """One job: where it stands, what happened, what it was told and what it brought."""
    job = jobs.load_job(session, job_id)
    events = jobs.list_events(session, job_id, limit=SHOWN_EVENTS)
    return render(
        "job.html",
        job=job,
        events=events,
        told=_text(job.settings),
        brought=job.result and job.kind not in LIVE_KINDS and _text(job.result),
        answer=f"/prompts/{job_id}" if job.kind in LIVE_KINDS else None,
    )


def _text(values: Any) -> str:
    """The values as JSON for people: a list of numbers stands on one line."""
    text = json.dumps(dict(values), indent=2, ensure_ascii=False, default=str)
    return _FLAT_LIST.sub(lambda found: " ".join(found[0].split()), text)


@forms.post("/jobs/{job_id}/cancel")
def cancel(session: WritingDep, job_id: JobIdentity) -> RedirectResponse:
    """Tells the job to end."""
    jobs.request_cancel(session, job_id)
    return RedirectResponse(f"/jobs/{job_id}", status_code=303)


@forms.post("/jobs/{job_id}/retry")
def retry(session: WritingDep, job_id: JobIdentity) -> RedirectResponse:
    """Lets the job wait again."""
    jobs.retry(session, job_id)
    return RedirectResponse(f"/jobs/{job_id}", status_code=303)


router.include_router(forms)
