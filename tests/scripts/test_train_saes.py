"""`safe-sail train-saes` on a tiny model: a sweep is trained once, measured on held-out text, and kept."""

import json
from pathlib import Path
from typing import Any

import pytest

from db import store
from db.engine import make_engine, reading
from safe_sail.data.corpus import corpus_batches, read_documents
from safe_sail.errors import BadInput, BadSettings, BadSite, CorpusUnreadable
from safe_sail.sae.facts import measure_facts
from safe_sail.sae.load import load_sae
from scripts.train_saes import train_saes
from tests.tiny import TEXTS, TinyModels


@pytest.fixture
def job(tiny_models: TinyModels, tmp_path: Path) -> dict[str, Any]:
    corpus = tmp_path / "texts.txt"
    corpus.write_text("\n\n".join(f"{text} {place}" for place in range(20) for text in TEXTS))
    return {
        "out": tmp_path / "saes",
        "site": ["resid_post.1", "mlp_out.0"],
        "model": str(tiny_models.folder("llama")),
        "corpus": str(corpus),
        "architecture": ["topk", "relu"],
        "width": [32],
        "k": [4],
        "sparsity": [0.2],
        "steps": 20,
        "batch_rows": 32,
        "window": 16,
        "batch_size": 8,
        "buffer_rows": 128,
        "held_out": 10,
        "database": f"sqlite:///{tmp_path / 'kept.db'}",
        "as_json": True,
    }


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def test_a_sweep_is_trained_once_and_measured_on_text_that_did_not_train(
    job: dict[str, Any], tiny_models: TinyModels, capsys: pytest.CaptureFixture[str]
):
    train_saes(**job)
    first = said(capsys)
    slugs = [f"llama.{site}.{name}-32" for site in job["site"] for name in ("topk4", "relu0.2")]
    assert first["trained"] == 4
    assert [one["sae"] for one in first["facts"]] == slugs
    written = {slug: (job["out"] / slug / "sae_weights.safetensors").stat().st_mtime_ns for slug in slugs}
    train_saes(**(job | {"k": [4, 6]}))
    second = said(capsys)
    assert second["trained"] == 2, "the new k at two sites"
    assert {one["sae"] for one in second["facts"]} == {
        *slugs,
        "llama.resid_post.1.topk6-32",
        "llama.mlp_out.0.topk6-32",
    }
    assert all((job["out"] / slug / "sae_weights.safetensors").stat().st_mtime_ns == at for slug, at in written.items())
    # the same facts from the stored folder and the first documents, read here
    model = tiny_models.handle("llama")
    documents = list(read_documents(Path(job["corpus"])))[:10]
    batches = corpus_batches(documents, model.tokenizer, window=16, batch_size=8, max_positions=64, prepend_bos=True)
    (expected,) = measure_facts(model, [load_sae(job["out"] / slugs[0])], batches)
    assert first["facts"][0]["explained_variance"] == pytest.approx(expected.explained_variance)
    assert first["facts"][0]["n_tokens"] == expected.n_tokens
    with reading(make_engine(job["database"])) as session:
        for fact in second["facts"]:
            kept = store.load_sae_facts(session, fact["sae"])
            assert kept is not None
            assert kept.record.l0 == fact["l0"]
        assert {run.command for run in store.list_runs(session)} == {"train-saes"}


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"architecture": ["gated"]}, BadInput, "topk, batchtopk, relu, jumprelu; got gated"),
        ({"architecture": ["topk"]}, BadInput, "--sparsity to relu and jumprelu"),
        ({"width": [32, 32]}, BadInput, "named once"),
        ({"site": ["resid_post.9"]}, BadSite, "resid_post.9"),
        ({"site": ["stream"]}, BadSite, "is not a site"),
        ({"k": [64]}, BadSettings, "k is at most d_sae"),
        ({"steps": 0}, BadSettings, "steps must be at least 1"),
        ({"corpus": "missing.txt"}, CorpusUnreadable, "missing.txt"),
        ({"held_out": 10_000}, BadInput, "no more documents than the 10000 that are held out"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    job: dict[str, Any], tmp_path: Path, change: dict[str, Any], error: type[Exception], says: str
):
    with pytest.raises(error, match=says):
        train_saes(**(job | change))
    assert not (tmp_path / "kept.db").exists()
    assert not (tmp_path / "saes").exists()
