"""A job of explaining that is killed at random moments: worker and service as real processes, a counting endpoint.

Every feature fires on a word of its own, so that the endpoint's calls, the explanations and the ledger's entries can be
counted feature by feature.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError

from sqlalchemy import Engine, func, select

from db import store
from db.engine import make_engine, reading, writing
from db.tables import ExplanationRow, LedgerRow
from safe_sail.records import Context, TopContexts
from tests.db import builders as a
from tests.llm_server import Act, Call, Held, LlmServer, Say

ROOT = Path(__file__).parents[1]
DRAWN = 20
"""Features at most that a worker has asked about, or is about to, and not kept: 16 in flight, and 4 that stand ready
behind them and begin while answers are being written."""


def word(index: int) -> str:
    """The word that a feature fires on."""
    return f"word{index:05d}"


def prepare(engine: Engine, n_features: int) -> None:
    """A migrated database with so many features, each with 24 contexts."""
    a.catalogue(engine)
    with writing(engine) as session:
        store.save_sae(session, a.sae("faults", n_features), run_id=a.RUN)
        store.save_top_contexts(session, map(_contexts, range(n_features)), run_id=a.RUN)


def _contexts(index: int) -> TopContexts:
    found = tuple(
        Context(
            tokens=(f" before{place}", f" {word(index)}", " after"),
            token_ids=(1, 2, 3), activations=(0.0, 30.0 - place, 0.0), peak=1, source_id=f"{index}-{place}",
        )
        for place in range(24)  # each is shown or judges by its text: some of both are needed
    )  # fmt: skip
    feature = a.FeatureId(sae="faults", index=index)
    return TopContexts(
        feature=feature, contexts=found, n_tokens_seen=1000, density=0.01, max_activation=30.0, histogram=None
    )


def answer(call: Call, seconds: float = 0.05) -> Say:
    """An explanation that names the word, after a moment."""
    if call.asked == "Say hello.":
        return Say("hello")
    said = {"explanations": [{"id": "A", "explanation": f"the word {_word_of(call)}"}]}
    return Say(json.dumps(said), prompt_tokens=100, completion_tokens=10, seconds=seconds)


def _word_of(call: Call) -> str:
    (feature,) = json.loads(call.asked)["features"]
    return str(next(piece for piece in feature["active"][0] if isinstance(piece, list))[0]).strip()


@dataclass
class Processes:
    """Worker and service on one database, to be killed and started again."""

    url: str
    folder: Path
    endpoint: LlmServer
    lease_s: float = 1.0
    address: str = ""
    """Of the service that runs; each start has another."""
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """Starts `worker` or `serve`."""
        options = {
            "worker": ["--work", str(self.folder / "work"), "--lease", str(self.lease_s)],
            "serve": ["--no-worker", "--port", "0"],
        }
        told = {
            "SAFE_SAIL_DATABASE_URL": self.url, "SAFE_SAIL_LLM_BASE_URL": self.endpoint.url,
            "SAFE_SAIL_LLMS": '["m"]', "SAFE_SAIL_LLM_IN_FLIGHT": "16",
        }  # fmt: skip
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "scripts.main", name, *options[name]],
                env=dict(os.environ) | told, cwd=ROOT, stdout=subprocess.PIPE if name == "serve" else log, stderr=log,
            )  # fmt: skip
        if name == "serve":
            out = self.running[name].stdout
            assert out is not None
            out.readline()
            self.address = out.readline().decode().removeprefix("Open ").strip().rstrip("/")

    def kill(self, name: str) -> None:
        """Ends it as a crash of the machine would."""
        process = self.running[name]
        process.send_signal(signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def ask(self, path: str, body: dict[str, Any] | None = None, **headers: str) -> dict[str, Any]:
        """The service's answer; asked again for ten minutes while nobody answers."""
        data = None if body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): text for name, text in headers.items()}
        deadline = time.monotonic() + 600
        while True:
            try:
                request = urllib.request.Request(f"{self.address}{path}", data, sent)
                with urllib.request.urlopen(request, timeout=100) as response:
                    found: dict[str, Any] = json.load(response)
                    return found
            except (URLError, ConnectionError, TimeoutError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


@dataclass(frozen=True)
class Outcome:
    """What is left after a job that was killed again and again."""

    n_features: int
    lost: list[int]
    """Features without an explanation."""
    doubled: list[int]
    """Features with more than one explanation, or more than one successful entry in the ledger."""
    wrong: list[int]
    """Features whose explanation names another's word."""
    job: dict[str, Any]
    n_jobs: int
    asked: Counter[str]
    """How often the endpoint was asked about each word."""
    kills: dict[str, int]
    seconds: float


def run_with_kills(url: str, folder: Path, *, n_features: int, kills: list[str], seed: int) -> Outcome:
    """Runs one job over a prepared database and kills the named processes at random moments of it."""
    draw = random.Random(seed)
    moments = sorted(draw.sample(range(n_features // 20, n_features - 2 * DRAWN), len(kills)))
    started = time.monotonic()
    engine = make_engine(url, read_only=True)
    words: set[str] = set()
    answered = {"words": 0}
    """So many words are answered and no more: the job cannot end before the next kill, however slow the killer is."""

    def script(call: Call) -> Act:
        if call.asked == "Say hello.":
            return answer(call)
        words.add(_word_of(call))
        n = len(words)
        return Held(lambda: n <= answered["words"], answer(call))

    with LlmServer(script) as endpoint:
        processes = Processes(url, folder, endpoint)
        try:
            processes.start("serve")
            request = {"kind": "explain-features", "settings": {"sae": "faults", "llm": "m", "limit": n_features}}
            job = processes.ask("/v1/jobs", request, Idempotency_Key="once")
            processes.start("worker")
            for moment, name in zip(moments, kills, strict=True):
                answered["words"] = moment + DRAWN
                _wait_until(lambda moment=moment: n_kept(engine) >= moment)
                time.sleep(draw.uniform(0, 0.2))
                processes.kill(name)
                processes.start(name)
                if name == "serve":  # a client that saw no answer asks again
                    assert processes.ask("/v1/jobs", request, Idempotency_Key="once")["job_id"] == job["job_id"]
            answered["words"] = n_features
            _wait_until(lambda: processes.ask(f"/v1/jobs/{job['job_id']}")["state"] in ("done", "failed"))
            job = processes.ask(f"/v1/jobs/{job['job_id']}")
            n_jobs = len(processes.ask("/v1/jobs")["items"])
        finally:
            for process in processes.running.values():
                process.kill()
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()
            engine.dispose()
        asked = Counter(_word_of(call) for call in endpoint.calls if call.asked != "Say hello.")
    return _outcome(url, n_features, job, n_jobs, asked, dict(Counter(kills)), time.monotonic() - started)


def _wait_until(true: Any, seconds: float = 3000.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "the job does not go on"
        time.sleep(0.1)


def n_kept(engine: Engine) -> int:
    """Explanations in the database."""
    with reading(engine) as session:
        return session.scalar(select(func.count()).select_from(ExplanationRow)) or 0


def _outcome(
    url: str, n_features: int, job: dict[str, Any], n_jobs: int, asked: Counter[str], kills: dict[str, int], took: float
) -> Outcome:
    engine = make_engine(url, read_only=True)
    with reading(engine) as session:
        found = session.execute(select(ExplanationRow.feature_index, ExplanationRow.text)).all()
        good = session.scalars(select(LedgerRow.feature_index).where(LedgerRow.reason.is_(None))).all()
    engine.dispose()
    n_texts, n_entries = Counter(index for index, _ in found), Counter(good)
    return Outcome(
        n_features=n_features,
        lost=[index for index in range(n_features) if not n_texts[index] or not n_entries[index]],
        doubled=[index for index in range(n_features) if n_texts[index] > 1 or n_entries[index] > 1],
        wrong=[index for index, text in found if word(index) not in text],
        job=job,
        n_jobs=n_jobs,
        asked=asked,
        kills=kills,
        seconds=took,
    )
