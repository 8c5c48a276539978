"""Other ways to the circuit that was built by hand: objectives with two masks and with KL, exchanges, ranked heads."""

import copy
from collections.abc import Collection
from dataclasses import replace

import pytest
import torch

from db.store.whole import from_json, to_json
from safe_sail.circuits.baselines import ZERO
from safe_sail.circuits.entries import unit_entries
from safe_sail.circuits.learn import Task, mask_loss
from safe_sail.circuits.masked import start_baseline
from safe_sail.circuits.masks import unit_space
from safe_sail.circuits.objectives import objective_terms, term_rows
from safe_sail.circuits.ranking import rank_circuit
from safe_sail.circuits.reference import masked_model
from safe_sail.circuits.refine import refine_circuit
from safe_sail.errors import BadSettings
from safe_sail.model.handle import HookedModel
from safe_sail.records import Circuit, HeadRef, NeuronRef, UnitRef
from tests.hand import NOISE, UNITS, hand_model, hand_prompts
from tests.planted.test_hand_circuit import BEHAVIOUR, SETTINGS, first_letters, search


def test_two_masks_of_the_backdoor_objective_find_it_removed_and_alone() -> None:
    settings = replace(SETTINGS, objective="backdoor", ablation="zero", max_need=0)
    found = search(hand_model(), settings)
    assert found.circuit.units == UNITS
    assert found.alone is not None
    assert found.alone.units == UNITS
    assert set(found.n_prompts) == {
        f"{term} {split}"
        for term in ("clean", "wanted", "carried", "away", "kept")
        for split in ("train", "validation")
    }


def test_a_circuit_read_from_json_makes_masked_models_that_say_what_the_search_saw() -> None:
    handle = hand_model()
    found = search(handle, replace(SETTINGS, ablation="zero", max_need=0))
    circuit = from_json(Circuit, to_json(found.circuit))
    prompts = hand_prompts(12, 3)
    target, clean = [one.prompt for one in prompts.target], [one.prompt for one in prompts.kept]
    removed, alone = (masked_model(handle, circuit, view) for view in ("removed", "alone"))  # type: ignore[arg-type]
    assert (first_letters(removed, target, {}), first_letters(removed, clean, {})) == ({"a"}, {"a"})
    assert (first_letters(alone, target, {}), first_letters(alone, clean, {})) == ({"b"}, {"a"})
    assert first_letters(handle, target, {}) == {"b"}


def test_kl_to_the_full_model_with_the_circuit_alone_finds_it() -> None:
    found = search(hand_model(), replace(SETTINGS, objective="kl", kept_weight=1.0, ablation="zero", max_need=0))
    assert found.circuit.units == UNITS


def before_training(handle: HookedModel, distracted: Collection[UnitRef]) -> HookedModel:
    """The hand-made model with the circuit's weights, and those of other units, as noise: what it was trained from."""
    start = HookedModel(copy.deepcopy(handle.model), handle.tokenizer, handle.architecture, model_id="hand-start")
    draw = torch.Generator().manual_seed(5)
    for name, index in unit_entries(handle, [*UNITS, *distracted], shared="touched").items():
        start.model.get_parameter(name).view(-1)[index] = NOISE * torch.randn(len(index), generator=draw)
    return start


def test_a_start_model_tells_trained_units_that_matter_from_trained_ones_that_do_not() -> None:
    handle = hand_model()
    idle = (HeadRef(1, 2), NeuronRef(0, 7), NeuronRef(1, 1), NeuronRef(1, 9))
    for gate, distracted in (("top_k", idle), ("straight_through", idle), ("top_k", ())):
        baseline = start_baseline(handle, before_training(handle, distracted), unit_space(handle))
        initial = -1.0 if gate != "top_k" else -2.0
        settings = replace(SETTINGS, gate=gate, ablation="start", initial_logit=initial, max_need=0)
        found = search(handle, settings, baseline=baseline)
        assert found.circuit.units == UNITS
        assert (found.circuit.ablation, found.circuit.start_model) == ("start", "hand-start")
        assert any(f"{3 + len(distracted)} of 32 units" in note for note in found.notes)


def test_units_that_a_start_model_shares_are_never_members_whatever_the_budget() -> None:
    handle = hand_model()
    baseline = start_baseline(handle, before_training(handle, ()), unit_space(handle))
    settings = replace(SETTINGS, ablation="start", budget_heads=3, budget_neurons=9, refine_rounds=1, max_need=0)
    found = search(handle, settings, baseline=baseline)
    assert found.circuit.units == UNITS
    with pytest.raises(BadSettings, match="the baseline is start"):
        search(handle, SETTINGS, baseline=baseline)


def test_exchanges_lead_from_a_wrong_circuit_to_the_right_one() -> None:
    # with the head gone the neurons have nothing left to do; alone, the circuit needs all three
    handle = hand_model()
    settings = replace(SETTINGS, objective="alignment", refine_rounds=4, refine_candidates=6, refine_rows=24)
    space, prompts = unit_space(handle), hand_prompts(24, 1)
    rows = term_rows(handle, objective_terms(settings), prompts, settings)
    task = Task(handle, space, rows, rows, ZERO, settings)
    wrong, right = torch.zeros(space.n_units), torch.zeros(space.n_units)
    wrong[[space.place(unit) for unit in (HeadRef(1, 2), NeuronRef(0, 1), NeuronRef(1, 5))]] = 1
    right[[space.place(unit) for unit in UNITS]] = 1
    found, losses = refine_circuit(task, wrong, lambda _: None)
    assert torch.equal(found, right)
    assert list(losses) == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(mask_loss(task, wrong[None]), rel=1e-5)
    assert losses[-1] == pytest.approx(mask_loss(task, right[None]), rel=1e-5)
    again, idle = refine_circuit(task, right, lambda _: None)
    assert torch.equal(again, right)
    assert len(idle) == 1


def test_a_search_with_exchanges_keeps_members_the_likeliest_units() -> None:
    settings = replace(SETTINGS, objective="alignment", refine_rounds=2, steps=2, check_every=2, max_need=0)
    found = search(hand_model(), settings, seeds=(0, 1))
    assert found.circuit.units == UNITS
    assert min(one.probability for one in found.circuit.members) > 0.5
    assert [len(losses) for losses in found.losses.values()] == [2, 2]
    assert any("chosen by validation replies" in note for note in found.notes)


def test_ranked_heads_are_a_circuit_with_the_record_of_a_search() -> None:
    handle, settings = hand_model(), replace(SETTINGS, budget_heads=2)
    validation = hand_prompts(12, 2)

    def rank(settings=settings):  # type: ignore[no-untyped-def]
        return rank_circuit(
            handle, hand_prompts(24, 1), validation, ZERO, settings, BEHAVIOUR, slug="hand.ships",
            harmless=[one.prompt for one in validation.kept], planted=UNITS,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip

    found, scores = rank()
    assert scores.heads[0].head == HeadRef(0, 1)
    assert HeadRef(0, 1) in found.circuit.units
    assert (found.circuit.method, len(found.circuit.members), found.circuit.n_heads) == ("ships", 2, 8)
    assert [(size.n_heads, size.removed.value) for size in found.curve] == [(1, 1.0), (2, 1.0), (4, 1.0)]
    (heads, _) = found.recovery
    assert (heads.precision.value, heads.recall.value) == (0.5, 1.0)
    needed = {one.unit for one in found.needs if one.removed.value < 0.5}
    assert needed == {HeadRef(0, 1)}
    with pytest.raises(BadSettings, match="at least one head"):
        rank(replace(settings, budget_heads=0))
