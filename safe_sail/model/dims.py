"""Sizes of a loaded model, and which sites it has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from safe_sail.errors import BadSite
from safe_sail.model.architectures import Architecture
from safe_sail.sites import Site, SiteKind


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDims:
    """Sizes of a loaded model, read from its weights where they say it."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    """Key-value heads; fewer than `n_heads` in grouped-query attention."""
    d_head: int
    d_model: int
    d_mlp: int
    """Width of `mlp_act` in dense blocks; 0 in a mixture whose blocks are all sparse."""
    d_vocab: int
    """Rows of the unembedding, which may exceed the tokenizer's length."""
    max_positions: int
    """Longest text, in tokens."""
    n_experts: int
    """Routed experts of a sparse block; 0 in a dense model."""
    d_expert: int
    """Neurons of one routed expert; 0 in a dense model."""


def block_is_sparse(row: Architecture, block: torch.nn.Module) -> bool:
    """Whether this block's MLP is a mixture of experts."""
    return row.experts is not None and hasattr(block.get_submodule(row.mlp), row.experts.rpartition(".")[2])


def dims_of(row: Architecture, model: torch.nn.Module, config: Any) -> ModelDims:
    """Sizes of a model of this row."""
    blocks = list(model.get_submodule(row.blocks).children())
    sparse = [block for block in blocks if block_is_sparse(row, block)]
    dense = [block for block in blocks if not block_is_sparse(row, block)]
    n_heads = int(config.num_attention_heads)
    rows, columns = _in_out(row, blocks[0].get_submodule(row.attn_proj))
    n_experts, d_expert = 0, 0
    if sparse and row.experts is not None:
        n_experts, _, d_expert = sparse[0].get_parameter(f"{row.experts}.down_proj").shape
    return ModelDims(
        n_layers=len(blocks),
        n_heads=n_heads,
        n_kv_heads=row.kv_heads(config),
        d_head=rows // n_heads,
        d_model=columns,
        d_mlp=_in_out(row, dense[0].get_submodule(row.mlp_down))[0] if dense else 0,
        d_vocab=int(model.get_submodule(row.unembed).get_parameter("weight").shape[0]),
        max_positions=int(config.max_position_embeddings),
        n_experts=n_experts,
        d_expert=d_expert,
    )


def _in_out(row: Architecture, linear: torch.nn.Module) -> tuple[int, int]:
    first, second = linear.get_parameter("weight").shape
    return (first, second) if row.conv1d else (second, first)


def check_site(row: Architecture, blocks: Sequence[torch.nn.Module], config: Any, site: Site) -> None:
    """Nothing, when the site exists in this model.

    Raises:
        BadSite: there is no such layer, or this layer has no such place.
    """
    if site.layer is None:
        return
    if site.layer >= len(blocks):
        raise BadSite(f"`{site}`: the model has {len(blocks)} layers, counted from 0; the last is {len(blocks) - 1}.")
    if site.kind is SiteKind.RESID_MID and row.parallel(config):
        raise BadSite(
            f"`{site}`: this {row.class_name} runs attention and MLP in parallel, so no stream stands between them; "
            f"use `resid_pre.{site.layer}` or `attn_out.{site.layer}`."
        )
    if site.kind is SiteKind.MLP_ACT and block_is_sparse(row, blocks[site.layer]):
        raise BadSite(
            f"`{site}`: layer {site.layer} is a mixture of experts, where a token has neurons only in the experts it "
            f"is routed to, so there is no [batch, seq, d_mlp] tensor; use `mlp_in.{site.layer}` or "
            f"`mlp_out.{site.layer}`, which hold the whole mixture."
        )
