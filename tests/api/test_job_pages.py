"""Pages of jobs: a form asks, a page follows, another site cannot; what a form holds is judged as over REST."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from api.main import create_app
from api.settings import ServiceSettings
from db import leases
from db.engine import make_engine
from db.migrate import upgrade
from safe_sail.records import JobError, JobProgress
from safe_sail.settings.jobs import JOB_KINDS

HTML = {"accept": "text/html"}
OURS = HTML | {"sec-fetch-site": "same-origin"}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = make_engine(f"sqlite:///{tmp_path / 'jobs.db'}")
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def client(engine: Engine) -> Iterator[TestClient]:
    settings = ServiceSettings(database_url=str(engine.url))
    with TestClient(create_app(settings), base_url="http://127.0.0.1:8420") as client:
        yield client


def ask(client: TestClient, settings: str = "{}", kind: str = "score-saes", headers: dict[str, str] = OURS):
    return client.post("/jobs", data={"kind": kind, "settings": settings}, headers=headers, follow_redirects=False)


def test_a_form_asks_for_the_job_that_rest_would(client: TestClient):
    answer = ask(client, json.dumps({"seed": 7}))
    assert answer.status_code == 303
    ours = client.get("/v1" + answer.headers["location"]).json()
    theirs = client.post("/v1/jobs", json={"kind": "score-saes", "settings": {"seed": 7}}).json()
    assert {**ours, "job_id": "", "created": ""} == {**theirs, "job_id": "", "created": ""}
    text = client.get("/jobs", headers=HTML).text
    assert ours["job_id"] in text
    assert theirs["job_id"] in text


@pytest.mark.parametrize("kind", list(JOB_KINDS))
def test_the_form_of_every_kind_holds_settings_that_can_be_read(client: TestClient, kind: str):
    text = client.get(f"/jobs?kind={kind}", headers=HTML).text
    found = re.search(r"<textarea[^>]*>(.*?)</textarea>", text, re.S)
    assert found is not None
    assert isinstance(json.loads(found[1].replace("&#34;", '"')), dict)
    assert f'name="kind" value="{kind}"' in text


def test_a_form_shows_what_must_be_told_and_every_default(client: TestClient):
    text = client.get("/jobs?kind=train-saes", headers=HTML).text.replace("&#34;", '"')
    found = re.search(r"<textarea[^>]*>(.*?)</textarea>", text, re.S)
    assert found is not None
    told = json.loads(found[1])
    assert (told["name"], told["sites"], told["model"]) == ("", [""], None)
    assert told["settings"]["window"] == 256
    assert told["widths"] == [1024]


def test_a_form_of_our_own_page_is_taken_though_its_origin_is_null(client: TestClient):
    headers = HTML | {"sec-fetch-site": "same-origin", "origin": "null"}
    answer = client.post("/jobs", data={"kind": "nothing", "settings": "{}"}, headers=headers)
    assert answer.status_code == 422
    for other in ({"origin": "null"}, {"origin": "null", "sec-fetch-site": "none"}, {"origin": "http://elsewhere"}):
        assert client.post("/jobs", data={"kind": "nothing"}, headers=HTML | other).status_code == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none", None])
@pytest.mark.parametrize("path", ["/jobs", "/jobs/x/cancel", "/jobs/x/retry"])
def test_a_form_of_another_site_is_refused(client: TestClient, path: str, site: str | None):
    headers = HTML if site is None else HTML | {"sec-fetch-site": site}
    answer = client.post(path, data={"kind": "score-saes", "settings": "{}"}, headers=headers)
    assert answer.status_code == 403
    # what a browser calls another site is refused before any route; what no browser vouches for, by the form
    assert ("another origin" if site in ("cross-site", "same-site") else "own pages alone") in answer.text
    assert client.get("/v1/jobs").json()["items"] == []


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("nothing", "{}", "no kind of job"), ("score-saes", "{", "settings are JSON"),
        ("score-saes", '{"seed": -1}', "seed must be at least 0"), ("score-saes", '{"sed": 1}', "settings.sed"),
        ("score-saes", '{"model": "/etc/passwd"}', "not offered"), ("score-saes", "[1]", "cannot be used"),
        ("score-saes", "x" * 200_000, "at most"),
    ],
)  # fmt: skip
def test_what_a_form_cannot_ask_is_said_and_nothing_is_kept(client: TestClient, kind: str, settings: str, said: str):
    answer = ask(client, settings, kind)
    assert answer.status_code == 422
    assert said in answer.text
    assert client.get("/v1/jobs").json()["items"] == []


def test_a_page_shows_progress_events_and_the_end(client: TestClient, engine: Engine):
    path = ask(client).headers["location"]
    waiting = client.get(path, headers=HTML).text
    assert '<noscript><meta http-equiv="refresh"' in waiting
    assert f'data-events="/v1{path}/events"' in waiting
    held = leases.claim(engine, "worker-1")
    assert held is not None
    leases.heartbeat(engine, held, JobProgress(step="scoring <b>", n_done=3, n_total=12))
    running = client.get(path, headers=HTML).text
    assert '<progress max="12" value="3" aria-label="scoring &lt;b&gt;">' in running
    assert "scoring &lt;b&gt;: 3 of 12" in running
    assert "worker-1" in running
    leases.fail(engine, held, JobError(type="Internal", message="<script>alert(1)</script>"))
    ended = client.get(path, headers=HTML).text
    assert "&lt;script&gt;alert" in ended
    assert "refresh" not in ended
    assert "follow.js" not in ended
    assert "Try again" in ended


def test_cancel_and_retry_are_buttons(client: TestClient):
    path = ask(client).headers["location"]
    answer = client.post(f"{path}/cancel", headers=OURS, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, path)
    assert client.get(f"/v1{path}").json()["state"] == "cancelled"
    assert client.get("/jobs?state=cancelled", headers=HTML).text.count(f'href="{path}"') == 1
    client.post(f"{path}/retry", headers=OURS)
    assert client.get(f"/v1{path}").json()["state"] == "queued"
    assert client.post("/jobs/nobody/cancel", headers=OURS).status_code == 404
    assert client.get("/jobs/nobody", headers=HTML).status_code == 404
