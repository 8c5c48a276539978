"""Pages of refusal directions: the searches, and one with its selection map, evaluation and reading in features."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from fastapi.responses import HTMLResponse
from sqlalchemy.orm import Session

from api.deps import SLUG_PATTERN, SessionDep
from api.pages.directing import (
    METRICS,
    OUTCOMES,
    direction_curves,
    replies_with_controls,
    selection_map,
    utility_table,
)
from api.pages.render import render
from db.store import (
    list_direction_searches,
    load_direction_evaluation,
    load_direction_reading,
    load_direction_search,
    load_feature_listings,
)
from safe_sail.records import DirectionSearch, ReplyShares

router = APIRouter(default_response_class=HTMLResponse)


@router.api_route("/directions", methods=["GET", "HEAD"])
def directions(session: SessionDep) -> str:
    """Searches for a direction, with what ablation does to refusals."""
    searches = [_line(session, kept.record) for kept in list_direction_searches(session)]
    return render("directions.html", searches=searches, outcomes=OUTCOMES)


def _line(session: Session, search: DirectionSearch) -> tuple[DirectionSearch, ReplyShares | None, ReplyShares | None]:
    if search.direction is None:
        return search, None, None
    kept = load_direction_evaluation(session, search.direction.slug)
    pairs = [] if kept is None else replies_with_controls(kept.record)
    found = next(((a, b) for a, b in pairs if a.intervention == "ablation" and "harmful" in a.prompts), (None, None))
    return search, *found


@router.api_route("/directions/{search}", methods=["GET", "HEAD"])
def direction(
    session: SessionDep,
    search: Annotated[str, Path(pattern=SLUG_PATTERN, max_length=200)],
    show: Annotated[Literal["bypass", "induce", "kl"], Query()] = "bypass",
) -> str:
    """One search: the map of candidates, what the direction does beside random ones, and the features that write it."""
    kept = load_direction_search(session, search)
    found = kept.record
    slug = None if found.direction is None else found.direction.slug
    evaluation = None if slug is None else load_direction_evaluation(session, slug)
    reading = None if slug is None else load_direction_reading(session, slug)
    aligned = [] if reading is None else [one.feature for sae in reading.record.saes for one in sae.features]
    return render(
        "direction.html",
        search=found,
        run_id=kept.run_id,
        outcomes=OUTCOMES,
        metrics=METRICS,
        metric=METRICS[show],
        selection_map=selection_map,
        evaluation=None if evaluation is None else evaluation.record,
        replies=[] if evaluation is None else replies_with_controls(evaluation.record),
        utility=None if evaluation is None else utility_table(evaluation.record),
        curves=list(direction_curves(found, None if reading is None else reading.record)),
        reading=None if reading is None else reading.record,
        known=load_feature_listings(session, aligned),
    )
