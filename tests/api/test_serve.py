"""`safe-sail serve`: what it refuses before it listens, and that it answers once it does."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from safe_sail.errors import BadSettings, StoreError
from scripts.serve import serve

ROOT = Path(__file__).parents[2]


def test_a_bind_beyond_loopback_is_refused(database_url: str):
    with pytest.raises(BadSettings, match=r"0\.0\.0\.0.*loopback"):
        serve(database=database_url, host="0.0.0.0", port=8420)


def test_a_missing_database_is_refused_with_the_command_to_type(tmp_path: Path):
    with pytest.raises(StoreError, match="safe-sail "):
        serve(database=f"sqlite:///{tmp_path / 'none.db'}", host="127.0.0.1", port=8420)


def test_the_command_serves_page_and_rest(database_url: str):
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    command = [sys.executable, "-m", "scripts.main", "serve", "--database", database_url, "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SAFE_SAIL_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            assert process.stdout.readline().strip() == f"Open http://127.0.0.1:{port}/"
            assert len(json.loads(_read(f"http://127.0.0.1:{port}/v1/saes"))["items"]) == 4
            assert "Safe-SAIL" in _read(f"http://127.0.0.1:{port}/")
        finally:
            process.terminate()


def _read(address: str) -> str:
    for _ in range(100):
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return str(answer.read(), "utf-8")
        except urllib.error.URLError:
            time.sleep(0.1)
    raise AssertionError(f"nothing answers at {address}")
