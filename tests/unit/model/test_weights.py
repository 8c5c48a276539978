"""Canonical views: shapes as annotated, shared memory, tied heads. What they mean is tested in tests/identities."""

import pytest
import torch
from beartype import beartype
from jaxtyping import jaxtyped
from torch import Tensor

from safe_sail.model import weights
from safe_sail.model.dims import block_is_sparse
from safe_sail.model.edits import scale
from safe_sail.sites import Site
from tests.tiny import FAMILIES, TEXTS, TinyModels

TIED = {"llama_tied", "qwen2_sliding", "gemma", "gemma2", "gemma3", "gpt2", "falcon_grouped", "falcon_sequential"}


@pytest.mark.parametrize("family", FAMILIES)
def test_views_have_the_annotated_shapes_and_the_models_sizes(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    dims = handle.dims
    for view in (weights.W_E, weights.W_U, weights.W_pos):
        jaxtyped(typechecker=beartype)(view)(handle)
    assert weights.W_E(handle).shape == weights.W_U(handle).shape == (dims.d_vocab, dims.d_model)
    for layer, block in enumerate(handle.blocks):
        assert weights.W_O(handle, layer).shape == (dims.n_heads, dims.d_head, dims.d_model)
        jaxtyped(typechecker=beartype)(weights.b_O)(handle, layer)
        views = weights.heads(handle, layer)
        jaxtyped(typechecker=beartype)(weights.HeadWeights.__new__)(weights.HeadWeights, *views)
        assert views.W_Q.shape == (dims.n_heads, dims.d_head, dims.d_model)
        assert views.W_K.shape == views.W_V.shape == (dims.n_kv_heads, dims.d_head, dims.d_model)
        if block_is_sparse(handle.architecture, block):
            mlp, shape = weights.experts(handle, layer), (dims.n_experts, dims.d_expert, dims.d_model)
        else:
            mlp, shape = weights.mlp(handle, layer), (dims.d_mlp, dims.d_model)
        assert mlp.W_in.shape == mlp.W_out.shape == shape
        assert mlp.W_gate is None or mlp.W_gate.shape == shape
        assert (weights.shared_expert(handle, layer) is not None) == (family == "qwen2_moe" and layer != 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_writing_into_any_view_changes_the_model(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.fresh(family)
    batch = handle.batch(TEXTS[:1])
    views: dict[str, Tensor | None] = {"W_E": weights.W_E(handle), "W_U": weights.W_U(handle),
                                       "W_pos": weights.W_pos(handle), "W_O": weights.W_O(handle, 0),
                                       "b_O": weights.b_O(handle, 0)}  # fmt: skip
    views |= weights.heads(handle, 0)._asdict()
    sparse = block_is_sparse(handle.architecture, handle.blocks[0])
    views |= (weights.experts if sparse else weights.mlp)(handle, 0)._asdict()
    before = handle.logits(batch)
    if family == "falcon_grouped":  # the copy that the docstring names
        del views["W_Q"]
    for name, view in views.items():
        if view is None or name == "b_K":  # a bias of all keys moves all scores of a query alike, but for the rotation
            continue
        view *= torch.linspace(0.5, 1.5, view.shape[-1])
        after = handle.logits(batch)
        assert not torch.equal(after, before), name
        before = after


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tied_head_is_told_and_untied(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.fresh(family)
    batch = handle.batch(TEXTS)
    bare = handle.logits(batch)
    assert weights.is_tied(handle) == (family in TIED)
    weights.untie(handle)
    assert not weights.is_tied(handle)
    assert torch.equal(handle.logits(batch), bare)
    assert not handle.model.lm_head.weight.requires_grad
    kept = weights.W_U(handle).clone()
    weights.W_E(handle)[:] = 0
    assert torch.equal(weights.W_U(handle), kept)


def test_sizes_of_a_grouped_query_model_are_read_from_its_weights(tiny_models: TinyModels) -> None:
    dims = tiny_models.handle("mistral").dims
    assert (dims.n_layers, dims.n_heads, dims.n_kv_heads, dims.d_head) == (2, 4, 2, 12)
    assert (dims.d_model, dims.d_mlp, dims.d_vocab, dims.max_positions, dims.n_experts) == (32, 40, 160, 64, 0)
    mixture = tiny_models.handle("qwen3_moe").dims
    assert (mixture.d_mlp, mixture.n_experts, mixture.d_expert) == (40, 4, 16)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_captures_edits_and_generation_on_cuda_equal_those_on_cpu(family: str, tiny_models: TinyModels) -> None:
    handle, there = tiny_models.handle(family), tiny_models.fresh(family)
    there.model.to("cuda")
    batch = handle.batch(TEXTS)
    edits = {Site.parse("head_out.0"): scale(torch.tensor([[0.0], [1.0], [2.0], [1.0]]))}
    here, cuda = handle.run(batch, handle.sites(), edits), there.run(batch, there.sites(), edits)
    assert here.logits is not None
    assert cuda.logits is not None
    # float32 sums in another order; TF32 is off by default
    torch.testing.assert_close(cuda.logits.cpu()[batch.is_real], here.logits[batch.is_real], atol=1e-4, rtol=1e-4)
    for site, value in here.captures.items():
        torch.testing.assert_close(cuda.captures[site].cpu()[batch.is_real], value[batch.is_real], atol=1e-4, rtol=1e-4)
    assert there.generate(batch, 4).device.type == "cuda"
