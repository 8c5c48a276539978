"""A demo that dies goes on where it was, and ends in the same tables as one that nothing disturbed."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from db import store
from db.engine import make_engine, reading, writing
from safe_sail import provenance
from safe_sail.organism.concept_data import organism_concepts
from safe_sail.organism.load import organism_sae_paths
from safe_sail.records import RunInfo
from safe_sail.settings import ContextSettings, DemoSettings, ScoreSettings
from scripts import demo, demo_results
from scripts.demo_report import print_report

SETTINGS = DemoSettings(
    score=ScoreSettings(n_choose=8, n_judge=8, n_bootstrap=20, n_shuffles=2),
    contexts=ContextSettings(n_documents=96, n_contexts=3, n_random=8, n_spread=3, n_near=2),
    n_features=4,
)
SLUGS = ("organism.resid_post.3.topk4-1024", "organism.resid_post.3.topk8-256")
CONCEPTS = organism_concepts()[:3]
RESULTS = (
    "model", "sae", "sae_facts", "concept", "sae_score", "sae_specificity", "concept_score", "feature", "contexts",
    "context_sample", "explanation", "explanation_score",
)  # fmt: skip
"""Tables that a demo fills, beside that of its run."""


class Killed(BaseException):
    """Stands for a kill: nothing of ours catches it."""


class DiesAt:
    """A function that is called some times, and then, once, never returns."""

    def __init__(self, function: Any, n_calls: int) -> None:
        self.function, self.n_left = function, n_calls
        self.n_calls = 0

    def __call__(self, *words: Any, **named: Any) -> Any:
        self.n_left -= 1
        if self.n_left == -1:
            raise Killed
        self.n_calls += 1
        return self.function(*words, **named)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {slug: organism_sae_paths()[slug] for slug in SLUGS}
    for module in (demo, demo_results):
        monkeypatch.setattr(module, "organism_sae_paths", lambda: paths)
        monkeypatch.setattr(module, "organism_concepts", lambda: CONCEPTS)
    load = demo.load_saes
    monkeypatch.setattr(
        demo, "load_saes", lambda _, model, *, device: load(list(map(str, paths.values())), model, device=device)
    )
    monkeypatch.setattr(demo, "N_FACT_DOCUMENTS", 32)
    # a file that is changed while the tests run makes it another program, whose runs are not continued
    monkeypatch.setattr(provenance, "_git_commit", lambda: "one")


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[list[Engine]]:
    made = [make_engine(f"sqlite:///{tmp_path}/{name}.db") for name in ("whole", "killed")]
    yield made
    for one in made:
        one.dispose()


def tables(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Every column of every row that does not say which run it is of."""
    found = {}
    with reading(engine) as session:
        for name in RESULTS:
            columns = [row[1] for row in session.execute(text(f"PRAGMA table_info({name})"))]
            kept = [column for column in columns if column != "run_id" and not column.endswith("_key")]
            rows = session.execute(text(f"SELECT {', '.join(kept)} FROM {name}"))
            found[name] = sorted((tuple(row) for row in rows), key=repr)
    return found


def run(engine: Engine) -> RunInfo:
    return demo._run(engine, SETTINGS, seed=0, device="cpu")


def test_a_demo_that_dies_in_every_step_goes_on_and_ends_in_the_same_tables(
    small: None, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
):
    whole, killed = engines
    run(whole)
    scored: list[list[str]] = []
    score_saes = demo.score_saes

    def watched_score(model: Any, saes: Any, *words: Any, **named: Any) -> Any:
        scored.append([sae.ref.slug for sae in saes])
        return score_saes(model, saes, *words, **named)

    monkeypatch.setattr(demo, "score_saes", watched_score)
    for name, n_calls in (
        ("save_sae_facts", 1),  # inside a transaction: one of two SAEs
        ("save_sae_scores", 0),  # between two steps
        ("save_sae_scores", 4),  # inside the second of two SAEs with three concepts each
        ("save_top_contexts", 1),  # the contexts of one SAE are kept
        ("save_explanation_scores", 0),  # between an explanation and its score
        ("save_explanation_scores", 5),  # inside the second SAE's four features
    ):
        dies = DiesAt(getattr(store, name), n_calls)
        with monkeypatch.context() as patched:
            patched.setattr(store, name, dies)
            with pytest.raises(Killed):
                run(killed)
    last = run(killed)
    assert scored == [list(SLUGS), list(SLUGS), [SLUGS[1]]], "an SAE with all its scores is not scored again"
    assert tables(killed) == tables(whole)
    with reading(killed) as session:
        assert [one.run_id for one in store.list_runs(session)] == [last.run_id]
    assert all(len(rows) > 0 for rows in tables(whole).values())
    assert demo_results.left_of(killed, last) == ([], [], [])


def test_what_another_run_wrote_over_is_done_again_and_nothing_else(
    small: None, engines: list[Engine], monkeypatch: pytest.MonkeyPatch
):
    _, engine = engines
    first = run(engine)
    before = tables(engine)
    with writing(engine) as session:
        session.execute(
            text(
                "INSERT INTO run SELECT 'another', command, 1, settings, git_commit, versions, device, started, "
                "finished FROM run"
            )
        )
        session.execute(text("UPDATE sae_facts SET run_id = 'another', l0 = 0 WHERE sae_key = 1"))
    measured: list[list[str]] = []
    measure_facts = demo.measure_facts

    def watched(model: Any, saes: Any, batches: Any) -> Any:
        measured.append([sae.ref.slug for sae in saes])
        return measure_facts(model, saes, batches)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing of this is missing")

    monkeypatch.setattr(demo, "measure_facts", watched)
    monkeypatch.setattr(demo, "score_saes", never)
    monkeypatch.setattr(demo, "collect_contexts", never)
    assert demo_results.left_of(engine, first).facts == [SLUGS[0]]
    assert run(engine).run_id == first.run_id
    assert measured == [[SLUGS[0]]]
    assert tables(engine) == before


def test_a_demo_of_one_feature_shows_that_one(small: None, engines: list[Engine], capsys: pytest.CaptureFixture[str]):
    engine, _ = engines
    done = demo._run(engine, replace(SETTINGS, n_features=1), seed=0, device="cpu")
    found = demo_results.load_results(engine, done)
    print_report(found, database="sqlite:///whole.db", as_json=False)
    shown = capsys.readouterr().out.partition("What the best features of")[2]
    assert [f"#{one.index}" for one in found.features if one.sae in shown] == re.findall(r"#\d+", shown)


@pytest.mark.slow
def test_a_demo_killed_from_outside_goes_on_and_prints_the_same(tmp_path: Path):
    printed = {}
    for name in ("killed", "whole"):
        words = [sys.executable, "-m", "scripts.main", "demo", "--n-features", "3", "--json"]
        words += ["--database", f"sqlite:///{tmp_path}/{name}.db"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if name == "killed":
            process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            _wait_for_scores(tmp_path / "killed.db", process)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert ("it goes on" in done.stderr) == (name == "killed")
        printed[name] = done.stdout
    assert printed["killed"] == printed["whole"]


def _wait_for_scores(path: Path, process: "subprocess.Popen[bytes]") -> None:
    """Waits until some scores are kept, and not all."""
    engine = make_engine(f"sqlite:///{path}")
    for _ in range(6000):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.1)
        if path.exists():
            with engine.connect() as connection:
                names = set(connection.scalars(text("SELECT name FROM sqlite_master")))
                if "sae_score" in names and connection.scalar(text("SELECT count(*) FROM sae_score")) >= 14:  # type: ignore[operator]
                    break
    engine.dispose()
