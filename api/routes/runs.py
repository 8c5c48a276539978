"""Runs: what wrote a record, with its seed, settings and versions."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import RunIdentity, SessionDep
from api.schemas import Listing
from db.store import list_runs, load_run
from safe_sail.records import RunInfo

router = APIRouter(tags=["runs"])


@router.get("/runs")
def get_runs(
    session: SessionDep, limit: Annotated[int, Query(ge=1, le=200, description="Runs to list at most.")] = 50
) -> Listing[RunInfo]:
    """The latest runs, newest first."""
    return Listing(items=list_runs(session, limit=limit), next_cursor=None)


@router.get("/runs/{run_id}")
def get_run(session: SessionDep, run_id: RunIdentity) -> RunInfo:
    """One run."""
    return load_run(session, run_id)
