"""The contract: a golden file that a person reads when it changes, and requests made from it.

After an intended change write the golden file anew with `python -m tests.api.test_openapi`, and read its diff.
"""

import json
from pathlib import Path

import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance

from api.main import create_app
from api.settings import ServiceSettings

schemathesis.openapi.media_type("application/x-ndjson", st.binary(max_size=200))  # what it is, tests of imports say
GOLDEN = Path(__file__).parents[1] / "golden" / "openapi.json"


def current_contract() -> str:
    """The document as the golden file holds it; the version is left out, so that a release changes nothing here."""
    document = create_app(ServiceSettings()).openapi()
    return json.dumps(document | {"info": document["info"] | {"version": "-"}}, indent=1, ensure_ascii=False) + "\n"


def test_contract_matches_golden_file():
    """After an intended change: python -m tests.api.test_openapi."""
    assert json.loads(current_contract()) == json.loads(GOLDEN.read_text("utf-8")), (
        "run python -m tests.api.test_openapi"
    )


def test_every_operation_and_parameter_is_described(client: TestClient):
    document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            for parameter in operation.get("parameters", ()):
                assert parameter.get("description"), f"{path} {parameter['name']}"


def test_no_operation_declares_the_framework_s_own_error(client: TestClient):
    text = client.get("/openapi.json").text
    assert "HTTPValidationError" not in text
    document = json.loads(text)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                lines = ["application/x-ndjson", "application/vnd.apache.parquet"]
                streams = {"events": ["text/event-stream"], "export": lines}
                good = streams.get(path.rpartition("/")[2], ["application/json"])
                assert list(response["content"]) == (good if status.startswith("2") else ["application/problem+json"])


def test_requests_made_from_the_contract_get_what_it_promises(own_client: TestClient):
    client = own_client
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app, headers={"host": "127.0.0.1"})
    operations = [one.ok() for one in schema.get_all_operations()]
    assert len(operations) == 43
    for operation in operations:

        @settings(
            max_examples=15, deadline=None, database=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            # what a job may name is the server's to say, and a cursor is opaque: both can fit and be refused
            may_be_refused = case.method == "POST" or "cursor" in (case.query or {})
            excused = [positive_data_acceptance] if may_be_refused else []
            if case.operation.tags == ["live"]:
                case.query = {**(case.query or {}), "wait": 0}  # no worker is there to wait for
            case.call_and_validate(headers={"host": "127.0.0.1"}, excluded_checks=excused)

        check()


if __name__ == "__main__":
    GOLDEN.write_text(current_contract(), "utf-8")
