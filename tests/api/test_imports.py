"""What one database exports another takes and exports again, byte for byte; a bad line leaves nothing behind."""

import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, func, select

from api.settings import ServiceSettings
from db.engine import make_engine, reading
from db.tables import Base
from tests.api.conftest import client_of
from tests.api.seed import BEST, HOSTILE_FEATURE, RUN
from tests.db import conftest as databases

Json = dict[str, Any]
engine, postgresql_server = databases.engine, databases.postgresql_server
sqlite_template = databases.sqlite_template
COUNTED = ("runs", "models", "concepts", "saes", "features", "contexts", "concept_scores", "explanations", "scores")


def _export(client: TestClient, form: str, sae: str = BEST) -> bytes:
    answer = client.get(f"/v1/saes/{sae}/export?format={form}")
    assert answer.status_code == 200
    return answer.content


def _post(client: TestClient, body: bytes, query: str = "") -> Any:
    return client.post(f"/v1/imports{query}", content=body, headers={"content-type": "application/x-ndjson"})


def _rows(engine: Engine) -> dict[str, int]:
    with reading(engine) as session:
        return {
            name: session.scalar(select(func.count()).select_from(table)) or 0
            for name, table in Base.metadata.tables.items()
        }


def _features(engine: Engine) -> list[Any]:
    with reading(engine) as session:
        return sorted(map(repr, session.execute(select(Base.metadata.tables["feature"]))))


def _contents(engine: Engine) -> dict[str, list[Any]]:
    with reading(engine) as session:
        return {name: sorted(map(repr, session.execute(select(table)))) for name, table in Base.metadata.tables.items()}


def test_an_export_comes_back_byte_for_byte(client: TestClient, engine: Engine):
    portable, plain = _export(client, "portable"), _export(client, "ndjson")
    assert portable.endswith(plain)
    with client_of(engine.url.render_as_string(hide_password=False)) as other:
        answer = _post(other, portable, "?source=the%20first%20one")
        assert answer.status_code == 201, answer.text
        assert _export(other, "portable") == portable
        assert _export(other, "ndjson") == plain
        report = answer.json()
        lines = [json.loads(line) for line in plain.splitlines()]
        assert report["n_lines"] == len(portable.splitlines())
        assert report["features"] == {"new": len(lines), "replaced": 0, "unchanged": 0}
        explained = [one for line in lines for one in line["explanations"]]
        assert report["explanations"]["new"] == len(explained) > 0
        assert report["scores"]["new"] == sum(len(one["scores"]) for one in explained) > 0
        assert report["contexts"]["new"] == sum(line["contexts_run_id"] is not None for line in lines)
        run = other.get(f"/v1/runs/{report['run_id']}").json()
        assert run["settings"] | {"n_lines": 0} == {
            "format": "ndjson", "source": "the first one", "sha256": report["sha256"], "n_lines": 0,
        }  # fmt: skip
        before = _contents(engine)
        again = _post(other, portable, "?source=the%20first%20one").json()
        assert _contents(engine) == before
        assert again["run_id"] == report["run_id"]
        for kind in COUNTED:
            assert again[kind] == {"new": 0, "replaced": 0, "unchanged": report[kind]["new"]}, kind


def test_a_database_s_own_export_changes_nothing_of_it(own_client: TestClient):
    features = _export(own_client, "ndjson")
    assert "\ufffd" in features.decode()  # half a character is lost on the way out, and must not be lost at home
    engine = make_engine(own_client.app.state.settings.database_url)  # type: ignore[attr-defined]
    before = _contents(engine)
    report = _post(own_client, features).json()
    after = _contents(engine)
    engine.dispose()
    assert {name for name in after if after[name] != before[name]} == {"run"}
    assert all(report[kind]["new"] == report[kind]["replaced"] == 0 for kind in COUNTED)


def test_a_text_that_changed_is_replaced_and_its_old_scores_go(own_client: TestClient):
    lines = [json.loads(line) for line in _export(own_client, "ndjson").splitlines()]
    line = next(one for one in lines if one["explanations"])
    line["explanations"][0]["explanation"]["record"]["text"] = "something else"
    line["explanations"][0]["scores"] = []
    report = _post(own_client, json.dumps(line).encode()).json()
    assert report["explanations"] == {"new": 0, "replaced": 1, "unchanged": 0}
    assert own_client.get(f"/v1/saes/{BEST}/features/{line['feature']['index']}").json() == line


def _with(change: Callable[[Json], Any]) -> Callable[[list[Json]], bytes]:
    def body(lines: list[Json]) -> bytes:
        change(lines[2])
        return b"\n".join(json.dumps(line).encode() for line in lines[:3])

    return body


BAD: dict[str, tuple[Callable[[list[Json]], bytes], str]] = {
    "no JSON": (lambda lines: json.dumps(lines[0]).encode() + b"\n\n{", "line 3: expected JSON"),
    "no UTF-8": (lambda lines: b'{"feature": "\xff"}', "line 1: expected UTF-8"),
    "a list": (lambda lines: b"[]", "line 1: expected a feature"),
    "another tool's": (lambda lines: b'{"modelId": "x", "index": "3"}', "line 1: expected a feature"),
    "not a number": (lambda lines: b'{"feature": NaN}', "line 1: expected numbers"),
    "empty": (lambda lines: b"\n\n", "empty body"),
    "a feature twice": (lambda lines: json.dumps(lines[0]).encode() + b"\n" + json.dumps(lines[0]).encode(), "line 2"),
    "an unknown field": (_with(lambda line: line.update(mine=1)), "line 3: expected exactly the fields"),
    "a field away": (_with(lambda line: line.pop("density")), "line 3: expected `density`"),
    "a text for a number": (_with(lambda line: line["feature"].update(index="7")), "line 3: expected `feature.index`"),
    "beyond the width": (
        lambda lines: b"\n\n" + json.dumps(lines[2]).replace('"index": 11}', '"index": 512}').encode(),
        "line 3: organism",
    ),
    "another feature's score": (
        _with(lambda line: line["concept_scores"][0]["record"]["feature"].update(index=1)), "line 3: expected records"
    ),
    "a score twice": (
        _with(lambda line: line["concept_scores"].append(line["concept_scores"][0])),
        "line 3: expected each",
    ),
    "a density above one": (_with(lambda line: line.update(density=1.5)), "line 3:"),
    "no float32": (_with(lambda line: line["contexts"][0]["activations"].__setitem__(0, -0.1)), "line 3: expected act"),
    "another SAE": (_with(lambda line: line["sae"].update(d_in=64)), "line 3: SAE"),
    "an unknown run": (
        _with(lambda line: (line.update(contexts_run_id="other"), line.update(density=0.5))), "line 3: run `other`"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def refusing(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Engine]]:
    """Service over a copy of the store that no test of this file changes."""
    path = tmp_path_factory.mktemp("refusing") / "store.db"
    shutil.copy(database_url.removeprefix("sqlite:///"), path)
    engine = make_engine(f"sqlite:///{path}")
    with client_of(f"sqlite:///{path}") as own:
        yield own, engine
    engine.dispose()


@pytest.fixture(scope="module")
def exported(client: TestClient) -> bytes:
    return _export(client, "ndjson")


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named_and_nothing_is_kept(refusing: tuple[TestClient, Engine], exported: bytes, name: str):
    own, engine = refusing
    lines = [json.loads(line) for line in exported.splitlines()[:3]]
    assert lines[2]["feature"]["index"] == 11
    lines[0]["density"] = lines[1]["density"] = 0.25  # good lines that would change something
    make, said = BAD[name]
    before = _rows(engine), _features(engine)
    answer = _post(own, make(lines))
    assert answer.status_code == 422, answer.text
    assert answer.json()["type"] == "urn:safe-sail:problem:invalid"
    assert said in answer.json()["detail"]
    assert (_rows(engine), _features(engine)) == before


def test_the_good_lines_before_a_bad_one_would_have_changed_something(own_client: TestClient, exported: bytes):
    lines = [json.loads(line) for line in exported.splitlines()[:2]]
    lines[0]["density"] = lines[1]["density"] = 0.25
    report = _post(own_client, b"\n".join(json.dumps(line).encode() for line in lines)).json()
    assert report["contexts"] == {"new": 0, "replaced": 2, "unchanged": 0}


def test_an_unknown_model_is_named_with_its_line(client: TestClient, empty_client: TestClient):
    answer = _post(empty_client, _export(client, "ndjson"))
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("line 1: model `organism-aligned`")
    assert empty_client.get("/v1/saes").json()["items"] == []
    assert empty_client.get("/v1/runs").json()["items"] == []


def test_a_body_beyond_the_limit_is_refused(database_url: str):
    from api.main import create_app

    settings = ServiceSettings(database_url=database_url, max_body_bytes=1000)
    with TestClient(create_app(settings), base_url="http://127.0.0.1:8420") as small:
        assert _post(small, b"x" * 1001).status_code == 413


def test_what_features_refer_to_stands_first(client: TestClient):
    lines = [json.loads(line) for line in _export(client, "portable").splitlines()]
    kinds = [next(iter(line)) for line in lines]
    assert kinds[:2] == ["run", "model"]
    assert kinds == sorted(kinds, key=["run", "model", "concept", "feature"].index)
    assert lines[0]["run"] == client.get(f"/v1/runs/{RUN}").json()
    assert any(line.get("feature", {}).get("index") == HOSTILE_FEATURE.index for line in lines)
