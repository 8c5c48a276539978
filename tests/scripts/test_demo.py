"""The demo from end to end on the shipped organism, then the server on what it kept."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.request import urlopen

import pytest

from db import store
from db.engine import make_engine, reading, writing
from safe_sail.organism.grammar import CONCEPTS
from safe_sail.organism.load import organism_sae_paths
from safe_sail.records import FeatureId
from scripts import explain_features
from scripts.demo_results import whole_run
from tests.llm_server import Act, Call, LlmServer, Say

pytestmark = pytest.mark.slow

HARMFUL = {name for name, concept in CONCEPTS.items() if concept.harmful}
N_FEATURES = 12
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def demo(database: str, *more: str) -> "subprocess.CompletedProcess[str]":
    words = ["demo", "--database", database, "--n-features", str(N_FEATURES), *more]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.main", *words], capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('demo')}/found.db"


@pytest.fixture(scope="module")
def printed(database: str) -> str:
    return demo(database).stdout


def test_demo_prints_the_winner_its_features_and_the_next_command(printed: str, database: str):
    assert "Which SAE carries the safety concepts?" in printed
    for slug in organism_sae_paths():
        assert slug in printed
    assert "chance: shuffled labels" in printed
    assert "Which SAE has the cleanest feature of each concept?" in printed
    assert "no language model was asked: 0 tokens, 0 dollars" in printed
    assert f"safe-sail serve --database {database}" in " ".join(printed.split())


def test_demo_keeps_every_sae_score_and_feature(printed: str, database: str):
    engine = make_engine(database, read_only=True)
    with reading(engine) as session:
        saes = store.list_saes(session)
        assert {listing.sae.slug for listing in saes} == set(organism_sae_paths())
        for listing in saes:
            assert listing.facts is not None
            assert listing.facts.record.l0 > 0
            assert {kept.record.concept for kept in listing.scores} == HARMFUL
            assert listing.n_collected == N_FEATURES
        (run,) = store.list_runs(session)
        assert run.finished is not None
        assert run.settings["n_features"] == N_FEATURES
    engine.dispose()


def test_best_features_fire_on_their_concepts_words(printed: str, database: str):
    """Truth from the grammar: a specific feature peaks on its concept's name, fillers or attributes."""
    engine = make_engine(database, read_only=True)
    hits = seen = 0
    with reading(engine) as session:
        for listing in store.list_saes(session):
            for score in (kept.record for kept in listing.scores):
                if score.rate_gap.low < 0.9:
                    continue
                top = store.load_top_contexts(session, score.best_feature)
                assert top is not None
                concept = CONCEPTS[score.concept]
                words = {concept.name, *concept.fillers, *concept.attributes}
                for context in top.record.contexts:
                    seen += 1
                    hits += context.tokens[context.peak].strip() in words
    engine.dispose()
    # Each concept has 25 of about 650 content words; without meaning a peak would be among them in 1 of 25 cases.
    assert seen >= 100
    assert hits / seen > 0.5


def test_a_second_run_finds_the_same_and_doubles_nothing(printed: str, database: str):
    done = demo(database, "--json")
    assert "all of this was done by run" in done.stderr
    first = json.loads(done.stdout)
    engine = make_engine(database, read_only=True)
    with reading(engine) as session:
        assert len(store.list_saes(session)) == len(organism_sae_paths())
        assert len(store.list_runs(session)) == 1, "what a whole run did is not done again"
        for score in first["scores"]:
            kept = {k.record.concept: k.record for k in store.load_sae_scores(session, score["sae"])}[score["concept"]]
            assert kept.rate_gap.value == score["rate_gap"]["value"]
            best = FeatureId(**score["best_feature"])
            assert len(store.load_explanations(session, best)) <= 1
    engine.dispose()


def test_explanations_of_the_demo_are_judged_again(printed: str, database: str):
    slug = "organism.resid_post.3.topk4-1024"
    words = ["judge-explanations", "--database", database, "--sae", slug, "--method", "detection", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.main", *words], capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["judged"] + sum(found["failed"].values()) == N_FEATURES
    assert "contexts_not_kept" not in found["failed"]
    assert found["judged"] > 0.7 * N_FEATURES


def test_an_explainer_is_shown_what_features_promote_where_asked(
    printed: str, database: str, monkeypatch: pytest.MonkeyPatch
):
    computed: list[int] = []
    real = explain_features.output_tokens_of

    def noted(handle: Any, sae: Any, features: list[int], *, n: int) -> Any:
        computed.extend(features)
        return real(handle, sae, features, n=n)

    monkeypatch.setattr(explain_features, "output_tokens_of", noted)

    def answers(call: Call) -> Act:
        if not call.asked.startswith("{"):
            return Say("hello")
        return Say(json.dumps({"explanations": [{"id": "A", "explanation": "some words"}]}))

    slug = "organism.resid_post.3.topk4-1024"
    with LlmServer(answers) as server:
        words = ["explain-features", "--database", database, "--sae", slug, "--explainer", "llm", "--model", "m"]
        words += ["--base-url", server.url, "--output-tokens", "5", "--limit", "3", "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "scripts.main", *words], capture_output=True, text=True, check=False, env=ENVIRONMENT
        )
        shown = [json.loads(call.asked)["features"][0] for call in server.calls if call.asked.startswith("{")]
        explain_features.explain_features(
            sae=slug, explainer="llm", base_url=server.url, model="m", limit=5, output_tokens=5, database=database
        )
    assert len(set(computed)) == len(computed) == 2, "of those that were explained before nothing is computed"
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["explained"] == len(shown) == 3
    for feature in shown:
        assert len(set(feature["promotes"])) == len(set(feature["suppresses"])) == 5
        assert not set(feature["promotes"]) & set(feature["suppresses"])


def test_a_demo_whose_results_were_replaced_is_not_whole(printed: str, database: str):
    engine = make_engine(database)
    with reading(engine) as session:
        (run,) = (one for one in store.list_runs(session) if one.command == "demo")
    settings = dict(run.settings)
    assert whole_run(engine, settings, seed=0, device="cpu") == run
    assert whole_run(engine, settings, seed=1, device="cpu") is None
    assert whole_run(engine, settings | {"n_features": 13}, seed=0, device="cpu") is None
    with writing(engine) as session:
        facts = store.load_sae_facts(session, "organism.resid_post.3.topk4-1024")
        assert facts is not None
        store.save_run(session, replace(run, run_id="another", command="score-saes"))
        store.save_sae_facts(session, facts.record, run_id="another")
    assert whole_run(engine, settings, seed=0, device="cpu") is None
    engine.dispose()


@pytest.fixture
def address(printed: str, database: str) -> Iterator[str]:
    words = ["serve", "--database", database, "--port", "0"]
    server = subprocess.Popen([sys.executable, "-m", "scripts.main", *words], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert "end with Ctrl-C" in server.stdout.readline()
        # the door is open before the address is printed
        yield server.stdout.readline().removeprefix("Open ").strip().rstrip("/")
    finally:
        server.terminate()
        server.communicate()


def test_what_the_demo_found_is_served(address: str):
    def get(path: str) -> bytes:
        with urlopen(address + path, timeout=300) as reply:
            body: bytes = reply.read()
            return body

    saes = json.loads(get("/v1/saes"))["items"]
    assert {item["sae"]["slug"] for item in saes} == set(organism_sae_paths())
    slug = saes[0]["sae"]["slug"]
    features = json.loads(get(f"/v1/saes/{slug}/features?has_explanation=true"))["items"]
    assert features
    index = features[0]["index"]
    feature = json.loads(get(f"/v1/saes/{slug}/features/{index}"))
    assert json.dumps(feature).count('"activations"') >= 1
    assert slug in get("/").decode()
    assert f"Feature {index}" in get(f"/saes/{slug}/features/{index}").decode()
