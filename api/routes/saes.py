"""SAEs: where they come from, how well they reconstruct, and how specifically they carry each concept."""

from typing import Annotated

from fastapi import APIRouter, Query
from sqlalchemy.orm import Session

from api.deps import SaeSlug, SessionDep, ShortText
from api.pages.comparing import curves
from api.ranking import SaeSort, find_listing, ranked
from api.schemas import ComparedSae, CurvePoint, Listing, RunRanking, SaeComparison, SaeDetail, from_run, sae_detail
from db.lookup import require_concept
from db.store import list_sae_rankings, list_saes, load_sae_specificity

router = APIRouter(tags=["saes"])

MAX_COMPARED = 6
"""As many as the page shows side by side."""


@router.get("/saes")
def get_saes(
    session: SessionDep,
    model: Annotated[ShortText | None, Query(description="Only SAEs that were trained for this model.")] = None,
    concept: Annotated[
        ShortText | None, Query(description="Only SAEs scored on this concept, and only that score of each.")
    ] = None,
    sort: Annotated[
        SaeSort, Query(description="Best first; what was not measured comes last; ties by slug.")
    ] = SaeSort.SLUG,
) -> Listing[SaeDetail]:
    """All SAEs with their facts and scores, in the order asked for."""
    if concept is not None:
        require_concept(session, concept)
    listings = ranked(list_saes(session, model_id=model), sort, concept)
    details = [sae_detail(listing, concept) for listing in listings]
    return Listing(items=[one for one in details if concept is None or one.scores], next_cursor=None)


@router.get("/saes/{sae}")
def get_sae(session: SessionDep, sae: SaeSlug) -> SaeDetail:
    """One SAE with its facts and scores."""
    return sae_detail(find_listing(session, sae))


@router.get("/compare")
def compare_saes(
    session: SessionDep,
    sae: Annotated[
        list[ShortText], Query(min_length=2, max_length=MAX_COMPARED, description="An SAE; given two to six times.")
    ],
    concept: Annotated[
        ShortText | None, Query(description="Only this concept's scores and curves; all concepts if absent.")
    ] = None,
) -> SaeComparison:
    """Two to six SAEs side by side: facts, scores, L0_t curves and I_CDF with their nulls, rankings of runs."""
    if concept is not None:
        require_concept(session, concept)
    chosen = list(dict.fromkeys(sae))
    ranked_by = [one for one in list_sae_rankings(session) if {place.sae for place in one[1]} & set(chosen)]
    return SaeComparison(
        saes=[_compared(session, slug, concept) for slug in chosen],
        rankings=[RunRanking(run_id=run.run_id, ranking=ranking) for run, ranking in ranked_by],
    )


def _compared(session: Session, slug: str, concept: str | None) -> ComparedSae:
    listing = find_listing(session, slug)
    kept = [one for one in load_sae_specificity(session, slug) if concept in (None, one.record.concept)]
    drawn = curves([one.record for one in kept], slug)
    points = [[CurvePoint(t=p.x, mean=p.y, low=p.low, high=p.high) for p in one.points] for one in drawn]
    return ComparedSae(
        sae=sae_detail(listing, concept),
        specificity=[from_run(one) for one in kept],
        curve=points[0] if points else [],
        curve_swapped=points[1] if points else [],
    )
