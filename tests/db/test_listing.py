"""Listings against a naive filter and sort in the test, and pages that join without gap or repetition."""

import random
from dataclasses import replace

import pytest
from sqlalchemy import Engine

from db.engine import reading, writing
from db.search import search_features
from db.store import (
    FeatureFilter,
    FeatureListing,
    FeaturePage,
    FeatureSort,
    list_feature_gaps,
    list_features,
    list_landscape,
    list_runs,
    list_saes,
    load_feature_listings,
    load_gaps,
    save_concept_scores,
    save_concepts,
    save_explanation_scores,
    save_explanations,
    save_feature_tags,
    save_published_scores,
    save_sae,
    save_sae_facts,
    save_sae_scores,
    save_top_contexts,
)
from safe_sail.errors import BadInput, NotFound
from safe_sail.records import Concept, FeatureId, FeatureTags, PublishedScore
from tests.db import builders as a

DENSITIES = {index: (index % 4) / 8 for index in range(10)}  # with ties
GAPS = {(index, concept): random.Random(f"{index}{concept}").choice([-0.5, 0.0, 0.25, 0.5, 0.75])
        for index in range(4, 14) for concept in a.CONCEPTS[:2]}  # fmt: skip
TEXTS = {2: "fires on bombs", 3: "fires on Bombers and food", 9: "food", 13: "a bomb"}
JUDGED = {3: 0.5, 9: 0.75, 13: 0.5}
PUBLISHED = {1: 0.25, 3: -0.5, 9: 0.25}
TAGS = {3: ("terror", "politics"), 5: ("politics",)}
PLACES = {"abuse": ("violence", "persons"), "cult": ("politics", "groups"), "weapons": ("violence", "arms")}
SURE = {(index, concept): 0.01 if index % 3 else 0.5 for index, concept in GAPS}


def fill(engine: Engine) -> None:
    a.catalogue(engine)
    with writing(engine) as session:
        save_top_contexts(session, [a.top_contexts(i, density) for i, density in DENSITIES.items()], run_id=a.RUN)
        places = [Concept(name=n, domain=d, category=c, harmful=True) for n, (d, c) in PLACES.items()]
        save_concepts(session, places, run_id=a.RUN)
        scores = [
            replace(a.concept_score(i, concept, gap, auroc=0.5 + gap / 2), q_value=SURE[i, concept])
            for (i, concept), gap in GAPS.items()
        ]
        save_concept_scores(session, scores, run_id=a.RUN)
        save_explanations(session, [a.explanation(i, text) for i, text in TEXTS.items()], run_id=a.RUN)
        save_explanation_scores(session, [a.explanation_score(i, v) for i, v in JUDGED.items()], run_id=a.RUN)
        numbers = [
            PublishedScore(feature=a.feature(i), method=method, value=value, source="theirs")
            for i, best in PUBLISHED.items() for method, value in (("worse", best - 1), ("better", best))
        ]  # fmt: skip
        save_published_scores(session, numbers, run_id=a.RUN)
        tagged = [FeatureTags(feature=a.feature(i), tags=tags, source="theirs") for i, tags in TAGS.items()]
        save_feature_tags(session, tagged, run_id=a.RUN)


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


def best_gap(index: int, concept: str | None = None, domain: str | None = None, category: str | None = None) -> float:
    gaps = [
        gap for (i, name), gap in GAPS.items()
        if i == index and concept in (None, name) and domain in (None, PLACES[name][0])
        and category in (None, PLACES[name][1])
    ]  # fmt: skip
    return max(gaps, default=-9.0)


def is_specific(index: int, concept: str | None = None) -> bool:
    found = [key for key in GAPS if key[0] == index and concept in (None, key[1])]
    return any(GAPS[key] > 0.5 and SURE[key] < 0.05 for key in found)


SORT_VALUE = {
    FeatureSort.INDEX: lambda index, filters: index,
    FeatureSort.DENSITY: lambda index, filters: -DENSITIES.get(index, -9.0),
    FeatureSort.SCORE: lambda index, filters: -best_gap(index, filters.concept, filters.domain, filters.category),
    FeatureSort.EXPLANATION: lambda index, filters: -JUDGED.get(index, -9.0),
    FeatureSort.PUBLISHED: lambda index, filters: -PUBLISHED.get(index, -9.0),
}
FILTERS = {
    "none": (FeatureFilter(), lambda i: True),
    "concept": (FeatureFilter(concept="cult"), lambda i: (i, "cult") in GAPS),
    "domain": (FeatureFilter(domain="politics"), lambda i: (i, "cult") in GAPS),
    "domain and gap": (
        FeatureFilter(domain="violence", min_rate_gap=0.25), lambda i: best_gap(i, domain="violence") >= 0.25
    ),
    "category": (FeatureFilter(category="persons"), lambda i: (i, "abuse") in GAPS),
    "category of another domain": (FeatureFilter(category="persons", domain="politics"), lambda i: False),
    "specific": (FeatureFilter(specific=True), is_specific),
    "specific to a concept": (FeatureFilter(specific=True, concept="cult"), lambda i: is_specific(i, "cult")),
    "to none": (FeatureFilter(specific=False), lambda i: not is_specific(i)),
    "judged": (FeatureFilter(min_explanation_score=0.75), lambda i: i == 9),
    "tag": (FeatureFilter(tag="politics"), lambda i: i in (3, 5)),
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


EMPTY = {"concept nobody scored", "text without words", "category of another domain"}


@pytest.mark.parametrize("limit", [1, 3, 100])
@pytest.mark.parametrize("sort", [sort for sort in FeatureSort if sort is not FeatureSort.RELEVANCE])
def test_pages_hold_what_a_naive_filter_and_sort_finds(shared_engine: Engine, sort: FeatureSort, limit: int) -> None:
    fill(shared_engine)
    for name, (filters, holds) in FILTERS.items():
        known = sorted(set(DENSITIES) | set(TEXTS) | {index for index, _ in GAPS})
        assert name in EMPTY or any(map(holds, known)), name
        assert name == "none" or not all(map(holds, known)), name
        expected = sorted(filter(holds, known), key=lambda i: (SORT_VALUE[sort](i, filters), i))
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
            sae=a.SAE, index=3, density=0.125, max_activation=3.0, n_contexts=2, concept="cult",
            rate_gap=a.estimate(0.5), auroc=a.estimate(1.0), explanation="better", explainer="llm",
            explanation_score=a.estimate(0.5), explanation_control=a.estimate(0.0),
        )  # fmt: skip
        (of_concept,) = list_features(session, a.SAE, filters=FeatureFilter(concept="weapons")).rows
        assert (of_concept.concept, of_concept.rate_gap) == ("weapons", a.estimate(0.25))


@pytest.mark.parametrize("sort", [sort for sort in FeatureSort if sort is not FeatureSort.RELEVANCE])
def test_pages_over_all_saes_join_without_gap(engine: Engine, sort: FeatureSort) -> None:
    fill(engine)
    other = "tiny.resid_post.1.topk4-16"
    with writing(engine) as session:
        save_sae(session, a.sae(other, site="resid_post.1"), run_id=a.RUN)
        theirs = [replace(a.top_contexts(i, d), feature=FeatureId(sae=other, index=i)) for i, d in DENSITIES.items()]
        save_top_contexts(session, theirs, run_id=a.RUN)
    found: list[tuple[str, int]] = []
    cursor = None
    with reading(engine) as session:
        while True:
            page = list_features(session, None, sort=sort, cursor=cursor, limit=4)
            found += [(row.sae, row.index) for row in page.rows]
            cursor = page.next_cursor
            if cursor is None:
                break
    known = [(a.SAE, i) for i in sorted(set(DENSITIES) | set(TEXTS) | {index for index, _ in GAPS})]
    known += [(other, i) for i in DENSITIES]  # known only by its density

    def place(key: tuple[str, int]) -> tuple[float, bool, int]:
        has_value = sort is FeatureSort.DENSITY or (key[0] == a.SAE and sort is not FeatureSort.INDEX)
        return SORT_VALUE[sort](key[1], FeatureFilter()) if has_value else (9.0), key[0] == other, key[1]

    if sort is FeatureSort.INDEX:
        assert found == known
    else:
        assert found == sorted(known, key=place)


def test_rows_of_given_features_are_those_of_the_listing(engine: Engine) -> None:
    fill(engine)
    with reading(engine) as session:
        listed = {row.feature: row for row in list_features(session, a.SAE).rows}
        wanted = [a.feature(index) for index in (13, 3, 15, 3)] + [FeatureId(sae="other", index=3)]
        found = load_feature_listings(session, wanted)
        assert found == {one: listed[one] for one in (a.feature(13), a.feature(3))}
        assert load_feature_listings(session, []) == {}


@pytest.mark.parametrize("scope", [a.SAE, None])
def test_the_landscape_is_what_a_naive_count_finds(shared_engine: Engine, scope: str | None) -> None:
    fill(shared_engine)
    with reading(shared_engine) as session:
        found = list_landscape(session, scope, n_best=2)
        assert [one.concept.name for one in found] == sorted(
            {concept for _, concept in GAPS}, key=lambda name: (*PLACES[name], name)
        )
        for one in found:
            mine = {index: gap for (index, concept), gap in GAPS.items() if concept == one.concept.name}
            assert one.n_scored == len(mine)
            assert one.n_specific == sum(is_specific(index, one.concept.name) for index in mine)
            best = sorted(mine, key=lambda index: (-mine[index], index))[:2]
            assert [feature.index for feature in one.best] == best
        names = [one.concept.name for one in found] + ["weapons"]
        spread = list_feature_gaps(session, scope, names)
        assert {one.feature.index: one.gaps for one in spread} == {
            index: tuple(GAPS.get((index, name)) for name in names) for index in range(16) if is_specific(index)
        }
        pairs = [(a.feature(index), concept) for index, concept in GAPS]
        gaps = load_gaps(session, [*pairs, (a.feature(15), "cult")])
        assert gaps == {(a.feature(i), concept): a.estimate(gap) for (i, concept), gap in GAPS.items()}


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
            for level in ("category", "domain"):
                with pytest.raises(NotFound, match=f"no {level}"):
                    list_features(session, a.SAE, filters=FeatureFilter(**{level: concept}))
        for limit in (0, -1, 1001):
            with pytest.raises(BadInput, match="1 to 1000"):
                list_features(session, a.SAE, limit=limit)
            with pytest.raises(BadInput, match="1 to 1000"):
                search_features(session, "words", limit=limit)
            with pytest.raises(BadInput, match="1 to 1000"):
                list_runs(session, limit=limit)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["min_rate_gap", "min_auroc", "min_density", "max_density", "min_explanation_score"])
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
