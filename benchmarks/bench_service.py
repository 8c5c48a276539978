"""How many requests a second does the service answer, how late is the slowest in a hundred, and what does each cost?

Wanted on an idle machine, 65,536 features, SQLite, one process, 16 connections: one feature p99 under 60 ms and 1,000 a
second, a page of 50 1,000 a second, text search p99 under 100 ms. **Every bar is met by the medians below; of three
runs one by density gave 980.**

2026-11-27, 2 cores of a shared host, whose bare route gave 6,000 to 9,200 a second: such a host decides as much as the
code. Python 3.11.7, SQLite 3.40.1, SQLAlchemy 2.1.9, uvicorn 0.54.0 with httptools 0.9.0 and uvloop 0.23.0; load by
wrk 4.1.0 with one thread, on the same two cores. 65,536 features x 20 contexts x 64 tokens in a file of 1.8 GB, read
once before each kind, since this system pages out what rests; every feature, page and word drawn at random. The service
keeps no answers. Three runs of 4 s, median and range; CPU is the server's for each request, median.

| SQLite                  | a second            | p50, ms | p99, ms         | CPU, ms | n      |
|-------------------------|---------------------|---------|-----------------|---------|--------|
| bare ASGI, same bytes   | 6937 (6024 - 9232)  | 2       | 5 (5 - 6)       | 0.10    | 88,908 |
| one feature             | 1405 (1380 - 1483)  | 11      | 23 (18 - 25)    | 0.68    | 17,116 |
| page of 50 by index     | 1115 (1095 - 1178)  | 14      | 27 (27 - 35)    | 0.83    | 13,581 |
| page of 50 by score     | 1143 (1132 - 1182)  | 14      | 26 (26 - 27)    | 0.83    | 13,868 |
| page of 50 by density   | 1108 (980 - 1210)   | 15      | 25 (24 - 28)    | 0.83    | 13,223 |
| text search             | 570 (508 - 603)     | 27      | 54 (49 - 55)    | 1.92    | 6,762  |
| text search, best first | 168 (133 - 219)     | 89      | 375 (303 - 471) | 8.21    | 2,089  |

Against the version before, in turn in one run (four of 2 s each, medians, bare route 9,820): 1,209 features a second
against 900, pages by index 1,205 against 1,018, by score 1,112 against 738, by density 1,113 against 677, searches 621
against 591, best first 192 against 196; there one feature once gave 816 with p99 159 ms. Where it comes from: contexts
are kept as the JSON that is answered (in turn, against making it of packed arrays: 1,449 against 1,013, five runs of
2 s each); a page by density, score or explanation is read from one index, where its 50 rows lay apart.

By samples of the server, before the last cuts, a page by index spent 46 % of its time on the page itself (23 % on the
statement and its rows, 9 % on JSON), 12 % on sending, the rest on checks, counts, cursors and the layers around. Pages
of 8 or 16 KB in the file gave nothing. A search stops at 51 of its hits (`word35` also begins `word350`); best first
ranks them all, 8 ms. In 8 threads instead of 2 a search's p99 was 133 ms, on a slower day. `explanation` goes the way
of `score`; `published` and `relevance` walk along everything that has such a value.

| PostgreSQL 18.4         | a second | p50, ms | p99, ms | server CPU, ms a request | n   |
|-------------------------|----------|---------|---------|--------------------------|-----|
| one feature             | 388      | 40      | 56      | 2.2                      | 780 |
| page of 50 by index     | 399      | 39      | 62      | 2.3                      | 800 |
| page of 50 by score     | 388      | 41      | 57      | 2.3                      | 778 |
| page of 50 by density   | 431      | 35      | 65      | 2.1                      | 864 |
| text search             | 191      | 78      | 138     | 2.7                      | 386 |
| text search, best first | 201      | 67      | 276     | 2.5                      | 404 |

The same features in a server on the same two cores over a socket; one run of 2 s each, bare route 9,018. While contexts
were packed arrays, on another day: 307, 481, 438, -, 208, 245 a second.

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
from db.engine import checkpoint, make_engine, reading, sqlite_file, writing
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


def bring_into_memory(engine: Engine) -> None:
    """Reads a SQLite file once: a system may write pages out that were not touched for a while."""
    file = sqlite_file(engine)
    if file is not None:
        with file.open("rb") as content:
            while content.read(2**24):
                pass


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
            "page of 50 by density": [
                f"{base}?sort=density&cursor={write_cursor('density', (1, 0, draw.random()))}" for _ in range(many)
            ],
            "text search": [f"{base}?q={draw.choice(WORDS)}" for _ in range(many)],
            "text search, best first": [f"{base}?sort=relevance&q={draw.choice(WORDS)}" for _ in range(many)],
        }  # fmt: skip
        with server(_SERVICE, url) as (port, pid):
            body = Path(folder) / "body"
            body.write_bytes(require_equal(port, engine, n))
            for name, paths in kinds.items():
                bring_into_memory(engine)
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
