"""The Parquet file over REST holds what the lines of JSON hold, read back by pyarrow; memory is that of a portion."""

import io
import json
from typing import Any

import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from api.schemas import encodable
from db.interchange.parquet import TABLES
from safe_sail.records import Context
from tests.api.seed import BARE, BEST, HOSTILE_FEATURE, SILENT_FEATURE, WEAK

Json = dict[str, Any]


def _file(client: TestClient, sae: str, more: str = "") -> pq.ParquetFile:
    answer = client.get(f"/v1/saes/{sae}/export?format=parquet{more}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/vnd.apache.parquet"
    assert f'filename="{sae}.parquet"' in answer.headers["content-disposition"]
    return pq.ParquetFile(io.BytesIO(answer.content))


def _lines(client: TestClient, sae: str, more: str = "") -> list[Json]:
    return [json.loads(line) for line in client.get(f"/v1/saes/{sae}/export?format=ndjson{more}").text.splitlines()]


def _flat(line: Json) -> Json:
    """A line of JSON, brought by hand to the columns of the file."""
    seen = line["histogram"] or {"edges": None, "counts": None}
    row = {name: line[name] for name in ("n_tokens_seen", "density", "max_activation", "contexts_run_id", "contexts")}
    sae = {name: value for name, value in line["sae"].items() if name != "slug"}
    row |= line["feature"] | sae | {f"histogram_{name}": value for name, value in seen.items()}
    row["concept_scores"] = [_record(one) for one in line["concept_scores"]]
    row["explanations"] = [
        _record(one["explanation"]) | {"scores": [_record(s, "explainer", "prompt_version") for s in one["scores"]]}
        for one in line["explanations"]
    ]
    return row


def _record(kept: Json, *without: str) -> Json:
    flat = {"run_id": kept["run_id"]}
    for name, value in kept["record"].items():
        if isinstance(value, dict) and name != "feature":
            flat |= {name if part == "value" else f"{name}_{part}": number for part, number in value.items()}
        elif name not in ("feature", *without):
            flat[name] = value
    return flat


@pytest.mark.parametrize("at_once", [200, 7])
def test_parquet_equals_the_lines_of_json(client: TestClient, monkeypatch: pytest.MonkeyPatch, at_once: int):
    monkeypatch.setattr("api.routes.exports._AT_ONCE", at_once)
    for sae in (BEST, WEAK, BARE):
        lines = _lines(client, sae)
        file = _file(client, sae)
        assert file.read().to_pylist() == [_flat(line) for line in lines]
        assert file.num_row_groups == -(-len(lines) // at_once)
    assert _file(client, BEST).num_row_groups == (1 if at_once == 200 else 6)
    indices = _file(client, BEST).read(["index"]).column("index").to_pylist()
    assert {HOSTILE_FEATURE.index, SILENT_FEATURE.index} < set(indices)


def test_parquet_takes_the_same_filter(client: TestClient):
    rows = _file(client, BEST, "&explained=true").read().to_pylist()
    assert rows == [_flat(line) for line in _lines(client, BEST, "&explained=true")]
    assert rows
    assert all(row["explanations"] for row in rows)


def test_columns_are_those_of_the_command_where_they_say_the_same(client: TestClient):
    schema = _file(client, BEST).schema_arrow
    kinds = {"string": "string", "int64": "int64", "float64": "double", "float64[]": "list", "int64[]": "list"}
    for table in ("saes", "features"):
        for name, kind in TABLES[table].items():
            if name not in ("slug", "n_contexts"):
                assert str(schema.field(name).type).startswith(kinds[kind.rstrip("?")]), name
    context = schema.field("contexts").type.value_type
    assert str(context.field("token_ids").type) == "list<element: int32 not null>"
    assert str(context.field("activations").type) == "list<element: float not null>"


def test_a_file_cut_off_is_no_file(client: TestClient):
    whole = client.get(f"/v1/saes/{BEST}/export?format=parquet").content
    with pytest.raises(Exception, match="magic bytes"):
        pq.ParquetFile(io.BytesIO(whole[:-100]))


def test_another_format_and_another_sae_are_refused(client: TestClient):
    assert client.get(f"/v1/saes/{BEST}/export?format=csv").json()["errors"][0]["where"] == "query.format"
    assert client.get("/v1/saes/nobody/export?format=parquet").status_code == 404


def test_half_a_character_in_a_source_is_shown_as_one_that_can_be_sent():
    half = Context(tokens=("a",), token_ids=(1,), activations=(1.0,), peak=0, source_id="half \udc00")
    assert encodable(half).source_id == "half \ufffd"
