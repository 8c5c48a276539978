"""Reading a direction: where prompts stand along it, which SAE features write it, and which tokens carry it.

1. Cosine of the last token's stream with the direction before every layer, prompt class by prompt class.
2. Cosine of every decoder row of an SAE with the direction, against the largest that random directions find.
3. The direction rebuilt by least squares from its best features, against random directions and their best.
4. Projection of each token of a prompt on the unit direction.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.directions.projection import cosine, random_directions, unit
from safe_sail.errors import SaeWidthMismatch
from safe_sail.evaluation.bootstrap import mean_estimate, resample_weights
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch, parts_by_length, trimmed
from safe_sail.records import Direction, DirectionReading, Estimate, FeatureAlignment, FeatureId, SaeReading
from safe_sail.sae.handle import SAEHandle
from safe_sail.sites import Site, SiteKind

N_BOOTSTRAP = 1000


class TokenProjection(NamedTuple):
    """One prompt along a direction."""

    tokens: tuple[str, ...]
    projections: tuple[float, ...]
    """In residual units, at the direction's site."""


class PromptGroup(NamedTuple):
    """Prompts of one class in one model."""

    handle: HookedModel
    batch: TokenBatch


def first_row(direction: Direction) -> Float[Tensor, " d_model"]:
    """The direction, or the first row of a subspace, as float64."""
    return torch.tensor(direction.vectors[0], dtype=torch.float64)


@torch.no_grad()
def last_token_stream(handle: HookedModel, batch: TokenBatch, batch_rows: int) -> Float[Tensor, "batch layer d_model"]:
    """Stream of the last token before every layer, float32 on the CPU."""
    sites = [Site(SiteKind.RESID_PRE, layer) for layer in range(handle.dims.n_layers)]
    batch = batch.left_padded()
    found = torch.empty(len(batch), len(sites), handle.dims.d_model)
    for rows in parts_by_length(batch, batch_rows):
        captures = handle.capture(trimmed(batch, rows), sites)
        found[rows] = torch.stack([captures[site][:, -1].float().cpu() for site in sites], dim=1)
    return found


def depth_cosines(
    stream: Float[Tensor, "batch layer d_model"], vector: Float[Tensor, " d_model"], generator: torch.Generator
) -> tuple[Estimate, ...]:
    """Mean cosine of the stream with the direction, layer by layer; intervals over prompts.

    Source: Arditi et al. 2024, figure 5 and appendix J, arXiv:2406.11717.
    """
    values = cosine(stream, vector)
    weights = resample_weights(len(values), N_BOOTSTRAP, generator)
    return tuple(mean_estimate(values[:, layer], weights) for layer in range(values.shape[1]))


def project_tokens(handle: HookedModel, batch: TokenBatch, direction: Direction) -> list[TokenProjection]:
    """Each real token's component along the unit direction, at the direction's site."""
    hat = unit(first_row(direction))
    with torch.no_grad():
        found = handle.capture(batch, [direction.site])[direction.site]
    values = found.double().cpu() @ hat
    rows = []
    for row in range(len(batch)):
        real = batch.is_real[row].cpu()
        tokens = tuple(handle.tokenizer.decode([token]) for token in batch.token_ids[row].cpu()[real].tolist())
        rows.append(TokenProjection(tokens, tuple(values[row][real].tolist())))
    return rows


def rebuilt_cosines(rows: Float[Tensor, "k d_model"], vector: Float[Tensor, " d_model"]) -> tuple[float, ...]:
    """Cosine of a direction with its least-squares rebuild from the first 1, 2, ... k rows."""
    hat = unit(vector)
    found = []
    for k in range(1, len(rows) + 1):
        basis = rows[:k].double().T
        weights = torch.linalg.lstsq(basis, hat[:, None], driver="gelsd").solution[:, 0]
        found.append(float(cosine((basis @ weights)[None], hat)[0]))
    return tuple(found)


def read_sae(
    sae: SAEHandle,
    vector: Float[Tensor, " d_model"],
    *,
    n_best: int,
    n_random: int,
    generator: torch.Generator,
) -> SaeReading:
    """A direction in the features of one SAE, against random directions.

    Raises:
        SaeWidthMismatch: the SAE writes vectors of another width.
    """
    decoder = sae.decoder.detach().double().cpu()
    if decoder.shape[1] != len(vector):
        raise SaeWidthMismatch(
            f"SAE {sae.ref.slug} writes {decoder.shape[1]} coordinates, the direction has {len(vector)}; it was "
            f"trained for another model."
        )
    lengths = decoder.norm(dim=-1, keepdim=True)
    rows = torch.where(lengths > 0, decoder / lengths.clamp(min=torch.finfo(torch.float64).tiny), decoder)
    cosines = rows @ unit(vector)
    drawn = random_directions(n_random, len(vector), 1.0, generator)
    null = rows @ drawn.T  # [feature, random]
    largest = null.abs().amax(dim=0)
    best = torch.argsort(cosines.abs(), descending=True, stable=True)[:n_best]
    controls = []
    for index in range(min(n_random, 20)):  # a rebuild costs a least squares for every k; 20 fix the mean to 0.01
        own = torch.argsort(null[:, index].abs(), descending=True, stable=True)[:n_best]
        controls.append(torch.tensor(rebuilt_cosines(rows[own], drawn[index])))
    return SaeReading(
        sae=sae.ref.slug,
        features=tuple(
            FeatureAlignment(
                feature=FeatureId(sae=sae.ref.slug, index=index),
                cosine=float(cosines[index]),
                # one is added to both, since the direction itself is one of the draws under the null
                p_value=(1 + int((largest >= cosines[index].abs()).sum())) / (1 + n_random),
            )
            for index in best.tolist()
        ),
        rebuilt=rebuilt_cosines(rows[best], vector),
        rebuilt_control=tuple(torch.stack(controls).mean(0).tolist()),
        n_random=n_random,
    )


def read_direction(
    direction: Direction,
    groups: Mapping[str, PromptGroup],
    saes: Sequence[SAEHandle],
    *,
    batch_rows: int,
    n_best: int = 16,
    n_random: int = 1000,
    generator: torch.Generator,
) -> DirectionReading:
    """Cosine curves of every group of prompts, and the direction in every SAE.

    Raises:
        SaeWidthMismatch: an SAE writes vectors of another width.
    """
    vector = first_row(direction)
    return DirectionReading(
        direction=direction.slug,
        cosines={
            name: depth_cosines(last_token_stream(group.handle, group.batch, batch_rows), vector, generator)
            for name, group in groups.items()
        },
        saes=tuple(read_sae(sae, vector, n_best=n_best, n_random=n_random, generator=generator) for sae in saes),
    )
