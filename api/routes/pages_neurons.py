"""Pages of safety neurons: the searches, and one with its causal curve beside random neurons of the same layers."""

from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import HTMLResponse

from api.deps import SLUG_PATTERN, SessionDep
from api.pages.linking import link_lines
from api.pages.neurons import causal_curve, layer_table, window_curve
from api.pages.render import render
from db.store import links_of_target, list_neuron_searches, load_feature_listings, load_neuron_search
from safe_sail.records import LinkKind

router = APIRouter(default_response_class=HTMLResponse)

SHOWN_NEURONS, SHOWN_LINKS = 40, 20


@router.api_route("/neurons", methods=["GET", "HEAD"])
def neurons(session: SessionDep) -> str:
    """Searches for safety neurons."""
    return render("neurons.html", searches=[kept.record for kept in list_neuron_searches(session)])


@router.api_route("/neurons/{search}", methods=["GET", "HEAD"])
def neuron_set(session: SessionDep, search: Annotated[str, Path(pattern=SLUG_PATTERN, max_length=200)]) -> str:
    """One search: what patching its neurons does, where they lie, and the features linked with them."""
    kept = load_neuron_search(session, search)
    found = kept.record
    linked = links_of_target(session, LinkKind.NEURON_SET, found.slug, model_id=found.second_model, limit=SHOWN_LINKS)
    return render(
        "neuron_set.html",
        search=found,
        run_id=kept.run_id,
        curves=[causal_curve(found), *window_curve(found)],
        layers=layer_table(found),
        neurons=list(zip(found.neurons, found.change, strict=True))[:SHOWN_NEURONS],
        linked=link_lines(linked, {}),
        known=load_feature_listings(session, [one.link.feature for one in linked]),
    )
