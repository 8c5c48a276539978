"""Is the process alive, and can it answer from its database."""

from fastapi import APIRouter, Request

from api.schemas import Health
from db.migrate import require_head

router = APIRouter(tags=["health"])


@router.get("/livez")
def livez() -> Health:
    """Whether the process answers; does not touch the database."""
    return Health(status="ok")


@router.get("/readyz")
def readyz(request: Request) -> Health:
    """Whether the database answers and has this program's schema; 503 says which of the two is wrong."""
    require_head(request.app.state.engine)
    return Health(status="ok")
