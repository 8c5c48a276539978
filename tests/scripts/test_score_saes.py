"""`safe-sail score-saes` on one of the organism's SAEs and on a user's files: ranking, plots, store, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest

from db.engine import make_engine, reading
from db.store import list_concepts, list_runs, load_sae_facts, load_sae_rankings, load_sae_specificity
from safe_sail.errors import BadInput, BadSettings, CorpusUnreadable
from safe_sail.organism.concept_data import concept_dataset
from safe_sail.organism.load import organism_path, organism_sae_paths
from scripts.score_report import _shared_prefix
from scripts.score_saes import score

TAXONOMY = "harm:\n  things: [weapon]\n  acts: [insult]\n"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Paired texts of two concepts as a user would write them, named by a taxonomy of his own."""
    folder = tmp_path_factory.mktemp("pairs")
    with (folder / "pairs.jsonl").open("w") as file:
        for concept in ("weapon", "insult"):
            for row in concept_dataset(concept, "train", n=24, seed=5).rows:
                line = {"text": row.text, "label": int(row.is_positive), "concept": concept, "pair": row.pair}
                file.write(json.dumps(line) + "\n")
    (folder / "taxonomy.yaml").write_text(TAXONOMY)
    return folder


def run(pairs: Path, folder: Path, **options: Any) -> None:
    paths = organism_sae_paths()
    given: dict[str, Any] = {
        "model": str(organism_path("aligned")),
        "model_id": "organism-aligned",
        "sae": [str(paths[f"organism.resid_post.3.{name}-1024"]) for name in ("topk4", "topk8")],
        "concepts": [str(pairs / "pairs.jsonl")],
        "taxonomy": pairs / "taxonomy.yaml",
        "n_bootstrap": 200,
        "database": f"sqlite:///{folder / 'kept.db'}",
    }
    score(**given | options)


def test_a_users_pairs_rank_saes_and_everything_is_kept(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run(pairs, tmp_path, corpus=str(pairs / "pairs.jsonl"), out=tmp_path / "plots", as_json=True)
    said = json.loads(capsys.readouterr().out)
    slugs = {"organism.resid_post.3.topk4-1024", "organism.resid_post.3.topk8-1024"}
    assert {one["sae"] for one in said["ranking"]} == slugs
    assert [one["place"] for one in said["ranking"]] == [1, 2]
    assert len(said["specificity"]) == len(said["scores"]) == 4
    assert all(one["specific"]["value"] > 0 for one in said["specificity"])
    names = ["l0_curves.png", "i_cdf.png", "sparsity.png"]
    assert said["plots"] == [str(tmp_path / "plots" / name) for name in names]
    for name in names:
        assert (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG")
    engine = make_engine(f"sqlite:///{tmp_path / 'kept.db'}")
    with reading(engine) as session:
        (kept,) = list_runs(session)
        assert kept.finished is not None
        assert [one.sae for one in load_sae_rankings(session, kept.run_id)] == [o["sae"] for o in said["ranking"]]
        assert {(c.name, c.category, c.domain) for c in list_concepts(session)} == {
            ("weapon", "things", "harm"),
            ("insult", "acts", "harm"),
        }
        for slug in slugs:
            assert len(load_sae_specificity(session, slug)) == 2
            facts = load_sae_facts(session, slug)
            assert facts is not None
            assert facts.record.l0 == pytest.approx(4 if "topk4" in slug else 8, abs=0.01)
    engine.dispose()


def test_the_table_names_places_ties_and_the_way_on(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(pairs, tmp_path)
    said = capsys.readouterr().out
    assert "organism.resid_post.3.…" in said
    assert "topk4-1024" in said
    assert "safe-sail serve" in said
    assert "…" not in said.split("tied: places")[0].replace("resid_post.3.…", ""), "no cell may be cut"


def test_bad_input_is_refused_before_anything_is_kept(pairs: Path, tmp_path: Path):
    for error, options in (
        (CorpusUnreadable, {"concepts": [str(tmp_path / "missing.jsonl")]}),
        (CorpusUnreadable, {"taxonomy": None}),
        (BadInput, {"concepts": [str(pairs / "pairs.jsonl")] * 2}),
        (BadInput, {"dtype": "int8"}),
        (BadSettings, {"n_bootstrap": 1}),
        (BadSettings, {"max_gib": 0.0}),
        (BadSettings, {"max_gib": 1e-6}),
        (CorpusUnreadable, {"corpus": str(tmp_path / "missing.jsonl")}),
    ):
        with pytest.raises(error):
            run(pairs, tmp_path, **options)
    assert not (tmp_path / "kept.db").exists()


def test_slugs_are_shortened_at_a_dot():
    assert _shared_prefix(["a.b.topk4", "a.b.topk8"]) == "a.b."
    assert _shared_prefix(["a.b", "c.d"]) == ""
    assert _shared_prefix(["a.b"]) == ""
    assert _shared_prefix(["a.b", "a.b.c"]) == ""
