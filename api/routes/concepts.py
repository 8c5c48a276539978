"""Safety concepts and their places in the taxonomy."""

from itertools import groupby
from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import SessionDep, ShortText
from api.schemas import Listing, Taxonomy, TaxonomyCategory, TaxonomyConcept, TaxonomyDomain
from db.store import ConceptLandscape, list_concepts, list_landscape
from safe_sail.records import Concept

router = APIRouter(tags=["concepts"])


@router.get("/concepts")
def get_concepts(session: SessionDep) -> Listing[Concept]:
    """All concepts, by domain, category and name."""
    return Listing(items=list_concepts(session), next_cursor=None)


@router.get("/taxonomy")
def get_taxonomy(
    session: SessionDep,
    sae: Annotated[ShortText | None, Query(description="Count features of this SAE alone; of all if absent.")] = None,
) -> Taxonomy:
    """Domains, categories and concepts, with the features that were scored on each and that are specific to it."""
    known = {one.concept.name: one for one in list_landscape(session, sae, n_best=1)}
    domains = []
    for domain, of_domain in groupby(list_concepts(session), lambda one: one.domain):
        categories = [
            TaxonomyCategory(name=name, concepts=[_counted(one, known.get(one.name)) for one in some])
            for name, some in groupby(of_domain, lambda one: one.category)
        ]
        domains.append(TaxonomyDomain(name=domain, categories=categories))
    return Taxonomy(domains=domains)


def _counted(concept: Concept, found: ConceptLandscape | None) -> TaxonomyConcept:
    return TaxonomyConcept(
        name=concept.name,
        harmful=concept.harmful,
        n_scored=0 if found is None else found.n_scored,
        n_specific=0 if found is None else found.n_specific,
    )
