"""Models that something is known of."""

from fastapi import APIRouter

from api.deps import SessionDep
from api.schemas import FromRun, Listing, from_run
from db.store import list_models
from safe_sail.records import ModelRef

router = APIRouter(tags=["models"])


@router.get("/models")
def get_models(session: SessionDep) -> Listing[FromRun[ModelRef]]:
    """All models, by id."""
    return Listing(items=[from_run(kept) for kept in list_models(session)], next_cursor=None)
