"""Jobs of the methods, by the worker's own loop: each kind comes to its end, is refused, stopped and taken up again."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from api.main import create_app
from api.settings import ServiceSettings
from db import jobs, leases, store
from db.engine import fenced, make_engine, reading, writing
from db.migrate import upgrade
from safe_sail.data.concepts import read_concepts
from safe_sail.errors import BadInput, LeaseLost
from safe_sail.neurons.guard import load_guard
from safe_sail.organism.load import organism_sae_paths
from safe_sail.records import Job, JobState
from safe_sail.sae.load import load_sae
from safe_sail.settings.jobs import JOB_KINDS
from scripts import train_saes
from scripts.intervene_features import ORGANISM_SAE
from scripts.job_runs import JobContext
from scripts.worker import Worker
from tests.db import builders as a
from tests.llm_server import LlmServer
from tests.scripts.test_find_circuit import files as circuit_files
from tests.scripts.test_write_pairs import TEXTS, honest
from tests.tiny import TinyModels

WORDS = ("fox", "dog", "bread", "home", "answer", "anger", "kind", "lazy", "quick", "brown")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = make_engine(f"sqlite:///{tmp_path / 'jobs.db'}")
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def offered(tmp_path: Path, tiny_models: TinyModels) -> dict[str, Any]:
    """What the server offers: a tiny model and a folder of files."""
    folder = tmp_path / "files"
    folder.mkdir()
    circuit_files(folder)
    (folder / "units.json").write_text(json.dumps({"some": ["L0.H1", "L1.N3"]}))
    rows = [{"prompt": f"the {word}", "reply": "at home"} for word in WORDS]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "prompts.txt").write_text("\n".join(f"how {word}" for word in WORDS))
    corpus = [{"text": f"the {one} {two} jumps over the lazy dog"} for one in WORDS for two in WORDS]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    texts = [{"text": text, "concept": "insult"} for text in TEXTS]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    return {"models": {"tiny": str(tiny_models.folder("llama"))}, "files": folder, "made_in": tmp_path / "made"}


def worker(engine: Engine, offered: dict[str, Any], folder: Path, name: str = "w") -> Worker:
    return Worker(engine=engine, settings=ServiceSettings(**offered), work=folder / "work", name=name, lease_s=5.0)


def job(engine: Engine, job_id: str) -> Job:
    with reading(engine) as session:
        return jobs.load_job(session, job_id)


def ask(engine: Engine, offered: dict[str, Any], kind: str, settings: dict[str, Any]) -> str:
    """Over REST, so that what the types say holds."""
    told = ServiceSettings(database_url=str(engine.url), **offered)
    with TestClient(create_app(told), base_url="http://127.0.0.1:8420") as client:
        answer = client.post("/v1/jobs", json={"kind": kind, "settings": settings})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


def done(engine: Engine, offered: dict[str, Any], folder: Path, kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What a job brings that is asked for over REST and run to its end."""
    job_id = ask(engine, offered, kind, settings)
    worker(engine, offered, folder).run(until_empty=True)
    found = job(engine, job_id)
    assert (found.state, found.error) == (JobState.DONE, None)
    assert found.result is not None
    with reading(engine) as session:
        kept = store.load_run(session, found.result["run"]) if found.result["run"] else None
        told = [one.data["step"] for one in jobs.list_events(session, job_id) if one.kind == "progress"]
    if kept is not None:
        assert (kept.command, kept.finished is not None) == (kind, True)
    assert told, "the job says what it is doing"
    return dict(found.result)


TINY_CIRCUIT = {
    "model": "tiny", "target_file": "target.jsonl", "kept_file": "kept.jsonl", "n_seeds": 1,
    "settings": {"steps": 2, "n_random": 1, "budget_neurons": 2, "max_new_tokens": 4},
}  # fmt: skip
TINY_TUNING = {
    "model": "tiny", "units": "units.json", "rows": "rows.jsonl", "harmful_file": "prompts.txt",
    "harmless_file": "prompts.txt", "settings": {"n_steps": 2, "n_random": 1, "n_evaluate": 2, "max_new_tokens": 3},
}  # fmt: skip


def test_a_circuit_is_found_and_tuned_by_jobs(engine: Engine, offered: dict[str, Any], tmp_path: Path):
    found = done(engine, offered, tmp_path, "find-circuit", TINY_CIRCUIT)
    assert found["circuit"] == "tiny.refusal", "the model is known by the name that the server offers"
    with reading(engine) as session:
        circuit = store.load_circuit(session, "tiny.refusal").record
        assert len(store.load_circuit_evaluations(session, "tiny.refusal")) == 1
    assert found["units"] == len(circuit.members) == 3
    tuned = done(engine, offered, tmp_path, "tune-circuit", TINY_TUNING)
    with reading(engine) as session:
        (study,) = store.list_tuning_studies(session)
    assert (tuned["study"], tuned["circuit"]) == (study.record.slug, "some")
    assert all(arm.unchanged for arm in study.record.arms)


def test_a_circuit_is_not_sought_in_a_model_that_refuses_nothing(
    engine: Engine, offered: dict[str, Any], tmp_path: Path
):
    find = {name: value for name, value in TINY_TUNING.items() if name != "units"} | {"find": {"budget_neurons": 2}}
    asked = ask(engine, offered, "tune-circuit", find)
    worker(engine, offered, tmp_path).run(until_empty=True)
    error = job(engine, asked).error
    assert error is not None
    # half of the ten harmful prompts find the circuit, and the other half would judge it
    assert (error.type, "refuses none of the 5 harmful prompts" in error.message) == ("EmptyConcept", True)


def test_neurons_are_found_and_a_guard_is_made_that_a_person_can_load(
    engine: Engine, offered: dict[str, Any], tmp_path: Path
):
    few = {"n_contrast": 3, "n_evaluate": 2, "n_random": 2, "n_windows": 0, "counts": [20], "max_new_tokens": 12}
    few |= {"n_bootstrap": 20}
    found = done(engine, offered, tmp_path, "find-safety-neurons", {"settings": few})
    with reading(engine) as session:
        search = store.load_neuron_search(session, "organism-base.organism-aligned").record
    assert (found["search"], found["neurons"], found["tax"]) == (search.slug, len(search.neurons), None)
    few = {"n_train": 16, "n_validation": 12, "n_test": 12, "n_neurons": [20], "n_random": 1, "max_new_tokens": 8}
    few |= {"n_bootstrap": 20}
    made = done(engine, offered, tmp_path, "guard", {"name": "my-guard", "settings": few})
    assert made["guard"] == "made/my-guard/guard"
    sae = None
    if made["kept"] == "SAE features":
        sae = load_sae(organism_sae_paths()["organism.resid_post.3.topk8-1024"])
    assert load_guard(tmp_path / "made" / "my-guard" / "guard", sae=sae).model_id == "organism-base"


def test_features_are_linked_and_changed_by_jobs(engine: Engine, offered: dict[str, Any], tmp_path: Path):
    few = {"n_choose": 4, "n_judge": 4, "n_features": 1, "n_heads": 1, "n_neurons": 1, "n_control_units": 2}
    few |= {"n_random": 2}
    linked = done(engine, offered, tmp_path, "link-features", {"only": ["abuse"], "settings": few})
    assert linked["studies"] == [f"organism-aligned.{ORGANISM_SAE}"]
    with reading(engine) as session:
        study = store.load_link_study(session, linked["studies"][0]).record
    assert (linked["tested"], linked["linked"]) == (study.n_tested, study.n_linked)
    seen = replace(a.top_contexts(284), feature=a.FeatureId(sae=ORGANISM_SAE, index=284))
    with writing(engine) as session:
        store.save_top_contexts(session, [seen], run_id=linked["run"])
    settings = {"limit": 2, "settings": {"n_prompts": 4, "n_controls": 2}}
    changed = done(engine, offered, tmp_path, "intervene-features", settings)
    assert (changed["sae"], changed["changed"], changed["there_before"]) == (ORGANISM_SAE, 1, 0)
    job_id = ask(engine, offered, "intervene-features", settings)
    worker(engine, offered, tmp_path).run(until_empty=True)
    assert job(engine, job_id).result == {"run": None, "sae": ORGANISM_SAE, "changed": 0, "there_before": 1}


TINY_SAES = {
    "name": "sweep", "sites": ["resid_post.0"], "model": "tiny", "corpus": "corpus.jsonl", "widths": [16, 32], "k": [2],
    "steps": 3, "batch_rows": 16, "at_once": 1,
    "settings": {"window": 16, "batch_size": 4, "buffer_rows": 64, "n_held_out": 4},
}  # fmt: skip


def test_saes_are_trained_by_a_job_and_named_by_the_next(engine: Engine, offered: dict[str, Any], tmp_path: Path):
    made = done(engine, offered, tmp_path, "train-saes", TINY_SAES)
    assert made["saes"] == [f"made/sweep/tiny.resid_post.0.topk2-{width}" for width in (16, 32)]
    assert made["trained"] == 2
    more = {"model": "tiny", "saes": made["saes"], "corpus": "corpus.jsonl", "settings": {"window": 32}}
    collected = done(engine, offered, tmp_path, "collect-contexts", more)
    assert collected["features"] == 48
    other = ask(engine, offered, "train-saes", TINY_SAES)
    worker(engine, offered, tmp_path).run(until_empty=True)
    error = job(engine, other).error
    assert error is not None
    assert error.type == "BadInput"
    assert "`sweep` was made by job" in error.message


def test_pairs_are_written_by_a_job_and_named_by_the_next(engine: Engine, offered: dict[str, Any], tmp_path: Path):
    with LlmServer(honest) as endpoint:
        told = offered | {"llm_base_url": endpoint.url, "llms": ("m",), "llm_in_flight": 2}
        made = done(
            engine, told, tmp_path, "write-pairs", {"name": "insults", "texts": ["texts.jsonl"], "llm": "m"}
        )  # fmt: skip
    assert (made["pairs"], made["rejected"], made["file"]) == (len(TEXTS), {}, "made/insults/pairs.jsonl")
    (whole,) = read_concepts(tmp_path / "made" / "insults" / "pairs.jsonl")
    assert sorted(whole.is_positive) == [False] * len(TEXTS) + [True] * len(TEXTS)


REFUSED: list[tuple[str, dict[str, Any] | None, str]] = [
    ("find-circuit", {"model": "nowhere"}, "offered are: tiny"),
    ("find-circuit", {"saes": ["/etc"]}, "offered are: none"),
    ("find-safety-neurons", {"second": "/etc/passwd"}, "offered are: tiny"),
    ("guard", {"name": "../elsewhere"}, "cannot name a new folder"),
    ("tune-circuit", {"rows": "rows.jsonl"}, "or none of them"),
    ("link-features", {"concepts": ["../jobs.db"]}, "not in the server's folder"),
    ("intervene-features", {"sae": "made/nothing"}, "nothing that a job has made"),
    ("intervene-features", {"sae": "made/../jobs.db"}, "nothing that a job has made"),
    ("train-saes", {"sites": ["resid_post.0"]}, "name"),
    ("train-saes", {"name": "x", "sites": []}, "at least one site"),
    ("train-saes", None, "settings"),
    ("write-pairs", {"name": "x", "texts": ["texts.jsonl"], "llm": "m"}, "no endpoint"),
]


def test_what_the_server_does_not_offer_is_refused_and_every_kind_is_described(engine: Engine, offered: dict[str, Any]):
    told = ServiceSettings(database_url=str(engine.url), **offered)
    with TestClient(create_app(told), base_url="http://127.0.0.1:8420") as client:
        for kind, settings, said in REFUSED:
            answer = client.post("/v1/jobs", json={"kind": kind} | ({} if settings is None else {"settings": settings}))
            assert answer.status_code == 422, (kind, settings, answer.text)
            assert said in answer.text
        assert client.get("/v1/jobs").json()["items"] == []
        documented = client.get("/openapi.json").json()["components"]["schemas"]
    assert {f"{of.__name__}Request" for of in JOB_KINDS.values()} <= set(documented)


def test_a_search_is_cancelled_at_its_next_step_and_keeps_nothing(
    engine: Engine, offered: dict[str, Any], tmp_path: Path
):
    job_id = ask(engine, offered, "find-circuit", TINY_CIRCUIT | {"settings": {"steps": 20_000, "budget_neurons": 2}})
    thread = threading.Thread(target=worker(engine, offered, tmp_path).run, kwargs={"until_empty": True})
    thread.start()
    while job(engine, job_id).progress is None:
        assert thread.is_alive()
        time.sleep(0.05)
    with writing(engine) as session:
        jobs.request_cancel(session, job_id)
    thread.join()
    assert job(engine, job_id).state is JobState.CANCELLED
    with reading(engine) as session:
        assert store.list_circuits(session) == []


def test_saes_of_a_killed_worker_are_not_trained_again(
    engine: Engine, offered: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The worker dies while it stores the second SAE: what is below the worker's own catch, as a kill is."""
    job_id = ask(engine, offered, "train-saes", TINY_SAES)
    first = worker(engine, offered, tmp_path, "first")
    held = leases.claim(engine, "first", lease_s=0.3)
    assert held is not None
    stopped = RuntimeError("killed")
    real, seen = train_saes.store_trained, []

    def store_once(training: Any, folder: Path, record: Any) -> Path:
        seen.append(training.recipe.slug)
        if len(seen) > 1:
            raise stopped
        return real(training, folder, record)

    monkeypatch.setattr(train_saes, "store_trained", store_once)
    with pytest.raises(RuntimeError, match="killed"):
        first._run(held)
    monkeypatch.undo()
    time.sleep(0.4)
    (slug,) = [path.name for path in (tmp_path / "made" / "sweep").glob("tiny.*")]
    at = (tmp_path / "made" / "sweep" / slug / "sae_weights.safetensors").stat().st_mtime_ns
    worker(engine, offered, tmp_path, "second").run(until_empty=True)
    found = job(engine, job_id)
    assert (found.state, found.attempts) == (JobState.DONE, 2)
    assert found.result is not None
    assert found.result["trained"] == 1
    assert (tmp_path / "made" / "sweep" / slug / "sae_weights.safetensors").stat().st_mtime_ns == at
    assert not list((tmp_path / "made" / "sweep").glob(".new-*"))


def test_a_worker_that_lost_its_job_writes_no_file(engine: Engine, offered: dict[str, Any], tmp_path: Path):
    ask(engine, offered, "guard", {})
    held = leases.claim(engine, "slow", lease_s=0.001)
    assert held is not None
    time.sleep(0.01)
    context = JobContext(
        engine=fenced(engine, leases.fence(held)), offers=ServiceSettings(**offered).offers(), work=tmp_path,
        job_id=held.job.job_id,
    )  # fmt: skip
    with context.holding():
        (tmp_path / "mine").write_text("x")
    assert leases.claim(engine, "taker") is not None
    with pytest.raises(LeaseLost), context.holding():
        raise AssertionError("the block must not run")


def test_a_folder_is_one_jobs_in_every_attempt(engine: Engine, offered: dict[str, Any], tmp_path: Path):
    offers = ServiceSettings(**offered).offers()
    mine = [JobContext(engine=engine, offers=offers, work=tmp_path, job_id="one") for _ in range(2)]
    assert mine[0].made("x") == mine[1].made("x") == tmp_path / "made" / "x"
    with pytest.raises(BadInput, match="made by job one"):
        JobContext(engine=engine, offers=offers, work=tmp_path, job_id="two").made("x")
