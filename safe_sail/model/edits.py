"""Edits: pure functions from what a site holds to what it shall hold instead.

An edit is either a function of the tensor alone, or a `PositionedEdit`, which is also told which tokens it sees: during
generation the sequence axis is the prompt first and then one token at a time, so a position cannot be read off a shape.
A `Mapping[Site, Edit]` is an experiment. Every edit here returns a new tensor of the input's shape, dtype and device;
vectors given to an edit are moved to the activation's dtype and device.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from safe_sail.errors import EditRefused


@dataclass(frozen=True, slots=True)
class Step:
    """Which tokens an edit sees in this pass."""

    position_ids: Int[Tensor, "batch seq"]
    """Place of each token in its own text, counted from 0 at the first real token, whatever the padding."""
    is_real: Bool[Tensor, "batch seq"]
    """False at padding."""
    is_prefill: bool
    """True in a plain pass and while generation reads its prompt; False for each token generated after it."""


@dataclass(frozen=True, slots=True)
class PositionedEdit:
    """An edit that needs to know which tokens it sees."""

    apply: Callable[[Tensor, Step], Tensor]


Edit = Callable[[Tensor], Tensor] | PositionedEdit


def apply_edit(edit: Edit, x: Tensor, step: Step | None) -> Tensor:
    """What the edit makes of `x`.

    Raises:
        EditRefused: the edit needs positions and the pass has none, because the model was called without its handle.
    """
    if not isinstance(edit, PositionedEdit):
        return edit(x)
    if step is None:
        raise EditRefused(
            "this edit needs positions, which only a pass through the handle knows; call `handle.logits` or "
            "`handle.run`, not the model inside it."
        )
    return edit.apply(x, step)


def identity(x: Tensor) -> Tensor:
    """The tensor itself."""
    return x


def zero(x: Tensor) -> Tensor:
    """Zeros."""
    return torch.zeros_like(x)


def replace(value: Tensor) -> Edit:
    """Edit that puts `value` there, broadcast from the right: a vector serves every token."""
    return lambda x: value.to(x).expand_as(x).clone()


def add(vector: Tensor, coefficient: float = 1.0) -> Edit:
    """Edit that adds `coefficient * vector` to every token, in the site's own units."""
    return lambda x: x + coefficient * vector.to(x)


def scale(factor: float | Tensor) -> Edit:
    """Edit that multiplies; a tensor is broadcast from the right (`[n_heads, 1]` at `head_out`, `[d_mlp]` at
    `mlp_act`) and may require grad.
    """
    if isinstance(factor, Tensor):
        return lambda x: x * factor.to(x)
    return lambda x: x * factor


def zero_heads(heads: Collection[int]) -> Edit:
    """Edit for `head_out` that zeroes these heads, counted from 0."""

    def edit(x: Tensor) -> Tensor:
        if heads and not 0 <= min(heads) <= max(heads) < x.shape[-2]:
            raise EditRefused(f"heads {sorted(heads)}: the site has {x.shape[-2]} heads, counted from 0.")
        keep = torch.ones(x.shape[-2], 1, dtype=x.dtype, device=x.device)
        keep[list(heads)] = 0
        return x * keep

    return edit


def zero_neurons(neurons: Collection[int]) -> Edit:
    """Edit for `mlp_act` that zeroes these neurons, counted from 0."""

    def edit(x: Tensor) -> Tensor:
        if neurons and not 0 <= min(neurons) <= max(neurons) < x.shape[-1]:
            raise EditRefused(f"neurons {sorted(neurons)[:8]}: the site has {x.shape[-1]} neurons, counted from 0.")
        keep = torch.ones(x.shape[-1], dtype=x.dtype, device=x.device)
        keep[list(neurons)] = 0
        return x * keep

    return edit


def project_out(direction: Float[Tensor, "*directions d_model"]) -> Edit:
    """Edit that removes the component along a direction, or along the span of several rows.

    Directions need not be unit vectors or orthogonal: an orthonormal basis of their span is taken in float64.

    Raises:
        EditRefused: a direction is zero or not finite, or the rows are linearly dependent.
    """
    rows = direction.detach().to(device="cpu", dtype=torch.float64).reshape(-1, direction.shape[-1])
    if not torch.isfinite(rows).all():
        raise EditRefused("project_out: expected finite directions; at least one entry is not.")
    norms = rows.norm(dim=-1, keepdim=True)
    if rows.shape[0] == 0 or (norms == 0).any() or torch.linalg.matrix_rank(rows / norms) < rows.shape[0]:
        raise EditRefused(
            f"project_out: expected linearly independent, non-zero rows; got {rows.shape[0]} rows with norms from "
            f"{norms.min() if rows.numel() else 0:.3g}; leave out the dependent ones."
        )
    basis = torch.linalg.qr((rows / norms).T).Q  # [d_model, n_directions]

    def edit(x: Tensor) -> Tensor:
        # The product is taken in float32 at least: in bfloat16 a tenth of a percent of the component would stay.
        precise = torch.promote_types(x.dtype, torch.float32)
        unit = basis.to(device=x.device, dtype=precise)
        wide = x.to(precise)
        kept: Tensor = wide - (wide @ unit) @ unit.T
        return kept.to(x.dtype)

    return edit


def compose(*edits: Edit) -> Edit:
    """Edit that applies these in order."""

    def apply(x: Tensor, step: Step) -> Tensor:
        for edit in edits:
            x = apply_edit(edit, x, step)
        return x

    if any(isinstance(edit, PositionedEdit) for edit in edits):
        return PositionedEdit(apply)

    def plain(x: Tensor) -> Tensor:
        for edit in edits:
            x = apply_edit(edit, x, None)
        return x

    return plain


def where_tokens(select: Callable[[Step], Bool[Tensor, "batch seq"]], edit: Edit) -> Edit:
    """Edit restricted to the tokens that `select` marks; padding is never edited."""

    def apply(x: Tensor, step: Step) -> Tensor:
        chosen = (select(step) & step.is_real).to(x.device)
        return torch.where(chosen.reshape(*chosen.shape, *[1] * (x.ndim - 2)), apply_edit(edit, x, step), x)

    return PositionedEdit(apply)


def at_positions(positions: Collection[int], edit: Edit) -> Edit:
    """Edit restricted to these places of each text, counted from 0 at its first real token."""
    wanted = torch.tensor(sorted(positions), dtype=torch.long)
    return where_tokens(lambda step: torch.isin(step.position_ids, wanted.to(step.position_ids)), edit)


def at_mask(mask: Bool[Tensor, "batch seq"], edit: Edit) -> Edit:
    """Edit restricted to a mask over the batch of a plain pass or of a prompt; generated tokens are left alone.

    Raises:
        EditRefused: the mask has another shape than the batch.
    """

    def select(step: Step) -> Tensor:
        if not step.is_prefill:
            return torch.zeros_like(step.is_real)
        if mask.shape != step.is_real.shape:
            raise EditRefused(
                f"at_mask: the mask is {tuple(mask.shape)}, the batch {tuple(step.is_real.shape)}; "
                f"`generate` pads on the left, so give it a left-padded batch and its mask."
            )
        return mask.to(step.is_real.device)

    return where_tokens(select, edit)


def while_generating(edit: Edit) -> Edit:
    """Edit restricted to generated tokens: the prompt is read unedited."""
    return where_tokens(lambda step: torch.full_like(step.is_real, not step.is_prefill), edit)
