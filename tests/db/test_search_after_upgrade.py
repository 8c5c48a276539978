"""Explanations that were kept at any revision are found at the newest, and so is what is written after it."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

import db.migrate
from db.engine import make_engine, reading, write_connection, writing
from db.migrate import upgrade
from db.search import search_features
from db.store import FeatureFilter, list_features, save_explanations
from db.store.feature_rows import refresh_listing
from safe_sail.records import Explanation, FeatureId

REVISIONS = sorted(db.migrate._known_revisions())
WRITTEN = (
    "INSERT INTO run (run_id, command, seed, settings, versions, device, started)"
    " VALUES ('r', 'c', 0, '{}', '{}', 'cpu', '2026-01-01 00:00:00')",
    "INSERT INTO sae (sae_key, slug, sae_id, site, d_in, width, architecture, run_id)"
    " VALUES (1, 's', 's', 'resid_post.0', 4, 16, 'topk', 'r')",
    "INSERT INTO feature (sae_key, feature_index, run_id) VALUES (1, 3, 'r'), (1, 4, 'r')",
    "INSERT INTO explanation (explanation_key, sae_key, feature_index, explainer, prompt_version, text, run_id)"
    " VALUES (101, 1, 3, 'e', '1', 'fires on lanterns', 'r'), (102, 1, 4, 'e', '1', 'fires on soup', 'r')",
)


@pytest.fixture
def empty(empty_url: str) -> Iterator[Engine]:
    engine = make_engine(empty_url)
    yield engine
    engine.dispose()


def test_there_are_revisions() -> None:
    assert REVISIONS[0] == "0001"
    assert REVISIONS[-1] == db.migrate.head_revision()


@pytest.mark.parametrize("revision", REVISIONS)
def test_search_finds_what_was_kept_at_an_earlier_revision(empty: Engine, revision: str) -> None:
    assert upgrade(empty, revision).after == revision
    with write_connection(empty) as connection:
        for statement in WRITTEN:
            connection.execute(text(statement))
    upgrade(empty)
    if revision >= "0016":  # from there on nothing brings a row into lists but what saves it
        with writing(empty) as session:
            refresh_listing(session, [{"sae_key": 1, "feature_index": index} for index in (3, 4)])

    def found(words: str) -> list[int]:
        with reading(empty) as session:
            hits = [hit.feature.index for hit in search_features(session, words)]
            page = list_features(session, "s", filters=FeatureFilter(text=words))
            assert sorted(hits) == [row.index for row in page.rows]
            return hits

    assert (found("lantern"), found("soup"), found("fires")) == ([3], [4], [3, 4])
    feature = FeatureId(sae="s", index=3)
    with writing(empty) as session:
        said = [("e", "fires on bridges"), ("other", "lanterns again")]
        later = [Explanation(feature=feature, text=one, explainer=by, prompt_version="1") for by, one in said]
        save_explanations(session, later, run_id="r")
    assert (found("bridge"), found("again"), found("soup")) == ([3], [3], [4])
    with write_connection(empty) as connection:
        connection.execute(text("DELETE FROM explanation WHERE explainer = 'other'"))
    assert found("lanterns") == [], "the index follows what is changed and deleted"
