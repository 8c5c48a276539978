"""`list_features`: a page of features of one SAE or of all, filtered and sorted, as light rows.

`feature_statements` builds what is asked of the database: one statement a page, compiled once. A cursor holds the last
row's sort value and key, so a page costs the same at any depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db import tables
from db.lookup import require_limit
from db.prepared import Run, run_in
from db.search import query_text
from db.store.cursors import read_cursor, write_cursor
from db.store.feature_filter import EVERYTHING, FeatureFilter, FeatureSort
from db.store.feature_statements import (
    UNKNOWN,
    Shape,
    count_statement,
    page_statement,
    rest_statement,
    shape_of,
    statement_of_features,
)
from db.store.names import require_scope, sae_key
from safe_sail.errors import BadInput
from safe_sail.records import Estimate, FeatureId


@dataclass(frozen=True, slots=True)
class FeatureListing:
    """One row of a listing: plain values, and estimates where there is an interval."""

    sae: str
    """Slug of the SAE."""
    index: int
    density: float | None
    """None before contexts are collected."""
    max_activation: float | None
    n_contexts: int | None
    concept: str | None
    """The one in the filter's scope with the largest rate gap (ties: name); None before scoring."""
    rate_gap: Estimate | None
    auroc: Estimate | None
    explanation: str | None
    """The one that judges score highest (unjudged last, ties: first stored); None before explaining."""
    explainer: str | None
    explanation_score: Estimate | None
    """Its best score; None before judging."""
    explanation_control: Estimate | None
    """The same judge's score of other features' explanations on this feature's contexts."""

    @property
    def feature(self) -> FeatureId:
        """Its name."""
        return FeatureId(sae=self.sae, index=self.index)


@dataclass(frozen=True, slots=True)
class FeaturePage:
    """A page of a listing."""

    rows: list[FeatureListing]
    total: int | None
    """Features that the filter lets through, on all pages; None where they were not counted."""
    next_cursor: str | None
    """Where the next page begins; None on the last."""


@dataclass(frozen=True, slots=True)
class PageRows:
    """A page of a listing as the database gives it."""

    rows: list[Any]
    """Key of the SAE, index and sort value, then what is shown, as `feature_statements` orders the columns."""
    total: int | None
    next_cursor: str | None


def list_features(
    session: Session,
    sae: str | None,
    *,
    filters: FeatureFilter = EVERYTHING,
    sort: FeatureSort = FeatureSort.INDEX,
    cursor: str | None = None,
    limit: int = 50,
    count: bool = True,
) -> FeaturePage:
    """A page of the features of an SAE, or of all where it is None, of which anything is known.

    Raises:
        NotFound: no SAE has this slug, or no concept, category or domain this name.
        BadInput: the cursor is not one of this order, the limit is outside 1 to 1000, or features are to be sorted by
            relevance to no words.
    """
    page = page_rows(
        run_in(session),
        sae,
        filters=filters,
        sort=sort,
        cursor=cursor,
        limit=limit,
        count=count,
        estimates=True,
    )
    return FeaturePage([_listing(row) for row in page.rows], page.total, page.next_cursor)


def page_rows(
    run: Run,
    sae: str | None,
    *,
    filters: FeatureFilter = EVERYTHING,
    sort: FeatureSort = FeatureSort.INDEX,
    cursor: str | None = None,
    limit: int = 50,
    count: bool = False,
    estimates: bool = False,
) -> PageRows:
    """The same without records, and without intervals unless asked for; `run` runs the statements in one snapshot.

    Raises:
        NotFound, BadInput: as `list_features`.
    """
    require_limit(limit)
    if sort is FeatureSort.RELEVANCE and filters.text is None:
        raise BadInput("features can be sorted by `relevance` to words; give the words, or choose another order.")
    values: dict[str, Any] = {} if sae is None else {"sae_key": sae_key(run, sae)}
    require_scope(run, filters)
    shape = shape_of(
        filters,
        sort,
        of_one_sae=sae is not None,
        after=cursor is not None,
        on_sqlite=run.dialect.name == "sqlite",
        estimates=estimates,
    )
    values |= {name: getattr(filters, name) for name in shape.given}
    if cursor is not None:
        last = read_cursor(sort, cursor)
        values |= {"last_sae": last.sae_key, "last_index": last.feature_index, "last_value": last.value}
    if filters.text is not None:
        values["words"] = query_text(filters.text, on_sqlite=shape.on_sqlite)
        if values["words"] is None:
            return PageRows([], 0 if count else None, None)
    total = (
        run.all(count_statement(shape._replace(sort=FeatureSort.INDEX, after=False)), values)[0].total
        if count
        else None
    )
    rows = _rows(run, shape, values, limit + 1)
    more = write_cursor(sort, rows[limit - 1][:3]) if len(rows) > limit else None
    return PageRows(rows[:limit], total, more)


def _rows(run: Run, shape: Shape, values: dict[str, Any], n: int) -> list[Any]:
    """The next n features: those with a value to sort by, then those without."""
    rest = rest_statement(shape)
    in_rest = shape.after and values["last_value"] == UNKNOWN and rest is not None
    rows = [] if in_rest else run.all(page_statement(shape), values | {"n": n})
    if rest is None or len(rows) == n:
        return rows
    if shape.after and not in_rest:  # the page goes over the border: the rest begins at its first feature
        rest = rest_statement(shape._replace(after=False))
        assert rest is not None
    return rows + run.all(rest, values | {"n": n - len(rows)})


# --------------------------------------------------------------------------------------------- what a page shows


def load_feature_listings(session: Session, features: Sequence[FeatureId]) -> dict[FeatureId, FeatureListing]:
    """Rows of these features as a listing without filters shows them; one of which nothing is known has none."""
    sae = tables.SaeRow
    named = select(sae.slug, sae.sae_key).where(sae.slug.in_({one.sae for one in features}))
    keys = {one[0]: one[1] for one in session.execute(named)}
    wanted = [(keys[one.sae], one.index) for one in dict.fromkeys(features) if one.sae in keys]
    if not wanted:
        return {}
    shown = {one.feature: one for one in map(_listing, session.execute(statement_of_features(wanted)))}
    return {one: shown[one] for one in dict.fromkeys(features) if one in shown}


def _listing(row: Any) -> FeatureListing:
    return FeatureListing(
        row.slug, row.feature_index, row.density, row.max_activation, row.n_contexts, row.concept,
        _estimate(row[8:13]), _estimate(row[13:18]), row.text, row.explainer,
        _estimate(row[20:25]), _estimate(row[25:30]),
    )  # fmt: skip


def _estimate(columns: Sequence[Any]) -> Estimate | None:
    value, low, high, n, level = columns
    return None if value is None else Estimate(value=value, low=low, high=high, n=n, level=level)
