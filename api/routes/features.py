"""Features of an SAE: the filtered list, and one feature with everything that is known of it."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from api.bodies import feature_body, page_body
from api.deps import FeatureIndex, SaeSlug, ShortText
from api.direct import answer_json
from api.links import link_next
from api.schemas import FeatureDetail, FeatureList
from db.prepared import Run
from db.store import EVERYTHING, INDEXED_SORTS, FeatureFilter, FeatureSort, feature_rows, page_rows
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
        "(a score of others) descend, what was not measured last; `relevance`: the best match of `q` first.",
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
    include: Literal["total"] | None = Field(
        default=None, description="`total` also counts the features on all pages, which takes longer than the page."
    )


@router.get("/saes/{sae}/features", response_model=FeatureList)
async def get_features(request: Request, sae: SaeSlug, query: Annotated[FeatureListQuery, Query()]) -> Response:
    """Features of which anything is known, filtered and in the order asked for, page by page."""
    filters, following = query.filters(), None

    def read(run: Run) -> bytes:
        nonlocal following
        page = page_rows(
            run, sae, filters=filters, sort=query.sort, cursor=query.cursor, limit=query.limit,
            count=query.include is not None,
        )  # fmt: skip
        following = page.next_cursor
        return page_body(page)

    # along an index, a page is a page wherever it begins; any other order or filter may walk over many features
    short = query.sort in INDEXED_SORTS and filters == EVERYTHING and query.include is None
    response = await answer_json(request, read, short=short)
    link_next(request, response, following)
    return response


@router.get("/saes/{sae}/features/{index}", response_model=FeatureDetail)
async def get_feature(request: Request, sae: SaeSlug, index: FeatureIndex) -> Response:
    """One feature: contexts, concept scores, explanations with scores and controls, and the runs behind them.

    A feature that nothing was collected for yet is an answer with empty lists; an index beyond the SAE's width is 404.
    """
    feature = FeatureId(sae=sae, index=index)
    return await answer_json(request, lambda run: feature_body(index, feature_rows(run, feature)), short=True)
