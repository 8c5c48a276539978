"""`safe-sail find-circuit` on a tiny model with files, and what it says to bad input."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from db import store
from db.engine import make_engine, reading
from db.store.whole import from_json
from safe_sail.errors import BadInput, BadSettings, BadText, CircuitMismatch, SafeSailError
from safe_sail.organism.load import organism_path
from safe_sail.records import Circuit, NeuronRef
from scripts.main import app
from tests.tiny import TinyModels

WORDS = ("fox", "dog", "bread", "home", "answer", "anger", "kind", "lazy", "quick", "brown")


def files(folder: Path, *, lacking: str = "") -> tuple[Path, Path]:
    target, kept = folder / "target.jsonl", folder / "kept.jsonl"
    rows = [{"prompt": f"the {word}", "with_circuit": "no dog", "without_circuit": f"a {word}"} for word in WORDS]
    rows[3].pop(lacking, None)
    target.write_text("\n".join(map(json.dumps, rows)))
    kept.write_text("\n".join(json.dumps({"prompt": f"how {word}", "reply": "at home"}) for word in WORDS))
    return target, kept


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["find-circuit", *arguments])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def test_a_search_is_printed_kept_written_and_drawn(tmp_path: Path, tiny_models: TinyModels) -> None:
    target, kept = files(tmp_path)
    database = f"sqlite:///{tmp_path / 'kept.db'}"
    printed = run(
        "--model", str(tiny_models.folder("llama")), "--target-file", str(target), "--kept-file", str(kept),
        "--steps", "2", "--n-seeds", "2", "--n-random", "1", "--budget-neurons", "2", "--out", str(tmp_path / "out"),
        "--database", database, "--json",
    )  # fmt: skip
    found = json.loads(printed)
    circuit = from_json(Circuit, json.dumps(found["search"]["circuit"]))
    assert (len(circuit.members), circuit.n_heads, circuit.n_neurons) == (3, 8, 80)
    engine = make_engine(database)
    with reading(engine) as session:
        assert store.load_circuit(session, "llama.refusal").record == circuit
        search = store.load_circuit_search(session, "llama.refusal").record
        (evaluation,) = store.load_circuit_evaluations(session, "llama.refusal")
    engine.dispose()
    assert evaluation.record.null_gap == 0.0
    assert search.stability is not None
    assert search.stability.seeds == (0, 1)
    written = json.loads((tmp_path / "out" / "circuit.json").read_text())
    assert written["search"] == found["search"]
    for name in ("units.png", "sizes.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_ranked_heads_are_kept_beside_the_searched_circuit(tmp_path: Path, tiny_models: TinyModels) -> None:
    target, kept = files(tmp_path)
    database = f"sqlite:///{tmp_path / 'kept.db'}"
    printed = run(
        "--model", str(tiny_models.folder("llama")), "--target-file", str(target), "--kept-file", str(kept),
        "--method", "ships", "--budget-heads", "2", "--n-random", "1", "--database", database, "--json",
    )  # fmt: skip
    found = json.loads(printed)
    engine = make_engine(database)
    with reading(engine) as session:
        circuit = store.load_circuit(session, "llama.refusal.ships").record
        (evaluation,) = store.load_circuit_evaluations(session, "llama.refusal.ships")
    engine.dispose()
    assert (circuit.method, len(circuit.members), circuit.n_heads, circuit.n_neurons) == ("ships", 2, 8, 0)
    assert [size["n_heads"] for size in found["search"]["curve"]] == [1, 2, 4]
    assert evaluation.record.null_gap == 0.0


def test_another_model_takes_the_organisms_prompts_where_it_is_told_to(tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.symlink_to(organism_path("aligned"))
    printed = run(
        "--model", str(folder), "--organism-prompts", "--steps", "1", "--n-seeds", "1", "--n-random", "1",
        "--budget-neurons", "1", "--n-train", "4", "--n-validation", "4", "--n-evaluate", "2",
        "--database", f"sqlite:///{tmp_path / 'kept.db'}", "--json",
    )  # fmt: skip
    found = json.loads(printed)
    assert found["search"]["slug"] == "other.refusal"
    plain = {one["prompts"]: one for one in found["evaluation"]["replies"] if one["intervention"] == "none"}
    # prompts that the model knows: it refuses the harmful ones and answers the others
    assert plain["harmful"]["refusal"]["value"] == plain["safe"]["compliance"]["value"] == 1.0


def test_removed_units_take_a_start_models_weights(tmp_path: Path, tiny_models: TinyModels) -> None:
    target, kept = files(tmp_path)
    start = tmp_path / "start"
    shutil.copytree(tiny_models.folder("llama"), start)
    weights = load_file(start / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name] = weights[name].index_fill(1, torch.tensor([4, 9]), 0.5)
    save_file(weights, start / "model.safetensors", metadata={"format": "pt"})
    database = f"sqlite:///{tmp_path / 'kept.db'}"
    run(
        "--model", str(tiny_models.folder("llama")), "--start-model", str(start), "--target-file", str(target),
        "--kept-file", str(kept), "--steps", "2", "--n-seeds", "1", "--n-random", "1", "--budget-heads", "2",
        "--budget-neurons", "7", "--database", database, "--json",
    )  # fmt: skip
    engine = make_engine(database)
    with reading(engine) as session:
        circuit = store.load_circuit(session, "llama.refusal").record
        (evaluation,) = store.load_circuit_evaluations(session, "llama.refusal")
    engine.dispose()
    assert (circuit.ablation, circuit.start_model) == ("start", "start")
    assert circuit.units == (NeuronRef(1, 4), NeuronRef(1, 9))
    assert evaluation.record.ablation == "start"
    assert evaluation.record.null_gap == 0.0
    with pytest.raises(CircuitMismatch, match="does not fit"):
        run("--start-model", str(start), "--n-seeds", "1", "--database", database)


def test_bad_input_is_said_before_a_model_is_loaded(tmp_path: Path) -> None:
    target, kept = files(tmp_path, lacking="without_circuit")
    with pytest.raises(BadText, match=r"row 4: expected texts .* `without_circuit` is missing"):
        run("--model", "nowhere", "--target-file", str(target), "--kept-file", str(kept))
    with pytest.raises(BadInput, match="give both"):
        run("--target-file", str(target))
    with pytest.raises(BadInput, match="no variant of the organism"):
        run("--model", "nowhere")
    with pytest.raises(SafeSailError, match="masks or ships; got sips"):
        run("--method", "sips")
    with pytest.raises(BadSettings, match="go together"):
        run("--start-model", "nowhere", "--ablation", "zero")
    with pytest.raises(BadSettings, match="go together"):
        run("--ablation", "start")
    with pytest.raises(BadSettings, match="take zero, mean or resample"):
        run("--start-model", "base", "--method", "ships")
    with pytest.raises(SafeSailError, match="leaves no circuit"):
        run("--budget-heads", "0", "--budget-neurons", "0")
