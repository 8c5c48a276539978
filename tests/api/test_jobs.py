"""Jobs over REST: asked for once, described by the library's own settings, followed without a gap."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from api.main import create_app
from api.offers import Offers
from api.settings import ServiceSettings
from db import leases
from db.engine import make_engine
from db.migrate import upgrade
from safe_sail.errors import NotOffered
from safe_sail.records import JobError, JobProgress
from safe_sail.settings import ScoreSettings
from safe_sail.settings.jobs import ScoreSaesJob
from safe_sail.settings.offered import offered_names

BY_WORDS = {"kind": "explain-features", "settings": {"sae": "s", "limit": 3}}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = make_engine(f"sqlite:///{tmp_path / 'jobs.db'}")
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "texts.jsonl").write_text("{}")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "leads_out").symlink_to(tmp_path / "secret.txt")
    return folder


@pytest.fixture
def client(engine: Engine, files: Path) -> Iterator[TestClient]:
    settings = ServiceSettings(
        database_url=str(engine.url), files=files, models={"mine": "/models/mine"}, llm_base_url="http://127.0.0.1:9/v1",
        llms=("m",),
    )  # fmt: skip
    with TestClient(create_app(settings), base_url="http://127.0.0.1:8420") as client:
        yield client


def held(engine: Engine) -> leases.Claim:
    found = leases.claim(engine, "w")
    assert found is not None
    return found


def test_a_job_is_asked_for_and_found_at_its_address(client: TestClient):
    answer = client.post("/v1/jobs", json=BY_WORDS)
    assert answer.status_code == 202
    job = answer.json()
    assert job["state"] == "queued"
    assert job["settings"]["limit"] == 3
    assert job["settings"]["settings"]["n_active"] == 12, "defaults are filled in"
    assert client.get(answer.headers["location"]).json() == job
    assert client.get("/v1/jobs?state=queued&kind=explain-features").json()["items"] == [job]
    assert client.get("/v1/jobs?state=done").json()["items"] == []


def test_the_same_key_asks_for_one_job(client: TestClient):
    key = {"Idempotency-Key": "k-1"}
    first, second = (client.post("/v1/jobs", json=BY_WORDS, headers=key).json() for _ in range(2))
    assert first == second
    assert len(client.get("/v1/jobs").json()["items"]) == 1
    other = client.post("/v1/jobs", json=BY_WORDS | {"settings": {"limit": 4}}, headers=key)
    assert other.status_code == 422
    assert other.json()["type"] == "urn:safe-sail:problem:idempotency-key-reused"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"kind": "rm"}, "kind"),
        ({}, "kind"),
        ([], "body"),
        ({"kind": "score-saes", "settings": {"misspelt": 1}}, "misspelt"),
        ({"kind": "score-saes", "settings": {"settings": {"misspelt": 1}}}, "misspelt"),
        ({"kind": "score-saes", "settings": {"settings": {"n_judge": 0}}}, "n_judge must be at least 2"),
        ({"kind": "find-refusal-direction", "settings": {"settings": {"kl_below": "nan"}}}, "finite"),
        ({"kind": "explain-features", "settings": {"limit": 0}}, "limit must be at least 1"),
        ({"kind": "explain-features", "settings": {"base_url": "http://evil.example"}}, "base_url"),
        ({"kind": "explain-features", "settings": {"llm": "other"}}, "offered are: m"),
        ({"kind": "score-saes", "settings": {"model": "../../etc"}}, "offered are: mine"),
        ({"kind": "score-saes", "settings": {"saes": ["/etc"]}}, "offered are: none"),
        ({"kind": "collect-contexts", "settings": {"corpus": "../secret.txt"}}, "not in the server's folder"),
        ({"kind": "collect-contexts", "settings": {"corpus": "leads_out"}}, "not in the server's folder"),
        ({"kind": "collect-contexts", "settings": {"corpus": "/etc/passwd"}}, "not in the server's folder"),
        ({"kind": "collect-contexts", "settings": {"corpus": "a\x00b"}}, "not in the server's folder"),
        ({"kind": "collect-contexts", "settings": {"corpus": "absent.txt"}}, "not in the server's folder"),
    ],
)  # fmt: skip
def test_a_job_that_cannot_be_meant_is_refused_and_not_kept(client: TestClient, body: object, said: str):
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert said in json.dumps(answer.json())
    assert client.get("/v1/jobs").json()["items"] == []


def test_offered_names_become_paths_only_here(files: Path):
    offers = Offers(models={"mine": "/m"}, saes={"s": "rel/id"}, files=files, llm_base_url=None, llms=("m",))
    assert offers.file("inner/texts.jsonl") == files / "inner" / "texts.jsonl"
    assert (offers.model("mine"), offers.model("base"), offers.sae("s")) == ("/m", "base", "rel/id")
    with pytest.raises(NotOffered, match="no endpoint"):
        offers.llm("m")
    with pytest.raises(NotOffered, match="no files"):
        Offers(models={}, saes={}, files=None, llm_base_url=None, llms=()).file("x")
    job = ScoreSaesJob(model="m", saes=("a", "b"), concepts=("c",), corpus="d", settings=ScoreSettings())
    assert list(offered_names(job)) == [("model", "m"), ("sae", "a"), ("sae", "b"), ("file", "c"), ("file", "d")]


def test_cancel_and_retry_answer_with_the_job_or_a_conflict(client: TestClient, engine: Engine):
    address = client.post("/v1/jobs", json=BY_WORDS).headers["location"]
    assert client.post(f"{address}/cancel").json()["state"] == "cancelled"
    conflict = client.post(f"{address}/cancel")
    assert conflict.status_code == 409
    assert conflict.json()["type"] == "urn:safe-sail:problem:job-conflict"
    assert client.post(f"{address}/retry").json()["state"] == "queued"
    leases.fail(engine, held(engine), JobError(type="BadInput", message="no"))
    assert client.get(address).json()["error"] == {"type": "BadInput", "message": "no"}
    for path in ("/v1/jobs/nobody", "/v1/jobs/nobody/events"):
        assert client.get(path).status_code == 404
    assert client.post("/v1/jobs/nobody/retry").status_code == 404


def events_of(text: str) -> list[tuple[int, str, dict]]:
    found = []
    for part in text.strip().split("\n\n"):
        if part.startswith(":"):  # what keeps a quiet connection open
            continue
        fields = dict(line.split(": ", 1) for line in part.splitlines())
        found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


def test_a_job_is_followed_while_it_runs_and_from_where_a_reader_left(client: TestClient, engine: Engine):
    address = client.post("/v1/jobs", json=BY_WORDS).headers["location"]

    def run() -> None:
        time.sleep(0.3)
        claim = held(engine)
        for n in range(3):
            leases.heartbeat(engine, claim, JobProgress(step="explaining", n_done=n, n_total=3))
            time.sleep(0.3)
        leases.finish(engine, claim, {})

    thread = threading.Thread(target=run)
    thread.start()
    answer = client.get(f"{address}/events")
    thread.join()
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = events_of(answer.text)
    assert [number for number, _, _ in found] == [1, 2, 3, 4, 5, 6]
    assert [kind for _, kind, _ in found] == ["state", "state", "progress", "progress", "progress", "state"]
    assert found[-1][2]["data"] == {"state": "done"}
    again = client.get(f"{address}/events", headers={"Last-Event-ID": "4"})
    assert events_of(again.text) == found[4:]
    for bad in ("-1", "x", str(2**31)):
        assert client.get(f"{address}/events", headers={"Last-Event-ID": bad}).status_code == 422


def test_jobs_are_paged_with_a_link(client: TestClient):
    wanted = [client.post("/v1/jobs", json=BY_WORDS).json()["job_id"] for _ in range(3)][::-1]
    page = client.get("/v1/jobs?limit=2")
    assert [job["job_id"] for job in page.json()["items"]] == wanted[:2]
    rest = client.get(page.links["next"]["url"])
    assert [job["job_id"] for job in rest.json()["items"]] == wanted[2:]
    assert "link" not in rest.headers


def test_a_job_for_a_missing_database_creates_none(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'none.db'}"
    with TestClient(create_app(ServiceSettings(database_url=url)), base_url="http://localhost") as client:
        assert client.post("/v1/jobs", json=BY_WORDS).status_code == 503
    assert not (tmp_path / "none.db").exists()
