"""Units that take a start model's weights: against weights put in by hand, both ends bit for bit, gradients, errors."""

import copy

import pytest
import torch
from torch import Tensor

from safe_sail.circuits.baselines import Baseline
from safe_sail.circuits.entries import NOBODY, unit_entries, unit_owners
from safe_sail.circuits.masked import masked, masked_circuit, start_baseline
from safe_sail.circuits.masks import circuit_space, masked_edits, unit_space
from safe_sail.circuits.reference import collect_baseline, masked_model
from safe_sail.errors import BadSettings, CircuitMismatch
from safe_sail.model.handle import HookedModel
from safe_sail.records import Circuit, CircuitMember, HeadRef, NeuronRef
from tests.tiny import FAMILIES, TEXTS, TinyModels


def other(handle: HookedModel, *, elsewhere: bool) -> HookedModel:
    """A model with other numbers in every unit, or, `elsewhere`, in every parameter."""
    model = copy.deepcopy(handle.model).requires_grad_(False)
    draw = torch.Generator().manual_seed(7)
    owned: dict[str, Tensor] = {}
    for layer in range(handle.dims.n_layers):
        owned |= unit_owners(handle, layer)
    for name, weight in model.named_parameters():
        drawn = 0.1 * torch.randn(weight.shape, generator=draw)
        changes = torch.ones(weight.shape, dtype=torch.bool) if elsewhere else torch.zeros(weight.shape).bool()
        if not elsewhere and name in owned:
            changes = owned[name] != NOBODY
        weight.copy_(torch.where(changes, weight + drawn, weight))
    return HookedModel(model, handle.tokenizer, handle.architecture, model_id="start")


def some_circuit(handle: HookedModel) -> Circuit:
    space = unit_space(handle)
    units: list[HeadRef | NeuronRef] = [HeadRef(0, 1), HeadRef(1, 2), HeadRef(1, 3)]
    layers = [group.site.layer for group in space.groups if group.kind == "neurons"]
    units += [NeuronRef(layer, index) for layer in layers if layer is not None for index in (0, 3, 7)]
    return Circuit(
        slug="some", model_id=handle.model_id, behaviour="refusal", method="planted", ablation="start",
        start_model="start", members=tuple(CircuitMember(unit=unit, probability=1.0) for unit in units),
        n_heads=space.n_of("heads"), n_neurons=space.n_of("neurons"),
    )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_both_ends_are_the_two_models_bit_for_bit(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    start, space, batch = other(handle, elsewhere=False), unit_space(handle), handle.batch(TEXTS)
    baseline = start_baseline(handle, start, space)
    assert baseline.start is not None
    assert baseline.start.n_elsewhere == 0
    assert bool(baseline.start.differs.all())
    own = masked(handle, space, torch.ones(space.n_units, requires_grad=True), baseline)
    assert torch.equal(own.handle.logits(batch, own.edits), handle.logits(batch))
    before = masked(handle, space, torch.zeros(space.n_units), baseline)
    assert torch.equal(before.handle.logits(batch, before.edits), start.logits(batch))
    assert not torch.equal(start.logits(batch), handle.logits(batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_circuit_removed_is_the_model_with_its_rows_put_back(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    circuit, batch, start = some_circuit(handle), handle.batch(TEXTS), other(handle, elsewhere=True)
    baseline = start_baseline(handle, start, circuit_space(handle, circuit))
    by_hand = copy.deepcopy(handle.model)
    units = [unit for unit in circuit.units if isinstance(unit, HeadRef | NeuronRef)]
    for name, index in unit_entries(handle, units, shared="whole").items():
        by_hand.get_parameter(name).data.view(-1)[index] = start.model.get_parameter(name).view(-1)[index]
    expected = HookedModel(by_hand, handle.tokenizer, handle.architecture, model_id="by hand").logits(batch)
    found = masked_circuit(handle, circuit, "removed", baseline)
    assert torch.equal(found.handle.logits(batch, found.edits), expected)
    assert torch.equal(masked_model(handle, circuit, "removed", baseline).logits(batch), expected)
    assert (expected - handle.logits(batch))[batch.is_real].abs().max() > 1e-3


def test_gradients_equal_finite_differences_and_are_zero_where_nothing_was_trained(tiny_models: TinyModels) -> None:
    handle = tiny_models.fresh("stablelm")  # its norms, unlike Llama's, stay in float64
    handle.model.requires_grad_(False).double()
    space, batch = unit_space(handle), handle.batch(TEXTS)
    start = other(handle, elsewhere=False)
    same = [HeadRef(0, 0), HeadRef(0, 1), NeuronRef(1, 5)]  # the two heads share keys and values
    for name, index in unit_entries(handle, same, shared="touched").items():
        start.model.get_parameter(name).view(-1)[index] = handle.model.get_parameter(name).view(-1)[index]
    baseline = start_baseline(handle, start, space)
    assert baseline.start is not None
    assert [space.unit(place) for place in (~baseline.start.differs).nonzero()[:, 0].tolist()] == same

    def loss(keep: Tensor) -> Tensor:
        model, edits = masked(handle, space, keep, baseline)
        return model.logits(batch, edits).square().mean()

    keep = torch.rand(space.n_units, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    leaf = keep.clone().requires_grad_()
    loss(leaf).backward()
    assert leaf.grad is not None
    for place in (2, 5, space.n_of("heads") + 3, space.n_units - 1):
        step = torch.zeros_like(keep)
        step[place] = 1e-6
        slope = float(loss(keep + step) - loss(keep - step)) / 2e-6
        assert leaf.grad[place].item() == pytest.approx(slope, rel=1e-4)
    still = [space.place(unit) for unit in same]
    assert torch.equal(leaf.grad[still], torch.zeros(3, dtype=torch.float64))


def test_gradients_are_the_same_under_gradient_checkpointing(tiny_models: TinyModels) -> None:
    handle = tiny_models.fresh("llama")
    handle.model.requires_grad_(False)
    space, batch = unit_space(handle), handle.batch(TEXTS)
    baseline = start_baseline(handle, other(handle, elsewhere=False), space)
    keep = torch.rand(space.n_units, generator=torch.Generator().manual_seed(0))

    def gradient() -> Tensor:
        leaf = keep.clone().requires_grad_()
        model, edits = masked(handle, space, leaf, baseline)
        with model.editing(edits):
            model.logits(batch).float().square().mean().backward()
        assert leaf.grad is not None
        return leaf.grad

    plain = gradient()
    handle.model.train()  # transformers checkpoints in training mode alone; these models have no dropout
    handle.model.activation_checkpointing_enable({"use_reentrant": False})
    handle.model.enable_input_require_grads()
    torch.testing.assert_close(gradient(), plain, atol=1e-8, rtol=1e-5)
    assert plain.abs().min() > 0


def test_a_masked_copy_generates_and_leaves_the_model_alone(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("gpt2")
    start, space, batch = other(handle, elsewhere=False), unit_space(handle), handle.batch(TEXTS)
    plain = handle.logits(batch)
    model, edits = masked(handle, space, torch.zeros(space.n_units), start_baseline(handle, start, space))
    assert torch.equal(model.generate(batch, 4, edits), start.generate(batch, 4))
    assert torch.equal(handle.logits(batch), plain)
    assert all(isinstance(each, torch.nn.Parameter) for _, each in handle.model.named_parameters())


def test_what_is_no_start_of_the_model_is_refused(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    space = unit_space(handle)
    with pytest.raises(CircuitMismatch, match="does not fit llama"):
        start_baseline(handle, tiny_models.handle("gpt2"), space)
    with pytest.raises(CircuitMismatch, match="the same weights in every unit"):
        start_baseline(handle, handle, space)
    baseline = start_baseline(handle, other(handle, elsewhere=True), space)
    with pytest.raises(BadSettings, match="no edit says"):
        masked_edits(space, torch.zeros(space.n_units), baseline)
    with pytest.raises(CircuitMismatch, match="same kinds of units"):
        masked(handle, unit_space(handle, ["heads"]), torch.zeros(8), baseline)
    with pytest.raises(BadSettings, match="not from texts"):
        collect_baseline(handle, space, [handle.batch(TEXTS)], "start")
    with pytest.raises(BadSettings, match="no value stands"):
        Baseline("start").replacement("head_out.0", torch.zeros(1), None)
