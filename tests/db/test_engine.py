"""Transactions and bad databases: who waits, who is refused, and what the message says."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from db.engine import (
    checkpoint,
    find_damage,
    lock_path,
    make_engine,
    reading,
    sqlite_file,
    write_connection,
    write_lock,
    writing,
)
from db.locking import WAL_RESET_FIXED, file_lock
from db.store import list_models, list_runs, load_run, save_run
from safe_sail.errors import DatabaseUnreachable, SchemaOutOfDate
from tests.db import builders as a


@contextmanager
def opened(url: str, *, read_only: bool = False) -> Iterator[Engine]:
    engine = make_engine(url, read_only=read_only)
    yield engine
    engine.dispose()


@pytest.fixture
def sqlite_path(sqlite_template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(sqlite_template, tmp_path / "store.db"))


# ------------------------------------------------------------------------------------------------- transactions


def test_a_sqlite_connection_has_its_pragmas(sqlite_path: Path) -> None:
    expected = {"journal_mode": "wal", "synchronous": 1, "busy_timeout": 30_000, "foreign_keys": 1, "query_only": 1}
    with opened(f"sqlite:///{sqlite_path}") as engine, reading(engine) as session:
        assert {name: session.scalar(text(f"PRAGMA {name}")) for name in expected} == expected


def test_full_synchronous_can_be_asked_for(sqlite_path: Path) -> None:
    engine = make_engine(f"sqlite:///{sqlite_path}", synchronous="FULL")
    with reading(engine) as session:
        assert session.scalar(text("PRAGMA synchronous")) == 2
    engine.dispose()


def test_a_reader_cannot_write_and_a_writer_after_it_can(engine: Engine) -> None:
    with pytest.raises(DatabaseUnreachable, match=r"read-?only"), reading(engine) as session:
        save_run(session, a.run())
    with writing(engine) as session:
        save_run(session, a.run())
    with reading(engine) as session:
        assert list_runs(session) == [a.run()]


def test_a_read_only_engine_reads_and_refuses_writers(engine: Engine) -> None:
    with writing(engine) as session:
        save_run(session, a.run())
    with opened(engine.url.render_as_string(hide_password=False), read_only=True) as reader:
        with reading(reader) as session:
            assert list_runs(session) == [a.run()]
        with pytest.raises(DatabaseUnreachable, match=r"read-?only"), writing(reader) as session:
            save_run(session, a.run("other"))


def test_a_reader_keeps_its_snapshot_while_a_writer_commits(engine: Engine) -> None:
    with reading(engine) as session:
        assert list_runs(session) == []
        with writing(engine) as other:
            save_run(other, a.run())
        assert list_runs(session) == []
    with reading(engine) as session:
        assert list_runs(session) == [a.run()]


def test_writers_in_threads_take_turns(engine: Engine) -> None:
    a.catalogue(engine)
    for_update = "" if engine.dialect.name == "sqlite" else "FOR UPDATE"  # a SQLite writer is alone from its begin

    def add() -> None:
        for _ in range(10):
            with writing(engine) as session:
                seed = session.scalar(text(f"SELECT seed FROM run WHERE run_id = :r {for_update}"), {"r": a.RUN})
                session.execute(text("UPDATE run SET seed = :s WHERE run_id = :r"), {"s": seed + 1, "r": a.RUN})

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with reading(engine) as session:
        assert load_run(session, a.RUN).seed == 40


# ------------------------------------------------------------------------------------------------- the lock

HOLD = """
import sys
from sqlalchemy import text
from db.engine import make_engine, writing
with writing(make_engine(sys.argv[1])) as session:
    session.execute(text("UPDATE run SET seed = seed + 1"))
    print("in", flush=True)
    sys.stdin.read()
"""


@contextmanager
def writer_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of a write, which it ends when its input is closed."""
    command = [sys.executable, "-c", HOLD, f"sqlite:///{path}"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        yield process


needs_lock = pytest.mark.skipif(
    sqlite3.sqlite_version_info >= WAL_RESET_FIXED, reason="this SQLite resets its log safely, so no lock is taken"
)


@needs_lock
def test_a_writer_waits_for_the_writer_of_another_process(sqlite_path: Path) -> None:
    with opened(f"sqlite:///{sqlite_path}") as engine:
        a.catalogue(engine)

        def write() -> None:
            with writing(engine) as session:
                session.execute(text("UPDATE run SET seed = 10 * seed"))

        second = threading.Thread(target=write)
        with writer_process(sqlite_path) as first:
            with (
                pytest.raises(DatabaseUnreachable, match=r"another writer has held .*store\.db\.lock for 0\.1 s"),
                file_lock(lock_path(sqlite_path), wait_seconds=0.1),
            ):
                raise AssertionError("two writers held the lock")
            with reading(engine) as session:  # a reader does not wait
                assert load_run(session, a.RUN).seed == 0
            second.start()
            second.join(0.3)
            assert second.is_alive(), "it waits"
            assert first.stdin is not None
            first.stdin.close()
            second.join()
        with reading(engine) as session:
            assert load_run(session, a.RUN).seed == 10  # 10 * (0 + 1): the other went first


@needs_lock
def test_a_killed_writer_leaves_neither_its_lock_nor_its_changes(sqlite_path: Path) -> None:
    with opened(f"sqlite:///{sqlite_path}") as engine:
        a.catalogue(engine)
        with writer_process(sqlite_path) as process:
            os.kill(process.pid, signal.SIGKILL)
        with writing(engine) as session:
            assert load_run(session, a.RUN).seed == 0
        assert find_damage(engine) == []


def test_a_checkpoint_takes_the_lock_and_empties_the_log(sqlite_path: Path) -> None:
    with opened(f"sqlite:///{sqlite_path}") as engine:
        a.catalogue(engine)
        log = sqlite_path.with_name(sqlite_path.name + "-wal")
        assert log.stat().st_size > 0
        checkpoint(engine)
        assert log.stat().st_size == 0


def test_a_sqlite_with_the_fix_takes_no_lock(sqlite_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", WAL_RESET_FIXED)
    with opened(f"sqlite:///{sqlite_path}") as engine, write_lock(engine), file_lock(lock_path(sqlite_path), 0.0):
        pass  # the second would fail if the first held it


# ------------------------------------------------------------------------------------------------- bad databases


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://me:secret@host/name", "`mysql` are not supported; expected `sqlite:///FILE` or `postgresql://"),
        ("postgresql+asyncpg://host/name", "`postgresql\\+asyncpg` are not supported"),
        ("no url: secret", "a database URL is expected"),
        ("", "a database URL is expected"),
        ("postgresql://host:port-secret/name", "a database URL is expected"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("sqlite:///a.db?mode=ro", "no options; got mode"),
    ],
)
def test_a_url_that_is_none_of_ours_is_refused_without_its_secrets(url: str, says: str) -> None:
    with pytest.raises(DatabaseUnreachable, match=says) as caught:
        make_engine(url)
    assert "secret" not in str(caught.value)


def test_a_missing_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(DatabaseUnreachable, match="pip install 'safe-sail"):
        make_engine("postgresql://host/name")


@pytest.mark.parametrize("file", ["missing/store.db", "."])
def test_a_sqlite_file_that_cannot_be_opened_is_unreachable(tmp_path: Path, file: str) -> None:
    with opened(f"sqlite:///{tmp_path / file}") as engine:
        with pytest.raises(DatabaseUnreachable, match="unable to open"), reading(engine) as session:
            list_models(session)
        with pytest.raises(DatabaseUnreachable), writing(engine) as session:
            save_run(session, a.run())


def test_a_missing_file_is_not_created_by_a_read_only_engine(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with (
        opened(f"sqlite:///{path}", read_only=True) as engine,
        pytest.raises(DatabaseUnreachable, match="`safe-sail migrate` creates"),
        reading(engine) as session,
    ):
        list_models(session)
    assert not path.exists()


def test_a_server_that_is_not_there_is_unreachable_without_its_password(tmp_path: Path) -> None:
    with opened(f"postgresql://me:secret@/name?host={tmp_path}") as engine:
        with pytest.raises(DatabaseUnreachable, match=r"me:\*\*\*@/name") as caught, reading(engine) as session:
            list_models(session)
        assert "secret" not in str(caught.value)


def test_a_file_of_something_else_is_unreachable_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "photo.db"
    path.write_bytes(b"not a database" * 1000)
    with opened(f"sqlite:///{path}") as engine:
        for scope in (reading, writing):
            with pytest.raises(DatabaseUnreachable, match="no SQLite database"), scope(engine) as session:
                list_models(session)
    assert path.read_bytes() == b"not a database" * 1000


def test_a_damaged_file_is_found_out(sqlite_path: Path) -> None:
    with opened(f"sqlite:///{sqlite_path}") as engine:
        a.catalogue(engine)
        checkpoint(engine)
        assert find_damage(engine) == []
        with reading(engine) as session:
            root = session.scalar(text("SELECT rootpage FROM sqlite_master WHERE name = 'run'"))
    data = bytearray(sqlite_path.read_bytes())
    data[(root - 1) * 4096 : root * 4096] = b"\xff" * 4096
    sqlite_path.write_bytes(data)
    with opened(f"sqlite:///{sqlite_path}") as engine:
        with (
            pytest.raises(DatabaseUnreachable, match="the file is damaged; restore a copy"),
            reading(engine) as session,
        ):
            list_runs(session)
        assert find_damage(engine) == ["database disk image is malformed"]


def test_a_row_without_what_it_refers_to_is_found_out(sqlite_path: Path) -> None:
    with opened(f"sqlite:///{sqlite_path}") as engine:
        a.catalogue(engine)
        with write_connection(engine, mode="migrate") as connection:  # foreign keys are off here
            connection.execute(text("DELETE FROM run WHERE run_id = :r"), {"r": a.RUN})
        assert "model: row 1 refers to a missing row of run" in find_damage(engine)


def test_a_truncated_file_is_unreachable(sqlite_path: Path) -> None:
    sqlite_path.write_bytes(sqlite_path.read_bytes()[:5000])
    with (
        opened(f"sqlite:///{sqlite_path}") as engine,
        pytest.raises(DatabaseUnreachable, match="damaged"),
        reading(engine) as session,
    ):
        list_models(session)


def test_a_database_without_tables_says_what_to_type(empty_url: str) -> None:
    with (
        opened(empty_url) as engine,
        pytest.raises(SchemaOutOfDate, match="safe-sail migrate"),
        reading(engine) as session,
    ):
        list_models(session)


def test_only_sqlite_has_a_file(engine: Engine) -> None:
    assert (sqlite_file(engine) is None) == (engine.dialect.name == "postgresql")
    assert find_damage(engine) == []
    checkpoint(engine)
