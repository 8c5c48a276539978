"""SAEs: where they come from, how well they reconstruct, and how specifically they carry each concept."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import SaeSlug, SessionDep, ShortText
from api.ranking import SaeSort, find_listing, ranked
from api.schemas import Listing, SaeDetail, sae_detail
from db.lookup import require_concept
from db.store import list_saes

router = APIRouter(tags=["saes"])


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
