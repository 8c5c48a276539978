"""The page: SAEs ranked by concept, and the routes of the other pages. Plain GET, readable without JavaScript."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from api.deps import SessionDep
from api.pages.render import render
from api.pages.views import best_of_each, by_mean_gap, sae_line
from api.ranking import SaeSort, ranked
from api.routes import (
    pages_circuits,
    pages_compare,
    pages_directions,
    pages_features,
    pages_jobs,
    pages_landscape,
    pages_neurons,
    pages_prompts,
)
from db.store import list_concepts, list_saes
from safe_sail.errors import NotFound

router = APIRouter(default_response_class=HTMLResponse)
_PARTS = (
    pages_features, pages_landscape, pages_compare, pages_directions, pages_neurons, pages_circuits, pages_prompts,
    pages_jobs,
)  # fmt: skip
for part in _PARTS:
    router.include_router(part.router)


@router.api_route("/", methods=["GET", "HEAD"])
def overview(session: SessionDep, concept: Annotated[str | None, Query(max_length=200)] = None) -> str:
    """SAEs: reconstruction and the matrix of concepts, or the ranking for one concept."""
    concepts = sorted(list_concepts(session), key=lambda one: not one.harmful)
    chosen = next((one for one in concepts if one.name == concept), None)
    if concept and chosen is None:
        raise NotFound(f"no concept is called `{concept}`; the SAEs' page lists those in the database.")
    if chosen is None:
        lines = by_mean_gap([sae_line(one) for one in list_saes(session)])
        return render("overview.html", rows=lines, concepts=concepts, chosen=None, best=best_of_each(lines))
    lines = [sae_line(one) for one in ranked(list_saes(session), SaeSort.RATE_GAP, chosen.name)]
    gaps = [line.scores[chosen.name].rate_gap for line in lines if chosen.name in line.scores]
    return render("overview.html", rows=lines, concepts=concepts, chosen=chosen, gaps=gaps)
