"""What units' changes did to a loss: it sums to the change, is a naive sum of gradients, and finds what was broken."""

import copy

import pytest
import torch

from safe_sail.circuits.baselines import Baseline
from safe_sail.circuits.entries import Entries, block_entries, unit_entries, without
from safe_sail.circuits.forgetting import change_effects, find_forgetting, put_back
from safe_sail.circuits.masked import masked_circuit, start_baseline
from safe_sail.circuits.masks import UnitSpace, unit_space
from safe_sail.circuits.tuning import reply_loss
from safe_sail.errors import BadSettings, CircuitMismatch, EmptyConcept
from safe_sail.evaluation.utility import TokenRow
from safe_sail.model.handle import HookedModel
from safe_sail.records import HeadRef, NeuronRef, UnitRef
from safe_sail.settings import ForgettingSettings
from tests.hand import UNITS, hand_model, hand_prompts
from tests.identities.test_start_baseline import other, some_circuit
from tests.tiny import FAMILIES, TEXTS, TinyModels

MIXTURES = ("MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")
MULTI_HEAD = ("gpt2", "gpt_neox", "falcon_sequential")
"""Families of `FAMILIES` whose heads have keys and values of their own."""


def rows_of(handle: HookedModel) -> list[TokenRow]:
    return [TokenRow(tuple(handle.batch([text]).token_ids[0].tolist()), 2 + n % 2) for n, text in enumerate(TEXTS)]


def former(handle: HookedModel, space: UnitSpace) -> tuple[HookedModel, Baseline]:
    """The model before it was tuned to what `handle` is."""
    before = other(handle, elsewhere=False)
    return before, start_baseline(handle, before, space)


@pytest.mark.parametrize("family", FAMILIES)
def test_effects_sum_to_what_units_changes_did_to_the_loss(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    space, rows = unit_space(handle), rows_of(handle)
    before, baseline = former(handle, space)
    found = change_effects(handle, space, baseline, rows, n_points=12)
    # the two ends are the two models, which differ in units alone here
    assert found.tuned == pytest.approx(float(reply_loss(handle, rows)), abs=1e-5)
    assert found.put_back == pytest.approx(float(reply_loss(before, rows)), abs=1e-5)
    change = found.tuned - found.put_back
    # in a mixture the loss jumps where a token changes its experts along the line
    part = 0.5 if handle.architecture.class_name in MIXTURES else 0.01
    assert float(found.units.sum()) == pytest.approx(change, abs=part * abs(change) + 2e-4)
    assert int((found.units != 0).sum()) > space.n_units / 2


@pytest.mark.parametrize("family", MULTI_HEAD)
def test_effects_are_gradients_by_weights_times_their_change(family: str, tiny_models: TinyModels) -> None:
    """Weight by weight, on models put together by hand."""
    handle = tiny_models.handle(family)
    assert handle.dims.n_heads == handle.dims.n_kv_heads
    space, rows, n_points = unit_space(handle), rows_of(handle), 3
    before, baseline = former(handle, space)
    found = change_effects(handle, space, baseline, rows, n_points=n_points)
    naive = torch.zeros(space.n_units)
    entries = [unit_entries(handle, [space.unit(place)], shared="whole") for place in range(space.n_units)]  # type: ignore[list-item]
    for point in range(n_points):
        part = (point + 0.5) / n_points
        between = HookedModel(copy.deepcopy(handle.model), handle.tokenizer, handle.architecture, model_id="between")
        for name, weight in between.model.named_parameters():
            old, new = before.model.get_parameter(name), handle.model.get_parameter(name)
            weight.data = old + part * (new - old)
            weight.requires_grad_()
        with torch.enable_grad():
            reply_loss(between, rows).backward()
        for place, own in enumerate(entries):
            for name, index in own.items():
                change = handle.model.get_parameter(name) - before.model.get_parameter(name)
                grad = between.model.get_parameter(name).grad
                assert grad is not None
                naive[place] += (grad * change).reshape(-1)[index].sum() / n_points
    torch.testing.assert_close(found.units.float(), naive, atol=2e-6, rtol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_put_back_are_the_former_ones_and_no_others(family: str, tiny_models: TinyModels) -> None:
    tuned = tiny_models.handle(family)
    before = other(tuned, elsewhere=True)
    circuit = some_circuit(tuned)
    units: list[UnitRef] = [unit for unit in circuit.units if isinstance(unit, HeadRef | NeuronRef)]
    entries = unit_entries(tuned, units, shared="touched")
    restored = put_back(before, tuned, entries)
    for name, weight in restored.model.named_parameters():
        is_former = torch.zeros(weight.numel(), dtype=torch.bool)
        is_former[entries.get(name, torch.tensor([], dtype=torch.long))] = True
        former_, tuned_ = (one.model.get_parameter(name).reshape(-1) for one in (before, tuned))
        assert torch.equal(weight.reshape(-1), torch.where(is_former, former_, tuned_)), name
    if tuned.dims.n_heads == tuned.dims.n_kv_heads:
        # the same circuit, removed under a baseline of former weights
        batch, space = tuned.batch(TEXTS), unit_space(tuned)
        seen = masked_circuit(tuned, circuit, "removed", start_baseline(tuned, before, space))
        assert torch.equal(restored.logits(batch), seen.handle.logits(batch, seen.edits))


def broken(before: HookedModel, *, idle: bool) -> HookedModel:
    """The hand-made model with its circuit's writing taken away; `idle`: every other unit writes as much to no
    purpose."""
    model = copy.deepcopy(before.model)
    head, reader = model.model.layers[0].self_attn, model.model.layers[1].mlp
    head.o_proj.weight[2, 4] = 0
    for neuron in (3, 5):
        reader.down_proj.weight[3, neuron] = 0
    if idle:
        rest: Entries = without(block_entries(before), unit_entries(before, UNITS, shared="whole"))
        for name, index in rest.items():
            # directions from 8 on are read by nothing but noise
            weight = model.get_parameter(name)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                chosen = index[index // weight.shape[1] >= 8]
                weight.view(-1)[chosen] += 0.05
    return HookedModel(model, before.tokenizer, before.architecture, model_id="hand")


def hand_rows(handle: HookedModel) -> tuple[list[TokenRow], list[TokenRow]]:
    prompts = hand_prompts(12, 0)

    def rows(pairs: list[tuple[str, str]]) -> list[TokenRow]:
        found = []
        for prompt, reply in pairs:
            ids = handle.batch([prompt]).token_ids[0].tolist()
            found.append(TokenRow((*ids, handle.tokenizer.convert_tokens_to_ids(reply)), len(ids)))
        return found

    return rows([(one.prompt, "b") for one in prompts.target]), rows([(one.prompt, one.reply) for one in prompts.kept])


@pytest.mark.parametrize("idle", [False, True])
def test_what_was_broken_by_hand_is_found(idle: bool) -> None:
    before = hand_model()
    tuned = broken(before, idle=idle)
    refusals, task = hand_rows(before)
    settings = ForgettingSettings(budget_heads=1, budget_neurons=2)
    found = find_forgetting(before, tuned, refusals, task, settings, slug="hand.forgetting")
    assert found.circuit.units == UNITS
    assert (found.circuit.method, found.circuit.start_model) == ("forgetting", "hand")
    assert found.refusals.tuned > found.refusals.put_back + 0.1
    assert found.share > 0.9
    back = put_back(before, tuned, unit_entries(before, UNITS, shared="touched"))
    assert float(reply_loss(back, refusals)) == pytest.approx(float(reply_loss(before, refusals)), abs=0.02)


def test_a_wider_budget_takes_no_unit_whose_change_did_no_harm() -> None:
    before = hand_model()
    tuned = broken(before, idle=False)
    refusals, task = hand_rows(before)
    settings = ForgettingSettings(budget_heads=4, budget_neurons=12)
    found = find_forgetting(before, tuned, refusals, task, settings, slug="hand.forgetting")
    assert found.circuit.units == UNITS, "the others have not changed"


def test_what_cannot_be_found_is_said() -> None:
    before = hand_model()
    refusals, task = hand_rows(before)
    few = ForgettingSettings(budget_heads=1, budget_neurons=2)
    with pytest.raises(CircuitMismatch, match="same weights in every unit"):
        find_forgetting(before, before, refusals, task, few, slug="s")
    with pytest.raises(EmptyConcept, match="none of refusals"):
        find_forgetting(before, broken(before, idle=False), [], task, few, slug="s")
    # the other way round the change brought the reply, so nothing was forgotten
    with pytest.raises(CircuitMismatch, match="nothing to put back"):
        find_forgetting(broken(before, idle=False), before, refusals, task, few, slug="s")
    with pytest.raises(BadSettings, match="no heads and no neurons"):
        ForgettingSettings(budget_heads=0, budget_neurons=0)
