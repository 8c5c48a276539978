"""A copy of a model whose weights write nothing along a direction: exact, or refused.

1. Refuse where a norm stands between writing matrices and stream: its gain does not commute with the projection.
2. Copy the model in float32 and give the head weights of its own, or editing the embedding would edit the head too.
3. Project every writer: token and position embeddings, attention outputs, MLP outputs, experts, and all their biases.
4. Compare logits with ablation by hooks on a batch; a gap means that something writes which step 3 does not know.

The copy is for measuring; nothing here saves it.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.directions.interventions import ablation
from safe_sail.directions.projection import orthogonalise_rows
from safe_sail.errors import OrthogonaliseRefused
from safe_sail.model import weights
from safe_sail.model.dims import block_is_sparse
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch

MAX_GAP = 1e-3
"""Largest difference of logits, as a share of the largest logit: 1,000 float32 roundings. Leaving out one writer is off
by a hundredth and more (0.03 to 0.62 on the families of docs/methods/refusal_direction.md)."""


def refusal_reason(handle: HookedModel) -> str:
    """Why a weight edit would not be the same as ablation on this model; empty where it would."""
    if handle.architecture.post_norm:
        return (
            f"{handle.architecture.class_name} has a norm between its writing matrices and the stream; the norm's gain "
            f"turns a projected output out of the projection, so no weight edit equals the ablation"
        )
    return ""


@torch.no_grad()
def orthogonalised(handle: HookedModel, basis: Float[Tensor, "rank d_model"]) -> HookedModel:
    """A float32 copy that writes nothing into the span of orthonormal rows, whatever it reads.

    Raises:
        OrthogonaliseRefused: a post-norm makes the edit differ from the ablation.
    Source: Arditi et al. 2024, eq. 5, arXiv:2406.11717. Biases, positions, experts and the untied head are ours:
    without them the edit is not the ablation.
    """
    reason = refusal_reason(handle)
    if reason:
        raise OrthogonaliseRefused(f"{handle.model_id}: {reason}; ablate with hooks instead.")
    model = copy.deepcopy(handle.model).float()
    edited = HookedModel(model, handle.tokenizer, handle.architecture, model_id=handle.model_id)
    if weights.is_tied(edited):
        weights.untie(edited)
    for writer in _writers(edited):
        writer.copy_(orthogonalise_rows(writer, basis))
    return edited


def _writers(handle: HookedModel) -> list[Tensor]:
    """Views of everything that is written into the stream, rows in its coordinates."""
    found: list[Tensor | None] = [weights.W_E(handle), weights.W_pos(handle)]
    for layer, block in enumerate(handle.blocks):
        found += [weights.W_O(handle, layer), weights.b_O(handle, layer)]
        if block_is_sparse(handle.architecture, block):
            mlps = [weights.experts(handle, layer), weights.shared_expert(handle, layer)]
        else:
            mlps = [weights.mlp(handle, layer)]
        for mlp in mlps:
            found += [] if mlp is None else [mlp.W_out, mlp.b_out]
    return [writer for writer in found if writer is not None]


@torch.no_grad()
def weights_gap(handle: HookedModel, batch: TokenBatch, basis: Float[Tensor, "rank d_model"]) -> float:
    """Largest difference of logits between ablation by hooks and by edited weights, both in float32.

    Raises:
        OrthogonaliseRefused: the edit is refused, or the two differ by more than rounding.
    """
    edited = orthogonalised(handle, basis)
    plain = HookedModel(
        copy.deepcopy(handle.model).float(), handle.tokenizer, handle.architecture, model_id=handle.model_id
    )
    hooked = plain.logits(batch, ablation(plain, basis))
    real = batch.is_real.to(hooked.device)
    gap = float((hooked - edited.logits(batch))[real].abs().max())
    largest = float(hooked[real].abs().max())
    if not gap <= MAX_GAP * max(1.0, largest):
        raise OrthogonaliseRefused(
            f"{handle.model_id}: edited weights and ablation by hooks differ by {gap:.3g} of logits up to "
            f"{largest:.3g}, expected at most {MAX_GAP * max(1.0, largest):.3g}; something writes into the stream "
            f"that the table of architectures does not name."
        )
    return gap
