"""How long do writing and reading what features fire on take, and how large is the file?

2026-11-27, 2 cores of a shared host, nothing else running, Python 3.11.7, SQLite 3.40.1, SQLAlchemy 2.1.9. 4,096
features x 20 contexts x 64 tokens with 24,576 concept scores; baseline: one row a context, its fields as JSON, no
scores. Medians of five (writing plainly: one), min and max in brackets. The file is the whole database, scores and
indexes included.

|                                    | store, ms            | CPU, ms | plain, ms         | CPU, ms |
|------------------------------------|----------------------|---------|-------------------|---------|
| write all contexts                 | 8172 (7467 - 9570)   | 7203    | 37567             | 36283   |
| contexts of one feature            | 2.8 (2.6 - 3.2)      | 2.8     | 1.4 (1.0 - 1.5)   | 1.3     |
| everything known of one feature    | 1.6 (1.4 - 3.2)      | 1.6     |                   |         |
| page of 50 by index                | 4.1 (3.9 - 4.4)      | 4.1     |                   |         |
| page of 50 by density              | 4.4 (4.4 - 4.4)      | 4.4     |                   |         |
| page of 50 by score, best concept  | 5.0 (4.5 - 5.2)      | 4.9     |                   |         |
| file, MB                           | 112                  |         | 169               |         |

Peak memory 127 MB. A row a feature, its contexts as one JSON text, is written four to five times as fast as a row a
context and takes two thirds of the room; packed arrays took 93 MB, but had to become JSON at every answer. (Numbers of
a feature have since been converted at once, not context by context; writing was not timed again.) One feature is read
slower than from a bare table, by a millisecond of SQLAlchemy.

Run: python -m benchmarks.bench_store --features 512 4096
"""

import argparse
import dataclasses
import json
import random
import resource
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from db.engine import checkpoint, make_engine, reading, writing
from db.migrate import upgrade
from db.store import (
    FeatureSort,
    list_features,
    load_feature,
    load_top_contexts,
    save_concept_scores,
    save_concepts,
    save_run,
    save_sae,
    save_top_contexts,
)
from safe_sail.records import (
    Concept,
    ConceptScore,
    Context,
    Estimate,
    FeatureId,
    Histogram,
    RunInfo,
    SaeRef,
    TopContexts,
)
from safe_sail.sites import Site

REPEATS = 5
N_CONTEXTS, N_TOKENS, N_DISTINCT = 20, 64, 128
CONCEPTS = tuple(f"concept-{i}" for i in range(6))
RUN, SLUG = "bench", "bench"

# --------------------------------------------------------------------------------------------- what is kept


def some_contexts(draw: random.Random) -> tuple[Context, ...]:
    vocabulary = [" " + "".join(draw.choices("abcdefghijklmnop", k=draw.randint(1, 7))) for _ in range(2000)]
    found = []
    for number in range(N_CONTEXTS):
        ids = tuple(draw.randrange(2000) for _ in range(N_TOKENS))
        activations = [float(np.float32(draw.random())) if draw.random() < 0.1 else 0.0 for _ in ids]
        activations[7] = float(N_CONTEXTS + 1 - number)
        tokens = tuple(vocabulary[token] for token in ids)
        found.append(
            Context(tokens=tokens, token_ids=ids, activations=tuple(activations), peak=7, source_id=f"d{number}")
        )
    return tuple(found)


def some_features(n: int, slug: str) -> Iterator[TopContexts]:
    draw = random.Random(0)
    distinct = [some_contexts(draw) for _ in range(min(n, N_DISTINCT))]
    histogram = Histogram(edges=tuple(float(edge) for edge in range(25)), counts=(7,) * 24)
    for index in range(n):
        yield TopContexts(
            feature=FeatureId(sae=slug, index=index), contexts=distinct[index % len(distinct)], n_tokens_seen=100_000,
            density=draw.random(), max_activation=N_CONTEXTS + 1.0, histogram=histogram,
        )  # fmt: skip


def some_scores(n: int, slug: str) -> Iterator[ConceptScore]:
    draw = random.Random(1)
    for index in range(n):
        for concept in CONCEPTS:
            gap = draw.uniform(-1, 1)
            estimate = Estimate(value=gap, low=gap - 0.1, high=gap + 0.1, n=128)
            yield ConceptScore(
                feature=FeatureId(sae=slug, index=index), concept=concept, auroc=estimate, rate_positive=0.5,
                rate_negative=0.5, rate_gap=estimate, n_positive=64, n_negative=64, q_value=0.5,
            )  # fmt: skip


# --------------------------------------------------------------------------------------------- the two stores


def new_store(folder: Path, n: int) -> Engine:
    engine = make_engine(f"sqlite:///{Path(tempfile.mkdtemp(dir=folder)) / 'store.db'}")
    upgrade(engine)
    sae = SaeRef(
        slug=SLUG, release=None, sae_id="bench", model_id=None, site=Site.parse("resid_post.3"), d_in=64, width=n,
        architecture="topk",
    )  # fmt: skip
    run = RunInfo(
        run_id=RUN, command="bench", seed=0, settings={}, git_commit=None, versions={}, device="cpu",
        started=datetime.now(UTC),
    )  # fmt: skip
    with writing(engine) as session:
        save_run(session, run)
        save_sae(session, sae, run_id=RUN)
        save_concepts(
            session, [Concept(name=name, category="c", domain="d", harmful=True) for name in CONCEPTS], run_id=RUN
        )
    return engine


def plain_write(path: Path, found: Iterator[TopContexts]) -> None:
    """Baseline: a row a context, lists as JSON."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE context (feature INTEGER, rank INTEGER, data TEXT, PRIMARY KEY (feature, rank))")
    rows = (
        (one.feature.index, rank, json.dumps(dataclasses.asdict(context)))
        for one in found
        for rank, context in enumerate(one.contexts)
    )
    connection.executemany("INSERT INTO context VALUES (?, ?, ?)", rows)
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def plain_read(connection: sqlite3.Connection, index: int) -> tuple[Context, ...]:
    rows = connection.execute("SELECT data FROM context WHERE feature = ? ORDER BY rank", (index,)).fetchall()
    return tuple(plain_context(json.loads(data)) for (data,) in rows)


def plain_context(fields: dict[str, Any]) -> Context:
    tuples: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    return Context(**tuples)


# --------------------------------------------------------------------------------------------- measuring


def measure(do: Callable[[], Any], repeats: int = REPEATS, inner: int = 1) -> dict[str, float]:
    """Milliseconds of one call, after one call that does not count: median and spread by the clock, median of CPU."""
    do()
    times, busy = [], []
    for _ in range(repeats):
        start, start_busy = time.perf_counter(), time.process_time()
        for _ in range(inner):
            do()
        times.append(1000 * (time.perf_counter() - start) / inner)
        busy.append(1000 * (time.process_time() - start_busy) / inner)
    return {
        "median_ms": round(statistics.median(times), 2),
        "min_ms": round(min(times), 2),
        "max_ms": round(max(times), 2),
        "cpu_ms": round(statistics.median(busy), 2),
    }


def check_equal(engine: Engine, plain: sqlite3.Connection, found: list[TopContexts]) -> None:
    """Both stores give back what was saved, and the page by score is what a plain sort finds."""
    n = len(found)
    best = dict.fromkeys(range(n), -1.0)
    for score in some_scores(n, SLUG):
        best[score.feature.index] = max(best[score.feature.index], score.rate_gap.value)
    expected = sorted(best, key=lambda index: (-best[index], index))[:50]
    with reading(engine) as session:
        assert [row.index for row in list_features(session, SLUG, sort=FeatureSort.SCORE).rows] == expected
        for index in random.Random(3).sample(range(n), min(n, 200)):
            kept = load_top_contexts(session, found[index].feature)
            assert kept is not None
            assert kept.record == found[index]
            assert plain_read(plain, index) == found[index].contexts


def measure_reading(engine: Engine, plain: sqlite3.Connection, n: int) -> dict[str, Any]:
    """Figures of every way of reading."""
    draw = random.Random(2)

    def read(what: Callable[[Session], object]) -> Callable[[], None]:
        def do() -> None:
            with reading(engine) as session:
                what(session)

        return do

    def any_feature() -> FeatureId:
        return FeatureId(sae=SLUG, index=draw.randrange(n))

    return {
        "read_contexts": measure(read(lambda session: load_top_contexts(session, any_feature())), inner=100),
        "plain_read_contexts": measure(lambda: plain_read(plain, draw.randrange(n)), inner=100),
        "read_everything": measure(read(lambda session: load_feature(session, any_feature())), inner=100),
        "page_by_index": measure(read(lambda session: list_features(session, SLUG)), inner=5),
        "page_by_density": measure(
            read(lambda session: list_features(session, SLUG, sort=FeatureSort.DENSITY)), inner=5
        ),
        "page_by_score": measure(read(lambda session: list_features(session, SLUG, sort=FeatureSort.SCORE)), inner=5),
    }


def measure_writing(folder: Path, found: list[TopContexts]) -> dict[str, Any]:
    """Figures of writing all contexts into an empty store."""

    def write() -> None:
        fresh = new_store(folder, len(found))
        with writing(fresh) as session:
            save_top_contexts(session, found, run_id=RUN)
        checkpoint(fresh)
        fresh.dispose()

    def write_plainly() -> None:
        path = folder / "again.db"
        path.unlink(missing_ok=True)
        plain_write(path, iter(found))

    return {"write_all": measure(write), "plain_write_all": measure(write_plainly, repeats=1)}


def bench(n: int, folder: Path) -> dict[str, Any]:
    """All figures for an SAE of n features."""
    found = list(some_features(n, SLUG))
    plain_path = folder / f"plain-{n}.db"
    plain_write(plain_path, iter(found))
    plain = sqlite3.connect(plain_path)
    engine = new_store(folder, n)
    with writing(engine) as session:
        save_top_contexts(session, found, run_id=RUN)
        save_concept_scores(session, some_scores(n, SLUG), run_id=RUN)
    checkpoint(engine)
    check_equal(engine, plain, found)
    figures = {
        "n_features": n,
        "file_mb": round(Path(str(engine.url.database)).stat().st_size / 1e6, 1),
        "plain_file_mb": round(plain_path.stat().st_size / 1e6, 1),
        **measure_reading(engine, plain, n),
        **measure_writing(folder, found),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    plain.close()
    engine.dispose()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--features", type=int, nargs="+", default=[512, 4096])
    with tempfile.TemporaryDirectory() as folder:
        results = [bench(n, Path(folder)) for n in parser.parse_args().features]
    print(json.dumps({"bench": "store", "sqlite": sqlite3.sqlite_version, "results": results}))


if __name__ == "__main__":
    main()
