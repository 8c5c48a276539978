"""Safety concepts and their places in the taxonomy."""

from fastapi import APIRouter

from api.deps import SessionDep
from api.schemas import Listing
from db.store import list_concepts
from safe_sail.records import Concept

router = APIRouter(tags=["concepts"])


@router.get("/concepts")
def get_concepts(session: SessionDep) -> Listing[Concept]:
    """All concepts, by domain, category and name."""
    return Listing(items=list_concepts(session), next_cursor=None)
