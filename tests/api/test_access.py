"""Who may do what: keys and scopes beyond loopback, origins, sizes and rates."""

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, select
from typer.testing import CliRunner

from api.access import Buckets
from api.main import create_app
from api.settings import ServiceSettings
from db.engine import make_engine, reading, writing
from db.keys import Scope, create_key, find_key, revoke_key
from db.migrate import upgrade
from db.tables import ApiKeyRow
from safe_sail.errors import BadInput, BadSettings, NotFound
from scripts.main import app as commands
from scripts.serve import serve

NAME = "sail.example.org"
JOB = {"kind": "explain-features", "settings": {}}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = make_engine(f"sqlite:///{tmp_path / 'keys.db'}")
    upgrade(engine)
    yield engine
    engine.dispose()


def key(engine: Engine, scope: Scope = Scope.READ) -> str:
    with writing(engine) as session:
        return create_key(session, "a test", scope)


def client(engine: Engine, **told: object) -> TestClient:
    values = {"host": "0.0.0.0", "allowed_hosts": (NAME,)} | told
    app = create_app(ServiceSettings(database_url=str(engine.url), **values))
    return TestClient(app, base_url=f"https://{NAME}")


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def test_beyond_loopback_everything_but_health_needs_a_key(engine: Engine):
    made = key(engine)
    with client(engine) as one:
        for path in ("/v1/saes", "/", "/v1/jobs", "/v1/runs"):
            refused = one.get(path)
            assert refused.status_code == 401
            assert "Bearer" in refused.headers["www-authenticate"]
        assert one.post("/v1/jobs", json=JOB).status_code == 401
        assert one.get("/livez").status_code == one.get("/readyz").status_code == 200
        basic = base64.b64encode(f"anybody:{made}".encode()).decode()
        for headers in (bearer(made), {"X-API-Key": made}, {"Authorization": f"Basic {basic}"}):
            assert one.get("/v1/saes", headers=headers).status_code == 200
            assert one.get("/", headers=headers).status_code == 200


def test_wrong_and_revoked_keys_are_refused_also_on_loopback(engine: Engine):
    made = key(engine)
    wrong = [made[:-1] + ("A" if made[-1] != "A" else "B"), "sail_x", "", made.replace("sail_", "sail_0")]
    with client(engine, host="127.0.0.1") as one:
        assert one.get("/v1/saes").status_code == 200
        assert one.get("/v1/saes", headers=bearer(made)).status_code == 200
        for text in wrong:
            answer = one.get("/v1/saes", headers=bearer(text))
            assert answer.json()["type"] == "urn:safe-sail:problem:key-needed"
        with writing(engine) as session:
            revoke_key(session, made.split("_")[1])
        assert one.get("/v1/saes", headers=bearer(made)).status_code == 401


def test_a_key_does_what_its_scope_says(engine: Engine):
    reader, writer = key(engine, Scope.READ), key(engine, Scope.WRITE)
    with client(engine) as one:
        refused = one.post("/v1/jobs", json=JOB, headers=bearer(reader))
        assert refused.status_code == 403
        assert "scope write" in refused.json()["detail"]
        assert one.post("/v1/jobs", json=JOB, headers=bearer(writer)).status_code == 202
        assert one.get("/v1/jobs", headers=bearer(writer)).status_code == 200
    assert [Scope.ADMIN.includes(one) for one in Scope] == [True, True, True]
    assert [Scope.READ.includes(one) for one in Scope] == [True, False, False]


def test_a_key_is_kept_as_the_hash_of_its_secret_alone(engine: Engine):
    made = key(engine)
    prefix, secret = made.removeprefix("sail_").split("_", 1)
    with reading(engine) as session:
        row = session.scalars(select(ApiKeyRow)).one()
        assert row.secret_sha256 == hashlib.sha256(secret.encode()).hexdigest()
        found = find_key(session, made)
        assert found is not None
        assert found.prefix == prefix
        assert not any(secret in str(value) for value in vars(row).values())
    with pytest.raises(BadInput, match="whose it is"), writing(engine) as session:
        create_key(session, "", Scope.READ)
    with pytest.raises(NotFound, match="no key has the prefix"), writing(engine) as session:
        revoke_key(session, "nobody")


def test_the_command_makes_lists_and_revokes(engine: Engine):
    def run(*words: str) -> str:
        done = CliRunner().invoke(commands, ["keys", *words, "--database", str(engine.url)])
        assert done.exit_code == 0, done.exception
        return done.stdout

    made = run("create", "Ada", "--scope", "admin").splitlines()[0]
    assert made not in run("list")
    assert "admin" in run("list")
    assert "revoked" in run("revoke", made.split("_")[1])
    assert "revoked" in run("list")
    assert CliRunner().invoke(commands, ["keys", "create"]).exit_code != 0


def test_a_bind_beyond_loopback_needs_a_key_and_a_name(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    url = str(engine.url)
    with pytest.raises(BadSettings, match="safe-sail keys create"):
        serve(database=url, host="0.0.0.0", port=0)
    with writing(engine) as session:
        revoke_key(session, create_key(session, "old", Scope.READ).split("_")[1])
    with pytest.raises(BadSettings, match="safe-sail keys create"):
        serve(database=url, host="0.0.0.0", port=0)
    key(engine)
    with pytest.raises(BadSettings, match="SAFE_SAIL_ALLOWED_HOSTS"):
        serve(database=url, host="0.0.0.0", port=0)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),
        ({"Origin": f"https://{NAME}"}, 202),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": f"https://{NAME}:3000"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 202),
    ],
)
def test_a_page_of_another_origin_changes_nothing(engine: Engine, headers: dict[str, str], status: int):
    with client(engine, host="127.0.0.1") as one:
        answer = one.post("/v1/jobs", json=JOB, headers=headers)
        assert answer.status_code == status, answer.text
        assert one.get("/v1/saes", headers={"Origin": "https://evil.example"}).status_code == 200
        assert len(one.get("/v1/jobs").json()["items"]) == (status == 202)


def test_a_large_body_is_refused_whether_its_length_is_told_or_not(engine: Engine):
    with client(engine, host="127.0.0.1", max_body_bytes=1000) as one:
        told = one.post("/v1/jobs", content=b'{"kind": "' + b"x" * 2000)
        untold = one.post(
            "/v1/jobs", content=iter([b'{"kind": "', b"x" * 2000]), headers={"Content-Type": "application/json"}
        )
        for answer in (told, untold):
            assert answer.status_code == 413
            assert answer.json()["type"] == "urn:safe-sail:problem:too-large"


def test_an_empty_bucket_says_when_to_come_again(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    made, other = key(engine), key(engine)
    take = Buckets.take  # all at one moment: on a busy machine the buckets would fill up between the requests
    monkeypatch.setattr(Buckets, "take", lambda self, name, per_minute: take(self, name, per_minute, now=0.0))
    with client(engine, reads_per_minute=3) as one:
        answers = [one.get("/v1/saes", headers=bearer(made)) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert [answer.headers["ratelimit"].split(";")[1] for answer in answers] == ["r=2", "r=1", "r=0", "r=0"]
        assert answers[-1].headers["retry-after"] == "20"
        assert one.get("/v1/saes", headers=bearer(other)).status_code == 200
        guesses = [one.get("/v1/saes", headers=bearer("wrong")).status_code for _ in range(31)]
        assert guesses[:30] == [401] * 30
        assert guesses[30] == 429


def test_a_bucket_fills_up_steadily_and_never_beyond_its_minute():
    buckets = Buckets()
    assert [buckets.take("k", 2, now=0.0)[0] for _ in range(3)] == [1, 0, -1]
    assert buckets.take("k", 2, now=15.0) == (-1, 15.0)
    assert buckets.take("k", 2, now=30.0)[0] == 0
    assert buckets.take("k", 2, now=1000.0)[0] == 1
