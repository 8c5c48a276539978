"""docs/service.md names every address, parameter, problem and setting."""

from pathlib import Path

from fastapi.testclient import TestClient

from api.problems import BY_STATUS, PROBLEMS
from api.settings import ServiceSettings

TEXT = (Path(__file__).parents[2] / "docs" / "service.md").read_text("utf-8")


def test_every_address_and_parameter_is_documented(client: TestClient):
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        row = next((line for line in TEXT.splitlines() if line.startswith(f"| `{path}` |")), None)
        assert row, path
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                is_named = f"`{parameter['name']}`" in row
                assert parameter["in"] == "path" or is_named, parameter["name"]


def test_every_problem_is_documented_with_its_status():
    for kind in (*PROBLEMS.values(), *BY_STATUS.values()):
        assert f"| `{kind.slug}` | {kind.status} |" in TEXT


def test_every_setting_is_documented_with_its_default():
    for name, field in ServiceSettings.model_fields.items():
        default = str(field.default).replace("'", '"').replace("(", "[").replace(")", "]")
        assert f"| `SAFE_SAIL_{name.upper()}` | `{default}` |" in TEXT
