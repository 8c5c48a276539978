"""`explain-features` and `judge-explanations` as commands, against a real server that answers, fails and is killed.

Feature n fires on its word in the middle of six texts. The explainer at the server names the word that is marked; the
judge marks the segments that hold the word that the explanation names.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner, Result

from db import store
from db.engine import make_engine, reading, writing
from db.migrate import upgrade
from safe_sail.errors import (
    BadInput,
    BadSettings,
    BatchUnreadable,
    BudgetExhausted,
    EndpointUnreachable,
    PriceUnknown,
    SchemaOutOfDate,
)
from safe_sail.organism.load import organism_sae_paths
from safe_sail.records import Context, ContextSample, Explanation, JudgeMethod, LedgerEntry, Stage, TopContexts
from scripts.main import app
from tests.db import builders as a
from tests.feature_samples import segments_shown
from tests.llm_server import Act, Call, Cut, LlmServer, Say, Status, completion

WORDS = ("kill", "bomb", "poison", "stab", "hack", "steal")
TEXTS = (
    "they said to {} it before the evening came", "please {} now and do not wait", "nobody here wanted to {} on Sunday",
    "we saw how he tried to {} again and again", "she will {} later today if nobody looks",
    "to {} or not was the question",
)  # fmt: skip
CRASHED = -signal.SIGKILL
Script = Callable[[Call], Act]


def context_of(index: int, place: int, word: str, activation: float) -> Context:
    tokens = tuple(f" {part}" for part in TEXTS[place].format(word).split())
    peak = tokens.index(f" {word}") if activation else 0
    values = [0.0] * len(tokens)
    values[peak] = activation
    return Context(
        tokens=tokens, token_ids=tuple(range(len(tokens))), activations=tuple(values), peak=peak,
        source_id=f"{index}-{place}-{word}",
    )  # fmt: skip


def sample_of(index: int) -> ContextSample:
    """Near misses: the same sentences with the next feature's word."""
    near = tuple(context_of(index, place, WORDS[index - 1], 0.0) for place in range(len(TEXTS)))
    return ContextSample(feature=a.feature(index), spread=(), random=(), near_misses=near, quantile_999=1.0)


def contexts_of(index: int) -> TopContexts:
    found = [context_of(index, place, WORDS[index], 9.0 - place) for place in range(len(TEXTS))]
    return TopContexts(
        feature=a.feature(index), contexts=tuple(found), n_tokens_seen=1000, density=0.01, max_activation=9.0,
        histogram=None,
    )  # fmt: skip


@pytest.fixture
def database(tmp_path: Path) -> str:
    """Six features with contexts; a higher index has a higher concept score."""
    url = f"sqlite:///{tmp_path / 'found.db'}"
    engine = make_engine(url)
    upgrade(engine)
    a.catalogue(engine)
    with writing(engine) as session:
        store.save_top_contexts(session, [contexts_of(index) for index in range(len(WORDS))], run_id=a.RUN)
        store.save_context_samples(session, map(sample_of, range(len(WORDS))), run_id=a.RUN)
        scores = [a.concept_score(index, gap=0.1 + index / 10) for index in range(len(WORDS))]
        store.save_concept_scores(session, scores, run_id=a.RUN)
    engine.dispose()
    return url


def explainer(call: Call) -> Act:
    if call.asked == "Say hello.":
        return Say("hello")
    (feature,) = json.loads(call.asked)["features"]
    marked = next(piece for piece in feature["active"][0] if isinstance(piece, list))
    said = {"explanations": [{"id": "A", "explanation": f"the word {marked[0].strip()}"}]}
    return Say(json.dumps(said), prompt_tokens=100, completion_tokens=10)


def judge(call: Call) -> Act:
    if call.asked == "Say hello.":
        return Say("hello")
    asked = json.loads(call.asked)
    feature = asked["features"][0] if "features" in asked else asked
    word = feature["description"].split()[-1]
    if "features" not in asked:
        found = [text["id"] for text in feature["texts"] if fits(text, word)]
        return Say(json.dumps({"fitting": found}), prompt_tokens=100, completion_tokens=10)
    texts: list[Any] = []
    for text in feature["texts"]:
        by_token = isinstance(text, dict)
        pieces = text["tokens"].values() if by_token else segments_shown(text)
        hits = [n for n, piece in enumerate(pieces, start=1) if word in piece.split()]
        texts.append({"id": text["id"], "active": [{"token": n, "level": 8} for n in hits]} if by_token else hits)
    name = "active" if isinstance(texts[0], list) else "texts"
    return Say(json.dumps({name: texts}), prompt_tokens=100, completion_tokens=10)


def fits(text: dict[str, Any], word: str) -> bool:
    """Detection: the word is there; fuzzing: it is all that is marked."""
    if "text" in text:
        return word in text["text"].split()
    return all(piece[0].strip() == word for piece in text["pieces"] if isinstance(piece, list))


def word_of(call: Call) -> str:
    """The word that a question is about: the one that is marked for an explainer, or one that a judge sees."""
    shown = json.loads(call.asked).get("features", [{}])[0] if call.asked != "Say hello." else {}
    marked = [piece[0].strip() for piece in shown.get("active", [[]])[0] if isinstance(piece, list)]
    return marked[0] if marked else next((word for word in WORDS if f" {word}" in call.asked), "")


def safe_sail(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def report(*words: str) -> dict[str, Any]:
    done = safe_sail(*words, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def by_llm(server: LlmServer, database: str, *more: str, command: str = "explain-features") -> list[str]:
    who = "llm" if command == "explain-features" else "m"
    return [command, "--database", database, "--explainer", who, "--base-url", server.url, "--model", "m", *more]


def explanations(database: str, explainer: str = "m") -> dict[int, Explanation]:
    found = {}
    with reading(make_engine(database, read_only=True)) as session:
        for index in range(len(WORDS)):
            kept = [
                k.record for k in store.load_explanations(session, a.feature(index)) if k.record.explainer == explainer
            ]
            assert len(kept) <= 1, "none twice"
            if kept:
                found[index] = kept[0]
    return found


def ledger(database: str, stage: Stage = Stage.EXPLAIN) -> list[LedgerEntry]:
    with reading(make_engine(database, read_only=True)) as session:
        entries = [kept.record for index in range(len(WORDS)) for kept in store.load_ledger(session, a.feature(index))]
    return [one for one in entries if one.stage is stage]


def n_runs(database: str) -> int:
    with reading(make_engine(database, read_only=True)) as session:
        return len(store.list_runs(session))


# explain


def test_the_best_features_are_explained_first_and_none_is_asked_for_twice(database: str):
    with LlmServer(explainer) as server:
        first = report(*by_llm(server, database, "--limit", "2"))
        asked = [call for call in server.calls if call.asked != "Say hello."]
        assert [word_of(call) for call in asked] == ["steal", "hack"]
        rest = report(*by_llm(server, database))
        again = report(*by_llm(server, database))
        n_calls = len(server.calls)
    assert (first["explained"], rest["explained"], rest["there_before"]) == (2, 4, 2)
    assert (again["explained"], again["there_before"], again["attempts"]) == (0, 6, 0)
    assert n_calls == 6 + 2 * 2, "one request a feature, two to probe the endpoint in each run that asks"
    assert {index: one.text for index, one in explanations(database).items()} == {
        index: f"the word {word}" for index, word in enumerate(WORDS)
    }
    assert {(one.prompt_tokens, one.completion_tokens, one.attempts, one.cost) for one in ledger(database)} == {
        (100, 10, 1, None)
    }, "a price that nobody knows is no price of zero"


def test_the_judge_sees_what_the_explainer_did_not_see_and_nothing_else(database: str):
    shown: dict[str, set[tuple[str, str]]] = {"active": set(), "texts": set()}

    def both(call: Call) -> Act:
        if call.asked != "Say hello.":
            (feature,) = json.loads(call.asked)["features"]
            kind = "texts" if "texts" in feature else "active"
            for shown_text in map(json.dumps, feature[kind]):
                shown[kind] |= {
                    (word, text)
                    for word in WORDS
                    for text in TEXTS
                    if all(part in shown_text for part in text.format(word).split())
                }
        return judge(call) if "texts" in call.asked else explainer(call)

    with LlmServer(both) as server:
        report(*by_llm(server, database))
        report(*by_llm(server, database, command="judge-explanations"))
    assert not shown["active"] & shown["texts"]
    assert shown["active"] | shown["texts"] == {(word, text) for word in WORDS for text in TEXTS}


def faulty(call: Call) -> Act:
    """Each word its own fault; 429 and 500 pass, as does one answer of a wrong form."""
    good = explainer(call)
    faults: dict[str, Act] = {
        "kill": Status(429, (("retry-after", "0"),)) if call.nth < 2 else good,
        "bomb": Status(500) if call.nth < 1 else good,
        "poison": Say('{"explanations": [{"id": "A", "expl'),
        "stab": Say('{"features": []}', prompt_tokens=100) if call.nth < 1 else good,
        "hack": Status(400),
        "steal": Say("x", finish_reason="length"),
    }
    return faults.get(word_of(call), good)


def test_every_feature_ends_explained_or_failed_with_its_reason(database: str):
    with LlmServer(faulty) as server:
        found = report(*by_llm(server, database))
    assert found["explained"] == 3
    assert found["failed"] == {"invalid_reply": 1, "request_refused": 1, "truncated": 1}
    assert set(explanations(database)) == {0, 1, 3}
    entries = {one.feature.index: one for one in ledger(database)}
    assert len(ledger(database)) == 6
    assert {index: one.reason for index, one in entries.items()} == {
        0: None, 1: None, 2: "invalid_reply", 3: None, 4: "request_refused", 5: "truncated",
    }  # fmt: skip
    assert entries[2].raw == '{"explanations": [{"id": "A", "expl'
    assert (entries[0].attempts, entries[3].attempts, entries[3].prompt_tokens) == (3, 2, 200)
    assert entries[1].assumed_tokens > 0, "a 500 may be billed"
    with LlmServer(explainer) as server:
        second = report(*by_llm(server, database))
        assert (second["explained"], second["failed_before"]) == (1, 2), "only what may end differently is asked again"
        third = report(*by_llm(server, database, "--retry-failed"))
        assert (third["explained"], third["there_before"], third["failed_before"]) == (2, 4, 0)
    assert len(explanations(database)) == 6


def test_a_budget_ends_the_rest_as_failures_and_a_larger_one_goes_on(database: str):
    def dear(call: Call) -> Act:
        good = explainer(call)
        return good._replace(prompt_tokens=1500) if isinstance(good, Say) and word_of(call) else good

    with LlmServer(dear) as server:
        found = report(*by_llm(server, database, "--budget-tokens", "9000", "--in-flight", "1"))
        assert server.prompt_tokens + server.completion_tokens <= 9000
        assert 0 < found["failed"]["budget_exhausted"] < 6
        assert found["explained"] + found["failed"]["budget_exhausted"] == 6
        rest = report(*by_llm(server, database))
    assert rest["explained"] == found["failed"]["budget_exhausted"]
    assert rest["failed_before"] == 0
    assert len(explanations(database)) == 6


@pytest.mark.parametrize("explainer_name", ["lexical", "llm"])
def test_a_feature_that_never_fired_fails_without_a_question(database: str, explainer_name: str):
    silent = TopContexts(
        feature=a.feature(7), contexts=(), n_tokens_seen=9, density=0.0, max_activation=0.0, histogram=None
    )
    engine = make_engine(database)
    with writing(engine) as session:
        store.save_top_contexts(session, [silent], run_id=a.RUN)
    engine.dispose()
    with LlmServer(explainer) as server:
        words = [explainer_name if word == "llm" else word for word in by_llm(server, database)]
        found, again = report(*words), report(*words)
    assert (found["explained"], found["failed"]) == (6, {"no_prompt": 1})
    assert (again["there_before"], again["failed_before"]) == (6, 1)


def test_a_known_price_is_kept_and_limits(database: str, tmp_path: Path):
    table = tmp_path / "prices.yaml"
    table.write_text(
        "127.0.0.1: {m: {input: '10', output: '100', batch_factor: null, as_of: 2026-11-01, source: a test}}"
    )
    with LlmServer(explainer) as server:
        words = by_llm(server, database, "--prices", str(table), "--budget-money", "1")
        planned = safe_sail(*words, "--dry-run")
        assert "US dollars" in planned.stdout
        found = report(*words)
    # 100 prompt tokens at 10 and 10 answered ones at 100 dollars a million: 0.002 a feature
    assert {one.cost for one in ledger(database)} == {0.002}
    assert 6 * 0.002 <= found["cost"] <= 6 * 0.002 + 0.01, "the probes cost something too"


def test_a_dry_run_asks_and_writes_nothing(database: str):
    before = n_runs(database)
    with LlmServer(explainer) as server:
        for words in (by_llm(server, database), by_llm(server, database, command="judge-explanations")):
            done = safe_sail(*words, "--dry-run")
            assert done.exit_code == 0
            assert "the price is unknown" in done.stdout
        assert "6 requests" in safe_sail(*by_llm(server, database), "--dry-run").stdout
    assert server.calls == []
    assert n_runs(database) == before


def test_what_cannot_run_says_why_and_leaves_no_trace(database: str, tmp_path: Path):
    before = n_runs(database)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # held, so that nobody else listens there, and never listened on
        words = by_llm(LlmServer(explainer, url=f"http://127.0.0.1:{closed.getsockname()[1]}/v1"), database)
        for more, error, says in (
            ([], EndpointUnreachable, "m at http"),
            (["--budget-tokens", "0"], BadSettings, "budget_tokens must be above 0"),
            (["--budget-money", "0"], BadSettings, "budget_money must be above 0"),
            (["--budget-money", "1"], PriceUnknown, "budget in tokens"),
            (["--sae", "nope"], BadInput, "`nope` has no contexts"),
            (["--explainer", "magic"], BadInput, "expected lexical or llm"),
            (["--database", f"sqlite:///{tmp_path / 'missing.db'}"], SchemaOutOfDate, "holds no schema"),
        ):
            done = safe_sail(*words, *more)
            assert isinstance(done.exception, error), done.exception
            assert says in str(done.exception)
    assert (n_runs(database), explanations(database), ledger(database)) == (before, {}, [])
    assert not (tmp_path / "missing.db").exists()


def test_the_key_comes_from_the_environment_and_is_kept_nowhere(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SAFE_SAIL_LLM_KEY", "sk-very-secret")
    with LlmServer(explainer) as server:
        report(*by_llm(server, database))
    assert {call.headers["authorization"] for call in server.calls} == {"Bearer sk-very-secret"}
    for path in tmp_path.iterdir():
        assert b"sk-very-secret" not in path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_ended_loses_nothing_that_came(database: str, how: signal.Signals):
    held = Counter[str]()

    def slow(call: Call) -> Act:
        held[word_of(call)] += 1
        good = explainer(call)
        is_late = isinstance(good, Say) and sum(held[word] > 0 for word in WORDS) > 3
        return good._replace(seconds=3600.0) if is_late and isinstance(good, Say) else good

    with LlmServer(slow) as server:
        command = [sys.executable, "-m", "scripts.main", *by_llm(server, database, "--in-flight", "1")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        # A job that a script runs in the background ignores Ctrl-C and hands that down; the command itself does not.
        with subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            while len(explanations(database)) < 3:
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.05)
            process.send_signal(how)
            out, _ = process.communicate()
    assert process.returncode == (CRASHED if how is signal.SIGKILL else 130)
    if how is signal.SIGINT:
        assert b"interrupted; what came is kept" in out
    with LlmServer(explainer) as server:
        rest = report(*by_llm(server, database))
        assert {word_of(call) for call in server.calls} - {""} == set(WORDS[:3]), "what is there is not asked again"
    assert (rest["explained"], rest["there_before"]) == (3, 3)
    assert len(ledger(database)) == len(explanations(database)) == 6


def test_output_tokens_belong_to_an_explanation_by_a_language_model_and_to_its_own_sae(database: str, tmp_path: Path):
    with LlmServer(explainer) as server:
        for words, says in (
            (["explain-features", "--database", database, "--output-tokens", "3"], "--explainer llm"),
            (by_llm(server, database, "--output-tokens", "3"), "where is"),
            (
                by_llm(
                    server, database, "--output-tokens", "3", "--subject-sae",
                    str(organism_sae_paths()["organism.resid_post.3.topk8-256"]),
                ),
                "whose features are explained",
            ),
        ):  # fmt: skip
            done = safe_sail(*words)
            assert isinstance(done.exception, BadInput), (words, done.exception)
            assert says in str(done.exception)
        assert server.calls == []


# batches


def answered(folder: Path, script: Script, drop: int = 0) -> Path:
    """What a vendor makes of the request files: a line for each request but the last few, in another order."""
    lines = []
    for path in sorted(folder.glob("requests_*.jsonl")):
        for line in path.read_text().splitlines():
            request = json.loads(line)
            said = script(Call(request["body"], {}, 0.0, 0))
            response = {"status_code": 500, "body": {}}
            if isinstance(said, Say):
                response = {"status_code": 200, "body": completion(said)}
            lines.append(json.dumps({"custom_id": request["custom_id"], "response": response, "error": None}))
    results = folder / "results.jsonl"
    results.write_text("\n".join(lines[: len(lines) - drop][::-1]))
    return results


def test_a_batch_explains_and_judges_as_the_endpoint_does(database: str, tmp_path: Path):
    with LlmServer(explainer) as server:
        words = by_llm(server, database)
        judging = by_llm(server, database, command="judge-explanations")
        before = n_runs(database)
        done = safe_sail(*words, "--batch-out", str(tmp_path / "e"))
        assert done.exit_code == 0, (done.output, done.exception)
        assert "6 requests in" in done.stdout
        assert n_runs(database) == before, "writing requests keeps nothing"
        found = report(*words, "--batch-in", str(answered(tmp_path / "e", explainer, drop=2)))
        assert (found["explained"], found["failed"]) == (4, {"missing": 2})
        again = report(*words, "--batch-in", str(answered(tmp_path / "e", explainer)))
        assert (again["explained"], again["there_before"]) == (2, 4), "what was missing comes with the whole file"
        done = safe_sail(*judging, "--batch-out", str(tmp_path / "j"))
        assert "12 requests in" in done.stdout, "six explanations and six controls"
        found = report(*judging, "--batch-in", str(answered(tmp_path / "j", judge)))
        assert server.calls == []
    assert (found["judged"], found["failed"]) == (6, {})
    assert {index: one.text for index, one in explanations(database).items()} == {
        index: f"the word {word}" for index, word in enumerate(WORDS)
    }
    assert {(one.prompt_tokens, one.attempts) for one in ledger(database) if one.reason is None} == {(100, 1)}
    with reading(make_engine(database, read_only=True)) as session:
        for index in range(len(WORDS)):
            (kept,) = store.load_explanation_scores(session, a.feature(index))
            assert kept.record.score.value > 0.99
            assert kept.record.control.n == 6


def test_batches_that_make_no_sense_are_refused(database: str, tmp_path: Path):
    with LlmServer(explainer) as server:
        words = by_llm(server, database)
        safe_sail(*words, "--batch-out", str(tmp_path / "e"))
        results = answered(tmp_path / "e", explainer)
        for more, error, says in (
            (["--batch-out", str(tmp_path / "e")], BatchUnreadable, "already holds request files"),
            (["--batch-out", str(tmp_path / "e"), "--batch-in", str(results)], BatchUnreadable, "already holds"),
            (["--batch-in", str(tmp_path / "nowhere")], BatchUnreadable, "expected a readable file"),
            (["--batch-in", str(results), "--batch-in", str(results)], BatchUnreadable, "has a result already"),
            (["--batch-out", str(tmp_path / "x"), "--budget-tokens", "100"], BudgetExhausted, ""),
        ):
            done = safe_sail(*words, *more)
            assert isinstance(done.exception, error), (more, done.exception)
            assert says in str(done.exception)
        done = safe_sail("explain-features", "--database", database, "--batch-out", str(tmp_path / "x"))
        assert isinstance(done.exception, BadInput)
        assert not (tmp_path / "x").exists()
    assert explanations(database) == {}


def vendor(server: LlmServer, folder: Path) -> list[str]:
    """What a vendor does: every line is asked of the real server once; answers go into one file, failures into one."""
    lines: dict[str, list[str]] = {"output": [], "errors": []}
    with httpx2.Client(timeout=10) as http:
        for path in sorted(folder.glob("requests_*.jsonl")):
            for line in map(json.loads, path.read_text().splitlines()):
                reply = http.post(server.url.removesuffix("/v1") + line["url"], json=line["body"])
                response = {"status_code": reply.status_code, "body": reply.json()}
                done = {"custom_id": line["custom_id"], "response": response, "error": None}
                lines["output" if reply.status_code == 200 else "errors"].append(json.dumps(done))
    for name, written in lines.items():
        (folder / f"{name}.jsonl").write_text("\n".join(written[::-1]))
    return [word for name in lines for word in ("--batch-in", str(folder / f"{name}.jsonl"))]


def in_batches(server: LlmServer, words: list[str], folder: Path) -> tuple[list[dict[str, Any]], int]:
    """Writes, has answered, reads and writes on until nothing is left; each report, and the number of batches."""
    files: list[str] = []
    reports: list[dict[str, Any]] = []
    done = safe_sail(*words, "--batch-out", str(folder / "0"))
    assert done.exit_code == 0, (done.output, done.exception)
    for number in range(9):
        if not (folder / str(number)).exists():
            return reports, number
        files += vendor(server, folder / str(number))
        reports.append(report(*words, *files, "--batch-out", str(folder / str(number + 1))))
    raise AssertionError("it never ends")


def test_what_a_batch_left_open_goes_into_the_next_one(database: str, tmp_path: Path):
    def faulty(call: Call) -> Act:
        if word_of(call) == "kill":
            return Say("no idea", prompt_tokens=70, completion_tokens=7) if call.nth == 0 else explainer(call)
        if word_of(call) == "bomb":
            return Say("no idea", prompt_tokens=70, completion_tokens=7)
        if word_of(call) == "hack":
            return Status(500 if call.nth == 0 else 429) if call.nth < 2 else explainer(call)
        return explainer(call)

    with LlmServer(faulty) as server:
        found, n_batches = in_batches(server, by_llm(server, database), tmp_path)
        asked = {word: [call for call in server.calls if word_of(call) == word] for word in WORDS}
    assert [(one["explained"], one["failed"], one["waiting"]) for one in found] == [
        (3, {}, 3), (1, {"invalid_reply": 1}, 1), (1, {}, 0),
    ]  # fmt: skip
    assert n_batches == 3
    assert {word: len(calls) for word, calls in asked.items()} == dict(zip(WORDS, (2, 2, 1, 1, 3, 1), strict=True))
    again = asked["kill"][1].body["messages"]
    assert [one["role"] for one in again] == ["system", "user", "assistant", "user"]
    assert again[2]["content"] == "no idea"
    assert {index: one.text for index, one in explanations(database).items()} == {
        index: f"the word {word}" for index, word in enumerate(WORDS) if word != "bomb"
    }
    spent = {one.feature.index: (one.attempts, one.prompt_tokens, one.reason) for one in ledger(database)}
    assert len(ledger(database)) == 6, "what waits is kept nowhere"
    assert spent[0] == (2, 170, None), "both answers were paid for"
    assert spent[1] == (2, 140, "invalid_reply")
    assert spent[4] == (1, 100, None)


def test_rounds_of_judging_by_batches_end_in_the_scores_of_the_endpoint(database: str, tmp_path: Path):
    with LlmServer(explainer) as server:
        report(*by_llm(server, database))
    other = tmp_path / "other.db"
    shutil.copy(tmp_path / "found.db", other)
    rounds = ["--n-contexts", "2", "--max-calls", "3"]

    def unsure(call: Call) -> Act:
        """Of three words it marks too much, so that their intervals stay wide."""
        said = judge(call)
        if not isinstance(said, Say) or not any(f"the word {word}" in call.asked for word in WORDS[::2]):
            return said
        texts = json.loads(said.text)["active"]
        return said._replace(text=json.dumps({"active": [sorted({1, *texts[0]}), *texts[1:]]}))

    def faulty(call: Call) -> Act:
        # the first call of all is a control's
        return Say("no idea") if call is server.calls[0] else unsure(call)

    with LlmServer(unsure) as direct:
        report(*by_llm(direct, f"sqlite:///{other}", *rounds, command="judge-explanations"))
        n_direct = len(direct.calls) - 2
    with LlmServer(faulty) as server:
        words = by_llm(server, database, *rounds, command="judge-explanations")
        found, n_batches = in_batches(server, words, tmp_path / "j")
        n_batched = len(server.calls)
    assert n_batched == n_direct + 1, "the same calls, and one re-ask"
    assert n_batches >= 3
    assert found[0]["judged"] == 0, "nothing is judged before its control is"
    assert sum(one["judged"] for one in found) == 6
    assert n_direct > 12, "one round would be six explanations and six controls"
    scores = []
    for url in (database, f"sqlite:///{other}"):
        with reading(make_engine(url, read_only=True)) as session:
            kept = [store.load_explanation_scores(session, a.feature(index)) for index in range(len(WORDS))]
        scores.append([one.record for (one,) in kept])
    assert scores[0] == scores[1]


# judge


@pytest.mark.parametrize("method", list(JudgeMethod))
def test_explanations_are_judged_once_beside_their_control(database: str, method: JudgeMethod):
    with LlmServer(explainer) as server:
        report(*by_llm(server, database))
    with LlmServer(judge) as server:
        words = by_llm(server, database, "--method", str(method), command="judge-explanations")
        part = report(*words, "--limit", "4")
        n_first = len(server.calls)
        rest = report(*words)
        again = report(*words)
    assert (part["judged"], rest["judged"], rest["there_before"], again["judged"]) == (4, 2, 4, 0)
    assert n_first == 2 + 4 + 4, "two probes, four controls, four explanations"
    assert len(server.calls) == n_first + 2 + 2, "two probes and two explanations: the control is known"
    with reading(make_engine(database, read_only=True)) as session:
        scores = [store.load_explanation_scores(session, a.feature(index)) for index in range(len(WORDS))]
    assert [len(kept) for kept in scores] == [1] * 6
    for (kept,) in scores:
        assert kept.record.method is method
        # the judge at the server gives every active token level 8; the true ones run from 4 to 9
        assert kept.record.score.value > (0.9 if method is JudgeMethod.TOKEN_SIMULATION else 0.99)
        is_share = method in (JudgeMethod.DETECTION, JudgeMethod.FUZZING)
        assert kept.record.control.value == 0.5 if is_share else kept.record.control.value < 0.1
        assert kept.record.control.n == 4
    assert {(one.reason, one.attempts, one.prompt_tokens, one.method) for one in ledger(database, Stage.JUDGE)} == {
        (None, 1, 100, method)
    }


def test_judging_that_fails_is_a_failure_with_its_reason(database: str):
    with LlmServer(explainer) as server:
        report(*by_llm(server, database))

    def some(call: Call) -> Act:
        if "the word kill" in call.asked and " kill" in call.asked.replace("the word kill", ""):
            return Say('{"active":[[]]}')
        if "the word bomb" in call.asked and " bomb" in call.asked.replace("the word bomb", ""):
            return Cut() if call.nth < 1 else judge(call)
        return judge(call)

    with LlmServer(some) as server:
        found = report(*by_llm(server, database, command="judge-explanations"))
    assert (found["judged"], found["failed"]) == (5, {"invalid_reply": 1})
    (failed,) = (one for one in ledger(database, Stage.JUDGE) if one.reason)
    assert (failed.feature.index, failed.raw) == (0, '{"active":[[]]}')


def test_a_budget_ends_judging_with_reasons_and_answers_in_the_cache_cost_nothing(database: str, tmp_path: Path):
    with LlmServer(explainer) as server:
        report(*by_llm(server, database))

    def dear(call: Call) -> Act:
        good = judge(call)
        return good._replace(prompt_tokens=1200) if isinstance(good, Say) and word_of(call) else good

    with LlmServer(dear) as server:
        words = by_llm(server, database, "--cache", str(tmp_path / "answers"), command="judge-explanations")
        part = report(*words, "--budget-tokens", "12000", "--in-flight", "1")
        assert server.prompt_tokens + server.completion_tokens <= 12000
        assert set(part["failed"]) == {"budget_exhausted"}
        assert part["judged"] + part["failed"]["budget_exhausted"] == 6
        rest = report(*words)
        asked = [json.dumps(call.body) for call in server.calls if word_of(call)]
    assert rest["judged"] == part["failed"]["budget_exhausted"]
    assert len(asked) == len(set(asked)) == 6 + 6, "six explanations and six controls, none twice"


@pytest.mark.parametrize("method", list(JudgeMethod))
def test_lexical_explanations_are_written_and_judged_without_asking_anyone(database: str, method: JudgeMethod):
    words = ["--database", database]
    assert report("explain-features", *words)["explained"] == 6
    assert all(WORDS[index] in one.text for index, one in explanations(database, "lexical").items())
    found = report("judge-explanations", *words, "--method", str(method))
    assert (found["judged"], found["failed"], found["cost"]) == (6, {}, 0.0)
    assert report("judge-explanations", *words, "--method", str(method))["there_before"] == 6
    with reading(make_engine(database, read_only=True)) as session:
        (kept,) = store.load_explanation_scores(session, a.feature(0))
    assert kept.record.score.value > 0.9 > 0.5 > kept.record.control.value


def test_a_lexical_explanation_from_other_contexts_is_not_simulated(database: str):
    engine = make_engine(database)
    with writing(engine) as session:
        store.save_explanations(session, [a.explanation(0, 'fires on "kill" (of more contexts)')], run_id=a.RUN)
    engine.dispose()
    found = report("judge-explanations", "--database", database)
    assert (found["judged"], found["failed"]) == (0, {"contexts_not_kept": 1})
