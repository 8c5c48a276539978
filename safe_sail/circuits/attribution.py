"""Heads ranked by what their absence does to the next token: the Ships score, as a baseline for searched circuits.

1. A plain pass keeps the distribution after each prompt's last token, and the stream before every layer.
2. Every head times every prompt is a row; rows of one layer share passes, begin at that layer from the kept stream, and
   in each row its own head alone is replaced.
3. The score is KL(full || without the head) at the last position, prompt by prompt; heads are ranked by its mean over
   harmful prompts, and its mean over harmless prompts stands beside it.

Source: Zhou et al. 2025, section 3 (Ships), arXiv:2410.13708. Theirs makes the head's attention uniform by scaling W_Q
or W_K, or scales W_V (`scaling contribution`), prompt by prompt and head by head. Here the head's output is replaced,
as in every circuit of this library; scaling W_V to zero is the same as replacing it by zero where values have no bias.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.circuits.baselines import ZERO, Baseline
from safe_sail.errors import BadSettings
from safe_sail.evaluation.bootstrap import mean_estimate, resample_weights
from safe_sail.evaluation.utility import kl_divergence
from safe_sail.model.edits import Edit, PositionedEdit, Step
from safe_sail.model.handle import HookedModel
from safe_sail.model.resume import skipped_blocks
from safe_sail.model.tokens import TokenBatch, rows_of
from safe_sail.records import Circuit, CircuitMember, HeadRef, HeadScore, HeadScores
from safe_sail.sites import Site, SiteKind


@torch.no_grad()
def head_divergences(
    handle: HookedModel, batch: TokenBatch, baseline: Baseline = ZERO, *, batch_rows: int = 64, pack_rows: int = 256
) -> Float[Tensor, "prompts n_layers n_heads"]:
    """KL(full || without the head) in nats after each prompt's last token, float64 on the CPU.

    A resample baseline gives a prompt the reference text of its place, whatever else shares its pass.
    """
    batch = batch.left_padded()
    found = torch.empty(len(batch), handle.dims.n_layers, handle.dims.n_heads, dtype=torch.float64)
    for first in range(0, len(batch), batch_rows):
        rows = list(range(first, min(first + batch_rows, len(batch))))
        found[rows] = _divergences(handle, rows_of(batch, rows), baseline.shifted(baseline.shift + first), pack_rows)
    return found


def _divergences(
    handle: HookedModel, batch: TokenBatch, baseline: Baseline, pack_rows: int
) -> Float[Tensor, "prompts n_layers n_heads"]:
    dims, n = handle.dims, len(batch)
    streams = [Site(SiteKind.RESID_PRE, layer) for layer in range(dims.n_layers)]
    run = handle.run(batch, streams, logits="last")
    assert run.logits is not None
    plain = run.logits[:, -1]
    found = torch.empty(n, dims.n_layers, dims.n_heads, dtype=torch.float64)
    at_once = max(1, pack_rows // n)
    for layer, stream in enumerate(streams):
        for first in range(0, dims.n_heads, at_once):
            heads = list(range(first, min(first + at_once, dims.n_heads)))
            rows = list(range(n)) * len(heads)
            resumed = run.captures[stream][rows]
            edits: dict[Site, Edit] = {
                stream: lambda x, kept=resumed: kept.to(x),  # type: ignore[misc]
                Site(SiteKind.HEAD_OUT, layer): _without(heads, n, layer, baseline),
            }
            with skipped_blocks(handle, layer):
                logits = handle.logits(rows_of(batch, rows), edits, positions="last")[:, -1]
            kl = kl_divergence(plain.repeat(len(heads), 1), logits).cpu()
            found[:, layer, heads] = kl.reshape(len(heads), n).T
    return found


def _without(heads: list[int], n: int, layer: int, baseline: Baseline) -> PositionedEdit:
    """Edit that replaces one head in each row: the first of `heads` in the first n rows, and so on."""

    def apply(x: Tensor, step: Step) -> Tensor:
        # each head's rows hold the same prompts, so they take the same reference texts
        replacement = baseline.replacement(f"head_out.{layer}", x[:n], step.position_ids[:n])
        value = torch.zeros_like(x[:n]) if replacement is None else replacement.to(x).expand_as(x[:n])
        parts = []
        for place, head in enumerate(heads):
            part = x[place * n : (place + 1) * n].clone()
            part[:, :, head] = value[:, :, head]
            parts.append(part)
        return torch.cat(parts)

    return PositionedEdit(apply)


def rank_heads(
    handle: HookedModel,
    harmful: TokenBatch,
    harmless: TokenBatch,
    *,
    slug: str,
    baseline: Baseline = ZERO,
    n_bootstrap: int = 1000,
    pack_rows: int = 256,
    generator: torch.Generator,
) -> HeadScores:
    """Every head by its mean divergence on harmful prompts, largest first (ties: layer, then index)."""
    scores = [head_divergences(handle, batch, baseline, pack_rows=pack_rows) for batch in (harmful, harmless)]
    weights = [resample_weights(len(one), n_bootstrap, generator) for one in scores]
    heads = [
        HeadScore(
            head=HeadRef(layer, head),
            harmful=mean_estimate(scores[0][:, layer, head], weights[0]),
            harmless=mean_estimate(scores[1][:, layer, head], weights[1]),
        )
        for layer in range(handle.dims.n_layers)
        for head in range(handle.dims.n_heads)
    ]
    return HeadScores(
        slug=slug,
        model_id=handle.model_id,
        ablation=baseline.kind,
        heads=tuple(sorted(heads, key=lambda one: (-one.harmful.value, one.head))),
    )


def circuit_of_heads(scores: HeadScores, k: int, *, behaviour: str = "refusal") -> Circuit:
    """The k highest heads as a circuit, to be evaluated as searched ones are.

    Raises:
        BadSettings: k is below 1 or above the number of heads.
    """
    if not 1 <= k <= len(scores.heads):
        raise BadSettings(f"a circuit of heads has 1 to {len(scores.heads)} of them; got {k}.")
    chosen = sorted(one.head for one in scores.heads[:k])
    return Circuit(
        slug=scores.slug,
        model_id=scores.model_id,
        behaviour=behaviour,
        method="ships",
        ablation=scores.ablation,
        members=tuple(CircuitMember(unit=head, probability=1.0) for head in chosen),
        n_heads=len(scores.heads),
        n_neurons=0,
    )
