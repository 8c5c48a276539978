"""Which later heads, neurons and sets of units read a feature: what they do when it is taken out of the stream.

1. On choosing pairs the mean difference of every later unit's output at the last token, with the concept minus
   without it: the direction in which a head, or a whole set, says the concept.
2. One ablation of each feature changes all later units at once. A neuron's change is read at the feature's peak token;
   a head's and a set's at the last token, along that direction.
3. Choosing pairs name the units that change most, with random others of the same layers as controls; a set stands
   beside random sets. Judging pairs, which chose nothing, measure them.
4. By weights a neuron reads the feature's activation times its decoder row, through its layer's norm held at that
   token, in W_gate and W_in. Heads have no such share: which token they attend to is no product of weights.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.activations import ACT2FN

from safe_sail.links.ablation import FeatureAblator
from safe_sail.links.contributions import values_at
from safe_sail.links.judging import Effect, Tested
from safe_sail.links.reading import STREAM, peaks_of
from safe_sail.links.texts import PairedTexts
from safe_sail.links.units import UnitSet, control_units, random_sets, unit_at
from safe_sail.model import weights
from safe_sail.model.dims import block_is_sparse
from safe_sail.model.handle import HookedModel
from safe_sail.records import LinkFlow, LinkKind, UnitRef
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import LinkSettings
from safe_sail.sites import Site, SiteKind

_ACTIVATION = ("hidden_act", "hidden_activation", "activation_function")
"""Names under which families' configurations say their MLP's activation function."""
_SAME_GAIN = 0.05
"""Relative spread of a norm's gain between tokens below which it multiplies each coordinate by itself: rounding leaves
1e-5 in float32 and .01 in bfloat16; a norm that centres leaves far more."""


class ReadBy(NamedTuple):
    """Links of one concept's features with later units, not judged yet."""

    tested: list[Tested]
    n_passes: int


class _Changes(NamedTuple):
    """What ablating each feature takes from later units, text by text; float32 on the CPU."""

    along: dict[Site, Float[Tensor, "texts features units"]]
    """At the last token, each unit's change times its mean difference."""
    at_peak: dict[Site, Float[Tensor, "texts features units"]]
    """Of neurons: change of the activation at the feature's peak token."""


def later_sites(handle: HookedModel, sae: SAEHandle) -> list[Site]:
    """Sites of the heads and neurons that stand behind what the SAE writes."""
    kinds = (SiteKind.HEAD_OUT, SiteKind.MLP_ACT)
    return [site for site in handle.sites() if site.kind in kinds and sae.out_site < site]


def downstream(one: UnitSet, site: Site) -> UnitSet:
    """The part of a set that stands behind a site."""
    return one._replace(units=tuple(unit for unit in one.units if site < unit.site))


def units_that_read(
    handle: HookedModel,
    sae: SAEHandle,
    concept: str,
    features: Sequence[int],
    choose: PairedTexts,
    judge: PairedTexts,
    sets: Sequence[UnitSet],
    settings: LinkSettings,
    generator: torch.Generator,
) -> ReadBy:
    """Links of each feature with the later units that change most without it, and with later parts of sets.

    Raises:
        BadSettings: a layer has too few units beside the tested ones to serve as controls.
    """
    sites = later_sites(handle, sae)
    if not sites or sae.decode_needs_input:
        return ReadBy([], 0)
    means = _mean_differences(handle, sites, choose, settings.batch_rows)
    ablator = FeatureAblator(handle, sae, pack_rows=settings.pack_rows)
    chosen = _changes(ablator, handle, sae, features, sites, means, choose, settings)
    found = _changes(ablator, handle, sae, features, sites, means, judge, settings)
    parts = [one for one in (downstream(each, sae.out_site) for each in sets) if one.units]
    tested = _single(handle, sae, concept, features, sites, means, chosen, found, choose, judge, settings, generator)
    for one in parts:
        draws = random_sets(handle, one, settings.n_random, generator)
        every = [one.units, *draws]
        values = torch.stack([_along(found, means, units) for units in every], dim=-1)  # [texts, features, sets]
        differences = judge.differences(values)
        tested += [
            Tested(
                sae.ref.slug, feature, concept, one.kind, one.slug, LinkFlow.OUT_OF_FEATURE, weights=None,
                cause=Effect(differences[:, column, 0], differences[:, column, 1:]),
            )
            for column, feature in enumerate(features)
        ]  # fmt: skip
    return ReadBy(tested, ablator.n_passes)


@torch.no_grad()
def _mean_differences(
    handle: HookedModel, sites: Sequence[Site], texts: PairedTexts, batch_rows: int
) -> dict[Site, Tensor]:
    """Mean output of every unit at the last token, over texts with the concept minus those without it; float64 sums."""
    sums = {site: torch.zeros(handle.site_shape(site), dtype=torch.float64) for site in sites}
    for sign, parts in ((1, texts.parts_with(batch_rows)), (-1, texts.parts_without(batch_rows))):
        for part in parts:
            captured = handle.capture(part.batch, list(sites))
            for site in sites:
                sums[site] += sign * captured[site][:, -1].double().sum(0).cpu()
    return {site: (total / texts.n_pairs).float() for site, total in sums.items()}


def _changes(
    ablator: FeatureAblator,
    handle: HookedModel,
    sae: SAEHandle,
    features: Sequence[int],
    sites: Sequence[Site],
    means: Mapping[Site, Tensor],
    texts: PairedTexts,
    settings: LinkSettings,
) -> _Changes:
    index, n = torch.tensor(features), len(features)
    rows = torch.stack([sae.decoder_row(feature) for feature in features]).float().cpu()
    shape = (2 * texts.n_pairs, n)
    along = {site: torch.empty(*shape, handle.site_shape(site)[0]) for site in sites}
    at_peak = {site: torch.empty(*shape, *handle.site_shape(site)) for site in sites if site.kind is SiteKind.MLP_ACT}
    for part in texts.parts(settings.batch_rows):
        plain = handle.capture(part.batch, [*sites, sae.site])
        peaks = peaks_of(sae, plain[sae.site], index, part).cpu()
        places = torch.stack([peaks, torch.full_like(peaks, part.batch.token_ids.shape[1] - 1)], dim=-1)
        read = ablator.read(part, index, rows, range(n), sites, places=places)
        for site in sites:
            without = read.captures[site]  # [batch, features, peak and last, *unit]
            change = (plain[site][:, None, -1].float().cpu() - without[:, :, 1]) * means[site]
            along[site][part.rows] = change if site.kind is SiteKind.MLP_ACT else change.sum(-1)
            if site in at_peak:
                at_peak[site][part.rows] = values_at(plain[site], peaks).float().cpu() - without[:, :, 0]
    return _Changes(along, at_peak)


def _along(found: _Changes, means: Mapping[Site, Tensor], units: Sequence[UnitRef]) -> Float[Tensor, "texts features"]:
    """Change of a set's outputs along its mean difference, which has length 1 here; 0 where there is no difference."""
    total = torch.stack([found.along[unit.site][..., unit.index] for unit in units]).double().sum(0)
    length = torch.stack([means[unit.site][unit.index].double().square().sum() for unit in units]).sum().sqrt()
    return total / length if length > 0 else torch.zeros_like(total)


def _value(found: _Changes, means: Mapping[Site, Tensor], unit: UnitRef) -> Float[Tensor, "texts features"]:
    if unit.site in found.at_peak:
        return found.at_peak[unit.site][..., unit.index].double()
    return _along(found, means, [unit])


def _sizes(
    found: _Changes, means: Mapping[Site, Tensor], site: Site, texts: PairedTexts
) -> Float[Tensor, "features units"]:
    """How much each unit of a site changes more with the concept than without it."""
    if site in found.at_peak:
        return texts.differences(found.at_peak[site].double()).mean(0).abs()
    length = means[site].double().flatten(1).norm(dim=1)
    return texts.differences(found.along[site].double()).mean(0).abs() / torch.where(length > 0, length, 1.0)


def _single(
    handle: HookedModel,
    sae: SAEHandle,
    concept: str,
    features: Sequence[int],
    sites: Sequence[Site],
    means: Mapping[Site, Tensor],
    chosen: _Changes,
    found: _Changes,
    choose: PairedTexts,
    judge: PairedTexts,
    settings: LinkSettings,
    generator: torch.Generator,
) -> list[Tested]:
    """Heads and neurons one by one."""
    tested: list[list[UnitRef]] = [[] for _ in features]
    for kind, n in ((SiteKind.HEAD_OUT, settings.n_heads), (SiteKind.MLP_ACT, settings.n_neurons)):
        of_kind = [site for site in sites if site.kind is kind]
        names = [unit_at(site, i) for site in of_kind for i in range(handle.site_shape(site)[0])]
        if not names or n == 0:
            continue
        sizes = torch.cat([_sizes(chosen, means, site, choose) for site in of_kind], dim=-1)
        for column, units in enumerate(tested):
            units += [names[i] for i in sizes[column].argsort(descending=True, stable=True)[:n].tolist()]
    taken = {unit for units in tested for unit in units}
    controls = {
        site: control_units(handle, site, sites, taken, settings.n_control_units, generator)
        for site in sorted({unit.site for unit in taken})
    }
    shares = _neuron_shares(handle, sae, features, controls, judge, settings.batch_rows)
    rows = []
    for column, feature in enumerate(features):
        for unit in tested[column]:
            every = [unit, *controls[unit.site]]
            cause = judge.differences(torch.stack([_value(found, means, one) for one in every], dim=-1))[:, column]
            by_weights = None
            if all(one.site in shares for one in every):
                values = torch.stack([shares[one.site][..., one.index] for one in every], dim=-1).double()
                direct = judge.differences(values)[:, column]
                by_weights = Effect(direct[:, 0], direct[:, 1:])
            kind_of = LinkKind.HEAD if unit.site.kind is SiteKind.HEAD_OUT else LinkKind.NEURON
            rows.append(
                Tested(
                    sae.ref.slug, feature, concept, kind_of, str(unit), LinkFlow.OUT_OF_FEATURE, weights=by_weights,
                    cause=Effect(cause[:, 0], cause[:, 1:]),
                )
            )  # fmt: skip
    return rows


@torch.no_grad()
def _neuron_shares(
    handle: HookedModel,
    sae: SAEHandle,
    features: Sequence[int],
    controls: Mapping[Site, Sequence[UnitRef]],
    texts: PairedTexts,
    batch_rows: int,
) -> dict[Site, Float[Tensor, "texts features units"]]:
    """What each neuron of these layers loses at the feature's peak token when the feature is taken out of what it
    reads alone: nothing between them changes, and the norm keeps its scale. Layers without such a path are left out.
    """
    act = activation_of(handle)
    adds = sae.out_site.kind in (*STREAM, SiteKind.ATTN_OUT, SiteKind.MLP_OUT)
    wanted = [
        site for site in sorted({unit.site for units in controls.values() for unit in units})
        if site.kind is SiteKind.MLP_ACT and not block_is_sparse(handle.architecture, handle.blocks[site.layer or 0])
    ]  # fmt: skip
    if act is None or not adds:
        return {}
    rows = torch.stack([sae.decoder_row(feature) for feature in features]).float()
    index, found = torch.tensor(features), dict[Site, Tensor]()
    uneven = set()
    for part in texts.parts(batch_rows):
        inputs = {site: (Site(SiteKind.MLP_IN, site.layer), _stream_before(handle, site)) for site in wanted}
        captured = handle.capture(part.batch, list({sae.site, *(one for both in inputs.values() for one in both)}))
        peaks = peaks_of(sae, captured[sae.site], index, part)
        strength = sae.encode(values_at(captured[sae.site], peaks), index).diagonal(dim1=-2, dim2=-1).float()
        for site in wanted:
            read, stream = (values_at(captured[one], peaks).float() for one in inputs[site])
            gain = read / stream
            if not _multiplies(gain):
                uneven.add(site)
            lost = strength[..., None] * rows.to(read.device) * gain
            change = _act(handle, site, read, act) - _act(handle, site, read - lost, act)
            whole = found.setdefault(site, torch.empty(2 * texts.n_pairs, *change.shape[1:]))
            whole[part.rows] = change.cpu()
    return {site: shares for site, shares in found.items() if site not in uneven}


def activation_of(handle: HookedModel) -> torch.nn.Module | None:
    """The activation function of the model's MLPs, as its configuration names it; None where it does not."""
    names = (getattr(handle.model.config, field, None) for field in _ACTIVATION)
    name = next((name for name in names if isinstance(name, str)), None)
    if name is None:
        return None
    act: torch.nn.Module = ACT2FN[name]
    return act


def _stream_before(handle: HookedModel, site: Site) -> Site:
    middle = Site(SiteKind.RESID_MID, site.layer)
    return middle if handle.has_site(middle) else Site(SiteKind.RESID_PRE, site.layer)


def _multiplies(gain: Float[Tensor, "batch features d_model"]) -> bool:
    """Whether the norm multiplies each coordinate by the same number at every token, but for one factor a token."""
    flat = gain.reshape(-1, gain.shape[-1])
    shape = flat / flat.median(dim=-1, keepdim=True).values
    spread = (shape - shape.median(dim=0).values).abs() / shape.median(dim=0).values.abs()
    return bool((spread.median(dim=-1).values < _SAME_GAIN).all())


def _act(handle: HookedModel, site: Site, read: Tensor, act: torch.nn.Module) -> Float[Tensor, "batch features d_mlp"]:
    found = weights.mlp(handle, site.layer or 0)
    up = read @ found.W_in.float().T + (0 if found.b_in is None else found.b_in.float())
    if found.W_gate is None:
        return act(up)  # type: ignore[no-any-return]
    gate = read @ found.W_gate.float().T + (0 if found.b_gate is None else found.b_gate.float())
    return act(gate) * up  # type: ignore[no-any-return]
