"""`safe-sail worker`: jobs run as their commands do, are stopped, cancelled and killed, and lose and double nothing."""

import json
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import pytest
from sqlalchemy import Engine

from api.offers import ORGANISM_MODELS
from api.settings import ServiceSettings
from db import jobs, leases, store
from db.engine import reading, writing
from safe_sail.organism.load import ORGANISM_VARIANTS
from safe_sail.records import Job, JobState
from safe_sail.settings.jobs import JOB_KINDS
from scripts.main import COMMANDS
from scripts.worker import Worker
from tests.db import builders as a
from tests.db.conftest import *  # noqa: F403 - its databases
from tests.job_faults import DRAWN, ROOT, answer, n_kept, prepare, run_with_kills
from tests.llm_server import Act, Call, Held, LlmServer


def worker_of(engine: Engine, folder: Path, name: str = "w", **told: object) -> Worker:
    return Worker(engine=engine, settings=ServiceSettings(**told), work=folder, name=name, lease_s=1.0)


def ask(engine: Engine, kind: str, **settings: object) -> str:
    with writing(engine) as session:
        return jobs.enqueue(session, kind, settings)[0].job_id


def job(engine: Engine, job_id: str) -> Job:
    with reading(engine) as session:
        return jobs.load_job(session, job_id)


def test_every_kind_of_job_is_a_command_that_can_run_as_one():
    for kind in JOB_KINDS:
        assert callable(import_module(COMMANDS[kind].module).run_job), kind
    assert sorted(ORGANISM_MODELS) == sorted(ORGANISM_VARIANTS)


def test_a_job_by_words_explains_as_the_command_does(engine: Engine, tmp_path: Path):
    prepare(engine, 6)
    job_id = ask(engine, "explain-features", sae="faults", limit=4)
    worker_of(engine, tmp_path).run(until_empty=True)
    found = job(engine, job_id)
    assert (found.state, found.error) == (JobState.DONE, None)
    assert found.result is not None
    assert found.result["explained"] == 4
    with reading(engine) as session:
        kept = store.load_explanations(session, a.FeatureId(sae="faults", index=2))
        assert store.load_run(session, found.result["run"]).settings["limit"] == 4
        told = jobs.list_events(session, job_id)
    assert [one.record.text.partition(" (")[0] for one in kept] == ['fires on "word00002"']
    assert told[-2].data == {"step": "explaining", "n_done": 4, "n_total": 4}
    judging = ask(engine, "judge-explanations", sae="faults", limit=4)
    worker_of(engine, tmp_path).run(until_empty=True)
    result = job(engine, judging).result
    assert result is not None
    assert result["judged"] + sum(result["failed"].values()) == 4


def test_a_job_that_cannot_be_done_fails_with_the_error_of_the_command(engine: Engine, tmp_path: Path):
    prepare(engine, 2)
    bad = {
        ask(engine, "explain-features", sae="nobody"): ("BadInput", "no contexts in the database"),
        ask(engine, "explain-features", llm="m"): ("NotOffered", "no endpoint"),
        ask(engine, "collect-contexts", model="/etc"): ("NotOffered", "not offered"),
        ask(engine, "judge-explanations", explainer="m"): ("BadInput", "need `llm`"),
    }
    worker_of(engine, tmp_path).run(until_empty=True)
    for job_id, (kind, said) in bad.items():
        error = job(engine, job_id).error
        assert error is not None
        assert error.type == kind
        assert said in error.message


def test_a_cancelled_job_stops_at_its_next_step_and_keeps_what_it_saved(engine: Engine, tmp_path: Path):
    prepare(engine, 400)

    def script(call: Call) -> Act:  # the whole job would take three minutes
        return answer(call, 0.05 if len(endpoint.calls) < 8 else 0.5)

    with LlmServer(script) as endpoint:
        told = {"llm_base_url": endpoint.url, "llms": ("m",), "llm_in_flight": 1}
        job_id = ask(engine, "explain-features", sae="faults", llm="m", limit=400)
        thread = threading.Thread(target=lambda: worker_of(engine, tmp_path, **told).run(until_empty=True))
        thread.start()
        while n_kept(engine) < 3:
            time.sleep(0.01)
        with writing(engine) as session:
            jobs.request_cancel(session, job_id)
        thread.join()
    assert job(engine, job_id).state is JobState.CANCELLED
    assert 3 <= n_kept(engine) < 400


def test_a_worker_that_is_told_to_end_gives_its_job_back_and_another_goes_on(engine: Engine, tmp_path: Path):
    prepare(engine, 30)

    def script(call: Call) -> Act:  # nobody can end the job before the first worker is told to end
        return answer(call) if len(endpoint.calls) < 8 else Held(first.stop.is_set, answer(call))

    with LlmServer(script) as endpoint:
        told = {"llm_base_url": endpoint.url, "llms": ("m",), "llm_in_flight": 1}
        job_id = ask(engine, "explain-features", sae="faults", llm="m", limit=30)
        first = worker_of(engine, tmp_path, "first", **told)
        thread = threading.Thread(target=first.run)
        thread.start()
        while n_kept(engine) < 3:
            time.sleep(0.01)
        first.stop.set()
        thread.join()
        assert job(engine, job_id).state is JobState.QUEUED
        worker_of(engine, tmp_path, "second", **told).run(until_empty=True)
    found = job(engine, job_id)
    assert (found.state, found.attempts) == (JobState.DONE, 2)
    assert found.result is not None
    assert found.result["there_before"] >= 3
    assert found.result["explained"] == 30 - found.result["there_before"]


def test_a_worker_whose_job_was_given_away_leaves_it_alone(engine: Engine, tmp_path: Path):
    prepare(engine, 30)
    with LlmServer(answer) as endpoint:
        told = {"llm_base_url": endpoint.url, "llms": ("m",), "llm_in_flight": 1}
        job_id = ask(engine, "explain-features", sae="faults", llm="m", limit=30)
        slow = worker_of(engine, tmp_path, "slow", **told)
        held = leases.claim(engine, "slow", lease_s=0.001)
        assert held is not None
        time.sleep(0.01)
        taker = leases.claim(engine, "taker")
        assert taker is not None
        slow.run_one(held)
        with reading(engine) as session:
            assert store.features_done(session, "faults", store.FeatureKind.EXPLANATIONS, explainer="m") == set()
        assert job(engine, job_id).worker == "taker"


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, None])
def test_a_worker_beside_a_service_ends_in_good_order(
    sqlite_template: Path, tmp_path: Path, sign: signal.Signals | None
):
    """At Ctrl-C service and worker get the signal alike; a service that dies closes the worker's input."""
    words = ["worker", "--with-parent", "--takes", "long", "--database", f"sqlite:///{sqlite_template}"]
    with subprocess.Popen(
        [sys.executable, "-m", "scripts.main", *words, "--work", str(tmp_path)], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert "end with Ctrl-C" in process.stdout.readline()
        assert process.stdin is not None
        if sign is None:
            process.stdin.close()
        else:
            process.send_signal(sign)
        process.wait()
        assert process.stderr is not None
        assert (process.returncode, process.stderr.read()) == (0, "")


@pytest.mark.slow
def test_a_job_killed_again_and_again_loses_and_doubles_nothing(engine: Engine, tmp_path: Path):
    """The large one, 2,000 items and ten kills a database, is benchmarks/bench_job_faults.py."""
    n = 150
    prepare(engine, n)
    url = engine.url.render_as_string(hide_password=False)
    found = run_with_kills(url, tmp_path, n_features=n, kills=["serve", "worker"], seed=3)
    assert found.job["state"] == "done", json.dumps(found.job)
    assert (found.lost, found.doubled, found.wrong) == ([], [], [])
    assert found.n_jobs == 1
    assert found.job["attempts"] == 2
    # asked again is what was drawn and not yet kept when the worker died
    assert found.asked.total() - n <= DRAWN
