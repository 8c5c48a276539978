"""The page that sets SAEs side by side: facts, L0_t curves, I_CDF by concept, and the rankings of runs."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse
from sqlalchemy.orm import Session

from api.deps import SessionDep, ShortText
from api.pages.comparing import curves, panels
from api.pages.render import render
from api.pages.views import SaeLine, address, by_mean_gap, sae_line
from db.store import list_sae_rankings, list_saes, load_sae_specificity
from safe_sail.errors import BadInput, NotFound
from safe_sail.records import SaeSpecificity

router = APIRouter(default_response_class=HTMLResponse)

MAX_COMPARED = 6
"""Columns that a screen still shows."""
SHOWN_AT_FIRST = 4
SHOWN_RANKINGS = 3


@router.api_route("/compare", methods=["GET", "HEAD"])
def compare(
    session: SessionDep,
    sae: Annotated[list[ShortText] | None, Query(max_length=50)] = None,
    concept: Annotated[str | None, Query(max_length=200)] = None,
) -> str:
    """SAEs side by side; the best few by mean rate gap where none is named."""
    lines = by_mean_gap([sae_line(one) for one in list_saes(session)])
    columns = _chosen(lines, sae)
    scored = {one.sae.slug: _specificity(session, one.sae.slug) for one in columns}
    concepts = sorted({found.concept for some in scored.values() for found in some})
    if concept and concept not in concepts:
        raise NotFound(f"none of these SAEs was scored on pairs of `{concept}`; scored are {', '.join(concepts)}.")
    spoken_of = {slug: [one for one in some if concept in (None, "", one.concept)] for slug, some in scored.items()}
    drawn = {slug: curves(some, slug) for slug, some in spoken_of.items()}
    cells = {
        name: [next((f for f in scored[one.sae.slug] if f.concept == name), None) for one in columns]
        for name in concepts
    }
    chosen = [one.sae.slug for one in columns]
    return render(
        "compare.html",
        lines=lines,
        columns=columns,
        chosen=chosen,
        concepts=concepts,
        concept=concept or None,
        n_concepts=max((len(some) for some in spoken_of.values()), default=0),
        panels=panels(drawn),
        numbers=[one for some in drawn.values() for one in some],
        cells=cells,
        top=1000 * max((f.specific.value for row in cells.values() for f in row if f), default=0.001) or 1.0,
        address_of=lambda name: address("/compare", [*(("sae", slug) for slug in chosen), ("concept", name)]),
        rankings=list_sae_rankings(session, limit=SHOWN_RANKINGS),
    )


def _chosen(lines: list[SaeLine], slugs: list[str] | None) -> list[SaeLine]:
    if not slugs:
        return [one for one in lines if one.scores][:SHOWN_AT_FIRST] or lines[:SHOWN_AT_FIRST]
    known = {one.sae.slug: one for one in lines}
    unknown = [slug for slug in slugs if slug not in known]
    if unknown:
        raise NotFound(f"no SAE is called `{unknown[0]}`; the SAEs' page lists those in the database.")
    found = [known[slug] for slug in dict.fromkeys(slugs)]
    if len(found) > MAX_COMPARED:
        raise BadInput(f"at most {MAX_COMPARED} SAEs stand side by side; got {len(found)}. Leave some out.")
    return found


def _specificity(session: Session, slug: str) -> list[SaeSpecificity]:
    return [kept.record for kept in load_sae_specificity(session, slug)]
