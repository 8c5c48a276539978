"""Pages of features: of all SAEs, of one SAE, and one feature with everything that is known of it."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse
from pydantic import Field, field_validator
from sqlalchemy.orm import Session

from api.deps import FeatureIndex, SaeSlug, SessionDep, SettingsDep, ShortText
from api.offers import ORGANISM_SAES
from api.pages.figures import axis_start
from api.pages.linking import link_lines
from api.pages.render import render
from api.pages.views import address, runs_behind, sae_line
from api.ranking import find_listing
from api.routes.features import FeatureQuery
from api.settings import ServiceSettings
from db.store import (
    FeatureSort,
    links_of_feature,
    list_circuits,
    list_concepts,
    list_direction_searches,
    list_features,
    list_saes,
    list_tags,
    load_feature,
    load_published_of,
)
from safe_sail.records import FeatureId, LinkKind, SaeRef

router = APIRouter(default_response_class=HTMLResponse)

SHOWN_LINKS = 40
_PLAIN = {"q", "concept", "has_explanation", "sort", "cursor"}
"""Fields of the form that are always in sight; the others are folded away until one is set."""


class FeatureForm(FeatureQuery):
    """The filters as a browser's form sends them: a field that was left empty is a filter that was not set."""

    cursor: str | None = Field(default=None, max_length=300)
    sort: FeatureSort = FeatureSort.SCORE

    @field_validator("*", mode="before")
    @classmethod
    def _unset_empty(cls, value: Any) -> Any:
        return None if value == "" else value

    def is_narrowed(self) -> bool:
        """Whether a filter of the folded part of the form is set."""
        return bool(set(self.model_dump(exclude_none=True)) - _PLAIN)


class AnyFeatureForm(FeatureForm):
    """The same over all SAEs."""

    sae: ShortText | None = None


@router.api_route("/features", methods=["GET", "HEAD"])
def all_features(session: SessionDep, settings: SettingsDep, form: Annotated[AnyFeatureForm, Query()]) -> str:
    """Features of all SAEs, or of the one that the form names, with the filters as a form."""
    slugs = [one.sae.slug for one in list_saes(session)]
    return _list_page(session, settings, form, path="/features", slug=form.sae, sae=None, slugs=slugs, json_path=None)


@router.api_route("/saes/{sae}", methods=["GET", "HEAD"])
def features(session: SessionDep, settings: SettingsDep, sae: SaeSlug, form: Annotated[FeatureForm, Query()]) -> str:
    """Features of one SAE with the filters as a form."""
    line = sae_line(find_listing(session, sae))
    json_path = f"/v1/saes/{sae}/features"
    path = f"/saes/{sae}"
    return _list_page(session, settings, form, path=path, slug=sae, sae=line.sae, line=line, json_path=json_path)


def _list_page(
    session: Session,
    settings: ServiceSettings,
    form: FeatureForm,
    *,
    path: str,
    slug: str | None,
    sae: SaeRef | None,
    json_path: str | None,
    **values: object,
) -> str:
    limit = settings.default_limit
    page = list_features(session, slug, filters=form.filters(), sort=form.sort, cursor=form.cursor, limit=limit)
    chosen = form.model_dump(mode="json", exclude={"cursor"}, exclude_none=True)
    judged = [one for row in page.rows for one in (row.explanation_score, row.explanation_control) if one is not None]
    return render(
        "features.html",
        path=path,
        sae=sae,
        page=page,
        published=load_published_of(session, [row.feature for row in page.rows]),
        gap_start=axis_start(row.rate_gap for row in page.rows if row.rate_gap is not None),
        judged_start=axis_start(judged),
        form=form,
        concepts=list_concepts(session),
        tags=list_tags(session),
        filtered=bool(set(chosen) - {"sort"}),
        first_page=address(path, chosen),
        next_page=address(path, {**chosen, "cursor": page.next_cursor}) if page.next_cursor else None,
        as_json=json_path and address(json_path, chosen),
        **values,
    )


@router.api_route("/saes/{sae}/features/{index}", methods=["GET", "HEAD"])
def feature(session: SessionDep, settings: SettingsDep, sae: SaeSlug, index: FeatureIndex) -> str:
    """One feature: explanation, published scores, concept scores, activations and contexts."""
    one = FeatureId(sae=sae, index=index)
    bundle = load_feature(session, one)
    scores, tags = load_published_of(session, [one])[one]
    links = links_of_feature(session, one, limit=SHOWN_LINKS)
    pages: dict[tuple[LinkKind, str], str] = {}
    for kept in list_direction_searches(session, limit=1000) if links else ():
        found = kept.record
        ends = [end.slug for end in (found.direction, found.added) if end is not None]
        pages |= {(LinkKind.DIRECTION, slug): f"/directions/{found.slug}" for slug in ends}
    if any(kept.link.kind is LinkKind.CIRCUIT for kept in links):  # circuits of a file are linked and not kept
        known = list_circuits(session, limit=1000)
        pages |= {(LinkKind.CIRCUIT, one.record.slug): f"/circuits/{one.record.slug}" for one in known}
    return render(
        "feature.html",
        bundle=bundle,
        can_steer=sae in ORGANISM_SAES or sae in settings.saes,
        scores=scores,
        tags=tags,
        links=link_lines(links, pages),
        runs=runs_behind(session, bundle),
    )
