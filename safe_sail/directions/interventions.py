"""Interventions as experiments on sites: ablation everywhere, addition at one layer.

1. Ablation: the component is taken out of what enters block 0 and of everything that attention and MLPs add. It is then
   absent from the stream everywhere, since a sum of vectors without the component has none.
2. Addition: the direction, at its own length, is added to every token before one layer.
3. Per-row forms serve a batch whose rows belong to different candidates.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.directions.projection import ablate, ablate_per_row, add, add_per_row
from safe_sail.model.edits import Edit
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch
from safe_sail.sites import Site, SiteKind


def writing_sites(handle: HookedModel) -> list[Site]:
    """Every site whose value is added to the stream: the embedding, attention outputs, MLP outputs."""
    layers = range(handle.dims.n_layers)
    return [
        Site(SiteKind.EMBED),
        *(Site(kind, layer) for layer in layers for kind in (SiteKind.ATTN_OUT, SiteKind.MLP_OUT)),
    ]


def ablation(handle: HookedModel, basis: Float[Tensor, "rank d_model"]) -> Mapping[Site, Edit]:
    """Removal of the span of orthonormal rows at every write, all tokens.

    Source: Arditi et al. 2024, section 2.4, arXiv:2406.11717; post-norms are inside `attn_out` and `mlp_out`.
    """
    rows = basis.to(handle.device)

    def edit(x: Tensor) -> Tensor:
        return ablate(x, rows)

    return dict.fromkeys(writing_sites(handle), edit)


def ablation_per_row(handle: HookedModel, bases: Float[Tensor, "batch rank d_model"]) -> Mapping[Site, Edit]:
    """The same with orthonormal rows of its own for each row of the batch."""
    rows = bases.to(handle.device)

    def edit(x: Tensor) -> Tensor:
        return ablate_per_row(x, rows)

    return dict.fromkeys(writing_sites(handle), edit)


def addition(layer: int, direction: Float[Tensor, " d_model"], coefficient: float = 1.0) -> Mapping[Site, Edit]:
    """`coefficient` times the direction, at its own length, added to every token before `layer`.

    Source: Arditi et al. 2024, eq. 3, arXiv:2406.11717.
    """

    def edit(x: Tensor) -> Tensor:
        return add(x, direction, coefficient)

    return {Site(SiteKind.RESID_PRE, layer): edit}


def resumed_addition(
    layer: int,
    stream: Float[Tensor, "batch seq d_model"],
    directions: Float[Tensor, "batch d_model"],
) -> Mapping[Site, Edit]:
    """Puts a stream captured before `layer` there again, with a direction of its own added to each row."""
    changed = add_per_row(stream, directions)

    def edit(x: Tensor) -> Tensor:
        return changed.to(device=x.device, dtype=x.dtype)

    return {Site(SiteKind.RESID_PRE, layer): edit}


@torch.no_grad()
def largest_component_left(handle: HookedModel, batch: TokenBatch, basis: Float[Tensor, "rank d_model"]) -> float:
    """Largest component in the basis of the stream after each block, under ablation: a self-check, 0 up to rounding."""
    after = [Site(SiteKind.RESID_POST, layer) for layer in range(handle.dims.n_layers)]
    found = handle.capture(batch, after, ablation(handle, basis))
    real = batch.is_real.to(handle.device)
    parts = [(found[site].double() @ basis.double().to(found[site].device).T).abs() for site in after]
    return max(float(part[real.to(part.device)].max()) for part in parts)
