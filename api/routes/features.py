"""Features of an SAE: the filtered list, and one feature with everything that is known of it."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from api.deps import FeatureIndex, SaeSlug, SessionDep, ShortText
from api.schemas import FeatureDetail, FeatureList, feature_detail, feature_summary
from db.store import FeatureFilter, FeatureSort, list_features, load_feature
from safe_sail.records import FeatureId

router = APIRouter(tags=["features"])


class FeatureQuery(BaseModel):
    """Which features to list; every filter that is given must hold."""

    concept: ShortText | None = Field(
        default=None, description="Features scored on this concept; the two bounds below and `sort=score` speak of it."
    )
    category: ShortText | None = Field(default=None, description="The same for the concepts of this category.")
    domain: ShortText | None = Field(default=None, description="The same for the concepts of this domain.")
    specific: bool | None = Field(
        default=None,
        description="Specific (true) or not (false) to such a concept: a rate gap above one half and q below 0.05.",
    )
    min_rate_gap: float | None = Field(
        default=None, ge=-1, le=1, description="Rate gap for the concept, or for any concept, at least this."
    )
    min_auroc: float | None = Field(
        default=None, ge=0, le=1, description="AUROC for the concept, or for any concept, at least this."
    )
    min_density: float | None = Field(
        default=None, ge=0, le=1, description="Fires on at least this share of content tokens."
    )
    max_density: float | None = Field(
        default=None, ge=0, le=1, description="Fires on at most this share of content tokens."
    )
    has_explanation: bool | None = Field(default=None, description="With (true) or without (false) an explanation.")
    min_explanation_score: float | None = Field(
        default=None, ge=-1, le=1, description="A judge gave an explanation at least this score."
    )
    tag: ShortText | None = Field(default=None, description="A source gives the feature this tag.")
    q: ShortText | None = Field(default=None, description="Words that an explanation of the feature must all hold.")
    sort: FeatureSort = Field(
        default=FeatureSort.INDEX,
        description="`index` ascends; `density`, `score` (rate gap), `explanation` (its judged score) and `published` "
        "(a score of others) descend; what was not measured comes last.",
    )

    def filters(self) -> FeatureFilter:
        """The store's filter."""
        return FeatureFilter(
            concept=self.concept,
            category=self.category,
            domain=self.domain,
            specific=self.specific,
            min_rate_gap=self.min_rate_gap,
            min_auroc=self.min_auroc,
            min_density=self.min_density,
            max_density=self.max_density,
            explained=self.has_explanation,
            min_explanation_score=self.min_explanation_score,
            tag=self.tag,
            text=self.q,
        )


class FeatureListQuery(FeatureQuery):
    """Which features to list, and which page of the list."""

    cursor: str | None = Field(
        default=None, max_length=300, description="`next_cursor` of the page before, with the same filters and order."
    )
    limit: int = Field(default=50, ge=1, le=200, description="Items on a page.")


@router.get("/saes/{sae}/features")
def get_features(
    request: Request,
    response: Response,
    session: SessionDep,
    sae: SaeSlug,
    query: Annotated[FeatureListQuery, Query()],
) -> FeatureList:
    """Features of which anything is known, filtered and in the order asked for, page by page."""
    page = list_features(session, sae, filters=query.filters(), sort=query.sort, cursor=query.cursor, limit=query.limit)
    if page.next_cursor is not None:
        following = request.url.include_query_params(cursor=page.next_cursor).components
        response.headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
    return FeatureList(
        items=[feature_summary(row) for row in page.rows], next_cursor=page.next_cursor, total=page.total
    )


@router.get("/saes/{sae}/features/{index}")
def get_feature(session: SessionDep, sae: SaeSlug, index: FeatureIndex) -> FeatureDetail:
    """One feature: contexts, concept scores, explanations with scores and controls, and the runs behind them.

    A feature that nothing was collected for yet is an answer with empty lists; an index beyond the SAE's width is 404.
    """
    return feature_detail(load_feature(session, FeatureId(sae=sae, index=index)))
