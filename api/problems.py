"""Every error of the service in one shape: RFC 9457 `application/problem+json`, or a page for a browser.

1. PROBLEMS maps the library's exceptions to a status, a stable type and a title; the nearest base class decides.
2. The framework's own errors (404, 405, 422) are brought into the same shape; their headers are kept.
3. A path of the page answers in HTML when the client asked for HTML; everything under /v1 answers in JSON.
"""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

from api.logs import LOGGER
from api.pages.render import render
from safe_sail.errors import (
    BadInput,
    DatabaseUnreachable,
    IdempotencyKeyReused,
    JobConflict,
    JobFailed,
    NotFound,
    NotOffered,
    SafeSailError,
    SchemaOutOfDate,
    StoreError,
)

logger = logging.getLogger(LOGGER)

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:safe-sail:problem:"
JSON_PATHS = ("/v1", "/livez", "/readyz", "/metrics", "/openapi.json")


class ProblemKind(NamedTuple):
    """What a kind of error is called on the wire; `slug` and `status` never change once published."""

    status: int
    slug: str
    title: str


PROBLEMS: Mapping[type[Exception], ProblemKind] = {
    NotFound: ProblemKind(404, "not-found", "Nothing is stored under this name"),
    JobConflict: ProblemKind(409, "job-conflict", "The job is not in a state that allows this"),
    NotOffered: ProblemKind(422, "not-offered", "The server does not offer what the job names"),
    IdempotencyKeyReused: ProblemKind(422, "idempotency-key-reused", "The key came before with another request"),
    BadInput: ProblemKind(422, "invalid", "The request cannot be understood"),
    DatabaseUnreachable: ProblemKind(503, "database-unreachable", "The database does not answer"),
    SchemaOutOfDate: ProblemKind(503, "schema-out-of-date", "The database has another schema than this program"),
    StoreError: ProblemKind(500, "store", "The database gave an answer that could not be used"),
    JobFailed: ProblemKind(500, "job-failed", "The request could not be computed"),
    SafeSailError: ProblemKind(500, "internal", "The service made a mistake"),
    Exception: ProblemKind(500, "internal", "The service made a mistake"),
}

VALIDATION = PROBLEMS[BadInput]
BY_STATUS: Mapping[int, ProblemKind] = {
    400: ProblemKind(400, "bad-request", "The request is malformed"),
    401: ProblemKind(401, "key-needed", "A valid API key is needed"),
    403: ProblemKind(403, "not-allowed", "This request is not allowed"),
    404: ProblemKind(404, "no-such-path", "There is nothing at this address"),
    405: ProblemKind(405, "method-not-allowed", "This address does not take this method"),
    413: ProblemKind(413, "too-large", "The request's body is too large"),
    421: ProblemKind(421, "host-not-allowed", "This service does not answer to this host name"),
    429: ProblemKind(429, "too-many-requests", "Too many requests"),
    504: ProblemKind(504, "took-too-long", "The answer took too long"),
}


class FieldProblem(BaseModel):
    """One part of a request that was refused."""

    where: str = Field(description="The place in the request, as `query.limit` or `path.index`.")
    message: str = Field(description="What was expected there.")
    value: str | None = Field(description="What came, as text, cut to 200 characters; null where nothing came.")


class Problem(BaseModel):
    """RFC 9457 problem details; `type` is stable and meant for programs, `detail` is meant for people."""

    type: str = Field(description="Stable name of this kind of problem.", examples=[TYPE_PREFIX + "not-found"])
    title: str = Field(description="The kind of problem in words; the same for every problem of a type.")
    status: int = Field(description="HTTP status, repeated.")
    detail: str = Field(description="What was expected, what came and what to do.")
    instance: str = Field(description="Path of the request.")
    request_id: str = Field(description="Also in the `X-Request-ID` header and in the service's log.")
    errors: list[FieldProblem] = Field(default=[], description="Refused parts of the request, if it was refused.")


def kind_of(error: Exception) -> ProblemKind:
    """The row of PROBLEMS of the nearest base class."""
    return next(PROBLEMS[base] for base in type(error).__mro__ if base in PROBLEMS)


def problem_response(
    request: Request,
    kind: ProblemKind,
    detail: str,
    errors: Sequence[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The problem as JSON, or as a page where a browser asked for one."""
    problem = Problem(
        type=TYPE_PREFIX + kind.slug,
        title=kind.title,
        status=kind.status,
        detail=detail,
        instance=request.url.path,
        request_id=getattr(request.state, "request_id", "none"),
        errors=list(errors),
    )
    wants_page = not request.url.path.startswith(JSON_PATHS) and "text/html" in request.headers.get("accept", "")
    if wants_page:
        return HTMLResponse(render("problem.html", problem=problem), status_code=kind.status, headers=headers)
    return JSONResponse(problem.model_dump(), status_code=kind.status, headers=headers, media_type=MEDIA_TYPE)


def unexpected(request: Request, error: Exception) -> Response:
    """A 500 that tells the client the request id and nothing of the inside; the log has the rest."""
    request_id = getattr(request.state, "request_id", "none")
    logger.error("request %s %s failed", request_id, request.url.path, exc_info=error)
    return problem_response(
        request, PROBLEMS[Exception], f"The service's log says more under request id {request_id}; please report it."
    )


def install(app: FastAPI) -> None:
    """Answer every error of this app with a problem."""
    app.add_exception_handler(SafeSailError, _on_library_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)


async def respond(request: Request, error: Exception) -> Response:
    """The problem that such an error of the library or the framework becomes."""
    if isinstance(error, HTTPException):
        return await _on_http_error(request, error)
    return await _on_library_error(request, error)


async def _on_library_error(request: Request, error: Exception) -> Response:
    kind = kind_of(error)
    if kind.slug == "internal":
        return unexpected(request, error)
    return problem_response(request, kind, str(error))


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [
        FieldProblem(
            where=".".join(str(part) for part in entry["loc"]),
            message=entry["msg"],
            value=None if entry["type"] == "missing" else str(entry.get("input"))[:200],
        )
        for entry in error.errors()
    ]
    detail = "; ".join(f"{entry.where}: {entry.message}" for entry in errors)
    return problem_response(request, VALIDATION, detail, errors)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    kind = BY_STATUS.get(status) or ProblemKind(status, f"http-{status}", HTTPStatus(status).phrase)
    details = {
        404: f"No page or resource lives at {request.url.path}; /openapi.json lists the REST addresses, / is the page.",
        405: f"{request.method} is not offered at {request.url.path}; the Allow header lists what is.",
    }
    return problem_response(request, kind, details.get(status, str(error.detail)), headers=error.headers)
