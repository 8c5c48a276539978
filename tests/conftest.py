"""Fixtures for every test: no network, one thread, tiny models on disk."""

import os
from collections.abc import Callable

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import socket
from typing import Any

import pytest
import torch

from tests.tiny import TinyModels

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses every connection that would leave this machine."""

    def guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
        def local_only(self: socket.socket, address: Any) -> Any:
            host = address[0] if isinstance(address, tuple) else ""
            if self.family != socket.AF_UNIX and host not in ("127.0.0.1", "::1", "localhost"):
                raise OSError(f"tests have no network; a connection to {address} was asked for")
            return connect(self, address)

        return local_only

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))


@pytest.hookimpl(tryfirst=True)  # before pytest-timeout reads the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives slow tests four times as long: a whole demo on a busy machine is not a test that hangs."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1200))


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Tiny models of every family."""
    return TinyModels(tmp_path_factory.mktemp("tiny_models"))
