"""The short way of the most asked answers gives what records and the framework's way give, and steps aside for both."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from api.lane import ShortLane
from api.main import create_app
from api.schemas import FeatureDetail, feature_detail
from api.settings import ServiceSettings
from db.direct import DirectReadFailed, DirectReads
from db.engine import make_engine, reading, writing
from db.store import FeatureSort, list_features, load_feature, save_top_contexts
from safe_sail.records import Context, FeatureId, TopContexts
from tests.api.conftest import client_of
from tests.api.seed import BARE, BEST, RUN, SECOND, UNKNOWN_FEATURE, WIDTHS


@pytest.fixture(scope="module")
def long_way(database_url: str):
    """The same service without the lane."""
    app = create_app(ServiceSettings(database_url=database_url))
    app.user_middleware = [one for one in app.user_middleware if one.cls is not ShortLane]
    with TestClient(app, base_url="http://127.0.0.1:8420") as client:
        yield client


@pytest.mark.parametrize("sae", WIDTHS)
def test_a_feature_is_answered_as_its_records_are(client: TestClient, database_url: str, sae: str):
    engine = make_engine(database_url, read_only=True)
    described = TypeAdapter(FeatureDetail)
    with reading(engine) as session:
        known = [row.index for row in list_features(session, sae, limit=200).rows]
        for index in [*known, 0, WIDTHS[sae] - 1]:
            records = described.dump_json(feature_detail(load_feature(session, FeatureId(sae=sae, index=index))))
            assert client.get(f"/v1/saes/{sae}/features/{index}").content == records
    engine.dispose()


@pytest.mark.parametrize("sort", ["index", "density", "score", "explanation", "published"])
def test_a_page_is_answered_as_its_rows_are(client: TestClient, database_url: str, sort: str):
    engine = make_engine(database_url, read_only=True)
    with reading(engine) as session:
        page = list_features(session, BEST, sort=FeatureSort(sort), limit=200)
    engine.dispose()
    items = client.get(f"/v1/saes/{BEST}/features?sort={sort}&limit=200").json()["items"]
    assert [one["index"] for one in items] == [row.index for row in page.rows]
    for one, row in zip(items, page.rows, strict=True):
        found = (one["density"], one["n_contexts"], one["concept"], one["explanation"], one["explainer"])
        assert found == (row.density, row.n_contexts, row.concept, row.explanation, row.explainer)
        assert one["rate_gap"] == (row.rate_gap and row.rate_gap.value)
        assert one["explanation_score"] == (row.explanation_score and row.explanation_score.value)
    assert any(one["explanation_score"] for one in items)


PARTS = st.sampled_from(
    ["limit=3", "limit=0", "limit=201", "limit=", "limit=3.0", "limit=%33", "sort=score", "sort=best", "sort=relevance",
     "cursor=x", "cursor=", "cursor=WyJpbmRleCIsMSwxLDFd", "q=words", "q=", "q=fires+on", "other=1",
     "include=total", "include=all", "concept=cult", "concept=nobody", "specific=on", "specific=maybe",
     "min_rate_gap=.25", "min_rate_gap=nan", "max_density=1e-1", "has_explanation=0", "tag=%C3%A9", "%", "=", "limit"]
)  # fmt: skip
PLACES = st.sampled_from(
    ["", "/3", "/7", "/03", "/-1", "/512", "/99999999999", "/3/", "/x", "/%33", "/"]
)  # fmt: skip


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    sae=st.sampled_from([BEST, BARE, "nobody", "a%00b", "%2e", "a" * 201]), place=PLACES,
    parts=st.lists(PARTS, max_size=6),
)  # fmt: skip
def test_both_ways_answer_alike(client: TestClient, long_way: TestClient, sae: str, place: str, parts: list[str]):
    address = f"/v1/saes/{sae}/features{place}" + ("?" + "&".join(parts) if parts else "")
    headers = {"X-Request-ID": "same"}
    short, long = client.get(address, headers=headers), long_way.get(address, headers=headers)
    assert (short.status_code, short.content) == (long.status_code, long.content)
    assert dict(short.headers) == dict(long.headers)


def test_the_lane_takes_what_is_asked_for_most(database_url: str):
    async def nobody(scope, receive, send):
        raise AssertionError(scope["path"])

    app = create_app(ServiceSettings(database_url=database_url))
    app.middleware_stack = next(one for one in app.user_middleware if one.cls is ShortLane).cls(nobody)
    answered = []

    async def ask(path: str, query: bytes = b"") -> None:
        scope = {"type": "http", "method": "GET", "path": path, "query_string": query, "headers": [], "client": None}

        async def send(message):
            answered.append(message.get("status"))

        await app(scope | {"state": {}}, lambda: None, send)

    for path in (f"/v1/saes/{BEST}/features/3", f"/v1/saes/{BEST}/features"):
        asyncio.run(ask(path))
    for query in (b"sort=score&limit=5", b"q=fires+on&concept=cult&include=total"):
        asyncio.run(ask(f"/v1/saes/{BEST}/features", query))
    assert answered == [200, None] * 4
    app.state.direct.close()


def test_half_characters_are_answered_as_replacement_characters(own_client: TestClient, tmp_path: Path):
    engine = make_engine(f"sqlite:///{tmp_path / 'store.db'}")
    torn = Context(tokens=("\ud800", "a\udfffb"), token_ids=(1, 2), activations=(0.1, 1e-30), peak=0, source_id="d/1")
    feature = FeatureId(sae=SECOND, index=9)
    found = TopContexts(
        feature=feature, contexts=(torn,), n_tokens_seen=9, density=0.5, max_activation=0.1, histogram=None
    )
    with writing(engine) as session:
        save_top_contexts(session, [found], run_id=RUN)
    engine.dispose()
    (context,) = own_client.get(f"/v1/saes/{SECOND}/features/9").json()["contexts"]
    assert context["tokens"] == ["\N{REPLACEMENT CHARACTER}", "a\N{REPLACEMENT CHARACTER}b"]
    assert context["activations"] == [0.10000000149011612, 1.0000000031710769e-30]  # as float32 holds them


def test_what_was_written_since_is_read(own_client: TestClient, tmp_path: Path):
    address = f"/v1/saes/{BEST}/features/{UNKNOWN_FEATURE.index}"
    assert own_client.get(address).json()["contexts"] == []
    engine = make_engine(f"sqlite:///{tmp_path / 'store.db'}")
    context = Context(tokens=("a",), token_ids=(1,), activations=(1.0,), peak=0, source_id="d/1")
    found = TopContexts(
        feature=UNKNOWN_FEATURE, contexts=(context,), n_tokens_seen=9, density=0.5, max_activation=1.0, histogram=None
    )
    with writing(engine) as session:
        save_top_contexts(session, [found], run_id=RUN)
    engine.dispose()
    assert own_client.get(address).json()["contexts"][0]["tokens"] == ["a"]


def test_a_database_that_is_gone_is_a_problem_and_comes_back(tmp_path: Path, database_url: str):
    path = tmp_path / "store.db"
    with client_of(f"sqlite:///{path}") as client:
        answer = client.get(f"/v1/saes/{BEST}/features/3")
        assert answer.status_code == 503
        assert answer.json()["type"].endswith("database-unreachable")
        path.write_bytes(Path(database_url.removeprefix("sqlite:///")).read_bytes())
        assert client.get(f"/v1/saes/{BEST}/features/3").status_code == 200


def test_a_table_that_is_missing_is_said_to_be(own_client: TestClient, tmp_path: Path):
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("ALTER TABLE concept_score RENAME TO lost")
    answer = own_client.get(f"/v1/saes/{BEST}/features/3")
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (503, "schema-out-of-date")


def test_nothing_can_be_written_past_the_session(database_url: str):
    reads = DirectReads(make_engine(database_url, read_only=True))
    with pytest.raises(DirectReadFailed, match="readonly"), reads.snapshot() as run:
        run._execute("DELETE FROM sae", ())
    with reads.snapshot() as run:  # on a new connection
        assert run._execute("SELECT count(*) FROM sae", ()).fetchall() == [(len(WIDTHS),)]
    reads.close()
