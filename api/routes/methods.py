"""What the methods beside SAE scoring found: directions, safety neurons, guards, circuits, links of features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from sqlalchemy.orm import Session

from api.deps import SLUG_PATTERN, FeatureIndex, SaeSlug, SessionDep, ShortText
from api.links import Cursor, listed, page_of, page_of_links
from api.wire import as_wire, list_of, one_of
from db import store
from db.store import Kept
from db.store.cursors import LinkPlace
from safe_sail.errors import NotFound
from safe_sail.records import (
    Circuit,
    CircuitEvaluation,
    CircuitSearch,
    Direction,
    DirectionEvaluation,
    DirectionReading,
    DirectionSearch,
    FeatureId,
    GuardEvaluation,
    LinkFlow,
    LinkKind,
    LinkStudy,
    NeuronSearch,
    NeuronTax,
    TuningStudy,
    parse_unit,
)

router = APIRouter()

Slug = Annotated[str, Path(pattern=SLUG_PATTERN, max_length=200, description="Slug, as the list has it.")]
UNIT = r"^L(0|[1-9][0-9]*)\.[HN](0|[1-9][0-9]*)$"
Limit = Annotated[int, Query(ge=1, le=200, description="Records to list at most.")]
OfModel = Annotated[ShortText | None, Query(description="Only those of this model.")]


def _kept(kept: Kept[Any]) -> dict[str, Any]:
    return {"record": as_wire(kept.record), "run_id": kept.run_id}


def _slug(kept: Kept[Any]) -> str:
    return str(kept.record.slug)


@dataclass(frozen=True)
class Page:
    """Which page of a list is asked for, and how it is answered."""

    request: Request
    response: Response
    cursor: str | None
    limit: int

    def of(self, name: str, find: Callable[..., Sequence[Kept[Any]]], session: Session, **filters: Any) -> Any:
        """The page of a list ordered by slug that a function of the store finds."""
        found, more = page_of(
            name, lambda after, n: find(session, after=after, limit=n, **filters), _slug, self.cursor, self.limit
        )
        return listed(self.request, self.response, [_kept(one) for one in found], more)

    def of_links(self, name: str, find: Callable[[LinkPlace | None, int], Sequence[store.KeptLink]]) -> Any:
        """The page of links, which are ordered by strength, that a function of the store finds."""
        found, more = page_of_links(name, find, self.cursor, self.limit)
        return listed(self.request, self.response, [as_wire(one) for one in found], more)


def _page(request: Request, response: Response, cursor: Cursor = None, limit: Limit = 50) -> Page:
    return Page(request, response, cursor, limit)


PageDep = Annotated[Page, Depends(_page)]


class _Which(NamedTuple):
    concept: str | None
    flow: LinkFlow | None
    all: bool


def _which(
    concept: Annotated[ShortText | None, Query(description="Only links on this concept's texts.")] = None,
    flow: Annotated[LinkFlow | None, Query(description="Only links in this direction.")] = None,
    all: Annotated[bool, Query(description="Also those that were tested and are not significant.")] = False,
) -> _Which:
    return _Which(concept, flow, all)


LinksDep = Annotated[_Which, Depends(_which)]


def _features_of(session: Session, kind: LinkKind, slug: str, model_id: str, page: Page, which: _Which) -> Any:
    return page.of_links(
        f"features of a {kind}",
        lambda after, n: store.links_of_target(
            session, kind, slug, model_id=model_id, concept=which.concept, flow=which.flow, linked_only=not which.all,
            limit=n, after=after,
        ),
    )  # fmt: skip


def _found(kept: Kept[Any] | None, what: str, slug: str) -> dict[str, Any]:
    if kept is None:
        raise NotFound(f"direction `{slug}` has no {what} yet; `safe-sail find-refusal-direction` makes both.")
    return _kept(kept)


# --------------------------------------------------------------------------------------------- directions


@router.get("/directions", tags=["directions"], response_model=list_of(DirectionSearch))
def get_direction_searches(session: SessionDep, page: PageDep, model: OfModel = None) -> Any:
    """Searches for refusal directions, whole: candidates, selection, trials and the direction, if one was confirmed."""
    return page.of("directions", store.list_direction_searches, session, model_id=model)


@router.get("/directions/{slug}", tags=["directions"], response_model=one_of(Direction))
def get_direction(session: SessionDep, slug: Slug) -> Any:
    """One direction with its vectors."""
    return _kept(store.load_direction(session, slug))


@router.get("/directions/{slug}/evaluation", tags=["directions"], response_model=one_of(DirectionEvaluation))
def get_direction_evaluation(session: SessionDep, slug: Slug) -> Any:
    """What the direction does on prompts that neither made nor chose it, beside random directions."""
    return _found(store.load_direction_evaluation(session, slug), "evaluation", slug)


@router.get("/directions/{slug}/reading", tags=["directions"], response_model=one_of(DirectionReading))
def get_direction_reading(session: SessionDep, slug: Slug) -> Any:
    """Where prompts stand along the direction, and which SAE features and tokens carry it."""
    return _found(store.load_direction_reading(session, slug), "reading", slug)


@router.get("/directions/{slug}/features", tags=["directions"], response_model=list_of(store.KeptLink, with_run=False))
def get_features_of_direction(session: SessionDep, slug: Slug, page: PageDep, which: LinksDep) -> Any:
    """Features that the direction is linked with, strongest first."""
    model_id = store.load_direction(session, slug).record.model_id
    return _features_of(session, LinkKind.DIRECTION, slug, model_id, page, which)


# --------------------------------------------------------------------------------------------- neurons and guards


@router.get("/neuron-sets", tags=["neurons"], response_model=list_of(NeuronSearch))
def get_neuron_searches(session: SessionDep, page: PageDep, model: OfModel = None) -> Any:
    """Searches for safety neurons between two models: the most changed ones, and what patching them does."""
    return page.of("neuron-sets", store.list_neuron_searches, session, model_id=model)


@router.get("/neuron-sets/{slug}", tags=["neurons"], response_model=one_of(NeuronSearch))
def get_neuron_search(session: SessionDep, slug: Slug) -> Any:
    """One search for safety neurons."""
    return _kept(store.load_neuron_search(session, slug))


@router.get("/neuron-sets/{slug}/features", tags=["neurons"], response_model=list_of(store.KeptLink, with_run=False))
def get_features_of_neuron_set(session: SessionDep, slug: Slug, page: PageDep, which: LinksDep) -> Any:
    """Features that the set of safety neurons is linked with, strongest first; links are of the model that holds it."""
    model_id = store.load_neuron_search(session, slug).record.second_model
    return _features_of(session, LinkKind.NEURON_SET, slug, model_id, page, which)


@router.get("/neuron-taxes", tags=["neurons"], response_model=list_of(NeuronTax))
def get_neuron_taxes(session: SessionDep, page: PageDep) -> Any:
    """Comparisons of safety and helpfulness: whether they change the same neurons."""
    return page.of("neuron-taxes", store.list_neuron_taxes, session)


@router.get("/guards", tags=["neurons"], response_model=list_of(GuardEvaluation))
def get_guards(session: SessionDep, page: PageDep, model: OfModel = None) -> Any:
    """Guards that tell before an answer whether it will be unsafe, judged on held-out prompts."""
    return page.of("guards", store.list_guard_evaluations, session, model_id=model)


# --------------------------------------------------------------------------------------------- circuits


@router.get("/circuits", tags=["circuits"], response_model=list_of(Circuit))
def get_circuits(
    session: SessionDep,
    page: PageDep,
    model: OfModel = None,
    unit: Annotated[
        str | None,
        Query(description="Only those with this head or neuron, as L3.H5 or L3.N902.", pattern=UNIT, max_length=40),
    ] = None,
) -> Any:
    """Circuits with their units and gate probabilities."""
    holds = None if unit is None else parse_unit(unit)
    return page.of("circuits", store.list_circuits, session, model_id=model, unit=holds)


@router.get("/circuits/{slug}", tags=["circuits"], response_model=one_of(Circuit))
def get_circuit(session: SessionDep, slug: Slug) -> Any:
    """One circuit."""
    return _kept(store.load_circuit(session, slug))


@router.get("/circuits/{slug}/search", tags=["circuits"], response_model=one_of(CircuitSearch))
def get_circuit_search(session: SessionDep, slug: Slug) -> Any:
    """The search that ended with the circuit: sizes, seeds, stability, need of each unit."""
    return _kept(store.load_circuit_search(session, slug))


@router.get("/circuits/{slug}/evaluations", tags=["circuits"], response_model=list_of(CircuitEvaluation))
def get_circuit_evaluations(session: SessionDep, slug: Slug) -> Any:
    """What removing and isolating the circuit does on held-out prompts, beside random circuits; one per ablation."""
    return {"items": [_kept(one) for one in store.load_circuit_evaluations(session, slug)], "next_cursor": None}


@router.get("/circuits/{slug}/features", tags=["circuits"], response_model=list_of(store.KeptLink, with_run=False))
def get_features_of_circuit(session: SessionDep, slug: Slug, page: PageDep, which: LinksDep) -> Any:
    """Features that the whole circuit is linked with, strongest first."""
    return _features_of(session, LinkKind.CIRCUIT, slug, store.load_circuit(session, slug).record.model_id, page, which)


@router.get("/tunings", tags=["circuits"], response_model=list_of(TuningStudy))
def get_tuning_studies(session: SessionDep, page: PageDep, model: OfModel = None) -> Any:
    """Studies that tune a model with a circuit alone or without it, beside full tuning and random circuits."""
    return page.of("tunings", store.list_tuning_studies, session, model_id=model)


# --------------------------------------------------------------------------------------------- links


@router.get("/links", tags=["links"], response_model=list_of(store.LinkStudyListing, with_run=False))
def get_link_studies(
    session: SessionDep,
    page: PageDep,
    model: OfModel = None,
    sae: Annotated[ShortText | None, Query(description="Only those of this SAE.")] = None,
) -> Any:
    """Studies of what features are linked with, without their links, and what chance gave in the same tests."""
    found, more = page_of(
        "links",
        lambda after, n: store.list_link_studies(session, model_id=model, sae=sae, limit=n, after=after),
        lambda one: one.slug,
        page.cursor,
        page.limit,
    )
    return listed(page.request, page.response, [as_wire(one) for one in found], more)


@router.get("/links/{slug}", tags=["links"], response_model=one_of(LinkStudy))
def get_link_study(session: SessionDep, slug: Slug) -> Any:
    """One study with all its links."""
    return _kept(store.load_link_study(session, slug))


@router.get(
    "/saes/{sae}/features/{index}/links", tags=["links"], response_model=list_of(store.KeptLink, with_run=False)
)
def get_links_of_feature(
    session: SessionDep,
    sae: SaeSlug,
    index: FeatureIndex,
    page: PageDep,
    kind: Annotated[LinkKind | None, Query(description="Only links with this kind of thing.")] = None,
    all: Annotated[bool, Query(description="Also those that were tested and are not significant.")] = False,
) -> Any:
    """What one feature is linked with, by weights and by cause, strongest first."""
    feature = FeatureId(sae=sae, index=index)
    kinds = None if kind is None else [kind]
    return page.of_links(
        "links of a feature",
        lambda after, n: store.links_of_feature(
            session, feature, kinds=kinds, linked_only=not all, limit=n, after=after
        ),
    )
