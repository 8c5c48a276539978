"""The service starts without the heavy half of the project, and quickly."""

import subprocess
import sys

_START = """
import sys
from api.main import create_app
from api.settings import ServiceSettings
import scripts.serve
from fastapi.testclient import TestClient

with TestClient(create_app(ServiceSettings(database_url=sys.argv[1])), base_url="http://127.0.0.1") as client:
    assert client.get("/v1/saes").status_code == 200
    assert client.get("/").status_code == 200
heavy = {"torch", "transformers", "sae_lens", "transformer_lens", "safetensors", "tokenizers", "pandas"}
print(sorted(heavy & set(sys.modules)))
"""


def test_server_starts_without_torch(database_url: str):
    done = subprocess.run([sys.executable, "-c", _START, database_url], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
