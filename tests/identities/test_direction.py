"""Ablating a direction where the stream is written equals removing it from every writing matrix and bias.

Where a norm stands between the matrices and the stream its gain does not commute with the projection, and the row says
so.
"""

import pytest
import torch
from torch import Tensor

from safe_sail.model import weights
from safe_sail.model.dims import block_is_sparse
from safe_sail.model.edits import Edit, project_out
from safe_sail.model.handle import HookedModel
from safe_sail.sites import Site, SiteKind
from tests.tiny import FAMILIES, TEXTS, TinyModels

POST_NORM = {"gemma2", "gemma3", "olmo2"}


def orthogonalise(rows: Tensor | None, unit: Tensor) -> None:
    if rows is not None:
        rows -= (rows @ unit)[..., None] * unit


def remove_from_weights(handle: HookedModel, unit: Tensor) -> None:
    weights.untie(handle)
    orthogonalise(weights.W_E(handle), unit)
    orthogonalise(weights.W_pos(handle), unit)
    for layer, block in enumerate(handle.blocks):
        orthogonalise(weights.W_O(handle, layer), unit)
        orthogonalise(weights.b_O(handle, layer), unit)
        if block_is_sparse(handle.architecture, block):
            views = [weights.experts(handle, layer), weights.shared_expert(handle, layer)]
        else:
            views = [weights.mlp(handle, layer)]
        for view in views:
            if view is not None:
                orthogonalise(view.W_out, unit)
                orthogonalise(view.b_out, unit)


@pytest.mark.parametrize("family", FAMILIES)
def test_hook_ablation_equals_orthogonalised_weights_without_post_norm(family: str, tiny_models: TinyModels) -> None:
    handle, surgery = tiny_models.handle(family), tiny_models.fresh(family)
    unit = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(3)), dim=0)
    edits: dict[Site, Edit] = {Site(SiteKind.EMBED): project_out(unit)}
    for layer in range(handle.dims.n_layers):
        edits[Site(SiteKind.ATTN_OUT, layer)] = edits[Site(SiteKind.MLP_OUT, layer)] = project_out(unit)
    batch = handle.batch(TEXTS)
    remove_from_weights(surgery, unit)
    hooked, altered, bare = handle.logits(batch, edits), surgery.logits(batch), handle.logits(batch)
    off = (hooked - altered).abs().max()
    assert (hooked - bare).abs().max() > 0.05
    assert handle.architecture.post_norm == (family in POST_NORM)
    if family in POST_NORM:
        assert off > 0.01
    else:
        assert off < 2e-5  # float32 rounding of size 1e-7 through two or three blocks


@pytest.mark.parametrize("family", FAMILIES)
def test_ablated_stream_has_no_component_left(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    directions = torch.randn(2, 32, generator=torch.Generator().manual_seed(4))
    writing = (SiteKind.ATTN_OUT, SiteKind.MLP_OUT)
    edits: dict[Site, Edit] = {
        Site(kind, layer): project_out(directions) for layer in range(handle.dims.n_layers) for kind in writing
    }
    edits[Site(SiteKind.EMBED)] = project_out(directions)
    last = Site(SiteKind.RESID_POST, handle.dims.n_layers - 1)
    batch = handle.batch(TEXTS)
    assert (handle.capture(batch, [last], edits)[last] @ directions.T).abs().max() < 1e-4
    assert (handle.capture(batch, [last])[last] @ directions.T).abs().max() > 0.1
