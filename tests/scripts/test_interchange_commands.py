"""`safe-sail import` and `export`: every format in and out, and nothing kept of an import that fails."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from db.engine import make_engine, reading, writing
from db.migrate import upgrade
from db.store import list_runs, list_saes, save_explanations, save_top_contexts
from safe_sail.errors import BadInput, ImportUnreadable, SafeSailError
from scripts.main import app
from tests.db import builders as a

ENTRY = {"explanation": "fires on bombs", "correlation_score": 0.5, "tag_list": ["terror"]}
RELEASE_SAE = "qwen.mlp_out.17"


def call(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(done.exception, SafeSailError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store.db'}"


def released(folder: Path, entries: dict[str, object]) -> Path:
    path = folder / "released.json"
    path.write_text(json.dumps(entries))
    return path


def bring(path: Path, database: str, *more: str) -> str:
    return call("import", path, "--format", "safe-sail", "--sae", "qwen.mlp_out", "--database", database, *more)


def test_safe_sail_goes_in_and_out_and_says_what_the_file_does_not(tmp_path: Path, database: str) -> None:
    said = bring(released(tmp_path, {"17_3": ENTRY}), database)
    assert "1 features, 1 with tags, 0 with a masked explanation" in said
    assert "The file does not say what the SAEs are; they stand as mlp_out, 2048 -> 20480, safe-sail-topk" in said
    call("export", tmp_path / "out.json", "--format", "safe-sail", "--sae", RELEASE_SAE, "--database", database)
    assert json.loads((tmp_path / "out.json").read_text()) == {"17_3": ENTRY}
    engine = make_engine(database)
    with reading(engine) as session:
        (run,) = list_runs(session)
    engine.dispose()
    assert run.finished is not None
    assert list(run.settings["sha256"]) == ["released.json"]  # type: ignore[call-overload]


def test_width_and_site_may_be_given(tmp_path: Path, database: str) -> None:
    path = released(tmp_path, {"17_3": ENTRY})
    bring(path, database, "--width", "64", "--d-in", "8", "--site", "resid_post", "--architecture", "topk")
    engine = make_engine(database)
    with reading(engine) as session:
        (listed,) = list_saes(session)
    engine.dispose()
    assert (listed.sae.width, listed.sae.d_in, str(listed.sae.site)) == (64, 8, "resid_post.17")


def test_an_import_that_fails_keeps_nothing_not_even_its_run(tmp_path: Path, database: str) -> None:
    with pytest.raises(ImportUnreadable, match="key `17_99999`"):
        bring(released(tmp_path, {"17_3": ENTRY, "17_99999": ENTRY}), database)
    engine = make_engine(database)
    with reading(engine) as session:
        assert list_runs(session) == []
        assert list_saes(session) == []
    engine.dispose()


@pytest.mark.parametrize("name", ["neuronpedia", "parquet", "delphi"])
def test_folders_go_out_of_one_database_and_into_another(tmp_path: Path, database: str, name: str) -> None:
    engine = make_engine(database)
    upgrade(engine)
    a.catalogue(engine)
    with writing(engine) as session:
        save_top_contexts(session, [a.top_contexts(3)], run_id=a.RUN)
        save_explanations(session, [a.explanation(3)], run_id=a.RUN)
    engine.dispose()
    out, other = tmp_path / "out", f"sqlite:///{tmp_path / 'other.db'}"
    call("export", out, "--format", name, "--sae", a.SAE, "--explainer", "lexical", "--database", database)
    described = ["--site", "resid_post.3", "--width", "16", "--d-in", "8", "--architecture", "topk"]
    words = [] if name == "parquet" else ["--sae", a.SAE, *described, "--tokens-seen", "1000"]
    said = call("import", out, "--format", name, "--database", other, *words)
    assert "1 explanations" in said
    engine = make_engine(other)
    with reading(engine) as session:
        (listed,) = list_saes(session)
    engine.dispose()
    assert (listed.sae.slug, listed.n_explained) == (a.SAE, 1)
    assert listed.n_collected == (0 if name == "delphi" else 1)


def test_what_an_option_must_say_is_asked_for(tmp_path: Path, database: str) -> None:
    path = released(tmp_path, {"17_3": ENTRY})
    with pytest.raises(BadInput, match="--sae is needed"):
        call("import", path, "--format", "safe-sail", "--database", database)
    with pytest.raises(BadInput, match=r"expected a kind of site without its layer, as mlp_out; got `mlp_out.17`"):
        bring(path, database, "--site", "mlp_out.17")
    with pytest.raises(BadInput, match="SAE `x` is not in the database and the file does not describe it"):
        call("import", tmp_path, "--format", "neuronpedia", "--sae", "x", "--database", database)
