"""One prompt answered twice: plainly, and with a feature or a direction added or taken away.

1. A feature is written at its SAE's site by its decoder row, at every token but the first; ablated, what it writes is
   taken away, with the activation of the stream as it is there.
2. A direction is added where it was read, at every token and at its own length; ablated, it is taken out of every write
   to the stream.
3. Both answers are greedy; the first reply token's distributions are compared by KL.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from safe_sail.directions.interventions import ablation
from safe_sail.directions.projection import add, orthonormal_basis
from safe_sail.errors import BadInput
from safe_sail.evaluation.utility import kl_divergence
from safe_sail.features.intervene import feature_edit, require_writable
from safe_sail.links.trace import Asked, prompt_batch, reply_of
from safe_sail.model.edits import Edit
from safe_sail.model.handle import HookedModel
from safe_sail.records import Direction, Steering, SteerKind
from safe_sail.sae.handle import SAEHandle
from safe_sail.sites import Site


class Steer(NamedTuple):
    """What is changed, ready to be put on a model."""

    kind: SteerKind
    target: str
    site: Site
    coefficient: float
    length: float
    """Norm of what is added to each token."""
    edits: Mapping[Site, Edit]


def feature_steer(sae: SAEHandle, index: int, kind: SteerKind, *, coefficient: float, unit: float) -> Steer:
    """The feature added `coefficient * unit` SAE units strong, or ablated.

    Raises:
        BadInput: the SAE cannot be written with, has no such feature, or the addition has no length.
    """
    require_writable(sae)
    norm = float(sae.decoder_row(index).float().norm())
    target = f"{sae.ref.slug}/{index}"
    if kind is SteerKind.ABLATE:
        return Steer(kind, target, sae.site, 0.0, 0.0, {sae.site: feature_edit(sae, index)})
    length = coefficient * unit * norm
    if length == 0:
        raise BadInput(f"{target}: {coefficient} times {unit} along a row of length {norm} adds nothing; give more.")
    return Steer(kind, target, sae.site, coefficient, abs(length), {sae.site: feature_edit(sae, index, length)})


def direction_steer(handle: HookedModel, direction: Direction, kind: SteerKind, *, coefficient: float) -> Steer:
    """The direction added `coefficient` times where it was read, or ablated at every write.

    Raises:
        BadInput: the direction is of a model of another width, or a subspace, which cannot be added.
    """
    rows = torch.tensor(direction.vectors, dtype=torch.float64)
    if rows.shape[1] != handle.dims.d_model:
        raise BadInput(
            f"direction {direction.slug} is of {direction.model_id} and {rows.shape[1]} wide; {handle.model_id} has a "
            f"stream of {handle.dims.d_model}."
        )
    if kind is SteerKind.ABLATE:
        return Steer(kind, direction.slug, direction.site, 0.0, 0.0, ablation(handle, orthonormal_basis(rows)))
    if len(rows) != 1:
        raise BadInput(f"{direction.slug} is a subspace of {len(rows)} rows: it can be ablated, not added.")

    def edit(x: torch.Tensor) -> torch.Tensor:
        return add(x, rows[0], coefficient)

    length = abs(coefficient) * float(rows[0].norm())
    return Steer(kind, direction.slug, direction.site, coefficient, length, {direction.site: edit})


@torch.no_grad()
def steer_prompt(handle: HookedModel, prompt: str, asked: Asked, steer: Steer) -> Steering:
    """Both answers to a prompt.

    Raises:
        SequenceTooLong: prompt and answer are longer than the model accepts or a live request may be.
        ChatTemplateMissing: the tokenizer has no chat template.
    """
    batch = prompt_batch(handle, prompt, asked)
    plain, changed = (handle.logits(batch, edits, positions="last")[:, -1].float().cpu() for edits in ({}, steer.edits))
    return Steering(
        model_id=handle.model_id,
        prompt=prompt,
        kind=steer.kind,
        target=steer.target,
        site=steer.site,
        coefficient=steer.coefficient,
        length=steer.length,
        plain=reply_of(handle, batch, asked.max_new_tokens),
        steered=reply_of(handle, batch, asked.max_new_tokens, steer.edits),
        kl=max(0.0, float(kl_divergence(plain, changed)[0])),
    )
