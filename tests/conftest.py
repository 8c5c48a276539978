"""Fixtures for every test: no network, one thread, tiny models on disk."""

import os
from collections.abc import Callable

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# on a machine that stands still for a minute an answer is late and not wrong; tests of the limit set their own
os.environ["SAFE_SAIL_REQUEST_SECONDS"] = "3600"
# as Ray spells it; it would end workers where others fill the memory of the machine
os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # noqa: SIM112

import random
import socket
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.tiny import TinyModels

torch.set_num_threads(1)
# the same examples on every machine, and no example is wrong because it took long: speed is for benchmarks
settings.register_profile(
    "steady", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


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
    """Gives long tests twelve times as long: a whole demo on a busy machine is not a test that hangs."""
    for item in items:
        is_long = item.get_closest_marker("slow") or item.get_closest_marker("browser")
        if is_long and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(3600))


@pytest.hookimpl(tryfirst=True)  # before the first fixture
def pytest_runtest_setup() -> None:
    """What a test draws from a global generator does not depend on the tests before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global one is what others may draw from
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Tiny models of every family."""
    return TinyModels(tmp_path_factory.mktemp("tiny_models"))
