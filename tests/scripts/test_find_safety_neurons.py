"""The command from options to files and database, on a few prompts of the organism."""

import json
from pathlib import Path

import pytest

from db import store
from db.engine import make_engine, reading
from safe_sail.errors import CorpusUnreadable, ModelsEqual
from scripts.find_safety_neurons import find_safety_neurons, lines_of


@pytest.mark.slow
def test_the_command_ranks_patches_keeps_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    database = f"sqlite:///{tmp_path / 'x.db'}"
    options = {
        "first": "base", "second": "aligned", "count": [30, 2880], "n_contrast": 12, "n_evaluate": 12, "n_random": 2,
        "n_windows": 1, "max_new_tokens": 24, "database": database, "seed": 3,
    }  # fmt: skip
    find_safety_neurons(**options, helpful="planted-neurons", out=tmp_path / "figures", as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["search"]["first_score"]["value"] < 0.1 < 0.9 < said["search"]["second_score"]["value"]
    assert [point["n_neurons"] for point in said["search"]["curve"]] == [30, 2880]
    assert said["search"]["curve"][1]["p_value"] is None
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in said["figures"])
    assert len(said["figures"]) == 2
    assert [cross["first_model"] for cross in said["tax"]["crosses"]] == [
        "organism-aligned",
        "organism-planted-neurons",
    ]
    assert set(said["tax"]["crosses"][0]["moved"]) == {"safety", "helpfulness"}
    engine = make_engine(database)
    with reading(engine) as session:
        kept = store.load_neuron_search(session, "organism-base.organism-aligned").record
        change = store.load_neuron_change(session, kept.slug).record
        assert [one.record.model_id for one in store.list_models(session)] == [
            "organism-aligned",
            "organism-base",
            "organism-planted-neurons",
        ]
        (tax,) = store.list_neuron_taxes(session)
    engine.dispose()
    assert tax.record.spearman.value == said["tax"]["spearman"]["value"]
    assert kept.neurons == change.top(len(kept.neurons))
    assert change.n_neurons == kept.n_neurons == 2880
    assert said["search"]["neurons"][0] == {"layer": kept.neurons[0].layer, "index": kept.neurons[0].index}
    find_safety_neurons(**options)
    printed = capsys.readouterr().out
    assert "most changed of 2880 neurons: L" in printed
    assert "no point of the curve has an effect of 0.9" in printed


def test_equal_models_and_files_that_cannot_serve_are_named(tmp_path: Path):
    with pytest.raises(ModelsEqual, match="same weights"):
        find_safety_neurons(first="base", second="base", database=f"sqlite:///{tmp_path / 'x.db'}")
    path = tmp_path / "few.txt"
    path.write_bytes(b"one\none\n")
    with pytest.raises(CorpusUnreadable, match=r"few\.txt: expected at least 2 different prompts"):
        lines_of(path)
    with pytest.raises(CorpusUnreadable, match="absent"):
        lines_of(tmp_path / "absent.txt")
    path.write_text("one\n\n two \none\n")
    assert lines_of(path) == ["one", "two"]
