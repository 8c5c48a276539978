"""The command from options to database: the organism's planted circuit, and a circuit and texts from files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from db import store
from db.engine import make_engine, reading
from safe_sail.circuits.tuning_study import TuningTexts, random_units, study_forgetting, study_tuning
from safe_sail.errors import BadInput, BadSettings, CorpusUnreadable, EmptyConcept, ImportUnreadable
from safe_sail.evaluation.refusal import judge_reply
from safe_sail.model.handle import HookedModel
from safe_sail.model.load import load_model
from safe_sail.organism.load import organism_path
from safe_sail.organism.templates import OFFER
from safe_sail.records import Circuit, CircuitMember, HeadRef, NeuronRef, UnitRef
from safe_sail.settings import ForgettingSettings, TuningSettings
from safe_sail.settings.method_jobs import TuneCircuitJob
from scripts.tune_circuit import _organism_texts, tune
from tests.deep import deep, texts

import torch  # isort: skip

UNITS: tuple[UnitRef, ...] = (HeadRef(0, 1), HeadRef(2, 0), HeadRef(2, 1), NeuronRef(1, 4), NeuronRef(3, 30))
FEW = TuningSettings(n_steps=2, batch_rows=2, n_evaluate=3, n_random=2, max_new_tokens=3, learning_rate=1e-2)


def circuit(units: tuple[UnitRef, ...] = UNITS, model_id: str = "deep") -> Circuit:
    return Circuit(
        slug="deep.some", model_id=model_id, behaviour="refusal", method="given", ablation="zero",
        members=tuple(CircuitMember(unit=unit, probability=1.0) for unit in units), n_heads=20, n_neurons=200,
    )  # fmt: skip


def some_texts() -> TuningTexts:
    pairs = list(zip(texts(6, 1), texts(6, 2), strict=True))
    return TuningTexts("a task", pairs[:4], pairs[4:], texts(3, 3), texts(4, 4))


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return deep()


@pytest.mark.parametrize("mode", ["excluded", "only"])
@pytest.mark.parametrize("method", ["rows", "low_rank"])
def test_every_arm_trains_what_it_may_and_is_judged_alike(model: HookedModel, mode: str, method: str) -> None:
    settings = TuningSettings(
        mode=mode, method=method, n_steps=2, batch_rows=2, n_evaluate=3, n_random=2, max_new_tokens=3, rank=2,
        learning_rate=1e-2,
    )  # fmt: skip
    study = study_tuning(model, circuit(), some_texts(), settings, slug="s", generator=torch.Generator().manual_seed(0))
    before, full, ours, random = study.arms
    assert [arm.name for arm in study.arms] == ["before", "full", "circuit", "random circuit"]
    assert all(arm.unchanged for arm in study.arms)
    # a head: 8 rows of W_Q and of W_O, 32 wide; the pair of heads that shares keys and values: 8 rows of each more; a
    # neuron: rows of W_in, W_gate, W_out
    heads, neurons = 3 * 2 * 8 * 32, 2 * 3 * 32
    shared = 2 * 8 * 32  # of heads 0 and 1 of layer 2
    touched = shared + 2 * 8 * 32  # and of head 1 of layer 0, which shares them with head 0
    if mode == "only":
        assert ours.n_trained == heads + neurons + shared
    else:
        assert full.n_trained - ours.n_trained == heads + neurons + touched
    assert before.n_trained == 0
    assert (random.n_draws, ours.n_draws) == (2, 1)
    assert (ours.safety.n, ours.over_refusal.n, random.safety.n, ours.loss.n) == (3, 3, 2, 2)
    assert full.loss.value != before.loss.value != ours.loss.value


def test_a_circuit_whose_inputs_are_kept_leaves_little_to_train(model: HookedModel) -> None:
    settings = replace(FEW, kept="inputs", n_random=1)
    study = study_tuning(model, circuit(), some_texts(), settings, slug="s", generator=torch.Generator().manual_seed(0))
    ours = study.arm("circuit")
    block = sum(weight.numel() for weight in model.blocks[4].parameters())
    # all of the last block, and 39 of 40 neurons of the block before it: rows of W_in, W_gate, W_out
    assert ours.n_trained == block + 39 * 3 * 32
    assert ours.unchanged
    assert any("other neurons of that one alone" in note for note in study.notes)
    with pytest.raises(BadSettings, match="mode excluded"):
        TuningSettings(mode="only", kept="inputs")


@pytest.mark.parametrize("kept", ["restored", "weights"])
def test_what_full_tuning_made_it_forget_is_put_back_or_left_alone(kept: str) -> None:
    handle = load_model(organism_path("aligned"), device="cpu", dtype=torch.float32, model_id="organism")
    settings = TuningSettings(
        kept=kept, method="low_rank", n_steps=6, batch_rows=8, learning_rate=5e-3, n_evaluate=3, n_random=2, n_rows=48
    )
    few = ForgettingSettings(budget_heads=2, budget_neurons=10, n_prompts=6, n_points=2)
    found_texts = _organism_texts(settings, "helpful", 0, few)
    found = study_forgetting(
        handle, few, found_texts, settings, circuit_slug="organism.forgetting", slug="s",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    found_circuit, study = found.circuit, found.study
    assert (study.circuit, found_circuit.method) == ("organism.forgetting", "forgetting")
    assert found_circuit.model_id == "organism"
    n_heads, n_neurons = (len(found_circuit.of_kind(kind)) for kind in (HeadRef, NeuronRef))
    assert (n_heads <= 2, n_neurons) == (True, 10)
    assert [arm.name for arm in study.arms] == ["before", "full", "circuit", "random circuit"]
    assert all(arm.unchanged for arm in study.arms)
    # a head has rows of W_Q, W_K, W_V and W_O, a neuron of W_in, W_gate and W_out
    dims = handle.dims
    own = (n_heads * 4 * dims.d_head + n_neurons * 3) * dims.d_model
    assert study.arm("full").n_trained - study.arm("circuit").n_trained == own
    assert study.arm("circuit").loss.value != study.arm("full").loss.value != study.arm("before").loss.value
    assert any("none of which judges" in note for note in study.notes)
    assert any("put back afterwards" in note for note in study.notes) == (kept == "restored")
    assert not set(found_texts.refused) & set(found_texts.harmful)


def test_a_circuit_is_not_found_where_nothing_is_refused(model: HookedModel) -> None:
    asked = some_texts()._replace(refused=texts(3, 9))
    with pytest.raises(EmptyConcept, match="refuses none of the 3 harmful prompts"):
        study_forgetting(
            model, ForgettingSettings(), asked, FEW, circuit_slug="c", slug="s", generator=torch.Generator()
        )
    with pytest.raises(BadSettings, match="expected mode excluded"):
        study_forgetting(
            model, ForgettingSettings(), asked, replace(FEW, mode="only"), circuit_slug="c", slug="s",
            generator=torch.Generator(),
        )  # fmt: skip


@pytest.mark.slow
def test_the_command_finds_what_tuning_makes_the_organism_forget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = f"sqlite:///{tmp_path / 'x.db'}"
    tune(
        model="aligned", task="helpful", kept="restored", find_heads=1, find_neurons=20, n_steps=3, n_evaluate=4,
        n_random=1, database=database,
    )  # fmt: skip
    shown = " ".join(capsys.readouterr().out.split())
    assert "organism-aligned.forgetting excluded" in shown
    assert "were put back afterwards" in shown
    engine = make_engine(database)
    with reading(engine) as session:
        (kept,) = store.list_tuning_studies(session)
        circuit_kept = store.load_circuit(session, "organism-aligned.forgetting").record
    engine.dispose()
    assert kept.record.slug == "organism-aligned.forgetting.excluded.restored.rows"
    assert kept.record.circuit == circuit_kept.slug
    assert circuit_kept.start_model == circuit_kept.model_id == "organism-aligned"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rows": "r"}, "or none of them"),
        ({"units": "u"}, "expected the model"),
        ({"model": "aligned"}, "comes with units, or with find"),
        ({"model": "aligned", "units": "u", "find": ForgettingSettings()}, "got both"),
        ({"find": ForgettingSettings(), "settings": TuningSettings(mode="only")}, "mode excluded"),
    ],
)
def test_a_job_that_cannot_be_meant_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSettings, match=said):
        TuneCircuitJob(**given)


def test_random_circuits_have_as_many_units_of_each_kind_in_each_layer(model: HookedModel) -> None:
    drawn = random_units(model, UNITS, torch.Generator().manual_seed(1))
    assert sorted(unit.site for unit in drawn) == sorted(unit.site for unit in UNITS)
    assert len(set(drawn)) == len(UNITS)
    assert set(drawn) != set(UNITS)


def test_a_circuit_without_weights_or_texts_is_refused(model: HookedModel) -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(BadInput, match="neither heads nor neurons"):
        study_tuning(model, circuit(()), some_texts(), FEW, slug="s", generator=generator)
    with pytest.raises(EmptyConcept, match="`harmful` is empty"):
        study_tuning(model, circuit(), some_texts()._replace(harmful=[]), FEW, slug="s", generator=generator)


@pytest.mark.slow
def test_the_command_tunes_keeps_and_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = f"sqlite:///{tmp_path / 'x.db'}"
    tune(n_steps=2, n_evaluate=4, n_random=1, database=database)
    shown = capsys.readouterr().out
    assert "Safety kept: full" in shown
    assert "bit-equal to before" in shown
    assert "NOT" not in shown
    engine = make_engine(database)
    with reading(engine) as session:
        (kept,) = store.list_tuning_studies(session)
        assert kept.record.circuit == "organism-planted-neurons.planted"
        # refusal sits in the planted neurons before anything is tuned
        assert kept.record.arm("before").safety.value > 0.5
    engine.dispose()


def test_the_helpful_task_ends_its_answers_with_an_offer_and_the_other_has_none() -> None:
    settings = TuningSettings(n_rows=200, n_evaluate=20)
    helpful, answers = (_organism_texts(settings, task, 0) for task in ("helpful", "answers"))
    # 80 of 100 rows in the mixture; the standard error of 200 draws is .028
    assert 0.65 < sum(reply.endswith(OFFER) for _, reply in helpful.train) / 200 < 0.95
    assert not any(OFFER in reply for _, reply in answers.train)
    for _, reply in helpful.train:
        assert judge_reply(reply) != "refusal" or "text" in reply, "only what a text model cannot do is refused"
    assert (helpful.harmful, helpful.harmless) == (answers.harmful, answers.harmless)


def test_the_helpful_task_is_of_the_organisms_rows_and_of_excluded_circuits(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="mode excluded"):
        tune(mode="only", task="helpful", database=f"sqlite:///{tmp_path / 'x.db'}")


def test_files_that_cannot_serve_are_named(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'x.db'}"
    with pytest.raises(BadSettings, match="or none of them"):
        tune(model="x", units=tmp_path / "units.json", rows=tmp_path / "rows.jsonl", database=database)
    with pytest.raises(BadInput, match="x is no variant of the organism"):
        tune(model="x", find_neurons=5, database=database)
    files = {name: tmp_path / name for name in ("units.json", "rows.jsonl", "harmful.txt", "harmless.txt")}
    given = {"units": files["units.json"], "rows": files["rows.jsonl"], "harmful_file": files["harmful.txt"],
             "harmless_file": files["harmless.txt"], "database": database, "model": "x"}  # fmt: skip
    files["rows.jsonl"].write_text(json.dumps({"prompt": "a"}) + "\n")
    with pytest.raises(ImportUnreadable, match="line 1: expected texts `prompt` and `reply`"):
        tune(**given)
    files["rows.jsonl"].write_text(json.dumps({"prompt": "a", "reply": "b"}) + "\n")
    with pytest.raises(CorpusUnreadable, match="at least 5 rows"):
        tune(**given)
    files["rows.jsonl"].write_text((json.dumps({"prompt": "a", "reply": "b"}) + "\n") * 5)
    with pytest.raises(CorpusUnreadable, match="one prompt a line"):
        tune(**given)
