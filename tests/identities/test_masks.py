"""Masks over heads and neurons: edits against weight surgery, a circuit and its complement, gradients, threads."""

import threading

import pytest
import torch
from torch import Tensor

from safe_sail.circuits.baselines import Baseline
from safe_sail.circuits.masks import (
    circuit_edits,
    circuit_keep,
    circuit_space,
    masked_edits,
    shared_copy,
    unit_space,
)
from safe_sail.circuits.reference import collect_baseline, masked_model
from safe_sail.errors import BadSettings, CircuitMismatch, EditRefused, HeadsInseparable
from safe_sail.model.handle import HookedModel
from safe_sail.model.load import load_model
from safe_sail.records import Circuit, CircuitMember, HeadRef, NeuronRef
from safe_sail.sites import Site
from tests.tiny import FAMILIES, TEXTS, TinyModels

# float32 sums of 32 to 48 products of size one, and a bias more
CLOSE = {"atol": 4e-6, "rtol": 4e-6}


def some_circuit(handle: HookedModel) -> Circuit:
    space = unit_space(handle)
    units = [HeadRef(0, 1), HeadRef(1, 2)]
    layers = [group.site.layer for group in space.groups if group.kind == "neurons"]
    units += [NeuronRef(layer, index) for layer in layers if layer is not None for index in (0, 3, 7)]
    return Circuit(
        slug="some", model_id=handle.model_id, behaviour="refusal", method="planted", ablation="zero",
        members=tuple(CircuitMember(unit=unit, probability=1.0) for unit in units),
        n_heads=space.n_of("heads"), n_neurons=space.n_of("neurons"),
    )  # fmt: skip


@pytest.mark.parametrize("view", ["removed", "alone"])
@pytest.mark.parametrize("kind", ["zero", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_circuit_edits_equal_weight_surgery(family: str, kind: str, view: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    circuit, batch = some_circuit(handle), handle.batch(TEXTS)
    baseline = collect_baseline(handle, circuit_space(handle, circuit), [handle.batch(TEXTS[:2])], kind)
    edits = circuit_edits(handle, circuit, view, baseline)
    masked = handle.logits(batch, edits)
    surgery = masked_model(handle, circuit, view, baseline)
    real = batch.is_real
    torch.testing.assert_close(masked[real], surgery.logits(batch)[real], **CLOSE)
    assert (masked - handle.logits(batch))[real].abs().max() > 1e-3
    assert torch.equal(handle.generate(batch, 3, edits), surgery.generate(batch, 3))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_null_mask_is_the_model_bit_for_bit(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    batch, space = handle.batch(TEXTS), unit_space(handle)
    plain = handle.logits(batch)
    for kind in ("zero", "mean", "resample"):
        baseline = collect_baseline(handle, space, [batch], kind)
        # a mask that requires grad is applied everywhere, also where it keeps everything
        edits = masked_edits(space, torch.ones(space.n_units, requires_grad=True), baseline)
        assert len(edits) == len(space.groups)
        assert torch.equal(handle.logits(batch, edits), plain)
    assert masked_edits(space, torch.ones(space.n_units)) == {}


def test_the_two_views_replace_every_unit_once(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("qwen2")
    circuit = some_circuit(handle)
    space = circuit_space(handle, circuit)
    removed, alone = circuit_keep(space, circuit, "removed"), circuit_keep(space, circuit, "alone")
    assert torch.equal(removed + alone, torch.ones(space.n_units))
    assert [space.unit(place) for place in alone.nonzero()[:, 0].tolist()] == list(circuit.units)


def test_places_and_units_are_inverse_on_a_mixture_with_one_dense_block(tiny_models: TinyModels) -> None:
    space = unit_space(tiny_models.handle("qwen2_moe"))
    assert space.n_of("heads") == 12
    assert space.n_of("neurons") == 40  # layer 1 alone is dense
    assert [space.place(space.unit(place)) for place in range(space.n_units)] == list(range(space.n_units))


@pytest.mark.parametrize("side", ["left", "right"])
def test_resampled_units_hold_their_values_in_another_text(side: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    circuit = some_circuit(handle)
    space = circuit_space(handle, circuit)
    donors = handle.batch(TEXTS[1:], padding_side="right")
    baseline = collect_baseline(handle, space, [donors], "resample").shifted(1)
    batch = handle.batch(TEXTS, padding_side=side)
    sites = [Site.parse("head_out.0"), Site.parse("mlp_act.0")]
    masked = handle.capture(batch, sites, circuit_edits(handle, circuit, "removed", baseline))
    own, other = handle.capture(batch, sites), handle.capture(donors, sites)
    for row in range(len(batch)):
        donor = (row + 1) % len(donors)
        columns = batch.is_real[row].nonzero()[:, 0].tolist()
        for place, column in enumerate(columns):
            at = min(place, int(donors.lengths[donor]) - 1)
            heads = masked[sites[0]][row, column]
            assert torch.equal(heads[1], other[sites[0]][donor, at, 1])  # L0.H1 is in the circuit
            assert torch.equal(heads[0], own[sites[0]][row, column, 0])
    assert torch.equal(masked[sites[1]][..., 1], own[sites[1]][..., 1]) is False  # it reads what heads wrote


def test_resampling_serves_generation_and_training_passes_alike(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("gpt2")
    space, batch = unit_space(handle), handle.batch(TEXTS)
    baseline = collect_baseline(handle, space, [handle.batch(TEXTS[:2])], "resample")
    keep = torch.ones(space.n_units)
    keep[::3] = 0
    by_handle = handle.logits(batch, masked_edits(space, keep, baseline))
    with handle.editing(masked_edits(space, keep, baseline, positions=batch.position_ids)):
        assert torch.equal(handle.logits(batch), by_handle)
    assert handle.generate(batch, 3, masked_edits(space, keep, baseline)).shape[0] == len(batch)


def gradient(handle: HookedModel, keep: Tensor, baseline: Baseline) -> Tensor:
    """Gradient of a loss by the mask; the edits stay in force until backward is done."""
    space, batch = unit_space(handle), handle.batch(TEXTS)
    leaf = keep.clone().requires_grad_()
    with handle.editing(masked_edits(space, leaf, baseline, positions=batch.position_ids)):
        loss = handle.logits(batch).float().square().mean()
        loss.backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
def test_gradients_are_the_same_under_gradient_checkpointing(kind: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.fresh("llama")
    handle.model.requires_grad_(False)
    space = unit_space(handle)
    baseline = collect_baseline(handle, space, [handle.batch(TEXTS[:2])], kind)
    keep = torch.rand(space.n_units, generator=torch.Generator().manual_seed(0))
    plain = gradient(handle, keep, baseline)
    handle.model.train()  # transformers checkpoints in training mode alone; these models have no dropout
    handle.model.activation_checkpointing_enable({"use_reentrant": False})
    handle.model.enable_input_require_grads()
    torch.testing.assert_close(gradient(handle, keep, baseline), plain, atol=1e-8, rtol=1e-5)
    assert plain.abs().min() > 0


def test_gradients_equal_finite_differences(tiny_models: TinyModels) -> None:
    handle = tiny_models.fresh("gpt_neox")
    handle.model.requires_grad_(False).double()
    space, batch = unit_space(handle), handle.batch(TEXTS)
    keep = torch.rand(space.n_units, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = gradient(handle, keep, Baseline("zero"))

    def loss(mask: Tensor) -> float:
        return float(handle.logits(batch, masked_edits(space, mask)).square().mean())

    for place in (0, 5, space.n_of("heads") + 3, space.n_units - 1):
        step = torch.zeros_like(keep)
        step[place] = 1e-5
        assert found[place].item() == pytest.approx((loss(keep + step) - loss(keep - step)) / 2e-5, rel=1e-4)


def test_a_bfloat16_model_leaves_gate_logits_in_float32(tiny_models: TinyModels) -> None:
    handle = load_model(tiny_models.folder("llama"), device="cpu", dtype=torch.bfloat16)
    space, batch = unit_space(handle), handle.batch(TEXTS)
    logits = torch.zeros(space.n_units, requires_grad=True)
    handle.logits(batch, masked_edits(space, torch.sigmoid(logits))).float().square().mean().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.float32
    assert (logits.grad != 0).float().mean() > 0.9


def test_two_threads_mask_one_models_weights_at_once(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    copies = [handle, shared_copy(handle)]
    assert copies[1].model.lm_head.weight.data_ptr() == handle.model.lm_head.weight.data_ptr()
    batch, space = handle.batch(TEXTS), unit_space(handle)
    masks = [torch.ones(space.n_units), torch.ones(space.n_units)]
    masks[0][::2] = 0
    masks[1][1::2] = 0
    expected = [handle.logits(batch, masked_edits(space, mask)) for mask in masks]
    together = threading.Barrier(2)
    wrong: list[int] = []

    def work(index: int) -> None:
        together.wait()
        for _ in range(10):
            if not torch.equal(copies[index].logits(batch, masked_edits(space, masks[index])), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert not torch.equal(*expected)


def test_what_does_not_fit_is_refused(tiny_models: TinyModels) -> None:
    handle, other = tiny_models.fresh("llama"), tiny_models.handle("gpt2")
    circuit = some_circuit(handle)
    with pytest.raises(CircuitMismatch, match="is of llama"):
        circuit_keep(unit_space(other), circuit, "removed")
    with pytest.raises(CircuitMismatch, match="88 units"):
        masked_edits(unit_space(handle), torch.ones(7))
    with pytest.raises(CircuitMismatch, match=r"L9\.H0"):
        unit_space(handle).place(HeadRef(9, 0))
    with pytest.raises(BadSettings, match="mixture of experts"):
        unit_space(tiny_models.handle("mixtral"), ["neurons"])
    with pytest.raises(BadSettings, match="collected for nothing"):
        handle.logits(handle.batch(TEXTS), circuit_edits(handle, circuit, "removed", Baseline("mean")))
    resample = collect_baseline(handle, unit_space(handle), [handle.batch(TEXTS)], "resample")
    with pytest.raises(EditRefused, match="depend on the text"):
        masked_model(handle, circuit, "removed", resample)
    handle.model.config.num_attention_heads = 5
    odd = HookedModel(handle.model, handle.tokenizer, handle.architecture, model_id="odd")
    with pytest.raises(HeadsInseparable, match="not 5 heads"):
        unit_space(odd)
