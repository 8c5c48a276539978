"""A command's run in the database: kept when it starts, its end written with the last of what it brought."""

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from db import store
from db.engine import writing
from safe_sail.provenance import finish_run
from safe_sail.records import RunInfo


def keep_run(engine: Engine, run: RunInfo) -> None:
    """Keeps the run that is starting; whatever it brings refers to it."""
    with writing(engine) as session:
        store.save_run(session, run)


def end_run(session: Session, run: RunInfo) -> RunInfo:
    """Writes in the session's transaction that the run has come to its end; the run with that time."""
    done = finish_run(run)
    assert done.finished is not None
    store.finish_run(session, run.run_id, done.finished)
    return done
