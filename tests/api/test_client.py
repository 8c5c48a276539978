"""The client against the real app over a real socket: what it gives is what the store holds."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sqlalchemy import Engine

from db import leases, store
from db.engine import make_engine, reading, writing
from db.keys import Scope, create_key
from db.migrate import upgrade
from safe_sail.client import Client, ImportCount
from safe_sail.errors import BadInput, JobConflict, ServiceProblem, ServiceUnreachable
from safe_sail.records import FeatureId, JobState
from tests.api.conftest import served
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
    with served(folder / "store.db") as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, seconds=3600) as client:
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


def test_an_export_goes_into_a_file_and_into_another_service(client: Client, tmp_path: Path):
    lines = list(client.export(BEST, form="portable"))
    assert lines[-41:] == list(client.export(BEST))
    assert [json.loads(line)["feature"]["index"] for line in client.export(BEST, explained=True)] == [
        one.index for one in client.features(BEST, has_explanation=True)
    ]
    n_bytes = client.save_export(BEST, tmp_path / "best.parquet")
    assert n_bytes == (tmp_path / "best.parquet").stat().st_size
    indices = pq.read_table(tmp_path / "best.parquet", columns=["index"]).column("index").to_pylist()
    assert indices == [json.loads(line)["feature"]["index"] for line in lines[-41:]]
    client.save_export(BEST, tmp_path / "best.ndjson", form="portable")
    assert (tmp_path / "best.ndjson").read_text() == "".join(f"{line}\n" for line in lines)
    engine = make_engine(f"sqlite:///{tmp_path / 'other.db'}")
    upgrade(engine)
    engine.dispose()
    with served(tmp_path / "other.db") as address, Client(address) as other:
        with (tmp_path / "best.ndjson").open() as file:
            first = other.import_lines(file, source="here", part_bytes=20_000)
        assert first.n_lines == len(lines)
        assert len(first.run_ids) > 1
        assert first.counts["features"] == ImportCount(new=41)
        again = other.import_lines(lines)
        assert len(again.run_ids) == 1
        assert again.counts["features"] == ImportCount(unchanged=41)
        assert again.counts["contexts"].new == again.counts["contexts"].replaced == 0
        assert list(other.export(BEST)) == lines[-41:]
        assert other.run(first.run_ids[0]).settings["source"] == "here"
        with pytest.raises(ServiceProblem, match="line 1"):
            other.import_lines(["{}"])
        assert other.import_lines([]).run_ids == ()


def test_a_file_that_was_cut_off_does_not_appear(client: Client, tmp_path: Path):
    there = tmp_path / "there.parquet"
    there.write_bytes(b"before")
    with pytest.raises(ServiceProblem, match="no SAE is called `nobody`"):
        client.save_export("nobody", there)
    with cutting_off() as address, Client(address) as torn:
        for path in (there, tmp_path / "new.parquet"):
            with pytest.raises(ServiceUnreachable, match="does not answer"):
                torn.save_export(BEST, path)
        with pytest.raises(ServiceUnreachable, match="does not answer"):
            list(torn.export(BEST))
    assert there.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["there.parquet"]


@contextmanager
def cutting_off() -> Iterator[str]:
    """Address of a service that begins each answer and then dies."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        stop = threading.Event()

        def answer() -> None:
            while True:
                line, _ = door.accept()
                with line:
                    if stop.is_set():
                        return
                    line.recv(65536)
                    line.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf a line")

        thread = threading.Thread(target=answer)
        thread.start()
        port = door.getsockname()[1]
        yield f"http://127.0.0.1:{port}"
        stop.set()
        socket.create_connection(("127.0.0.1", port)).close()
        thread.join()


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
    with served(folder / "store.db", host="0.0.0.0", reads_per_minute=120) as address:
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


def test_the_client_needs_no_torch():
    heavy = "{'torch', 'transformers', 'sqlalchemy', 'fastapi'}"
    code = f"import sys, safe_sail.client; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
