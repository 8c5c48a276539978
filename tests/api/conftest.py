"""A store filled by hand and a client of the service over it."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient

from api.main import create_app
from api.settings import ServiceSettings
from db.engine import checkpoint, make_engine
from db.migrate import upgrade
from tests.api.seed import fill


@pytest.fixture(scope="session")
def database_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of the filled store; nothing writes to it after this."""
    url = f"sqlite:///{tmp_path_factory.mktemp('service') / 'store.db'}"
    engine = make_engine(url)
    upgrade(engine)
    fill(engine)
    checkpoint(engine)
    engine.dispose()
    return url


@pytest.fixture(scope="session")
def client(database_url: str) -> Iterator[TestClient]:
    """Client of the service over the filled store."""
    with client_of(database_url) as client:
        yield client


@pytest.fixture
def own_client(database_url: str, tmp_path: Path) -> Iterator[TestClient]:
    """Client of the service over a copy of the filled store, for a test that writes."""
    shutil.copy(database_url.removeprefix("sqlite:///"), tmp_path / "store.db")
    with client_of(f"sqlite:///{tmp_path / 'store.db'}") as client:
        yield client


@pytest.fixture
def empty_client(tmp_path: Path) -> Iterator[TestClient]:
    """Client of the service over a store at the newest schema with nothing in it."""
    url = f"sqlite:///{tmp_path / 'empty.db'}"
    engine = make_engine(url)
    upgrade(engine)
    engine.dispose()
    with client_of(url) as client:
        yield client


def client_of(url: str) -> TestClient:
    """Client of the service over a database, addressed as a browser on this machine would."""
    return TestClient(create_app(ServiceSettings(database_url=url)), base_url="http://127.0.0.1:8420")


@contextmanager
def served(database: Path, **more: Any) -> Iterator[str]:
    """Address of the real app over a real socket."""
    settings = ServiceSettings(database_url=f"sqlite:///{database}", **more)
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
