"""Neurons are read before W_out, and the canonical views say what they read and write."""

import pytest
import torch
from torch import Tensor
from transformers.activations import ACT2FN

from safe_sail.errors import BadSite
from safe_sail.model import weights
from safe_sail.model.dims import block_is_sparse
from safe_sail.model.edits import zero_neurons
from safe_sail.model.handle import HookedModel
from safe_sail.sites import Site, SiteKind
from tests.tiny import FAMILIES, TEXTS, TinyModels

# float32 sums of 40 products of size one, and one activation function
CLOSE = {"atol": 3e-6, "rtol": 3e-6}
MIXTURES = ["qwen2_moe", "qwen3_moe", "mixtral"]


def dense_layers(handle: HookedModel) -> list[int]:
    return [
        layer for layer, block in enumerate(handle.blocks) if not block_is_sparse(handle.architecture, block)
    ]  # fmt: skip


def activation(handle: HookedModel, x: Tensor) -> Tensor:
    config = handle.model.config
    for name in ("hidden_act", "hidden_activation", "activation_function", "activation"):
        if getattr(config, name, None):
            return ACT2FN[getattr(config, name)](x)
    raise AssertionError(config)


def through(handle: HookedModel, views: weights.MlpWeights, x: Tensor) -> Tensor:
    up = x @ views.W_in.T + (0 if views.b_in is None else views.b_in)
    if views.W_gate is None:
        return activation(handle, up)
    return activation(handle, x @ views.W_gate.T + (0 if views.b_gate is None else views.b_gate)) * up


@pytest.mark.parametrize("family", FAMILIES)
def test_views_carry_mlp_in_to_mlp_act_to_mlp_out(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    for layer in dense_layers(handle):
        sites = [Site(kind, layer) for kind in (SiteKind.MLP_IN, SiteKind.MLP_ACT, SiteKind.MLP_OUT)]
        mlp_in, act, out = handle.capture(handle.batch(TEXTS), sites).values()
        views = weights.mlp(handle, layer)
        torch.testing.assert_close(through(handle, views, mlp_in), act, **CLOSE)
        if views.W_gate is not None:  # the neuron is gate times up, not what the activation function returns
            assert not torch.allclose(activation(handle, mlp_in @ views.W_gate.T), act, atol=1e-2)
        written = act @ views.W_out + (0 if views.b_out is None else views.b_out)
        if handle.architecture.post_norm:
            written = handle.blocks[layer].get_submodule(handle.architecture.mlp_out)(written)
        torch.testing.assert_close(written, out, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_masking_neurons_equals_deleting_their_output_rows(family: str, tiny_models: TinyModels) -> None:
    handle, surgery = tiny_models.handle(family), tiny_models.fresh(family)
    batch = handle.batch(TEXTS)
    for layer in dense_layers(handle)[:1]:
        weights.mlp(surgery, layer).W_out[[3, 7]] = 0
        masked = handle.logits(batch, {Site(SiteKind.MLP_ACT, layer): zero_neurons([3, 7])})
        torch.testing.assert_close(masked, surgery.logits(batch), atol=1e-5, rtol=1e-5)
        assert (masked - handle.logits(batch)).abs().max() > 1e-3


@pytest.mark.parametrize("family", MIXTURES)
def test_stacked_experts_and_a_plain_router_give_mlp_out(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    config = handle.model.config
    sites = [Site(SiteKind.MLP_IN, 0), Site(SiteKind.MLP_OUT, 0)]
    mlp_in, out = handle.capture(handle.batch(TEXTS[:1]), sites).values()
    views = weights.experts(handle, 0)
    assert views.W_out.shape == (handle.dims.n_experts, handle.dims.d_expert, handle.dims.d_model)
    router = handle.blocks[0].get_submodule("mlp.gate").get_parameter("weight")
    expected = torch.zeros_like(out)
    for position, x in enumerate(mlp_in[0]):
        chances = (router @ x).softmax(dim=-1)
        chosen = chances.topk(config.num_experts_per_tok)
        total = chosen.values.sum() if family == "mixtral" or config.norm_topk_prob else 1.0
        for weight, expert in zip(chosen.values, chosen.indices, strict=True):
            one = weights.MlpWeights(*(None if view is None else view[expert] for view in views))
            expected[0, position] += weight / total * (through(handle, one, x) @ one.W_out)
        shared = weights.shared_expert(handle, 0)
        if shared is not None:
            gate = handle.blocks[0].get_submodule("mlp.shared_expert_gate").get_parameter("weight")
            expected[0, position] += torch.sigmoid(gate @ x) * (through(handle, shared, x) @ shared.W_out)
    torch.testing.assert_close(expected, out, **CLOSE)


@pytest.mark.parametrize("family", MIXTURES)
def test_neurons_of_a_mixture_are_refused_and_its_dense_layers_covered(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    batch = handle.batch(TEXTS[:1])
    with pytest.raises(BadSite, match=r"mixture of experts.*mlp_out\.0"):
        handle.capture(batch, [Site(SiteKind.MLP_ACT, 0)])
    with pytest.raises(BadSite, match="mixture of experts"):
        handle.logits(batch, {Site(SiteKind.MLP_ACT, 0): zero_neurons([0])})
    with pytest.raises(BadSite, match="experts"):
        weights.mlp(handle, 0)
    if dense_layers(handle):
        assert dense_layers(handle) == [1]
        assert handle.capture(batch, [Site(SiteKind.MLP_ACT, 1)])[Site(SiteKind.MLP_ACT, 1)].shape[-1] == 40
        with pytest.raises(BadSite, match="dense"):
            weights.experts(handle, 1)
    else:
        assert handle.dims.d_mlp == 0
