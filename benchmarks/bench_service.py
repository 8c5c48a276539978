"""How many requests a second does the service answer, how late is the slowest in a hundred, and what does each cost?

Wanted on an idle machine, 65,536 features, SQLite, one process, 16 connections: one feature p99 under 60 ms and 1,000 a
second, a page of 50 1,000 a second, text search p99 under 100 ms. **Every bar of lateness is met by these runs; 1,000 a
second is met by a page by index, and missed by one feature (873; 1,026 on a quicker day) and by a page by score
(856).**

2026-11-27, 2 cores of a shared host, nothing else running, whose bare route gave 10,142 a second; on the quicker day it
gave 12,764. Python 3.11.7, SQLite 3.40.1, SQLAlchemy 2.1.9, uvicorn 0.54.0 with httptools 0.9.0 and uvloop 0.23.0; load
by wrk 4.1.0 with one thread, on the same two cores. 65,536 features x 20 contexts x 64 tokens in a file of 1.5 GB, in
memory; 5 s each, 16 connections; every feature, page and word drawn at random. The service keeps no answers.

| SQLite                  | a second | p50, ms | p99, ms | server CPU, ms a request | n      | before, a second |
|-------------------------|----------|---------|---------|--------------------------|--------|------------------|
| bare ASGI, same bytes   | 10,142   | 1       | 4       | 0.09                     | 50,821 | 12,764           |
| one feature             | 873      | 18      | 36      | 1.1                      | 4,371  | 1,026            |
| page of 50 by index     | 1,072    | 14      | 30      | 0.9                      | 5,373  | 733              |
| page of 50 by score     | 856      | 19      | 43      | 1.2                      | 4,283  | 257              |
| text search             | 631      | 24      | 43      | 2.2                      | 3,168  | 219              |
| text search, best first | 197      | 72      | 233     | 8.1                      | 988    | 178              |

One run of each, and the host decides as much as the code: three later runs of 2 to 5 s gave 746 to 1,099 features, 979
to 1,037 pages by index, 698 to 795 by score and 560 to 600 searches a second (p99 at most 72, 69, 56 and 47 ms), the
bare route 9,232 to 11,441. Collecting garbage less often made no difference that such runs can show. "Before", on the
quicker day: pages joined five tables for each feature, and a search mapped every hit to its feature. Now pages are read
from `feature_listing`, and hits come in the order of features, so that a search of 2,700 hits (`word35` also begins
`word350`) stops at 51; best first still ranks them all, 8 ms. A page by score costs more than one by index since its 50
rows lie apart; with the file mapped into memory no gain was seen, in four runs in turn. Text search in 8 threads
instead of 2, on the slower day: 311 a second, p99 133 ms. With the file not in memory, before: 483 features and 594
pages a second, p99 65 and 59 ms.

| PostgreSQL 18.4         | a second | p50, ms | p99, ms | server CPU, ms a request | n      |
|-------------------------|----------|---------|---------|--------------------------|--------|
| one feature             | 307      | 51      | 73      | 2.9                      | 925    |
| page of 50 by index     | 481      | 32      | 48      | 1.9                      | 1,446  |
| page of 50 by score     | 438      | 36      | 53      | 2.0                      | 1,318  |
| text search             | 208      | 72      | 167     | 2.3                      | 626    |
| text search, best first | 245      | 61      | 183     | 2.2                      | 737    |

The same features, copied by COPY, in a server on the same two cores over a socket; 3 s each, bare route 9,932.

Run: python -m benchmarks.bench_service --features 65536 [--database postgresql://USER@HOST/NAME]
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter
from sqlalchemy import Engine

from api.schemas import FeatureDetail, feature_detail
from benchmarks.bench_store import CONCEPTS, RUN, SLUG, some_features, some_scores
from db.engine import checkpoint, make_engine, reading, writing
from db.migrate import current_revision, upgrade
from db.store import (
    load_feature,
    save_concept_scores,
    save_concepts,
    save_explanations,
    save_run,
    save_sae,
    save_top_contexts,
)
from db.store.cursors import write_cursor
from safe_sail.records import Concept, Explanation, FeatureId, RunInfo, SaeRef
from safe_sail.sites import Site

WORDS = [f"word{i}" for i in range(2000)]
_SERVICE = """
import sys, socket, uvicorn
from api.main import create_app
from api.settings import ServiceSettings

door = socket.create_server(("127.0.0.1", 0))
print(door.getsockname()[1], flush=True)
app = create_app(ServiceSettings(database_url=sys.argv[1]))
uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False)).run(sockets=[door])
"""
_BARE = """
import sys, socket, uvicorn

body = open(sys.argv[1], "rb").read()
head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]

async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})

door = socket.create_server(("127.0.0.1", 0))
print(door.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning", server_header=False)).run(sockets=[door])
"""
_LUA = """
local paths, at = {}, 0
for line in io.lines(os.getenv("PATHS")) do paths[#paths + 1] = line end
request = function() at = at % #paths + 1; return wrk.format("GET", paths[at]) end
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d\\n", summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
"""

# --------------------------------------------------------------------------------------------- what is served


def fill(engine: Engine, n: int) -> None:
    """A database at the newest schema: n features with 20 contexts, six concept scores and an explanation each."""
    upgrade(engine)
    draw = random.Random(2)
    sae = SaeRef(
        slug=SLUG, release=None, sae_id="bench", model_id=None, site=Site.parse("resid_post.3"), d_in=64, width=n,
        architecture="topk",
    )  # fmt: skip
    run = RunInfo(
        run_id=RUN, command="bench", seed=0, settings={}, git_commit=None, versions={}, device="cpu",
        started=datetime.now(UTC),
    )  # fmt: skip
    told = (
        Explanation(feature=FeatureId(sae=SLUG, index=index), text=" ".join(draw.choices(WORDS, k=8)),
                    explainer="lexical", prompt_version="1")
        for index in range(n)
    )  # fmt: skip
    with writing(engine) as session:
        save_run(session, run)
        save_sae(session, sae, run_id=RUN)
        named = [Concept(name=name, category="c", domain="d", harmful=True) for name in CONCEPTS]
        save_concepts(session, named, run_id=RUN)
        save_top_contexts(session, some_features(n, SLUG), run_id=RUN)
        save_concept_scores(session, some_scores(n, SLUG), run_id=RUN)
        save_explanations(session, told, run_id=RUN)
    checkpoint(engine)


@contextmanager
def server(program: str, argument: str) -> Iterator[tuple[int, int]]:
    """Port and process id of a server in a process of its own."""
    command = [sys.executable, "-c", program, argument]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=120) as answer:
            assert answer.status == 200
        yield port, process.pid
        process.terminate()


# --------------------------------------------------------------------------------------------- the load


class Measured(NamedTuple):
    """One kind of request."""

    per_second: float
    p50_ms: float
    p99_ms: float
    n: int
    server_cpu_ms: float
    """CPU time of the server process for each request: on an idle core, 1000 / this is its limit."""


def load(port: int, pid: int, paths: list[str], connections: int, seconds: float, folder: Path) -> Measured:
    """Requests by wrk over keep-alive connections, each sent when the one before has been answered."""
    (folder / "paths").write_text("\n".join(paths) + "\n")
    (folder / "load.lua").write_text(_LUA)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", str(folder / "load.lua")]
    busy = _cpu(pid)
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}"], env=os.environ | {"PATHS": str(folder / "paths")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    busy = _cpu(pid) - busy
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    n, duration_us, p50_us, p99_us, errors = map(int, line.split()[1:])
    assert errors == 0, done.stdout
    return Measured(n / duration_us * 1e6, p50_us / 1000, p99_us / 1000, n, 1000 * busy / n)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def require_equal(port: int, engine: Engine, n: int) -> bytes:
    """The answer for one feature, after comparing some with the records that the store gives."""
    of = TypeAdapter(FeatureDetail)
    for index in (0, n // 2, n - 1):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/saes/{SLUG}/features/{index}") as answer:
            body: bytes = answer.read()
        with reading(engine) as session:
            expected = of.dump_json(feature_detail(load_feature(session, FeatureId(sae=SLUG, index=index))))
        assert json.loads(body) == json.loads(expected), index
    return body


def main() -> None:
    """Fill where needed, serve, load, print one JSON line."""
    options = argparse.ArgumentParser()
    options.add_argument("--features", type=int, default=65_536)
    options.add_argument("--connections", type=int, default=16)
    options.add_argument("--seconds", type=float, default=10.0)
    options.add_argument("--database", help="filled where it is empty; a new SQLite file if absent")
    asked = options.parse_args()
    n, draw = asked.features, random.Random(4)
    with tempfile.TemporaryDirectory() as folder:
        url = asked.database or f"sqlite:///{folder}/store.db"
        engine = make_engine(url)
        start = time.perf_counter()
        if current_revision(engine) is None:
            fill(engine, n)
        found: dict[str, object] = {"features": n, "kind": engine.dialect.name, "fill_s": time.perf_counter() - start}
        found["load average"] = os.getloadavg()
        base, many = f"/v1/saes/{SLUG}/features", 20_000
        gaps = [draw.uniform(0.3, 0.99) for _ in range(many)]
        kinds: dict[str, list[str]] = {
            "one feature": [f"{base}/{draw.randrange(n)}" for _ in range(many)],
            "page of 50 by index": [
                f"{base}?cursor={write_cursor('index', (1, i, i))}" for i in draw.choices(range(n), k=many)
            ],
            "page of 50 by score": [f"{base}?sort=score&cursor={write_cursor('score', (1, 0, gap))}" for gap in gaps],
            "text search": [f"{base}?q={draw.choice(WORDS)}" for _ in range(many)],
            "text search, best first": [f"{base}?sort=relevance&q={draw.choice(WORDS)}" for _ in range(many)],
        }  # fmt: skip
        with server(_SERVICE, url) as (port, pid):
            body = Path(folder) / "body"
            body.write_bytes(require_equal(port, engine, n))
            for name, paths in kinds.items():
                load(port, pid, paths, asked.connections, min(1.0, asked.seconds), Path(folder))
                measured = load(port, pid, paths, asked.connections, asked.seconds, Path(folder))
                found[name] = measured._asdict()
        with server(_BARE, str(body)) as (port, pid):
            load(port, pid, ["/bare"], asked.connections, min(1.0, asked.seconds), Path(folder))
            bare = load(port, pid, ["/bare"], asked.connections, asked.seconds, Path(folder))
            found["bare ASGI, same bytes"] = bare._asdict()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
