"""Search finds what a naive search over words finds, and no text of a user breaks it."""

import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from db.engine import reading, writing
from db.search import search_features, words_of
from db.store import FeatureFilter, FeatureSort, list_features, save_explanations, save_sae
from safe_sail.errors import BadInput, NotFound
from tests.db import builders as a

few = settings(
    max_examples=30,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
words = st.sampled_from(
    ["bomb", "Bombs", "how", "the", "v2", "2nd", "1e5", "x", "weapons", "NOT", "near", "café", "武器"]
)
separators = st.sampled_from([" ", "/", "-", "@", "...", "://", "'", '"', " “", "_", "\n", " & ", "."])
phrases = st.lists(st.tuples(words, separators), min_size=1, max_size=5).map(lambda parts: "".join(map("".join, parts)))


def naive(texts: list[str], query: str) -> set[int]:
    wanted = re.findall(r"[^\W_]+", query.casefold())
    found = [re.findall(r"[^\W_]+", told.casefold()) for told in texts]
    return {i for i, has in enumerate(found) if all(any(word.startswith(w) for word in has) for w in wanted)}


def save(engine: Engine, texts: list[str]) -> None:
    a.catalogue(engine)
    told = [a.explanation(index, text) for index, text in enumerate(texts)]
    with writing(engine) as session:
        save_explanations(session, told, run_id=a.RUN)


def test_search_finds_what_a_naive_search_finds(shared_engine: Engine) -> None:
    @few
    @given(st.lists(phrases, min_size=4, max_size=4), phrases)
    def agree(texts: list[str], query: str) -> None:
        save(shared_engine, texts)
        expected = naive(texts, query)
        with reading(shared_engine) as session:
            assert {hit.feature.index for hit in search_features(session, query)} == expected
            page = list_features(session, a.SAE, filters=FeatureFilter(text=query))
            assert {row.index for row in page.rows} == expected

    agree()


def test_features_come_in_the_order_of_the_database_s_own_relevance(engine: Engine) -> None:
    texts = ["bomb and much else that is long", "a bomb", "no such word", "bomb bomb bomb", "bombs are here", "bomb"]
    save(engine, texts)
    raw = {
        "sqlite": "SELECT rowid & 4294967295, -bm25(explanation_fts) FROM explanation_fts "
        "WHERE explanation_fts MATCH '\"bomb\"*'",
        "postgresql": "SELECT explanation_key, ts_rank(explanation_vector, to_tsquery('simple', 'bomb:*'))::float8 "
        "FROM explanation WHERE explanation_vector @@ to_tsquery('simple', 'bomb:*')",
    }[engine.dialect.name]
    with reading(engine) as session:
        ranks = dict(session.execute(text(raw)).all())
        owner = session.execute(text("SELECT explanation_key, feature_index FROM explanation")).all()
        index = dict(owner)
        expected = sorted(ranks, key=lambda key: (-ranks[key], index[key]))
        found: list[int] = []
        cursor = None
        while True:
            page = list_features(
                session, a.SAE, filters=FeatureFilter(text="bomb"), sort=FeatureSort.RELEVANCE, cursor=cursor, limit=2
            )
            found += [row.index for row in page.rows]
            assert page.total == 5
            cursor = page.next_cursor
            if cursor is None:
                break
        assert found == [index[key] for key in expected]
        assert found != sorted(found)
        with pytest.raises(BadInput, match="give the words"):
            list_features(session, a.SAE, sort=FeatureSort.RELEVANCE)


def test_no_text_breaks_the_search(engine: Engine) -> None:
    save(engine, ["fires on bombs"])

    @few
    @given(st.text(st.characters(exclude_categories=()), max_size=30))
    @example("\x00")
    @example("\ud800bomb")
    @example('"; DROP TABLE explanation; --')
    @example("bomb' & !(x | 'y':* <-> z)")
    @example("NEAR(bomb fires, 2) AND NOT text:x*^")
    @example("² ½ ⅷ ٣ ߷ \u0301 \u202e ﷺ")
    @example("a " * 5000)
    @example("bomb" * 5000)
    @example("%(x)s :y %s {z} \\")
    def searched(query: str) -> None:
        with reading(engine) as session:
            search_features(session, query)
            list_features(session, a.SAE, filters=FeatureFilter(text=query))
            assert [hit.text for hit in search_features(session, "bomb")] == ["fires on bombs"]

    searched()


@pytest.mark.parametrize("query", ["", "  ", "?!", "\x00", "__"])
def test_a_query_without_words_finds_nothing(shared_engine: Engine, query: str) -> None:
    save(shared_engine, ["fires on bombs"])
    assert words_of(query) == []
    with reading(shared_engine) as session:
        assert search_features(session, query) == []


def test_the_best_match_comes_first_within_the_limit_and_the_sae(engine: Engine) -> None:
    save(engine, ["weapons and many other things of daily life", "weapons", "cake"])
    with writing(engine) as session:
        save_sae(session, a.sae("other"), run_id=a.RUN)
    with reading(engine) as session:
        hits = search_features(session, "weapon")
        assert {hit.feature.index for hit in hits} == {0, 1}
        assert [hit.relevance for hit in hits] == sorted((hit.relevance for hit in hits), reverse=True)
        assert search_features(session, "weapon", limit=1) == hits[:1]
        assert search_features(session, "weapon", sae=a.SAE) == hits
        assert search_features(session, "weapon", sae="other") == []
        with pytest.raises(NotFound):
            search_features(session, "weapon", sae="unknown")


def test_a_changed_text_is_found_by_its_new_words_alone(engine: Engine) -> None:
    save(engine, ["fires on bombs"])
    save(engine, ["fires on cakes"])
    with reading(engine) as session:
        assert search_features(session, "bombs") == []
        assert [hit.text for hit in search_features(session, "cakes")] == ["fires on cakes"]


def test_a_very_long_explanation_is_kept_and_found(engine: Engine) -> None:
    save(engine, ["needle " + " ".join(f"word{i}" for i in range(60_000))])
    with reading(engine) as session:
        assert len(search_features(session, "needle")) == 1
