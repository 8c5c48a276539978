"""The page that lays features out by domain, category and concept, with a flat map of those that are specific."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from api.deps import SessionDep
from api.pages.mapping import feature_map
from api.pages.render import render
from db.store import (
    ConceptLandscape,
    list_feature_gaps,
    list_landscape,
    list_saes,
    list_tags,
    load_feature_listings,
    load_gaps,
)

router = APIRouter(default_response_class=HTMLResponse)


@router.api_route("/landscape", methods=["GET", "HEAD"])
def landscape(session: SessionDep, sae: Annotated[str | None, Query(max_length=200)] = None) -> str:
    """Features by their place in the taxonomy, of one SAE or of all."""
    slug = sae or None
    found = list_landscape(session, slug)
    concepts = [one.concept for one in found]
    spread = list_feature_gaps(session, slug, [one.name for one in concepts])
    best = [(feature, one.concept.name) for one in found for feature in one.best]
    shown = dict.fromkeys([feature for feature, _ in best] + [one.feature for one in spread])
    domains: dict[str, dict[str, list[ConceptLandscape]]] = {}
    for one in found:
        domains.setdefault(one.concept.domain, {}).setdefault(one.concept.category, []).append(one)
    return render(
        "landscape.html",
        sae=slug,
        slugs=[one.sae.slug for one in list_saes(session) if one.scores],
        domains=domains,
        map=feature_map(spread, concepts),
        n_concepts=len(concepts),
        known=load_feature_listings(session, list(shown)),
        gaps=load_gaps(session, best),
        tags=list_tags(session) if slug is None else {},
        list_path="/features" if slug is None else f"/saes/{slug}",
    )
