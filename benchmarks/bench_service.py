"""How many requests a second does the service answer, how late is the slowest in a hundred, and what does each cost?

Wanted on an idle machine, 65,536 features, SQLite, one process, 16 connections: one feature p99 under 60 ms and 1,000 a
second, a page of 50 1,000 a second, text search p99 under 100 ms. **Not yet measured there, and not yet met by what is
below**: the CPU time of a request alone is more than a millisecond.

2026-11-27, 2 cores of a machine under a load of 19 to 20, so the clock says little and CPU time is inflated too; Python
3.11.7, SQLite 3.40.1, SQLAlchemy 2.1.9, uvicorn 0.54.0 with httptools 0.9.0 and uvloop 0.23.0; 2,048 features x 20
contexts x 64 tokens, 4 s each, 16 connections, every feature and word drawn at random, nothing cached.

|                        | a second | p50, ms | p99, ms | server CPU, ms a request | n     |
|------------------------|----------|---------|---------|--------------------------|-------|
| bare route, same bytes | 310      | 51      | 103     | 0.24                     | 1,252 |
| one feature            | 20       | 780     | 1,145   | 7.6                      | 88    |
| page of 50 by index    | 6        | 2,488   | 3,463   | 22.7                     | 37    |
| page of 50 by score    | 7        | 1,942   | 3,151   | 26.9                     | 35    |
| text search            | 11       | 1,456   | 2,380   | 16.3                     | 49    |

One feature costs 30 times the bare route and a page a hundred times, so reading is what to make cheaper: statements
that are compiled once took the CPU of loading one feature from 7.2 to 2.8 ms in one thread beside the same load; a page
still builds its statements anew.

Run: python -m benchmarks.bench_service --features 65536 [--database postgresql://USER@HOST/NAME]
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter
from sqlalchemy import Engine

from api.schemas import FeatureDetail, feature_detail
from benchmarks.bench_store import CONCEPTS, RUN, SLUG, some_features, some_scores
from db.engine import checkpoint, make_engine, reading, writing
from db.migrate import upgrade
from db.store import (
    load_feature,
    save_concept_scores,
    save_concepts,
    save_explanations,
    save_run,
    save_sae,
    save_top_contexts,
)
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
from fastapi import FastAPI, Response

body, app = open(sys.argv[1], "rb").read(), FastAPI()
app.get("/livez")(lambda: {})

@app.get("/bare")
async def bare() -> Response:
    return Response(body, media_type="application/json")

door = socket.create_server(("127.0.0.1", 0))
print(door.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False)).run(sockets=[door])
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


async def load(port: int, pid: int, path: Callable[[], str], connections: int, seconds: float) -> Measured:
    """Requests over keep-alive connections, each sent when the one before has been answered."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        while time.perf_counter() < end:
            start = time.perf_counter()
            writer.write(f"GET {path()} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = int(head.lower().split(b"content-length:")[1].split(b"\r")[0])
            await reader.readexactly(length)
            times.append(1000 * (time.perf_counter() - start))
        writer.close()
        await writer.wait_closed()

    start, busy = time.perf_counter(), _cpu(pid)
    await asyncio.gather(*(one() for _ in range(connections)))
    spent, busy = time.perf_counter() - start, _cpu(pid) - busy
    times.sort()
    n = len(times)
    return Measured(n / spent, times[n // 2], times[int(n * 0.99)], n, 1000 * busy / n)


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
        fill(engine, n)
        found: dict[str, object] = {"features": n, "kind": engine.dialect.name, "fill_s": time.perf_counter() - start}
        base = f"/v1/saes/{SLUG}/features"
        kinds: dict[str, Callable[[], str]] = {
            "one feature": lambda: f"{base}/{draw.randrange(n)}",
            "page of 50 by index": lambda: base,
            "page of 50 by score": lambda: f"{base}?sort=score",
            "text search": lambda: f"{base}?q={draw.choice(WORDS)}",
        }
        with server(_SERVICE, url) as (port, pid):
            body = Path(folder) / "body"
            body.write_bytes(require_equal(port, engine, n))
            for name, path in kinds.items():
                asyncio.run(load(port, pid, path, asked.connections, 1.0))
                measured = asyncio.run(load(port, pid, path, asked.connections, asked.seconds))
                found[name] = measured._asdict()
        with server(_BARE, str(body)) as (port, pid):
            asyncio.run(load(port, pid, lambda: "/bare", asked.connections, 1.0))
            bare = asyncio.run(load(port, pid, lambda: "/bare", asked.connections, asked.seconds))
            found["bare route, same bytes"] = bare._asdict()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
