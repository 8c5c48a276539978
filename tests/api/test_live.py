"""Live requests over REST and the page: answered through a real worker on the organism, or later, or with its error."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from api.main import create_app
from api.offers import ORGANISM_SAES
from api.settings import ServiceSettings
from db import jobs, leases, store
from db.engine import make_engine, reading, writing
from db.migrate import upgrade
from safe_sail.model.load import load_model
from safe_sail.organism.grammar import prompts
from safe_sail.organism.load import ASSETS, organism_path
from safe_sail.records import FeatureId, FeatureScale, JobState
from safe_sail.settings.live import LIVE_KINDS
from scripts import subjects
from scripts.worker import Worker
from tests.api.seed import fill

SAE = "organism.resid_post.3.topk8-1024"
HARMFUL = prompts("harmful", "held_out", 1, 0)[0].text
HARMLESS = prompts("safe", "held_out", 1, 0)[0].text


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A filled store."""
    engine = make_engine(f"sqlite:///{tmp_path_factory.mktemp('live') / 'store.db'}")
    upgrade(engine)
    fill(engine)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[TestClient]:
    with TestClient(
        create_app(ServiceSettings(database_url=str(engine.url))), base_url="http://127.0.0.1:8420"
    ) as client:
        yield client


@pytest.fixture(scope="module")
def worker(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker of live requests in a thread of its own."""
    worker = worker_of(engine, tmp_path_factory.mktemp("work"))
    thread = threading.Thread(target=worker.run)
    thread.start()
    yield worker
    worker.stop.set()
    thread.join()


def worker_of(engine: Engine, folder: Path) -> Worker:
    return Worker(engine=engine, settings=ServiceSettings(), work=folder, name="live", takes="live", lease_s=1.0)


def test_a_trace_is_answered_with_the_ids_that_transformers_generates(client: TestClient, worker: Worker):
    answer = client.post("/v1/trace?wait=60", json={"prompt": HARMFUL, "saes": [SAE], "max_new_tokens": 16})
    assert answer.status_code == 200, answer.text
    record = answer.json()["record"]
    handle = load_model(organism_path("aligned"), device="cpu", dtype=torch.float32)
    batch = handle.chat_batch([HARMFUL])
    whole = handle.model.generate(
        input_ids=batch.token_ids, attention_mask=batch.attention_mask, max_new_tokens=16, do_sample=False
    )
    assert record["text"]["token_ids"] == whole[0].tolist()
    assert record["text"]["n_prompt"] == batch.token_ids.shape[1]
    assert record["text"]["reply"]["label"] == "refusal"
    (layer,) = record["layers"]
    assert (layer["sae"], layer["site"]) == (SAE, "resid_post.3")
    job = client.get(f"/v1/jobs/{answer.json()['job_id']}").json()
    assert (job["kind"], job["result"]["record"]) == ("trace-prompt", record)


def test_the_next_request_finds_model_and_sae_loaded(
    client: TestClient, worker: Worker, monkeypatch: pytest.MonkeyPatch
):
    told = {"prompt": HARMFUL, "saes": [SAE], "max_new_tokens": 16}
    client.post("/v1/trace?wait=60", json=told)
    model, sae = (list(kept._kept.values()) for kept in (worker.loaded.models, worker.loaded.saes))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was loaded before")

    for name in ("load_model", "load_sae"):
        monkeypatch.setattr(subjects, name, never)
    assert client.post("/v1/trace?wait=60", json=told).status_code == 200
    now = [list(kept._kept.values()) for kept in (worker.loaded.models, worker.loaded.saes)]
    assert [id(one) for one in now[0] + now[1]] == [id(one) for one in model + sae]


def test_two_prompts_are_compared_and_an_answer_is_steered(client: TestClient, worker: Worker):
    told = {"first": HARMFUL, "second": HARMLESS, "saes": [SAE], "max_new_tokens": 0, "settings": {"n_features": 3}}
    compared = client.post("/v1/compare-prompts?wait=60", json=told).json()["record"]
    sizes = [abs(one["second"] - one["first"]) for one in compared["layers"][0]["features"]]
    assert len(sizes) == 3
    assert sizes == sorted(sizes, reverse=True)
    told = {"prompt": HARMFUL, "sae": SAE, "feature": 5, "coefficient": 2, "unit": "activation"}
    steered = client.post("/v1/steer?wait=60", json=told).json()["record"]
    assert steered["target"] == f"{SAE}/5"
    assert steered["plain"]["label"] == "refusal"


def test_what_cannot_be_computed_is_a_problem_of_the_request(client: TestClient, worker: Worker):
    cases = [
        ("/v1/trace", {"prompt": "a " * 2000}, 422, "invalid", "tokens"),
        ("/v1/trace", {"prompt": " "}, 422, "invalid", "a prompt has words"),
        ("/v1/trace", {"prompt": "a", "model": "/etc"}, 422, "not-offered", "not offered"),
        ("/v1/trace", {"prompt": "a", "model": "base"}, 422, "invalid", "no SAE of the organism"),
        ("/v1/trace", {"prompt": "a", "colour": 1}, 422, "invalid", "body.colour"),
        ("/v1/steer", {"prompt": "a", "direction": "nobody"}, 404, "not-found", "nobody"),
        ("/v1/steer", {"prompt": "a"}, 422, "invalid", "neither"),
        ("/v1/steer", {"prompt": "a", "sae": SAE, "feature": 5}, 422, "invalid", "no stored maximum"),
        ("/v1/guard", {"prompt": "a", "guard": "g"}, 422, "not-offered", "SAFE_SAIL_GUARDS"),
    ]
    for path, told, status, kind, said in cases:
        answer = client.post(f"{path}?wait=60", json=told)
        assert answer.status_code == status, answer.text
        assert answer.json()["type"].endswith(f":{kind}")
        assert said in answer.json()["detail"]


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[tuple[TestClient, Engine]]:
    """A service without a worker."""
    engine = make_engine(f"sqlite:///{tmp_path / 'alone.db'}")
    upgrade(engine)
    app = create_app(ServiceSettings(database_url=str(engine.url)))
    with TestClient(app, base_url="http://127.0.0.1:8420") as client:
        yield client, engine
    engine.dispose()


def test_without_a_worker_the_answer_is_an_address(alone: tuple[TestClient, Engine]):
    client, engine = alone
    start = time.perf_counter()
    answer = client.post("/v1/trace?wait=0.2", json={"prompt": HARMFUL})
    assert answer.status_code == 202, "nobody has answered, and the one who asked waits no longer"
    assert time.perf_counter() - start >= 0.2
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['job_id']}"
    assert client.get(answer.headers["location"]).json()["state"] == "queued"
    with writing(engine) as session:
        long, _ = jobs.enqueue(session, "explain-features", {})
    assert leases.claim(engine, "w", kinds=["explain-features"]).job.job_id == long.job_id  # type: ignore[union-attr]
    with writing(engine) as session:
        jobs.enqueue(session, "explain-features", {})
    held = leases.claim(engine, "w")
    assert held is not None
    assert held.job.kind == "trace-prompt"  # before the long one, whichever came first


def test_a_request_whose_worker_was_killed_is_answered_by_the_next(alone: tuple[TestClient, Engine], tmp_path: Path):
    client, engine = alone
    answer = client.post("/v1/trace?wait=0", json={"prompt": HARMFUL, "saes": [SAE], "max_new_tokens": 4})
    dead = leases.claim(engine, "killed", lease_s=0.05)  # it holds the job and is never heard of again
    assert dead is not None
    time.sleep(0.1)
    worker_of(engine, tmp_path).run(until_empty=True)
    job = client.get(answer.headers["location"]).json()
    assert (job["state"], job["attempts"]) == ("done", 2)
    assert len(job["result"]["record"]["layers"]) == 1
    with pytest.raises(Exception, match="not heard of"):
        leases.finish(engine, dead, {"record": {}})  # what the dead one might still say is not heard


def test_old_requests_are_forgotten_and_other_jobs_are_not(
    alone: tuple[TestClient, Engine], monkeypatch: pytest.MonkeyPatch
):
    client, engine = alone
    keep = 20
    monkeypatch.setattr("api.live.KEPT_REQUESTS", keep)
    with writing(engine) as session:
        jobs.enqueue(session, "explain-features", {})
        ids = [jobs.enqueue(session, "trace-prompt", {"prompt": "p"})[0].job_id for _ in range(keep + 5)]
        for job_id in ids[1:]:
            jobs.request_cancel(session, job_id)
    client.post("/v1/trace?wait=0", json={"prompt": HARMFUL})
    with reading(engine) as session:
        counts = jobs.count_jobs(session)
        assert counts[JobState.CANCELLED] == keep  # the newest
        assert jobs.load_job(session, ids[0]).state is JobState.QUEUED  # somebody may still wait for it
        assert counts[JobState.QUEUED] == 3


def test_scales_are_the_stored_maxima_and_quantiles(engine: Engine):
    with reading(engine) as session:
        for listing in store.list_saes(session):
            slug = listing.sae.slug
            maxima = store.load_scales(session, slug, FeatureScale.MAXIMUM)
            for index, value in list(maxima.items())[:3]:
                kept = store.load_top_contexts(session, FeatureId(sae=slug, index=index))
                assert kept is not None
                assert kept.record.max_activation == value > 0
        assert store.load_scales(session, "nobody", FeatureScale.QUANTILE_999) == {}
    assert sorted(LIVE_KINDS) == ["compare-prompts", "guard-prompt", "steer-prompt", "trace-prompt"]


def test_every_server_offers_the_saes_that_are_shipped():
    assert sorted(ORGANISM_SAES) == sorted(path.name for path in (ASSETS / "saes").iterdir())
