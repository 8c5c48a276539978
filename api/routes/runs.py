"""Runs: what wrote a record, with its seed, settings and versions."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api.deps import RunIdentity, SessionDep
from api.links import Cursor, link_next
from api.schemas import Listing
from db.store import list_runs, load_run
from db.store.cursors import read_place, write_place
from safe_sail.errors import BadInput
from safe_sail.records import RunInfo

router = APIRouter(tags=["runs"])


@router.get("/runs")
def get_runs(
    request: Request,
    response: Response,
    session: SessionDep,
    cursor: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=200, description="Runs on a page.")] = 50,
) -> Listing[RunInfo]:
    """Runs, newest first, page by page."""
    after = None if cursor is None else _place(cursor)
    found = list_runs(session, limit=limit + 1, after=after)
    last = found[limit - 1] if len(found) > limit else None
    more = None if last is None else write_place("runs", last.started.isoformat(), last.run_id)
    link_next(request, response, more)
    return Listing(items=found[:limit], next_cursor=more)


def _place(cursor: str) -> tuple[datetime, str]:
    started, run_id = read_place("runs", cursor, 2)
    try:
        moment = datetime.fromisoformat(started)
        return moment.astimezone(UTC), run_id
    except (ValueError, OverflowError) as error:
        raise BadInput(f"`{cursor[:80]!r}` is no cursor of the list of runs; pass on `next_cursor`.") from error


@router.get("/runs/{run_id}")
def get_run(session: SessionDep, run_id: RunIdentity) -> RunInfo:
    """One run."""
    return load_run(session, run_id)
