"""`safe-sail intervene-features` on the organism: kept once, printed, and refused where it cannot run."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from db import store
from db.engine import make_engine, reading
from safe_sail.errors import BadInput, CorpusUnreadable, SchemaOutOfDate
from safe_sail.organism.load import organism_sae_paths
from scripts.main import app

SAE = "organism.resid_post.3.topk4-1024"


def safe_sail(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


@pytest.mark.slow
def test_features_are_changed_once_and_kept(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'found.db'}"
    collected = safe_sail(
        "collect-contexts", "--sae", str(organism_sae_paths()[SAE]), "--features", "160-175", "--n-documents", "128",
        "--database", url,
    )  # fmt: skip
    assert collected.exit_code == 0, collected.output
    words = ["intervene-features", "--database", url, "--limit", "3", "--n-prompts", "16", "--n-controls", "3"]
    first = safe_sail(*words, "--json")
    assert first.exit_code == 0, (first.output, first.exception)
    scores = json.loads(first.stdout)
    assert {(one["feature"], one["prompts"]) for one in scores} == {
        (f"{SAE}/{index}", prompts) for index in (160, 161, 162) for prompts in ("harmful", "harmless")
    }
    for one in scores:
        assert (one["refusal_change"]["n"], one["refusal_control"]["n"]) == (16, 3)
        assert one["kl"]["value"] >= 0
        if one["active_share"] == 0 and one["intervention"] == "ablate":
            assert one["kl"]["value"] == pytest.approx(0, abs=1e-6), "what is silent cannot be taken away"
    assert any(one["kl"]["value"] > 0.001 for one in scores if one["intervention"] == "boost")
    again = safe_sail(*words)
    assert "What changing a feature does" in again.stdout
    with reading(make_engine(url, read_only=True)) as session:
        runs = [run.command for run in store.list_runs(session)]
    assert runs.count("intervene-features") == 1, "a second run has nothing to do"


def test_another_model_needs_prompts_and_the_database_contexts(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'missing.db'}"
    done = safe_sail("intervene-features", "--model", "some/model", "--database", url)
    assert isinstance(done.exception, BadInput)
    assert "needs prompts of both sets" in str(done.exception)
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    done = safe_sail("intervene-features", "--harmful-file", str(empty), "--database", url)
    assert isinstance(done.exception, CorpusUnreadable)
    assert "at least 1 different prompts, one a line; got 0" in str(done.exception)
    done = safe_sail("intervene-features", "--database", url)
    assert isinstance(done.exception, SchemaOutOfDate)
    assert not (tmp_path / "missing.db").exists()
