"""`safe-sail serve`: what it refuses before it listens, and that it answers once it does."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from safe_sail.errors import BadSettings, StoreError
from scripts.serve import serve

ROOT = Path(__file__).parents[2]


def test_a_missing_database_is_refused_with_the_command_to_type(tmp_path: Path):
    with pytest.raises(StoreError, match="safe-sail "):
        serve(database=f"sqlite:///{tmp_path / 'none.db'}", host="127.0.0.1", port=8420)


def test_a_port_that_is_taken_is_refused(database_url: str):
    with socket.create_server(("127.0.0.1", 0)) as door, pytest.raises(BadSettings, match="--port"):
        serve(database=database_url, host="127.0.0.1", port=door.getsockname()[1])


def test_the_command_serves_page_and_rest(database_url: str):
    command = [sys.executable, "-m", "scripts.main", "serve", "--database", database_url, "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SAFE_SAIL_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        assert process.stdout is not None
        try:
            assert "end with Ctrl-C" in process.stdout.readline()
            address = process.stdout.readline().removeprefix("Open ").strip()
            # the door is open before the address is printed, so a request waits and is never refused
            assert len(json.loads(_read(f"{address}v1/saes"))["items"]) == 4
            assert "Safe-SAIL" in _read(address)
        finally:
            process.terminate()


def _read(address: str) -> str:
    with urllib.request.urlopen(address, timeout=300) as answer:
        return str(answer.read(), "utf-8")
