"""Features that another database exported, as lines of JSON."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from api.import_lines import import_lines
from api.schemas import ImportReport
from db.migrate import require_head

router = APIRouter(tags=["imports"])

_BODY = {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}, "required": True}


async def read_body(request: Request) -> bytes:
    """The body, whole; the request's frame bounds it."""
    return await request.body()


@router.post("/imports", status_code=201, openapi_extra={"requestBody": _BODY})
def post_import(
    request: Request,
    body: Annotated[bytes, Depends(read_body)],
    source: Annotated[
        str | None,
        Query(min_length=1, max_length=200, description="Where the lines come from, in your words; the run keeps it."),
    ] = None,
) -> ImportReport:
    """Keeps the lines of an export, all of them or none; the same request again changes nothing."""
    require_head(request.app.state.engine)  # a writer would create a missing SQLite file
    return import_lines(request.app.state.write_engine, body, source)
