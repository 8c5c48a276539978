"""What features do to directions and to refusal: along the decoder row, and when the feature is ablated.

1. By weights: the feature's activation at its peak token times its decoder row, along the unit direction; the control
   is the same along random directions.
2. By cause: the projection of the direction's site on the unit direction at the direction's position, and the refusal
   metric after the last token, minus the same with the feature ablated; the control ablates random vectors of the
   decoder row's length with the same activations.
3. A direction that is read at or before the SAE's site cannot depend on the feature, so it has no cause.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.directions.projection import cosine, random_directions, unit
from safe_sail.errors import BadInput, SaeWidthMismatch
from safe_sail.evaluation.utility import refusal_metric
from safe_sail.links.ablation import FeatureAblator
from safe_sail.links.contributions import values_at
from safe_sail.links.judging import Effect, Tested
from safe_sail.links.reading import peaks_of
from safe_sail.links.texts import PairedTexts
from safe_sail.model.handle import HookedModel
from safe_sail.records import Direction, LinkFlow, LinkKind
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import LinkSettings
from safe_sail.sites import Site, SiteKind


class Target(NamedTuple):
    """What a feature may write along."""

    directions: tuple[Direction, ...]
    refusal_ids: tuple[int, ...]


class OutOfFeatures(NamedTuple):
    """Links of one concept's features with directions and refusal, not judged yet."""

    tested: list[Tested]
    n_passes: int


def require_directions(handle: HookedModel, sae: SAEHandle, directions: Sequence[Direction]) -> None:
    """Refuses directions that this SAE cannot be compared with.

    Raises:
        BadInput: a direction belongs to another model, or sits outside this one.
        SaeWidthMismatch: a direction is not as wide as what the SAE writes.
    """
    for direction in directions:
        if direction.model_id != handle.model_id:
            raise BadInput(f"direction {direction.slug} is of {direction.model_id}; the model is {handle.model_id}.")
        handle.check_site(direction.site)
        if len(direction.vectors[0]) != sae.d_out:
            raise SaeWidthMismatch(
                f"SAE {sae.ref.slug} writes {sae.d_out} coordinates, direction {direction.slug} has "
                f"{len(direction.vectors[0])}; it was found in another model or site."
            )


def directions_and_refusal(
    handle: HookedModel,
    sae: SAEHandle,
    concept: str,
    features: Sequence[int],
    judge: PairedTexts,
    target: Target,
    settings: LinkSettings,
    generator: torch.Generator,
) -> OutOfFeatures:
    """Links of each feature with each direction, by both measures, and with the refusal metric, by cause."""
    if not target.directions and not target.refusal_ids:
        return OutOfFeatures([], 0)
    rows = torch.stack([sae.decoder_row(feature) for feature in features]).double().cpu()
    random = random_directions(settings.n_random, rows.shape[1], 1.0, generator)
    written = _activations_at_peaks(handle, sae, features, judge, settings.batch_rows)
    ablated = _ablated(handle, sae, features, rows, random, judge, target, settings)
    tested = []
    for column, feature in enumerate(features):
        for direction in target.directions:
            hat = unit(torch.tensor(direction.vectors[0], dtype=torch.float64))
            along = torch.cat([hat[None], random]) @ rows[column]
            weights = judge.differences(written[:, column, None].double() * along)
            tested.append(
                Tested(
                    sae.ref.slug, feature, concept, LinkKind.DIRECTION, direction.slug, LinkFlow.OUT_OF_FEATURE,
                    weights=Effect(weights[:, 0], weights[:, 1:]),
                    cause=ablated.effect(judge, direction.slug, column, len(features)),
                    cosine=float(cosine(rows[column][None], hat)[0]),
                )
            )  # fmt: skip
        if target.refusal_ids:
            tested.append(
                Tested(
                    sae.ref.slug, feature, concept, LinkKind.REFUSAL, "refusal", LinkFlow.OUT_OF_FEATURE,
                    weights=None, cause=ablated.effect(judge, "refusal", column, len(features)),
                )
            )  # fmt: skip
    return OutOfFeatures(tested, ablated.n_passes)


@torch.no_grad()
def _activations_at_peaks(
    handle: HookedModel, sae: SAEHandle, features: Sequence[int], texts: PairedTexts, batch_rows: int
) -> Float[Tensor, "texts features"]:
    index, found = torch.tensor(features), torch.empty(2 * texts.n_pairs, len(features))
    for part in texts.parts(batch_rows):
        x = handle.capture(part.batch, [sae.site])[sae.site]
        peaks = peaks_of(sae, x, index, part)
        found[part.rows] = sae.encode(values_at(x, peaks), index).diagonal(dim1=-2, dim2=-1).float().cpu()
    return found


class _Ablated(NamedTuple):
    """By name of a direction or `refusal`: nothing ablated, then each feature, then each feature's random vectors."""

    values: dict[str, Float[Tensor, "texts vectors"]]
    n_random: int
    n_passes: int

    def effect(self, judge: PairedTexts, name: str, column: int, n_features: int) -> Effect | None:
        """Change by one feature's ablation and by those of its random vectors; None where nothing was read."""
        if name not in self.values:
            return None
        values = self.values[name]
        changes = judge.differences(values[:, :1] - values[:, 1:])
        first = n_features + column * self.n_random
        return Effect(changes[:, column], changes[:, first : first + self.n_random])


def _ablated(
    handle: HookedModel,
    sae: SAEHandle,
    features: Sequence[int],
    rows: Float[Tensor, "features d_out"],
    random: Float[Tensor, "random d_out"],
    judge: PairedTexts,
    target: Target,
    settings: LinkSettings,
) -> _Ablated:
    later = [one for one in target.directions if _depends(one.site, sae.out_site)]
    if not later and not target.refusal_ids:
        return _Ablated({}, len(random), 0)
    vectors = torch.cat([torch.zeros_like(rows[:1]), rows, *[row.norm() * random for row in rows]]).float()
    owners = [0, *range(len(features))] + [f for f in range(len(features)) for _ in range(len(random))]
    ablator = FeatureAblator(handle, sae, pack_rows=settings.pack_rows)
    n_last = max([1, *[-one.position for one in later]])
    sites = sorted({one.site for one in later})
    names = [one.slug for one in later] + (["refusal"] if target.refusal_ids else [])
    values = {name: torch.empty(2 * judge.n_pairs, len(vectors), dtype=torch.float64) for name in names}
    index = torch.tensor(features)
    for part in judge.parts(settings.batch_rows):
        read = ablator.read(part, index, vectors, owners, sites, n_last)
        for one in later:
            hat = unit(torch.tensor(one.vectors[0], dtype=torch.float64))
            values[one.slug][part.rows] = read.captures[one.site][:, :, one.position].double() @ hat
        if target.refusal_ids:
            metric = refusal_metric(read.logits.flatten(0, 1), target.refusal_ids)
            values["refusal"][part.rows] = metric.reshape(len(part.rows), -1)
    return _Ablated(values, len(random), ablator.n_passes)


def _depends(site: Site, written: Site) -> bool:
    """Whether the site comes after what is written; the stream before a block is the one after the block before."""
    same_stream = (
        site.kind is SiteKind.RESID_PRE
        and written.kind is SiteKind.RESID_POST
        and site.layer == (written.layer or 0) + 1
    )
    return same_stream or written < site
