"""Pages of safety circuits: those kept, those that hold a unit, and one with its map, evaluation and features."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import HTMLResponse
from sqlalchemy.orm import Session

from api.deps import SLUG_PATTERN, SessionDep, ShortText
from api.pages.circuits import (
    feature_members,
    head_grid,
    kl_table,
    needs_by_unit,
    neuron_layers,
    reply_lines,
    size_curve,
)
from api.pages.linking import link_lines
from api.pages.render import render
from api.routes.methods import UNIT
from db.store import (
    KeptLink,
    links_of_target,
    list_circuits,
    list_models,
    list_tuning_studies,
    load_circuit,
    load_circuit_evaluations,
    load_circuit_search,
    load_feature_listings,
    load_model,
)
from safe_sail.errors import NotFound
from safe_sail.records import (
    Circuit,
    CircuitEvaluation,
    CircuitReplies,
    CircuitSearch,
    HeadRef,
    LinkKind,
    TuningStudy,
    UnitRef,
    parse_unit,
)

router = APIRouter(default_response_class=HTMLResponse)

SHOWN_LINKS = 30


@router.api_route("/circuits", methods=["GET", "HEAD"])
def circuits(
    session: SessionDep,
    unit: Annotated[str | None, Query(max_length=40, pattern=UNIT)] = None,
    model: Annotated[ShortText | None, Query()] = None,
) -> str:
    """Circuits, or those that hold one head or neuron, with the features that it is linked with."""
    named = None if unit is None else parse_unit(unit)
    kept = [one.record for one in list_circuits(session, model_id=model, unit=named, limit=1000)]
    evaluated = {one.slug: [e.record for e in load_circuit_evaluations(session, one.slug)] for one in kept}
    linked = [] if named is None else _links_of_unit(session, named, model)
    return render(
        "circuits.html",
        circuits=[(one, *_removal(evaluated[one.slug])) for one in kept],
        unit=unit,
        model=model,
        linked=link_lines(linked, {}),
        known=load_feature_listings(session, [one.link.feature for one in linked]),
    )


def _removal(evaluations: Sequence[CircuitEvaluation]) -> tuple[CircuitReplies | None, CircuitReplies | None]:
    """What removal does on the first group of prompts of the first evaluation, and the same of random circuits."""
    for evaluation in evaluations:
        for line in reply_lines(evaluation):
            if line.replies.intervention == "removed":
                return line.replies, line.control
    return None, None


def _links_of_unit(session: Session, unit: UnitRef, model: str | None) -> list[KeptLink]:
    kind = LinkKind.HEAD if isinstance(unit, HeadRef) else LinkKind.NEURON
    models = [one.record.model_id for one in list_models(session)] if model is None else [model]
    return [
        link for name in models for link in links_of_target(session, kind, str(unit), model_id=name, limit=SHOWN_LINKS)
    ]


@router.api_route("/circuits/{circuit}", methods=["GET", "HEAD"])
def circuit(session: SessionDep, circuit: Annotated[str, Path(pattern=SLUG_PATTERN, max_length=200)]) -> str:
    """One circuit: which units on which layers, what removing it does beside random circuits, and its features."""
    kept = load_circuit(session, circuit)
    found = kept.record
    model = load_model(session, found.model_id)
    search = _search(session, circuit)
    links = links_of_target(session, LinkKind.CIRCUIT, circuit, model_id=found.model_id, limit=SHOWN_LINKS)
    features = feature_members(found)
    named = [*(one.link.feature for one in links), *(feature for feature, _ in features)]
    return render(
        "circuit.html",
        circuit=found,
        run_id=kept.run_id,
        model=model,
        grid=head_grid(found, model),
        neurons=neuron_layers(found, model),
        features=features,
        search=search,
        needs=needs_by_unit(search),
        evaluations=[
            (one.record, reply_lines(one.record), kl_table(one.record))
            for one in load_circuit_evaluations(session, circuit)
        ],
        tunings=_tunings(session, found),
        curves=[] if search is None else size_curve(search),
        linked=link_lines(links, {}),
        known=load_feature_listings(session, named),
    )


def _tunings(session: Session, circuit: Circuit) -> list[TuningStudy]:
    """Studies that tuned its model with the circuit or without it."""
    kept = list_tuning_studies(session, model_id=circuit.model_id, limit=1000)
    return [one.record for one in kept if one.record.circuit == circuit.slug]


def _search(session: Session, slug: str) -> CircuitSearch | None:
    """The search that ended with the circuit; None where it was made otherwise."""
    try:
        return load_circuit_search(session, slug).record
    except NotFound:
        return None
