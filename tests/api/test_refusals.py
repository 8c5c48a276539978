"""What the service refuses, and that every refusal is an RFC 9457 problem."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from api.main import create_app
from api.problems import PROBLEMS, kind_of
from api.settings import ServiceSettings
from safe_sail import errors
from tests.api.conftest import client_of
from tests.api.seed import BEST

FEATURES = f"/v1/saes/{BEST}/features"


def problem_of(client: TestClient, path: str, status: int, **options: object) -> dict:
    response = client.get(path, **options)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v1/saes/nobody", "no SAE is called `nobody`"),
        ("/v1/saes/nobody/features", "no SAE is called `nobody`"),
        ("/v1/saes/nobody/features/1", "no SAE is called `nobody`"),
        (f"{FEATURES}/512", "its features are 0 to 511"),
        (f"{FEATURES}/{10**30}", "its features are 0 to 511"),
        (f"{FEATURES}?concept=nothing", "no concept is called `nothing`"),
        ("/v1/saes?concept=nothing", "no concept is called `nothing`"),
        ("/v1/runs/none", "no run is called `none`"),
    ],
)
def test_unknown_names_are_404_and_say_what_is_known(client: TestClient, path: str, said: str):
    problem = problem_of(client, path, 404)
    assert problem["type"] == "urn:safe-sail:problem:not-found"
    assert said in problem["detail"]


def test_an_unknown_path_is_404(client: TestClient):
    assert problem_of(client, "/v1/nothing", 404)["type"] == "urn:safe-sail:problem:no-such-path"


@pytest.mark.parametrize(
    ("path", "where"),
    [
        (f"{FEATURES}?limit=0", "query.limit"),
        (f"{FEATURES}?limit=201", "query.limit"),
        (f"{FEATURES}?limit=many", "query.limit"),
        (f"{FEATURES}?min_density=2", "query.min_density"),
        (f"{FEATURES}?min_rate_gap=nan", "query.min_rate_gap"),
        (f"{FEATURES}?min_rate_gap=", "query.min_rate_gap"),
        (f"{FEATURES}?has_explanation=perhaps", "query.has_explanation"),
        (f"{FEATURES}?sort=random", "query.sort"),
        (f"{FEATURES}?q=", "query.q"),
        (f"{FEATURES}?misspelt=1", "query.misspelt"),
        (f"{FEATURES}?limit=1&limit=2", "query.limit"),
        ("/v1/concepts?limit=1", "query.limit"),
        ("/livez?x=1", "query.x"),
        (f"{FEATURES}/-1", "path.index"),
        (f"{FEATURES}/one", "path.index"),
        ("/v1/saes/..bad", "path.sae"),
    ],
)
def test_a_bad_parameter_is_422_and_named(client: TestClient, path: str, where: str):
    problem = problem_of(client, path, 422)
    assert problem["type"] == "urn:safe-sail:problem:invalid"
    assert [entry["where"] for entry in problem["errors"]] == [where]


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "%00",
        "bnVsbA",
        "WyJpbmRleCIsIE5hTiwgMV0",
        "WyJpbmRleCIsIEluZmluaXR5LCAxXQ",
        "WyJpbmRleCIsMCwtMV0",
        "W10",
        "%F0%9F%92%A5",
    ],
)
def test_a_bad_cursor_is_422(client: TestClient, cursor: str):
    assert "is no cursor" in problem_of(client, f"{FEATURES}?cursor={cursor}", 422)["detail"]


def test_a_cursor_of_another_order_is_422(client: TestClient):
    cursor = client.get(f"{FEATURES}?limit=1&sort=density").json()["next_cursor"]
    assert cursor
    problem_of(client, f"{FEATURES}?limit=1&sort=score&cursor={cursor}", 422)


@pytest.mark.parametrize("path", ["/v1/saes", f"{FEATURES}/1", "/", "/livez"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_another_method_is_405_with_allow(client: TestClient, path: str, method: str):
    response = client.request(method, path)
    assert response.status_code == 405
    assert response.headers["content-type"] == "application/problem+json"
    assert "GET" in response.headers["allow"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8420", "127.0.0.1.evil.example", "", "localhost.evil"])
@pytest.mark.parametrize("path", ["/", "/v1/saes", "/static/base.css", "/livez"])
def test_another_host_name_is_refused(client: TestClient, host: str, path: str):
    response = client.get(path, headers={"host": host})
    assert response.status_code == 421
    assert response.json()["type"] == "urn:safe-sail:problem:host-not-allowed"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:8420"])
def test_names_of_this_machine_are_answered(client: TestClient, host: str):
    assert client.get("/livez", headers={"host": host}).status_code == 200


def test_security_headers_are_on_every_answer(client: TestClient):
    for path in ("/", "/v1/saes", "/v1/nothing", "/static/base.css"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]


def test_a_request_id_is_kept_if_it_is_harmless(client: TestClient):
    assert client.get("/livez", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    replaced = client.get("/livez", headers={"x-request-id": 'a"<b>'}).headers["x-request-id"]
    assert len(replaced) == 32


def test_a_missing_database_is_503_and_no_crash(tmp_path: Path):
    with client_of(f"sqlite:///{tmp_path / 'none.db'}") as client:
        assert client.get("/livez").status_code == 200
        assert "safe-sail migrate" in problem_of(client, "/readyz", 503)["detail"]
        assert problem_of(client, "/v1/saes", 503)["type"] == "urn:safe-sail:problem:database-unreachable"
    assert not (tmp_path / "none.db").exists()


def test_a_database_without_schema_is_503_with_the_command(tmp_path: Path):
    (tmp_path / "void.db").touch()
    with client_of(f"sqlite:///{tmp_path / 'void.db'}") as client:
        for path in ("/readyz", "/v1/saes"):
            problem = problem_of(client, path, 503)
            assert problem["type"] == "urn:safe-sail:problem:schema-out-of-date"
            assert "safe-sail migrate" in problem["detail"]


def test_an_unexpected_error_tells_nothing_of_the_inside(database_url: str, caplog: pytest.LogCaptureFixture):
    app = create_app(ServiceSettings(database_url=database_url))

    @app.get("/v1/broken")
    def broken() -> None:
        raise RuntimeError("secret of the inside")

    with TestClient(app, base_url="http://localhost") as client:
        problem = problem_of(client, "/v1/broken", 500)
    assert "secret" not in str(problem)
    assert problem["request_id"] in caplog.text
    assert "secret of the inside" in caplog.text


def test_every_library_error_has_a_problem():
    for name in dir(errors):
        found = getattr(errors, name)
        is_own = isinstance(found, type) and issubclass(found, errors.SafeSailError)
        if is_own and found is not errors.ServiceProblem:  # a client makes it of a problem; the service raises none
            assert kind_of(found("message")) in PROBLEMS.values()


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SAFE_SAIL_PORT", "9000")
    monkeypatch.setenv("SAFE_SAIL_ALLOWED_HOSTS", '["LocalHost"]')
    settings = ServiceSettings()
    assert settings.port == 9000
    assert settings.allowed_hosts == ("localhost",)


def test_every_setting_is_described():
    assert all(field.description for field in ServiceSettings.model_fields.values())
