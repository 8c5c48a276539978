"""Listings against a naive filter and sort in the test, and pages that join without gap or repetition."""

import random

import pytest
from sqlalchemy import Engine

from db.engine import reading, writing
from db.search import search_features
from db.store import (
    FeatureFilter,
    FeatureListing,
    FeaturePage,
    FeatureSort,
    list_features,
    list_runs,
    list_saes,
    save_concept_scores,
    save_explanation_scores,
    save_explanations,
    save_sae,
    save_sae_facts,
    save_sae_scores,
    save_top_contexts,
)
from safe_sail.errors import BadInput, NotFound
from tests.db import builders as a

DENSITIES = {index: (index % 4) / 8 for index in range(10)}  # with ties
GAPS = {(index, concept): random.Random(f"{index}{concept}").choice([-0.5, 0.0, 0.25, 0.5])
        for index in range(4, 14) for concept in a.CONCEPTS[:2]}  # fmt: skip
TEXTS = {2: "fires on bombs", 3: "fires on Bombers and food", 9: "food", 13: "a bomb"}


def fill(engine: Engine) -> None:
    a.catalogue(engine)
    with writing(engine) as session:
        save_top_contexts(session, [a.top_contexts(i, density) for i, density in DENSITIES.items()], run_id=a.RUN)
        scores = [a.concept_score(i, concept, gap, auroc=0.5 + gap / 2) for (i, concept), gap in GAPS.items()]
        save_concept_scores(session, scores, run_id=a.RUN)
        save_explanations(session, [a.explanation(i, text) for i, text in TEXTS.items()], run_id=a.RUN)


def all_rows(engine: Engine, sort: FeatureSort, filters: FeatureFilter, limit: int) -> list[FeatureListing]:
    found: list[FeatureListing] = []
    cursor = None
    with reading(engine) as session:
        while True:
            page = list_features(session, a.SAE, filters=filters, sort=sort, cursor=cursor, limit=limit)
            found += page.rows
            cursor = page.next_cursor
            if cursor is None:
                assert page.total == len(found)
                return found
            assert len(page.rows) == limit


def best_gap(index: int, concept: str | None) -> float:
    return max((gap for (i, name), gap in GAPS.items() if i == index and concept in (None, name)), default=-9.0)


SORT_VALUE = {
    FeatureSort.INDEX: lambda index, concept: index,
    FeatureSort.DENSITY: lambda index, concept: -DENSITIES.get(index, -9.0),
    FeatureSort.SCORE: lambda index, concept: -best_gap(index, concept),
}
FILTERS = {
    "none": (FeatureFilter(), lambda i: True),
    "concept": (FeatureFilter(concept="cult"), lambda i: (i, "cult") in GAPS),
    "concept nobody scored": (FeatureFilter(concept="weapons"), lambda i: False),
    "gap": (FeatureFilter(min_rate_gap=0.25), lambda i: best_gap(i, None) >= 0.25),
    "gap of a concept": (FeatureFilter(concept="cult", min_rate_gap=0.25), lambda i: best_gap(i, "cult") >= 0.25),
    "auroc": (FeatureFilter(min_auroc=0.75), lambda i: best_gap(i, None) >= 0.5),
    "explained": (FeatureFilter(explained=True), lambda i: i in TEXTS),
    "unexplained": (FeatureFilter(explained=False), lambda i: i not in TEXTS),
    "collected": (FeatureFilter(collected=True), lambda i: i in DENSITIES),
    "uncollected": (FeatureFilter(collected=False), lambda i: i not in DENSITIES),
    "density": (
        FeatureFilter(min_density=0.125, max_density=0.25), lambda i: 0.125 <= DENSITIES.get(i, -1) <= 0.25
    ),
    "text": (FeatureFilter(text="BOMB"), lambda i: i in (2, 3, 13)),
    "text without words": (FeatureFilter(text=" -- "), lambda i: False),
    "several": (FeatureFilter(text="food", concept="cult", min_density=0.1), lambda i: i == 9),
}  # fmt: skip


@pytest.mark.parametrize("limit", [1, 3, 100])
@pytest.mark.parametrize("sort", FeatureSort)
def test_pages_hold_what_a_naive_filter_and_sort_finds(shared_engine: Engine, sort: FeatureSort, limit: int) -> None:
    fill(shared_engine)
    for name, (filters, holds) in FILTERS.items():
        known = sorted(set(DENSITIES) | set(TEXTS) | {index for index, _ in GAPS})
        expected = sorted(filter(holds, known), key=lambda i: (SORT_VALUE[sort](i, filters.concept), i))
        assert [row.index for row in all_rows(shared_engine, sort, filters, limit)] == expected, name


def test_a_row_shows_the_best_concept_and_the_best_judged_explanation(engine: Engine) -> None:
    a.catalogue(engine)
    with writing(engine) as session:
        save_top_contexts(session, [a.top_contexts(3)], run_id=a.RUN)
        scores = [a.concept_score(3, "weapons", 0.25), a.concept_score(3, "cult", 0.5, auroc=1.0)]
        save_concept_scores(session, scores, run_id=a.RUN)
        told = [a.explanation(3, "first"), a.explanation(3, "better", "llm"), a.explanation(3, "unjudged", "zz")]
        save_explanations(session, told, run_id=a.RUN)
        judged = [a.explanation_score(3, 0.25), a.explanation_score(3, 0.5, "llm")]
        save_explanation_scores(session, judged, run_id=a.RUN)
    with reading(engine) as session:
        (best,) = list_features(session, a.SAE).rows
        assert best == FeatureListing(
            index=3, density=0.125, max_activation=3.0, n_contexts=2, concept="cult", rate_gap=0.5, auroc=1.0,
            explanation="better", explainer="llm", explanation_score=0.5,
        )  # fmt: skip
        (of_concept,) = list_features(session, a.SAE, filters=FeatureFilter(concept="weapons")).rows
        assert (of_concept.concept, of_concept.rate_gap) == ("weapons", 0.25)


def test_an_sae_without_results_has_an_empty_page(engine: Engine) -> None:
    a.catalogue(engine)
    with reading(engine) as session:
        assert list_features(session, a.SAE) == FeaturePage(rows=[], total=0, next_cursor=None)


@pytest.mark.parametrize(
    "cursor",
    ["", "nonsense", "é", "W10", "WyJkZW5zaXR5IiwwLjUsMV0", "WyJpbmRleCIsICJhIiwgMV0", "WyJpbmRleCIsMSwxZTk5OV0",
     "A" * 9999,
     "WyJpbmRleCIsMSwxMDAwMDAwMDAwMDAwMDAwMDAwMDAwMF0"],
)  # fmt: skip
def test_a_cursor_that_is_none_of_this_order_is_refused(shared_engine: Engine, cursor: str) -> None:
    a.catalogue(shared_engine)
    with reading(shared_engine) as session, pytest.raises(BadInput, match="next_cursor"):
        list_features(session, a.SAE, cursor=cursor)


def test_unknown_names_and_limits_are_refused(shared_engine: Engine) -> None:
    a.catalogue(shared_engine)
    with reading(shared_engine) as session:
        with pytest.raises(NotFound, match="no SAE"):
            list_features(session, "other")
        for concept in ("peace", "a\x00b", "\ud800"):
            with pytest.raises(NotFound, match="no concept"):
                list_features(session, a.SAE, filters=FeatureFilter(concept=concept))
        for limit in (0, -1, 1001):
            with pytest.raises(BadInput, match="1 to 1000"):
                list_features(session, a.SAE, limit=limit)
            with pytest.raises(BadInput, match="1 to 1000"):
                search_features(session, "words", limit=limit)
            with pytest.raises(BadInput, match="1 to 1000"):
                list_runs(session, limit=limit)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["min_rate_gap", "min_auroc", "min_density", "max_density"])
def test_a_bound_that_is_no_number_is_refused(name: str, value: float) -> None:
    with pytest.raises(BadInput, match=f"`{name}` must be a finite number"):
        FeatureFilter(**{name: value})


def test_saes_are_listed_with_facts_scores_and_counts(engine: Engine) -> None:
    a.catalogue(engine)
    with writing(engine) as session:
        save_sae(session, a.sae("another"), run_id=a.LATER_RUN)
        save_sae_facts(session, a.facts(), run_id=a.RUN)
        save_sae_scores(session, [a.sae_score("cult", gap=0.25), a.sae_score("weapons", gap=0.5)], run_id=a.RUN)
        save_top_contexts(session, [a.top_contexts(1), a.top_contexts(2)], run_id=a.RUN)
        save_explanations(session, [a.explanation(1), a.explanation(1, explainer="llm")], run_id=a.RUN)
    with reading(engine) as session:
        bare, full = list_saes(session, model_id="tiny")
        assert (bare.sae.slug, bare.run_id, bare.facts, bare.scores) == ("another", a.LATER_RUN, None, ())
        assert full.facts is not None
        assert full.facts.record == a.facts()
        assert [kept.record.concept for kept in full.scores] == ["weapons", "cult"]
        assert (full.n_collected, full.n_explained, bare.n_collected) == (2, 1, 0)
        assert list_saes(session, model_id="other") == list_saes(session, model_id="a\x00") == []
