"""The client against the real app over a real socket: what it gives is what the store holds."""

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from sqlalchemy import Engine

from api.main import create_app
from api.settings import ServiceSettings
from db import leases, store
from db.engine import make_engine, reading, writing
from db.keys import Scope, create_key
from safe_sail.client import Client
from safe_sail.errors import BadInput, JobConflict, ServiceProblem, ServiceUnreachable
from safe_sail.records import FeatureId, JobState
from tests.api.seed import BEST, CONCEPTS, HOSTILE_FEATURE, RUN, WIDTHS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, database_url: str) -> Path:
    folder = tmp_path_factory.mktemp("client")
    shutil.copy(database_url.removeprefix("sqlite:///"), folder / "store.db")
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    engine = make_engine(f"sqlite:///{folder / 'store.db'}")
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    settings = ServiceSettings(database_url=f"sqlite:///{folder / 'store.db'}", writes_per_minute=60)
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def test_lists_are_walked_to_their_end_as_records(client: Client, engine: Engine):
    with reading(engine) as session:
        assert list(client.models()) == [one.record for one in store.list_models(session)]
        assert list(client.concepts()) == store.list_concepts(session)
        assert list(client.runs()) == store.list_runs(session)
        known = store.list_features(session, BEST, limit=200)
        listings = {one.sae.slug: one for one in store.list_saes(session)}
    assert len(known.rows) == 41
    summaries = list(client.features(BEST, limit=7))
    assert [one.index for one in summaries] == [row.index for row in known.rows]
    assert [one.explanation for one in summaries] == [row.explanation for row in known.rows]
    assert {one.index for one in client.features(BEST, q="insult", has_explanation=True)} == {
        row.index for row in known.rows if row.explanation and "insult" in row.explanation
    }
    saes = {one.slug: one for one in client.saes()}
    assert saes.keys() == WIDTHS.keys() == listings.keys()
    for slug, one in saes.items():
        facts = listings[slug].facts
        assert one.facts == (None if facts is None else facts.record)
        assert one.scores == tuple(kept.record for kept in listings[slug].scores)
        assert client.sae(slug) == one
    assert client.run(RUN).command == "demo"
    assert len(list(client.export(BEST))) == 41


def test_a_feature_comes_back_as_the_records_that_are_kept(client: Client, engine: Engine):
    for index in (3, 12, 15, 511):
        with reading(engine) as session:
            kept = store.load_feature(session, FeatureId(sae=BEST, index=index))
        found = client.feature(BEST, index)
        assert found.feature == kept.feature
        assert found.contexts == (() if kept.top_contexts is None else kept.top_contexts.record.contexts)
        assert found.histogram == (None if kept.top_contexts is None else kept.top_contexts.record.histogram)
        assert found.concept_scores == tuple(one.record for one in kept.concept_scores)
        assert found.explanations == tuple(one.explanation.record for one in kept.explanations)
        assert found.explanation_scores == tuple(score.record for one in kept.explanations for score in one.scores)
    assert client.feature(BEST, HOSTILE_FEATURE.index).contexts[0].tokens[-1] == "\N{REPLACEMENT CHARACTER}"
    assert len(CONCEPTS) == len(client.feature(BEST, 3).concept_scores)


def test_problems_are_exceptions_with_their_fields(client: Client, address: str):
    with pytest.raises(ServiceProblem, match="no feature 9999; its features are 0 to 511") as caught:
        client.feature(BEST, 9999)
    problem = caught.value
    assert (problem.kind, problem.status, problem.errors) == ("not-found", 404, ())
    assert problem.request_id in str(problem)
    with pytest.raises(ServiceProblem) as caught:
        list(client.features(BEST, limit=0, colour="red"))
    assert caught.value.kind == "invalid"
    assert any(one.startswith("query.colour: There is no such parameter") for one in caught.value.errors)
    with pytest.raises(ServiceProblem, match="no SAE is called `nobody`"):
        client.sae("nobody")
    with pytest.raises(ServiceUnreachable, match="safe-sail serve"), Client("http://127.0.0.1:9") as nobody:
        list(nobody.models())
    with pytest.raises(BadInput, match="http://127"):
        Client("127.0.0.1:8420")


def test_a_job_is_asked_for_followed_and_waited_for(client: Client, engine: Engine):
    job = client.submit("explain-features", {"sae": BEST, "limit": 3}, idempotency_key="once")
    assert job.state is JobState.QUEUED
    assert client.submit("explain-features", {"sae": BEST, "limit": 3}, idempotency_key="once") == job
    assert [one.job_id for one in client.jobs(state="queued")] == [job.job_id]
    with pytest.raises(JobConflict, match="still queued after 0 s"):
        client.wait(job.job_id, seconds=0)
    worker = threading.Thread(target=lambda: (time.sleep(0.3), _run(engine)))
    worker.start()
    kinds = [(one.number, one.kind, one.data.get("state")) for one in client.events(job.job_id)]
    worker.join()
    assert kinds == [(1, "state", "queued"), (2, "state", "running"), (3, "state", "done")]
    assert [one.number for one in client.events(job.job_id, after=2)] == [3]
    done = client.wait(job.job_id)
    assert (done.state, done.result) == (JobState.DONE, {"n": 3})
    other = client.submit("score-saes", {})
    assert client.cancel(other.job_id).state is JobState.CANCELLED
    assert client.retry(other.job_id).state is JobState.QUEUED
    client.cancel(other.job_id)
    with pytest.raises(ServiceProblem) as caught:
        client.retry(job.job_id)
    assert caught.value.kind == "job-conflict"


def _run(engine: Engine) -> None:
    claim = leases.claim(engine, worker="w")
    assert claim is not None
    leases.finish(engine, claim, {"n": 3})


def test_a_key_comes_by_argument_or_from_the_environment(engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch):
    with writing(engine) as session:
        key = create_key(session, "c", Scope.READ)
    settings = ServiceSettings(database_url=f"sqlite:///{folder / 'store.db'}", host="0.0.0.0", reads_per_minute=120)
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        with Client(address) as client, pytest.raises(ServiceProblem) as caught:
            client.run(RUN)
        assert caught.value.kind == "key-needed"
        with Client(address, key=key) as client:
            assert client.run(RUN).run_id == RUN
            with pytest.raises(ServiceProblem, match="needs a key of scope write"):
                client.submit("score-saes", {})
            for _ in range(125):  # more than the minute's share: the client waits as it is told and goes on
                client.get(f"/v1/runs/{RUN}")
        monkeypatch.setenv("SAFE_SAIL_KEY", key)
        with Client(address) as client:
            assert client.run(RUN).run_id == RUN
    finally:
        server.should_exit = True
        thread.join()


def test_the_client_needs_no_torch():
    heavy = "{'torch', 'transformers', 'sqlalchemy', 'fastapi'}"
    code = f"import sys, safe_sail.client; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
