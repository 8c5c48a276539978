"""Weights in one orientation for all families.

Matrices are views of the parameters: writing into a view changes the model. The one exception is `W_Q` (and `b_Q`) of
grouped queries in one module (Falcon 40B), whose heads do not lie evenly in memory; it is a copy. Reading and writing
vectors are rows: `W_in[n]` is what neuron n reads, `W_out[n]` what it writes, `W_O[h, i]` what component i of head h
writes.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.errors import BadSite
from safe_sail.model.architectures import QkvLayout
from safe_sail.model.dims import block_is_sparse
from safe_sail.model.handle import HookedModel


class MlpWeights(NamedTuple):
    """One dense MLP, or with a leading axis the experts of a mixture."""

    W_in: Float[Tensor, "*experts d_mlp d_model"]
    W_gate: Float[Tensor, "*experts d_mlp d_model"] | None
    """None where the MLP has no gate; else activations are act(W_gate x) * (W_in x)."""
    W_out: Float[Tensor, "*experts d_mlp d_model"]
    b_in: Float[Tensor, " d_mlp"] | None
    b_gate: Float[Tensor, " d_mlp"] | None
    b_out: Float[Tensor, " d_model"] | None


class HeadWeights(NamedTuple):
    """Attention of one block; with grouped queries, key-value head k serves query heads k*g to (k+1)*g - 1.

    `W_Q` and `b_Q` are copies where queries are grouped inside one module (`QkvLayout.GROUPED` with g > 1).
    """

    W_Q: Float[Tensor, "n_heads d_head d_model"]
    W_K: Float[Tensor, "n_kv_heads d_head d_model"]
    W_V: Float[Tensor, "n_kv_heads d_head d_model"]
    b_Q: Float[Tensor, "n_heads d_head"] | None
    b_K: Float[Tensor, "n_kv_heads d_head"] | None
    b_V: Float[Tensor, "n_kv_heads d_head"] | None


def W_E(handle: HookedModel) -> Float[Tensor, "d_vocab d_model"]:
    """Token embedding as stored; Gemma multiplies it by sqrt(d_model) on the way to the stream."""
    return _matrix(handle, handle.architecture.embed)


def W_pos(handle: HookedModel) -> Float[Tensor, "positions d_model"] | None:
    """Learned absolute positions, or None."""
    path = handle.architecture.position_embed
    return None if path is None else _matrix(handle, path)


def W_U(handle: HookedModel) -> Float[Tensor, "d_vocab d_model"]:
    """Unembedding, one row per token; applied after the final norm."""
    return _matrix(handle, handle.architecture.unembed)


def is_tied(handle: HookedModel) -> bool:
    """Whether embedding and unembedding are one parameter, so that writing into one changes the other."""
    return W_E(handle).data_ptr() == W_U(handle).data_ptr()


def untie(handle: HookedModel) -> None:
    """Gives the unembedding a copy of its own, so that W_E can be changed alone."""
    head: Any = handle.model.get_submodule(handle.architecture.unembed)
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    handle.model.config.tie_word_embeddings = False


def W_O(handle: HookedModel, layer: int) -> Float[Tensor, "n_heads d_head d_model"]:
    """What each head writes: attention's projection is the sum over heads of head_out[h] @ W_O[h], plus `b_O`."""
    rows = _in_first(handle, _linear(handle, layer, handle.architecture.attn_proj))
    return _by_head(rows, handle.dims.n_heads)


def b_O(handle: HookedModel, layer: int) -> Float[Tensor, " d_model"] | None:
    """Bias of attention's projection, or None."""
    return _bias(_linear(handle, layer, handle.architecture.attn_proj))


def heads(handle: HookedModel, layer: int) -> HeadWeights:
    """Query, key and value matrices, before any query-key norm."""
    row, dims = handle.architecture, handle.dims
    layout = row.qkv_layout(handle.model.config)
    linears = [_linear(handle, layer, path) for path in row.qkv]
    matrices = [_in_first(handle, linear).T for linear in linears]
    biases = [_bias(linear) for linear in linears]
    counts = (dims.n_heads, dims.n_kv_heads, dims.n_kv_heads)
    if layout is not QkvLayout.SEPARATE:
        matrices = _split(matrices[0], layout, counts, dims.d_head)
        biases = [None] * 3 if biases[0] is None else list(_split(biases[0], layout, counts, dims.d_head))
    else:
        matrices = [_by_head(matrix, count) for matrix, count in zip(matrices, counts, strict=True)]
        biases = [None if bias is None else _by_head(bias, n) for bias, n in zip(biases, counts, strict=True)]
    return HeadWeights(*matrices, *biases)


def mlp(handle: HookedModel, layer: int) -> MlpWeights:
    """The dense MLP of a block.

    Raises:
        BadSite: the block is a mixture; use `experts`.
    """
    row = handle.architecture
    if block_is_sparse(row, handle.blocks[layer]):
        raise BadSite(f"layer {layer} is a mixture of experts; use `experts(handle, {layer})`.")
    return _mlp_at(handle, layer, row.mlp)


def experts(handle: HookedModel, layer: int) -> MlpWeights:
    """The routed experts of a block, stacked: [n_experts, d_expert, d_model].

    Raises:
        BadSite: the block is dense; use `mlp`.
    """
    row = handle.architecture
    if not block_is_sparse(row, handle.blocks[layer]) or row.experts is None:
        raise BadSite(f"layer {layer} is dense; use `mlp(handle, {layer})`.")
    module = handle.blocks[layer].get_submodule(row.experts)
    W_gate, W_in = module.get_parameter("gate_up_proj").detach().chunk(2, dim=1)
    return MlpWeights(W_in, W_gate, module.get_parameter("down_proj").detach().mT, None, None, None)


def shared_expert(handle: HookedModel, layer: int) -> MlpWeights | None:
    """The expert that every token of a sparse block passes, or None; its output is scaled by a gate of its own."""
    row = handle.architecture
    if row.shared_expert is None or not block_is_sparse(row, handle.blocks[layer]):
        return None
    return _mlp_at(handle, layer, row.shared_expert)


def _mlp_at(handle: HookedModel, layer: int, path: str) -> MlpWeights:
    row = handle.architecture

    def linear(full: str) -> torch.nn.Module:
        return _linear(handle, layer, path + full.removeprefix(row.mlp))

    up, down = linear(row.mlp_up), linear(row.mlp_down)
    W_in, b_in, W_gate, b_gate = _in_first(handle, up).T, _bias(up), None, None
    if row.gate_is_fused:
        W_gate, W_in = W_in.chunk(2, dim=0)
        b_gate, b_in = (None, None) if b_in is None else b_in.chunk(2)
    elif row.mlp_gate is not None:
        gate = linear(row.mlp_gate)
        W_gate, b_gate = _in_first(handle, gate).T, _bias(gate)
    return MlpWeights(W_in, W_gate, _in_first(handle, down), b_in, b_gate, _bias(down))


def _matrix(handle: HookedModel, path: str) -> Tensor:
    module: torch.nn.Module = handle.model.get_submodule(path)
    return module.get_parameter("weight").detach()


def _linear(handle: HookedModel, layer: int, path: str) -> torch.nn.Module:
    return handle.blocks[layer].get_submodule(path)


def _in_first(handle: HookedModel, linear: torch.nn.Module) -> Tensor:
    weight = linear.get_parameter("weight").detach()
    return weight if handle.architecture.conv1d else weight.T


def _bias(linear: torch.nn.Module) -> Tensor | None:
    bias = getattr(linear, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None


def _by_head(rows: Tensor, count: int) -> Tensor:
    return torch.unflatten(rows, 0, (count, -1))


def _split(fused: Tensor, layout: QkvLayout, counts: tuple[int, int, int], d_head: int) -> list[Tensor]:
    n_heads, n_kv_heads, _ = counts
    if layout is QkvLayout.CONCATENATED:
        parts = torch.split(fused, [count * d_head for count in counts], dim=0)
        return [_by_head(part, count) for part, count in zip(parts, counts, strict=True)]
    group = n_heads // n_kv_heads
    by_group = torch.unflatten(fused, 0, (n_kv_heads, group + 2, d_head))
    return [by_group[:, :group].flatten(0, 1), by_group[:, group], by_group[:, group + 1]]
