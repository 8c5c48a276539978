"""The page: SAEs ranked by concept, the features of one SAE, one feature. Plain GET, readable without JavaScript."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse
from pydantic import Field, field_validator

from api.deps import FeatureIndex, SaeSlug, SessionDep, SettingsDep
from api.pages.render import render
from api.pages.views import address, best_of_each, by_mean_gap, runs_behind, sae_line
from api.ranking import SaeSort, find_listing, ranked
from api.routes.features import FeatureQuery
from db.store import FeatureSort, list_concepts, list_features, list_saes, load_feature
from safe_sail.errors import NotFound
from safe_sail.records import FeatureId

router = APIRouter(default_response_class=HTMLResponse)


class FeatureForm(FeatureQuery):
    """The filters as a browser's form sends them: a field that was left empty is a filter that was not set."""

    cursor: str | None = Field(default=None, max_length=300)
    sort: FeatureSort = FeatureSort.SCORE

    @field_validator("*", mode="before")
    @classmethod
    def _unset_empty(cls, value: Any) -> Any:
        return None if value == "" else value

    def has_bounds(self) -> bool:
        """Whether a filter of the folded part of the form is set."""
        bounds = (self.min_rate_gap, self.min_auroc, self.min_density, self.max_density)
        return any(bound is not None for bound in bounds)


@router.api_route("/", methods=["GET", "HEAD"])
def overview(session: SessionDep, concept: Annotated[str | None, Query(max_length=200)] = None) -> str:
    """SAEs: reconstruction and the matrix of concepts, or the ranking for one concept."""
    concepts = sorted(list_concepts(session), key=lambda one: not one.harmful)
    chosen = next((one for one in concepts if one.name == concept), None)
    if concept and chosen is None:
        raise NotFound(f"no concept is called `{concept}`; the SAEs' page lists those in the database.")
    if chosen is None:
        lines = by_mean_gap([sae_line(one) for one in list_saes(session)])
        return render("overview.html", rows=lines, concepts=concepts, chosen=None, best=best_of_each(lines))
    lines = [sae_line(one) for one in ranked(list_saes(session), SaeSort.RATE_GAP, chosen.name)]
    gaps = [line.scores[chosen.name].rate_gap for line in lines if chosen.name in line.scores]
    return render("overview.html", rows=lines, concepts=concepts, chosen=chosen, gaps=gaps)


@router.api_route("/saes/{sae}", methods=["GET", "HEAD"])
def features(session: SessionDep, settings: SettingsDep, sae: SaeSlug, form: Annotated[FeatureForm, Query()]) -> str:
    """Features of one SAE with the filters as a form."""
    listing = find_listing(session, sae)
    page = list_features(
        session, sae, filters=form.filters(), sort=form.sort, cursor=form.cursor, limit=settings.default_limit
    )
    chosen = form.model_dump(mode="json", exclude={"cursor"}, exclude_none=True)
    path = f"/saes/{sae}"
    return render(
        "features.html",
        line=sae_line(listing),
        page=page,
        form=form,
        concepts=list_concepts(session),
        filtered=bool(set(chosen) - {"sort"}),
        first_page=address(path, chosen),
        next_page=address(path, {**chosen, "cursor": page.next_cursor}) if page.next_cursor else None,
        as_json=address(f"/v1/saes/{sae}/features", chosen),
    )


@router.api_route("/saes/{sae}/features/{index}", methods=["GET", "HEAD"])
def feature(session: SessionDep, sae: SaeSlug, index: FeatureIndex) -> str:
    """One feature: explanation, concept scores, activations and contexts."""
    bundle = load_feature(session, FeatureId(sae=sae, index=index))
    return render("feature.html", bundle=bundle, runs=runs_behind(session, bundle))
