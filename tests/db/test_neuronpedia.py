"""Neuronpedia's batches: their field names leave, and come back as the same contexts and explanations."""

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, delete

from db.engine import reading, writing
from db.interchange.neuronpedia import Exported, Imported, export_neuronpedia, import_neuronpedia
from db.store import list_features, load_explanations, load_top_contexts, save_explanations, save_top_contexts
from db.tables import Base
from safe_sail.errors import BadInput, ExportRefused, ImportUnreadable, NotFound
from tests.db import builders as a
from tests.db.test_parquet import HOSTILE

PLACE = {"modelId": "gemma-2-2b", "layer": "20-gemmascope-res-16k", "index": "3"}
FEATURE = PLACE | {"maxActApprox": 2.5, "frac_nonzero": 0.25, "pos_str": ["x"], "pos_values": [1.0]}
ACTIVATION = PLACE | {"id": "one", "tokens": ["a", "b"], "values": [0, 2.5], "maxValue": 2.5, "maxValueTokenIndex": 1}
EXPLANATION = PLACE | {"description": "bombs", "explanationModelName": "gpt-4o-mini", "typeName": "oai_token-act-pair"}


def write(folder: Path, **kinds: list[dict[str, Any]] | bytes) -> Path:
    for kind, lines in kinds.items():
        (folder / kind).mkdir(parents=True)
        data = lines if isinstance(lines, bytes) else b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        (folder / kind / "batch-0.jsonl.gz").write_bytes(gzip.compress(data))
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def bring(engine: Engine, folder: Path, tokens_seen: int | None = 1000) -> Imported:
    with writing(engine) as session:
        return import_neuronpedia(session, folder, sae=a.SAE, tokens_seen=tokens_seen, run_id=a.RUN)


def test_what_leaves_comes_back_but_for_what_has_no_field(engine: Engine, tmp_path: Path) -> None:
    a.catalogue(engine)
    ours = dataclasses.replace(a.top_contexts(3, n=3))
    hostile = dataclasses.replace(a.top_contexts(5), contexts=(HOSTILE,), max_activation=1.5)
    said = [a.explanation(3), a.explanation(3, "bombs", "gpt"), a.explanation(9)]
    with writing(engine) as session:
        save_top_contexts(session, [ours, hostile], run_id=a.RUN)
        save_explanations(session, said, run_id=a.RUN)
    folder = tmp_path / "out"
    with reading(engine) as session:
        assert export_neuronpedia(session, a.SAE, folder) == Exported(2, 4, 3)
    with writing(engine) as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(delete(table))
    a.catalogue(engine)
    assert bring(engine, folder) == Imported(2, 4, 3, 0, 0)
    with reading(engine) as session:
        for one in (ours, hostile):
            unknown = [dataclasses.replace(c, token_ids=(-1,) * len(c.tokens)) for c in one.contexts]
            kept = load_top_contexts(session, one.feature)
            assert kept is not None
            assert kept.record == dataclasses.replace(one, contexts=tuple(unknown), histogram=None)
        found = [kept.record for index in (3, 9) for kept in load_explanations(session, a.feature(index))]
        assert sorted(found, key=str) == sorted(said, key=str)


def test_the_fields_are_theirs(engine: Engine, tmp_path: Path) -> None:
    a.catalogue(engine)
    with writing(engine) as session:
        save_top_contexts(session, [a.top_contexts(3, n=1)], run_id=a.RUN)
        save_explanations(session, [a.explanation(3)], run_id=a.RUN)
    with reading(engine) as session:
        export_neuronpedia(session, a.SAE, tmp_path / "out")
        export_neuronpedia(session, a.SAE, tmp_path / "again")
    place = {"modelId": "tiny", "layer": f"3-{a.SAE}", "index": "3"}
    (feature,) = lines(tmp_path / "out" / "features" / "batch-0.jsonl.gz")
    assert feature == place | {
        "maxActApprox": 2.0, "frac_nonzero": 0.125, "freq_hist_data_bar_heights": [5, 3],
        "freq_hist_data_bar_values": [0.5, 2.5],
    }  # fmt: skip
    (activation,) = lines(tmp_path / "out" / "activations" / "batch-0.jsonl.gz")
    assert len(activation.pop("id")) == 25
    assert activation == place | {
        "tokens": [" word0", " word1", " word2"], "values": [2.0, 0.5, 0.5], "maxValue": 2.0, "maxValueTokenIndex": 0,
        "minValue": 0.5, "dataSource": "document-0:0",
    }  # fmt: skip
    (explanation,) = lines(tmp_path / "out" / "explanations" / "batch-0.jsonl.gz")
    assert len(explanation.pop("id")) == 25
    assert explanation == place | {
        "description": "fires on weapons", "explanationModelName": "lexical", "typeName": "1",
    }  # fmt: skip
    source = json.loads((tmp_path / "out" / "source.jsonl").read_text())
    assert (source["id"], source["modelId"], source["setName"]) == (f"3-{a.SAE}", "tiny", a.SAE)
    for path in (tmp_path / "out").rglob("*.jsonl*"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "out")).read_bytes()


def test_their_files_come_in_and_what_is_left_out_is_counted(engine: Engine, tmp_path: Path) -> None:
    a.catalogue(engine)
    later = ACTIVATION | {"id": "two", "values": [7.0, 0.0]}
    people = PLACE | {"description": "a person's words", "explanationModelName": None, "typeName": None}
    folder = write(
        tmp_path / "in",
        features=[FEATURE],
        activations=[ACTIVATION, later],
        explanations=[EXPLANATION, EXPLANATION | {"description": "again"}, EXPLANATION | {"description": " "}, people],
    )
    (folder / "source.jsonl").write_text('{"num_prompts": 100, "num_tokens_in_prompt": 128}\n')
    assert bring(engine, folder, tokens_seen=None) == Imported(1, 2, 2, 1, 1)
    with reading(engine) as session:
        kept = load_top_contexts(session, a.feature(3))
        assert kept is not None
        assert (kept.record.n_tokens_seen, kept.record.density, kept.record.max_activation) == (12_800, 0.25, 2.5)
        assert [(c.source_id, c.peak, c.activations) for c in kept.record.contexts] == [
            ("two", 0, (7.0, 0.0)),
            ("one", 1, (0.0, 2.5)),
        ]
        said = [(one.record.explainer, one.record.text) for one in load_explanations(session, a.feature(3))]
        assert said == [("gpt-4o-mini", "bombs"), ("neuronpedia", "a person's words")]


@pytest.mark.parametrize(
    ("kinds", "complaint"),
    [
        ({}, "expected features/, activations/ or explanations/"),
        ({"activations": [ACTIVATION]}, r"activations alone: \[0\]"),
        ({"features": b"{\n"}, "batch-0.jsonl.gz, line 1: expected JSON"),
        ({"features": b"\n[]\n"}, "line 2: expected a JSON object"),
        ({"features": [FEATURE, FEATURE]}, "line 2: expected every feature once; got 3"),
        ({"features": [FEATURE | {"index": 3}]}, "`index` to be a text of digits; got 3"),
        ({"features": [FEATURE | {"frac_nonzero": 2}]}, "line 1: .* density lies in"),
        ({"features": [PLACE]}, "`frac_nonzero` to be a finite number; got None"),
        ({"features": [FEATURE, FEATURE | {"layer": "21-x", "index": "4"}]}, "features of one source"),
        (
            {"features": [], "activations": [ACTIVATION]},
            r"a line for every feature of the activations; got 'none for \[3",
        ),
        ({"features": [FEATURE], "activations": [ACTIVATION | {"values": [1]}]}, "a list of 2 numbers"),
        ({"features": [FEATURE], "activations": [ACTIVATION | {"values": [1, 1e39]}]}, "too large for a 32-bit"),
        ({"features": [FEATURE], "activations": [ACTIVATION | {"tokens": "ab"}]}, "`tokens` to be a list of texts"),
        ({"explanations": [EXPLANATION | {"description": None}]}, "`description` to be a text"),
        ({"explanations": [EXPLANATION | {"description": "a\x00b"}]}, "without NUL"),
        ({"features": [FEATURE], "explanations": [EXPLANATION | {"index": "16"}]}, "the features of .* are 0 to 15"),
    ],
)
def test_a_bad_line_is_named_and_leaves_nothing(
    engine: Engine, tmp_path: Path, kinds: dict[str, Any], complaint: str
) -> None:
    a.catalogue(engine)
    with pytest.raises(BadInput, match=complaint):
        bring(engine, write(tmp_path / "in", **kinds))
    with reading(engine) as session:
        assert list_features(session, a.SAE).total == 0


def test_what_the_files_lack_must_be_said(engine: Engine, tmp_path: Path) -> None:
    a.catalogue(engine)
    folder = write(tmp_path / "in", features=[FEATURE])
    with pytest.raises(BadInput, match="give it with --tokens-seen"):
        bring(engine, folder, tokens_seen=None)
    (folder / "features" / "batch-0.jsonl.gz").write_bytes(b"\x1f\x8bnonsense")
    with pytest.raises(ImportUnreadable, match="the gzip data is damaged"):
        bring(engine, folder)
    with writing(engine) as session, pytest.raises(NotFound, match="no SAE is called `nope`"):
        import_neuronpedia(session, folder, sae="nope", run_id=a.RUN)


def test_an_sae_without_a_model_needs_one_named(engine: Engine, tmp_path: Path) -> None:
    a.catalogue(engine)
    with writing(engine) as session:
        session.execute(Base.metadata.tables["sae"].update().values(model_id=None))
    with reading(engine) as session:
        with pytest.raises(ExportRefused, match="needs a layer and a model"):
            export_neuronpedia(session, a.SAE, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert export_neuronpedia(session, a.SAE, tmp_path / "out", model_id="gemma-2-2b") == Exported(0, 0, 0)
