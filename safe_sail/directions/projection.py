"""Removing a direction or a subspace from activations and from weights, and adding a direction.

1. Rows that span the subspace become an orthonormal basis, in float64.
2. `ablate` takes the component in the basis out of activations; `add` adds a direction to them.
3. `orthogonalise_rows` takes it out of a matrix whose rows are written into the stream.
4. Per-row forms give every text of a batch its own direction, so that several candidates share one pass.

Products are taken in float32 at least: in bfloat16 a tenth of a percent of the component would stay.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.errors import DirectionDegenerate

MIN_NORM = 1e-8
"""A shorter direction has no direction: at layer 0 template tokens have one embedding whatever the prompt says."""


def unit(direction: Float[Tensor, "*axes d_model"]) -> Float[Tensor, "*axes d_model"]:
    """Directions of length 1, in float64.

    Raises:
        DirectionDegenerate: a direction is zero or not finite.
    """
    wide = direction.double()
    norms = wide.norm(dim=-1, keepdim=True)
    if not bool(torch.isfinite(wide).all()) or not bool((norms > MIN_NORM).all()):
        raise DirectionDegenerate(
            f"expected finite directions longer than {MIN_NORM:g}; the shortest of {norms.numel()} has length "
            f"{float(norms.min()) if norms.numel() else 0.0:.3g}. Leave it out; at layer 0 every difference is zero."
        )
    scaled: Tensor = wide / norms
    return scaled


def orthonormal_basis(directions: Float[Tensor, "rank d_model"]) -> Float[Tensor, "rank d_model"]:
    """Orthonormal rows with the span of the directions, in float64; row k lies in the span of the first k.

    Raises:
        DirectionDegenerate: a direction is zero or not finite, or they are linearly dependent.
    """
    rows = unit(directions)
    basis: Tensor
    triangle: Tensor
    basis, triangle = torch.linalg.qr(rows.T)
    # A unit row that keeps less than 1e-6 of its length next to the earlier ones is one of them, up to rounding.
    if rows.shape[0] == 0 or rows.shape[0] > rows.shape[1] or float(triangle.diagonal().abs().min()) < 1e-6:
        raise DirectionDegenerate(
            f"expected linearly independent directions; {rows.shape[0]} rows of {rows.shape[1]} coordinates span "
            f"fewer. Leave out the dependent ones."
        )
    signs: Tensor = triangle.diagonal().sign()
    return (basis * signs).T


def ablate(x: Float[Tensor, "*axes d_model"], basis: Float[Tensor, "rank d_model"]) -> Float[Tensor, "*axes d_model"]:
    """Activations without their component in the span of orthonormal rows, in the activations' dtype.

    Source: Arditi et al. 2024, eq. 4, arXiv:2406.11717.
    """
    precise = torch.promote_types(x.dtype, torch.float32)
    rows = basis.to(device=x.device, dtype=precise)
    wide = x.to(precise)
    return (wide - (wide @ rows.T) @ rows).to(x.dtype)


def ablate_per_row(
    x: Float[Tensor, "batch seq d_model"], bases: Float[Tensor, "batch rank d_model"]
) -> Float[Tensor, "batch seq d_model"]:
    """The same with orthonormal rows of its own for each row of the batch."""
    precise = torch.promote_types(x.dtype, torch.float32)
    rows = bases.to(device=x.device, dtype=precise)
    wide = x.to(precise)
    return (wide - (wide @ rows.mT) @ rows).to(x.dtype)


def add(
    x: Float[Tensor, "*axes d_model"], direction: Float[Tensor, " d_model"], coefficient: float
) -> Float[Tensor, "*axes d_model"]:
    """Activations plus `coefficient` times a direction that is not normalised: its length is part of the method.

    Source: Arditi et al. 2024, eq. 3 and 17, arXiv:2406.11717.
    """
    precise = torch.promote_types(x.dtype, torch.float32)
    return (x.to(precise) + coefficient * direction.to(device=x.device, dtype=precise)).to(x.dtype)


def add_per_row(
    x: Float[Tensor, "batch seq d_model"], directions: Float[Tensor, "batch d_model"]
) -> Float[Tensor, "batch seq d_model"]:
    """Activations plus a direction of its own for each row of the batch."""
    precise = torch.promote_types(x.dtype, torch.float32)
    return (x.to(precise) + directions.to(device=x.device, dtype=precise)[:, None, :]).to(x.dtype)


def orthogonalise_rows(
    matrix: Float[Tensor, "*rows d_model"], basis: Float[Tensor, "rank d_model"]
) -> Float[Tensor, "*rows d_model"]:
    """A copy whose rows write nothing into the span of the basis; computed in float64, in the matrix's dtype.

    Source: Arditi et al. 2024, eq. 5, arXiv:2406.11717, with what a neuron or head writes as rows.
    """
    rows = basis.to(device=matrix.device, dtype=torch.float64)
    wide = matrix.double()
    return (wide - (wide @ rows.T) @ rows).to(matrix.dtype)


def cosine(first: Float[Tensor, "*axes d_model"], second: Float[Tensor, " d_model"]) -> Float[Tensor, "*axes"]:
    """Cosine of each vector with one direction, in float64; 0 where the vector has no direction."""
    wide = first.double()
    other = unit(second.to(first.device))
    norms = wide.norm(dim=-1)
    products: Tensor = wide @ other
    return torch.where(norms > MIN_NORM, products / norms.clamp(min=MIN_NORM), torch.zeros_like(products))


def random_directions(n: int, d_model: int, norm: float, generator: torch.Generator) -> Float[Tensor, "n d_model"]:
    """Directions uniform on the sphere of this radius, in float64: the control of every intervention."""
    return unit(torch.randn(n, d_model, generator=generator, dtype=torch.float64)) * norm
