"""Activations at the template's tokens, read in batches and summed per class.

1. Prompts stand in the chat template up to where the answer begins; the tokens after the instruction are the positions.
2. The stream before every layer is read at these positions, in batches of similar length.
3. Sums go to `diff_in_means`; activations are not kept.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.directions.diff_in_means import (
    ClassSums,
    difference_in_means,
    massive_coordinate_ratio,
    projected_difference,
    standardised_difference,
    winsorised,
)
from safe_sail.model.chat import post_instruction_ids, render_chat
from safe_sail.model.edits import Edit
from safe_sail.model.handle import NO_EDITS, HookedModel
from safe_sail.model.tokens import TokenBatch, parts_by_length, trimmed
from safe_sail.sites import Site, SiteKind

_PROBE = "alpha"


_DIFFERENCES = {
    "raw": difference_in_means,
    "projected": projected_difference,
    "winsorised": difference_in_means,
    "standardised": standardised_difference,
}


class TemplateFacts(NamedTuple):
    """What the chat template puts around an instruction."""

    prefix: str
    """Text before the instruction, a system prompt included."""
    suffix: tuple[str, ...]
    """Tokens after it, up to where the answer begins."""
    n_positions: int
    """Positions to read: the suffix, or the last token alone where the template has none."""
    notes: tuple[str, ...]


class Differences(NamedTuple):
    """Candidates of every position (from the far end) and layer."""

    vectors: Float[Tensor, "position layer d_model"]
    massive_ratio: Float[Tensor, "position layer"]


def template_facts(handle: HookedModel, system: str | None) -> TemplateFacts:
    """What the chat template puts around an instruction, and what a reader must know of it.

    Raises:
        ChatTemplateMissing: the tokenizer has no chat template.
        BadSettings: the template refuses or drops the system message.
    """
    ids = post_instruction_ids(handle.tokenizer, system=system)
    rendered = render_chat(handle.tokenizer, [_PROBE], system=system)[0]
    prefix = rendered.partition(_PROBE)[0]
    notes = []
    if system is None and "system" in prefix.lower():
        notes.append(f"The chat template adds a system prompt of its own: {prefix!r}.")
    if not ids:
        notes.append("The chat template ends with the instruction, so only the prompt's last token was read.")
    tokens = tuple(handle.tokenizer.decode([token]) for token in ids)
    return TemplateFacts(prefix, tokens, max(1, len(ids)), tuple(notes))


@torch.no_grad()
def class_sums(
    handle: HookedModel,
    batch: TokenBatch,
    *,
    n_positions: int,
    batch_rows: int,
    quantile: float = 1.0,
    edits: Mapping[Site, Edit] = NO_EDITS,
) -> ClassSums:
    """Sums of the stream before every layer at the last `n_positions` tokens; positions from the far end."""
    sites = [Site(SiteKind.RESID_PRE, layer) for layer in range(handle.dims.n_layers)]
    sums = ClassSums.empty(n_positions, len(sites), handle.dims.d_model)
    batch = batch.left_padded()
    for rows in parts_by_length(batch, batch_rows):
        found = handle.capture(trimmed(batch, rows), sites, edits)
        stacked = torch.stack([found[site][:, -n_positions:].cpu() for site in sites], dim=2)
        sums = sums.plus(winsorised(stacked, quantile))
    return sums


def differences(
    handle: HookedModel,
    harmful: TokenBatch,
    harmless: TokenBatch,
    *,
    n_positions: int,
    batch_rows: int,
    estimator: str,
    winsor_quantile: float,
    edits: Mapping[Site, Edit] = NO_EDITS,
) -> Differences:
    """Candidates by the estimator: raw, projected, winsorised or standardised."""
    quantile = winsor_quantile if estimator == "winsorised" else 1.0
    sums = [
        class_sums(handle, batch, n_positions=n_positions, batch_rows=batch_rows, quantile=quantile, edits=edits)
        for batch in (harmful, harmless)
    ]
    vectors = _DIFFERENCES[estimator](*sums).clone()
    # At layer 0 a template token is its embedding whatever the prompt: the rest is rounding, or learned positions.
    vectors[:, 0] = 0
    return Differences(vectors, massive_coordinate_ratio(*sums))


def concept_differences(
    handle: HookedModel,
    by_concept: Sequence[TokenBatch],
    harmless: TokenBatch,
    *,
    n_positions: int,
    batch_rows: int,
) -> Float[Tensor, "concept position layer d_model"]:
    """Difference in means of each concept's harmful prompts against all harmless ones."""
    base = class_sums(handle, harmless, n_positions=n_positions, batch_rows=batch_rows)
    return torch.stack(
        [
            difference_in_means(class_sums(handle, batch, n_positions=n_positions, batch_rows=batch_rows), base)
            for batch in by_concept
        ]
    )
