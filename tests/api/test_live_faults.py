"""`kill -9` of the worker of a live request, as its client sees it: an address, then the answer or the reason."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine

from db import leases
from db.engine import make_engine
from db.migrate import upgrade
from safe_sail.client import Client
from safe_sail.organism.grammar import prompts
from tests.api.conftest import served

ROOT = Path(__file__).parents[2]
SAE = "organism.resid_post.3.topk8-1024"
TOLD = {"prompt": prompts("harmful", "held_out", 1, 0)[0].text, "saes": [SAE], "max_new_tokens": 4}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = make_engine(f"sqlite:///{tmp_path / 'store.db'}")
    upgrade(engine)
    yield engine
    engine.dispose()


def worker(engine: Engine, folder: Path) -> "subprocess.Popen[bytes]":
    """A worker of live requests as `safe-sail serve` starts it, with a short lease."""
    command = [sys.executable, "-m", "scripts.main", "worker", "--takes", "live", "--lease", "1"]
    with (folder / "worker.log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--work", str(folder / "work")], cwd=ROOT, stdout=log, stderr=log,
            env=dict(os.environ) | {"SAFE_SAIL_DATABASE_URL": str(engine.url)},
        )  # fmt: skip


def wait_for(holds: Callable[[], Any]) -> None:
    while not holds():
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_worker_s_request_is_answered_at_its_address_and_so_is_the_one_that_waited(
    engine: Engine, tmp_path: Path
):
    with served(tmp_path / "store.db") as address, Client(address, seconds=3600) as client:
        first = worker(engine, tmp_path)
        try:
            answer = httpx2.post(f"{address}/v1/trace?wait=0", json=TOLD, timeout=None)
            assert answer.status_code == 202
            job_id = answer.json()["job_id"]
            assert answer.headers["location"] == f"/v1/jobs/{job_id}"
            waiting: list[httpx2.Response] = []
            other = threading.Thread(
                target=lambda: waiting.append(httpx2.post(f"{address}/v1/trace?wait=45", json=TOLD, timeout=None))
            )
            other.start()  # it has an address of its own, should the machine be slow
            wait_for(lambda: client.job(job_id).state != "queued")
            assert client.job(job_id).state == "running"
        finally:
            first.kill()  # SIGKILL
            first.wait()
        assert client.job(job_id).state == "running"  # nobody knows yet
        second = worker(engine, tmp_path)
        try:
            states = [one.data["state"] for one in client.events(job_id) if one.kind == "state"]
            other.join()
            (later,) = waiting
            if later.status_code == 202:
                client.wait(later.json()["job_id"], seconds=3000)
        finally:
            second.terminate()
            second.wait()
        job = client.job(job_id)
        assert states == ["queued", "running", "running", "done"]
        assert (job.state, job.attempts) == ("done", 2)
        (queued,) = [one for one in client.jobs() if one.job_id != job_id]
        assert (queued.state, queued.attempts) == ("done", 1)
        assert queued.result is not None
        assert job.result is not None
        assert job.result["record"] == queued.result["record"]
        assert len(job.result["record"]["text"]["reply"]["token_ids"]) > 0


def test_a_request_that_kills_every_worker_ends_with_the_reason(engine: Engine, tmp_path: Path):
    with served(tmp_path / "store.db") as address, Client(address, seconds=3600) as client:
        answers: list[httpx2.Response] = []
        url = f"{address}/v1/trace?wait=60"
        asking = threading.Thread(target=lambda: answers.append(httpx2.post(url, json=TOLD, timeout=None)))
        asking.start()
        for attempt in range(1, leases.MAX_IDLE_ATTEMPTS + 1):
            wait_for(lambda: leases.claim(engine, "w", lease_s=0.05))  # it is never heard of again
            (job,) = client.jobs()
            assert (job.state, job.attempts) == ("running", attempt)
        time.sleep(0.1)
        assert leases.claim(engine, "w") is None
        asking.join()
        (answer,) = answers
        assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (500, "job-failed")
        assert "its worker died 5 times in a row" in answer.json()["detail"]
        (job,) = client.jobs(state="failed")
        assert job.error is not None
        assert job.error.type == "WorkerDied"
