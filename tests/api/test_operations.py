"""What a monitor reads, what the log holds and never holds, and answers that take too long."""

import asyncio
import io
import json
import logging
import random
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from starlette import types

from api.logs import LOGGER, log_to, without_keys
from api.main import create_app
from api.metrics import Metrics
from api.middleware import RequestFrame
from api.settings import ServiceSettings
from db import jobs
from db.engine import make_engine, writing
from db.keys import Scope, create_key
from db.store import save_ledger_entries
from safe_sail.records import FeatureId, JudgeMethod, LedgerEntry, Stage
from tests.api.seed import BEST, RUN


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    logger = logging.getLogger(LOGGER)
    before = (list(logger.handlers), logger.propagate, logger.level)
    stream = io.StringIO()
    log_to("json", stream)
    yield stream
    logger.handlers[:], logger.propagate = before[:2]
    logger.setLevel(before[2])


def samples(client: TestClient) -> dict[tuple[str, ...], float]:
    answer = client.get("/metrics")
    assert answer.status_code == 200, answer.text
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for one in family.samples:
            found[one.name, *(f"{name}={value}" for name, value in sorted(one.labels.items()))] = one.value
    return found


def test_requests_are_counted_by_route_and_status(own_client: TestClient):
    for index in (3, 7, 9999):
        own_client.get(f"/v1/saes/{BEST}/features/{index}")
    own_client.get(f"/v1/saes/{BEST}")
    for number in range(3):
        own_client.get(f"/nothing/{number}")
    found = samples(own_client)
    name, feature = "safe_sail_requests_total", "route=/v1/saes/{sae}/features/{index}"
    assert found[name, "method=GET", feature, "status=200"] == 2
    assert found[name, "method=GET", feature, "status=404"] == 1
    assert found[name, "method=GET", "route=/v1/saes/{sae}", "status=200"] == 1
    assert found[name, "method=GET", "route=none", "status=404"] == 3
    assert found["safe_sail_request_seconds_count", "method=GET", feature] == 3
    assert not any("nothing" in part for key in found for part in key)


def test_jobs_are_counted_by_state(own_client: TestClient, tmp_path: Path):
    assert samples(own_client)["safe_sail_jobs", "state=queued"] == 0
    started = time.time()
    engine = make_engine(f"sqlite:///{tmp_path / 'store.db'}")
    with writing(engine) as session:
        for _ in range(2):
            jobs.enqueue(session, "score-saes", {})
    engine.dispose()
    time.sleep(0.01)
    found = samples(own_client)
    assert found["safe_sail_jobs", "state=queued"] == 2
    assert found["safe_sail_jobs", "state=running"] == 0
    # the database's clock counts milliseconds
    assert 0 < found[("safe_sail_oldest_queued_job_seconds",)] < time.time() - started + 0.01


def test_tokens_and_cost_of_language_models_are_the_ledger_s_sums(own_client: TestClient, tmp_path: Path):
    assert not any(name.startswith("safe_sail_llm") for name, *_ in samples(own_client))
    draw = random.Random(3)
    entries = [
        LedgerEntry(
            feature=FeatureId(sae=BEST, index=index), stage=stage, explainer=model, prompt_version="1",
            method=JudgeMethod.TOKEN_SIMULATION if stage is Stage.JUDGE else None, model=model, reason=None,
            message="", raw=None, attempts=draw.randrange(3), prompt_tokens=draw.randrange(900),
            completion_tokens=draw.randrange(90), assumed_tokens=draw.randrange(9),
            cost=draw.choice([None, draw.random()]),
        )
        for index in range(8) for stage in Stage for model in ("m", 'other "one"')
    ]  # fmt: skip
    engine = make_engine(f"sqlite:///{tmp_path / 'store.db'}")
    with writing(engine) as session:
        save_ledger_entries(session, entries, run_id=RUN)
    engine.dispose()
    found = samples(own_client)
    for stage in Stage:
        for model in ("m", 'other "one"'):
            mine = [one for one in entries if (one.model, one.stage) == (model, stage)]
            by = (f"model={model}", f"stage={stage}")
            for kind in ("prompt", "completion", "assumed"):
                expected = sum(getattr(one, f"{kind}_tokens") for one in mine)
                assert found["safe_sail_llm_tokens_total", f"kind={kind}", *by] == expected > 0
            assert found["safe_sail_llm_requests_total", *by] == sum(one.attempts for one in mine) > 0
            known = [one.cost for one in mine if one.cost is not None]
            assert found["safe_sail_llm_cost_dollars_total", *by] == pytest.approx(sum(known))
            assert found["safe_sail_llm_unpriced_total", *by] == len(mine) - len(known)


def test_metrics_need_the_widest_scope_beyond_this_machine(tmp_path: Path, database_url: str):
    path = tmp_path / "store.db"
    path.write_bytes(Path(database_url.removeprefix("sqlite:///")).read_bytes())
    engine = make_engine(f"sqlite:///{path}")
    with writing(engine) as session:
        keys = {scope: create_key(session, "k", scope) for scope in Scope}
    engine.dispose()
    settings = ServiceSettings(database_url=f"sqlite:///{path}", host="0.0.0.0")
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        statuses = {
            scope: client.get("/metrics", headers={"X-API-Key": key}).status_code for scope, key in keys.items()
        }
        assert statuses == {Scope.READ: 403, Scope.WRITE: 403, Scope.ADMIN: 200}
        assert client.get("/metrics").status_code == 401


def test_a_request_is_a_line_of_json(client: TestClient, log: io.StringIO):
    client.get(f"/v1/saes/{BEST}/features/3?", headers={"X-Request-ID": "abc"})
    (line,) = map(json.loads, log.getvalue().splitlines())
    assert line["event"] == "request"
    assert line["request_id"] == "abc"
    assert line["route"] == "/v1/saes/{sae}/features/{index}"
    assert (line["status"], line["method"], line["level"]) == (200, "GET", "info")
    assert line["ms"] > 0


KEY = "sail_0123456789ab_" + "S3cr3t-_" * 5 + "xyz"


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_key_never_gets_into_the_log(database_url: str, log: io.StringIO, form: str):
    log_to(form, log)  # type: ignore[arg-type]
    app = create_app(ServiceSettings(database_url=database_url))

    @app.get("/fails/{what}")
    async def fails(what: str) -> None:
        raise RuntimeError(f"cannot use {what} nor {KEY}")

    with TestClient(app, base_url="http://127.0.0.1") as client:
        for headers in ({"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}, {"X-Request-ID": KEY}, {}):
            for address in (
                f"/v1/saes/{KEY}",
                f"/v1/saes?model={KEY}",
                f"/fails/{KEY}",
                "/v1/saes/" + KEY.replace("_", "%5F"),
            ):
                client.get(address, headers=headers)
    said = log.getvalue()
    assert said.count("cannot use") >= 3
    assert "sail_0123456789ab_[secret]" in said, "the log has lines that would have held the key"
    assert "S3cr3t" not in said


def test_every_real_key_is_cut(tmp_path: Path, database_url: str):
    path = tmp_path / "store.db"
    path.write_bytes(Path(database_url.removeprefix("sqlite:///")).read_bytes())
    engine = make_engine(f"sqlite:///{path}")
    with writing(engine) as session:
        keys = [create_key(session, "k", Scope.READ) for _ in range(50)]
    engine.dispose()
    for key in keys:
        secret = key.split("_", 2)[2]
        assert secret not in without_keys(f"({key})")
        assert re.fullmatch(r"a sail_[0-9a-f]{12}_\[secret\] b", without_keys(f"a {key} b"))


class SlowRoutes:
    """Routes that never answer by themselves, and what became of them."""

    def __init__(self, app: FastAPI) -> None:
        self.entered: list[str] = []
        self.ended: list[str] = []
        self.go = threading.Event()
        app.get("/slow/async")(self.wait)
        app.get("/slow/thread")(self.block)

    async def wait(self) -> None:
        self.entered.append("async")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ended.append("async, cancelled")
            raise

    def block(self) -> None:
        self.entered.append("thread")
        self.go.wait()
        self.ended.append("thread")


@pytest.mark.parametrize(("kind", "end"), [("async", "async, cancelled"), ("thread", "thread")])
def test_an_answer_that_takes_too_long_is_given_up(database_url: str, kind: str, end: str):
    app = create_app(ServiceSettings(database_url=database_url, request_seconds=0.5))
    slow = SlowRoutes(app)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        while not slow.entered:  # a busy machine may give up before the route has begun
            answer = client.get(f"/slow/{kind}")
            assert (answer.status_code, answer.json()["type"]) == (504, "urn:safe-sail:problem:took-too-long")
            assert answer.headers["retry-after"] == "10"
            assert answer.headers["x-request-id"] == answer.json()["request_id"]
        assert "thread" not in slow.ended, "nobody waits for a thread"
        slow.go.set()
        while client.get("/livez").status_code == 504:
            pass
        assert client.get("/nothing").status_code in (404, 504)
    while len(slow.ended) < len(slow.entered):
        time.sleep(0.01)
    assert set(slow.ended) == {end}


def test_an_answer_that_has_begun_in_time_may_go_on(database_url: str):
    sent: list[dict[str, Any]] = []

    async def answer(scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"a", b"b", b"c"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
            await asyncio.sleep(0.1)  # three times what an answer has to begin in
        await send({"type": "http.response.body", "body": b""})

    async def keep(message: Any) -> None:
        sent.append(message)

    async def nothing() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    engine = make_engine(database_url, read_only=True)
    app = SimpleNamespace(state=SimpleNamespace(metrics=Metrics(engine)))
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [(b"host", b"here")]}
    frame = RequestFrame(answer, ("here",), max_body_bytes=1, seconds=0.03)
    asyncio.run(frame(scope | {"app": app}, nothing, keep))
    assert [one["status"] for one in sent if "status" in one] == [200]
    assert b"".join(one.get("body", b"") for one in sent) == b"abc"
