"""Tuning changes what it may and nothing else, and merged weights are the hooked ones, on every family."""

import copy

import pytest
import torch

from safe_sail.circuits.entries import Entries, block_entries, n_entries, unit_entries, unread_entries, without
from safe_sail.circuits.tuning import LowRankDelta, RowDelta, reply_loss, tuned_copy
from safe_sail.errors import BadInput, BadSettings, BadText
from safe_sail.evaluation.utility import TokenRow
from safe_sail.model.edits import zero_heads, zero_neurons
from safe_sail.model.handle import HookedModel
from safe_sail.organism.load import organism_path
from safe_sail.organism.planting import trained_entries
from safe_sail.organism.recipes import Planting
from safe_sail.records import HeadRef, NeuronRef, UnitRef
from safe_sail.settings import TuningSettings
from safe_sail.sites import Site, SiteKind
from tests.tiny import FAMILIES, TEXTS, TinyModels

FEW = TuningSettings(n_steps=3, batch_rows=2, learning_rate=1e-2, rank=3)


def rows_of(handle: HookedModel) -> list[TokenRow]:
    return [TokenRow(tuple(handle.batch([text]).token_ids[0].tolist()), 3) for text in TEXTS]


def units_of(handle: HookedModel) -> list[UnitRef]:
    neurons: list[UnitRef] = [NeuronRef(1, 5), NeuronRef(1, 17)] if handle.has_site(Site(SiteKind.MLP_ACT, 1)) else []
    return [HeadRef(0, 0), HeadRef(0, 1), HeadRef(1, 3), *neurons]


def tuned(handle: HookedModel, allowed: Entries, settings: TuningSettings = FEW) -> HookedModel:
    return tuned_copy(handle, rows_of(handle), allowed, settings, generator=torch.Generator().manual_seed(0))


def changed(before: HookedModel, after: HookedModel) -> Entries:
    parameters = dict(after.model.named_parameters())
    assert parameters.keys() == dict(before.model.named_parameters()).keys()
    found = {name: (one != parameters[name]).flatten().nonzero()[:, 0] for name, one in before.model.named_parameters()}
    return {name: index for name, index in found.items() if len(index)}


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_outside_the_circuit_are_bit_equal(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    allowed = unit_entries(handle, units_of(handle), shared="whole")
    after = changed(handle, tuned(handle, allowed))
    assert set(after) <= set(allowed)
    for name, index in after.items():
        assert bool(torch.isin(index, allowed[name]).all()), name
    # what a unit reads and writes did learn
    assert n_entries(after) > 0.5 * n_entries(allowed)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_circuit_whose_inputs_are_kept_does_the_same_on_every_text(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    early = [unit for unit in units_of(handle) if unit.layer == 0]
    for units in (early, [*early, NeuronRef(1, 5)] if len(units_of(handle)) > 3 else early):
        batch, sites = handle.batch(TEXTS[::-1]), sorted({unit.site for unit in units})
        after = tuned(handle, unread_entries(handle, units))
        whole = tuned(handle, without(block_entries(handle), unit_entries(handle, units, shared="touched")))
        first, kept, moved = (one.capture(batch, sites) for one in (handle, after, whole))
        for unit in units:
            assert torch.equal(kept[unit.site][:, :, unit.index], first[unit.site][:, :, unit.index])
        # with its weights alone kept, a circuit's values move with what it reads
        last = units[-1]
        assert not torch.equal(moved[last.site][:, :, last.index], first[last.site][:, :, last.index])
        assert not torch.equal(after.logits(batch), handle.logits(batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_circuit_that_is_left_out_is_bit_equal_and_the_rest_learns(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    kept = unit_entries(handle, units_of(handle), shared="touched")
    after = changed(handle, tuned(handle, without(block_entries(handle), kept)))
    for name, index in after.items():
        assert name not in kept or not bool(torch.isin(index, kept[name]).any()), name
    assert n_entries(after) > 0.5 * (n_entries(block_entries(handle)) - n_entries(kept))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_units_weights_are_all_that_the_units_write_and_read(family: str, tiny_models: TinyModels) -> None:
    # with the units' entries drawn anew, a model whose units are zeroed says the same as before; and it says something
    # else when they are not zeroed
    handle, other = tiny_models.handle(family), tiny_models.fresh(family)
    units = units_of(handle)
    generator = torch.Generator().manual_seed(1)
    for name, index in unit_entries(handle, units, shared="whole").items():
        other.model.get_parameter(name).data.reshape(-1)[index] = torch.randn(len(index), generator=generator)
    edits = {}
    for layer in range(2):
        site = Site(SiteKind.HEAD_OUT, layer)
        edits[site] = zero_heads([unit.index for unit in units if unit.site == site])
    if any(isinstance(unit, NeuronRef) for unit in units):
        edits[Site(SiteKind.MLP_ACT, 1)] = zero_neurons([u.index for u in units if isinstance(u, NeuronRef)])
    batch = handle.batch(TEXTS)
    if family != "olmo2":  # its norm of queries and keys is over all heads at once, so no head's rows are its own
        torch.testing.assert_close(handle.logits(batch, edits), other.logits(batch, edits), atol=2e-5, rtol=2e-5)
    assert (handle.logits(batch) - other.logits(batch)).abs().max() > 1e-2


def test_key_and_value_rows_go_with_all_their_heads_or_with_one(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")  # 4 heads, 2 key-value heads of width 8

    def rows(units: list[UnitRef], name: str, shared: str) -> list[int]:
        entries = unit_entries(handle, units, shared=shared)  # type: ignore[arg-type]
        index = entries.get(f"model.layers.0.self_attn.{name}.weight", torch.tensor([], dtype=torch.long))
        return sorted({int(place) // 32 for place in index})

    assert rows([HeadRef(0, 1)], "q_proj", "whole") == list(range(8, 16))
    assert rows([HeadRef(0, 1)], "k_proj", "whole") == []
    assert rows([HeadRef(0, 1)], "k_proj", "touched") == list(range(8))
    assert rows([HeadRef(0, 0), HeadRef(0, 1)], "v_proj", "whole") == list(range(8))


def test_entries_on_the_organism_are_those_of_its_planting() -> None:
    from safe_sail.model.load import load_model

    handle = load_model(organism_path("aligned"), device="cpu", dtype=torch.float32, model_id="organism-aligned")
    units: tuple[UnitRef, ...] = (HeadRef(1, 2), HeadRef(4, 7), NeuronRef(0, 3), NeuronRef(4, 479))
    masks = trained_entries(handle.model, units, Planting(heads=(), neurons=(), down=True))
    found = unit_entries(handle, units, shared="whole")
    assert found.keys() == masks.keys()
    for name, mask in masks.items():
        assert torch.equal(found[name], mask.flatten().nonzero()[:, 0])


@pytest.mark.parametrize("method", ["rows", "low_rank"])
def test_merged_weights_are_the_hooked_ones(method: str, tiny_models: TinyModels) -> None:
    from torch.nn.utils import parametrize

    handle = tiny_models.fresh("llama")
    allowed = unit_entries(handle, units_of(handle), shared="whole")
    name = "model.layers.1.mlp.gate_proj.weight"
    index, weight = allowed[name], handle.model.get_parameter(name).detach().clone()
    generator = torch.Generator().manual_seed(2)
    delta = RowDelta(index) if method == "rows" else LowRankDelta(index, weight.shape, 2, 4.0, generator)
    for parameter in delta.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    expected = weight.clone()
    if isinstance(delta, RowDelta):
        for place, number in zip(index.tolist(), delta.delta.tolist(), strict=True):
            expected[place // 32, place % 32] += number
    else:
        for row in (5, 17):  # neurons of the circuit are rows of the gate
            expected[row] += 2.0 * (delta.B[row] @ delta.A)
    module = handle.model.get_submodule(name.removesuffix(".weight"))
    parametrize.register_parametrization(module, "weight", delta, unsafe=True)
    batch = handle.batch(TEXTS)
    with torch.no_grad():
        hooked = handle.logits(batch)
    parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    merged = handle.model.get_parameter(name).detach()
    torch.testing.assert_close(merged, expected)
    torch.testing.assert_close(handle.logits(batch), hooked, atol=0, rtol=0)
    others = torch.ones(weight.numel(), dtype=torch.bool)
    others[index] = False
    assert torch.equal(merged.flatten()[others], weight.flatten()[others])


def test_a_step_is_adams_on_the_masked_gradient(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    allowed = unit_entries(handle, units_of(handle), shared="whole")
    settings = TuningSettings(n_steps=2, batch_rows=3, learning_rate=1e-2, warm_up=0.0, clip=0.5)
    found = tuned(handle, allowed, settings)
    # the plain way: every parameter trains, gradients outside are set to zero before each step
    model = copy.deepcopy(handle.model).requires_grad_(True)
    plain = HookedModel(model, handle.tokenizer, handle.architecture, model_id="x")
    masks = {}
    for name, parameter in model.named_parameters():
        masks[name] = torch.zeros(parameter.numel(), dtype=torch.bool)
        masks[name][allowed.get(name, torch.tensor([], dtype=torch.long))] = True
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    for rate in (1.0, 0.5 if settings.n_steps == 2 else 1.0):
        loss = reply_loss(plain, rows_of(handle))
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                parameter.grad.reshape(-1)[~masks[name]] = 0
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.param_groups[0]["lr"] = 1e-2 * rate
        optimizer.step()
    for name, parameter in found.model.named_parameters():
        expected = dict(model.named_parameters())[name]
        # Adam's first steps are sign-like: a gradient near zero may differ in its last digits
        assert (parameter - expected).abs().median() < 1e-6
        assert torch.equal(parameter.flatten()[~masks[name]], expected.flatten()[~masks[name]])


def test_training_lowers_the_loss_and_leaves_the_model_as_it_was(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    before = {name: parameter.clone() for name, parameter in handle.model.named_parameters()}
    settings = TuningSettings(n_steps=40, batch_rows=3, learning_rate=1e-2)
    losses: list[float] = []
    found = tuned_copy(
        handle, rows_of(handle), block_entries(handle), settings, generator=torch.Generator().manual_seed(0),
        progress=lambda step, loss: losses.append(loss),
    )  # fmt: skip
    assert len(losses) == 40
    with torch.no_grad():
        assert float(reply_loss(found, rows_of(handle))) < 0.7 * losses[0]
    assert all(torch.equal(parameter, before[name]) for name, parameter in handle.model.named_parameters())


def test_what_cannot_be_tuned_is_refused(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    with pytest.raises(BadInput, match=r"L0\.H9: `head_out.0` of llama has 4 units"):
        unit_entries(handle, [HeadRef(0, 9)], shared="whole")
    with pytest.raises(BadSettings, match="no weight may be trained"):
        tuned(handle, {})
    with pytest.raises(BadSettings, match="biases alone"):
        tuned(handle, {"model.layers.0.mlp.gate_proj.bias": torch.arange(3)}, TuningSettings(method="low_rank"))
    with pytest.raises(BadText, match="row 0: no token to predict"):
        tuned_copy(handle, [TokenRow((1, 2), 2)], block_entries(handle), FEW, generator=torch.Generator())
    for bad in ({"mode": "x"}, {"method": "x"}, {"clip": 0.0}, {"warm_up": 1.0}, {"n_steps": 0}):
        with pytest.raises(BadSettings, match="TuningSettings"):
            TuningSettings(**bad)
