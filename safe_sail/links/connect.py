"""Which heads, neurons, sets of units and directions an SAE's features are linked with: by weights, and by cause.

For each concept:
1. On choosing pairs every unit's direct share of every feature is taken; the units with the largest mean difference
   between texts with and without the concept are tested, with random others of the same layers as controls.
2. On judging pairs, which chose nothing, the direct share and the effect of ablation are measured for the same units:
   one packed run for all units, sets and controls, and all features.
3. Sets of units (circuits, safety neurons) are ablated whole, beside random sets with as many units of each layer and
   kind.
4. Features are ablated at the SAE's site: what changes along each direction and in the refusal metric, beside random
   vectors of the same length.
5. Features are ablated once more for the heads, neurons and parts of sets behind them (`readers`).
6. Over all concepts: intervals, p-values, Benjamini-Hochberg; and everything again with texts shuffled within pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.errors import BadInput, BadSite
from safe_sail.links.ablation import UnitAblator, unit_means, zero_values
from safe_sail.links.effects import Target, directions_and_refusal, require_directions
from safe_sail.links.judging import Effect, Tested, judged
from safe_sail.links.readers import units_that_read
from safe_sail.links.reading import Shares, direct_shares, sparse_layers
from safe_sail.links.texts import PairedTexts, paired_texts
from safe_sail.links.units import TestedUnits, UnitSet, choose_units, random_sets, upstream
from safe_sail.model.handle import HookedModel
from safe_sail.records import Direction, LinkFlow, LinkKind, LinkStudy, UnitRef
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import LinkSettings
from safe_sail.sites import Site, SiteKind

Progress = Callable[[str], None]


class LinkConcept(NamedTuple):
    """One concept: its features, and its texts (with the concept, without it)."""

    concept: str
    features: tuple[int, ...]
    choose: Sequence[tuple[str, str]]
    """Pairs that choose units; also, as a rule, those that chose the features."""
    judge: Sequence[tuple[str, str]]
    """Pairs that judge; none is among the others."""


class LinkTargets(NamedTuple):
    """What features may be linked with, beside heads and neurons."""

    sets: tuple[UnitSet, ...] = ()
    directions: tuple[Direction, ...] = ()
    refusal_ids: tuple[int, ...] = ()
    """First tokens of refusals; none: the refusal metric is left out."""


def link_features(
    handle: HookedModel,
    sae: SAEHandle,
    concepts: Sequence[LinkConcept],
    targets: LinkTargets,
    settings: LinkSettings,
    *,
    slug: str,
    generator: torch.Generator,
    as_chat: bool = True,
    system: str | None = None,
    progress: Progress | None = None,
) -> LinkStudy:
    """Links of the features with units, sets, directions and refusal, measured twice and judged together.

    Raises:
        BadInput: choosing and judging texts overlap, a concept has no feature, or a target is for another model.
        EmptyConcept: a concept has fewer than two pairs in a split.
        BadSettings: there are too few units beside the tested ones to serve as controls.
        SaeWidthMismatch: a direction is not as wide as what the SAE writes.
    """
    _require(concepts)
    require_directions(handle, sae, targets.directions)
    notes, n_passes, tested = _notes(handle, sae, targets), 0, list[Tested]()
    for each in concepts:
        if progress is not None:
            progress(each.concept)
        choose = paired_texts(handle, each.choose, concept=each.concept, as_chat=as_chat, system=system)
        judge = paired_texts(handle, each.judge, concept=each.concept, as_chat=as_chat, system=system)
        into, passes = _units_and_sets(handle, sae, each, choose, judge, targets.sets, settings, generator)
        out = directions_and_refusal(
            handle, sae, each.concept, each.features, judge, Target(targets.directions, targets.refusal_ids), settings,
            generator,
        )  # fmt: skip
        read = units_that_read(
            handle, sae, each.concept, each.features, choose, judge, targets.sets, settings, generator
        )  # fmt: skip
        n_passes += passes + out.n_passes + read.n_passes
        tested += [*into, *out.tested, *read.tested]
    links, n_shuffled = judged(tested, alpha=settings.alpha, generator=generator)
    return LinkStudy(
        slug=slug,
        model_id=handle.model_id,
        sae=sae.ref.slug,
        ablation=settings.ablation,
        alpha=settings.alpha,
        n_pairs={each.concept: len(each.judge) for each in concepts},
        n_tested=len(links),
        n_linked=sum(link.is_linked for link in links),
        n_linked_shuffled=n_shuffled,
        n_passes=n_passes,
        notes=tuple(notes),
        links=tuple(links),
    )


def _require(concepts: Sequence[LinkConcept]) -> None:
    for each in concepts:
        shared = {text for pair in each.choose for text in pair} & {text for pair in each.judge for text in pair}
        if shared or not each.features:
            raise BadInput(
                f"concept `{each.concept}`: expected features and no text that both chooses and judges; got "
                f"{len(each.features)} features and {len(shared)} shared texts"
                f"{f', as {min(shared)[:60]!r}' if shared else ''}."
            )
    names = [each.concept for each in concepts]
    if not names or len(set(names)) < len(names):
        raise BadInput(f"expected concepts with different names, at least one; got {', '.join(names) or 'none'}.")


def _notes(handle: HookedModel, sae: SAEHandle, targets: LinkTargets) -> list[str]:
    notes = []
    sparse = [layer for layer in sparse_layers(handle, sae.site) if Site(SiteKind.MLP_ACT, layer) < sae.site]
    if sparse:
        notes.append(f"Layers {', '.join(map(str, sparse))} are mixtures of experts: their neurons were not tested.")
    for one in targets.sets:
        inside = [unit for unit in one.units if unit.site < sae.site]
        if len(inside) < len(one.units):
            notes.append(
                f"{one.slug}: {len(inside)} of {len(one.units)} units stand before `{sae.site}` and can change what is "
                f"read there; those behind it are what features may change."
            )
    if sae.decode_needs_input:
        notes.append(
            "The SAE undoes a norm or mean of its input after decoding: its features were not ablated for units."
        )
    if not targets.directions:
        notes.append("No direction was given, so none was linked.")
    if not targets.refusal_ids:
        notes.append("No refusal tokens were given, so the refusal metric was not read.")
    return notes


class _Ablated(NamedTuple):
    """Activations at peak tokens over all texts, float32."""

    plain: Float[Tensor, "texts features"]
    ablated: Float[Tensor, "texts sets features"]
    n_passes: int


def _units_and_sets(
    handle: HookedModel,
    sae: SAEHandle,
    each: LinkConcept,
    choose: PairedTexts,
    judge: PairedTexts,
    sets: Sequence[UnitSet],
    settings: LinkSettings,
    generator: torch.Generator,
) -> tuple[list[Tested], int]:
    """Every unit and set of one concept, with both measures; and the passes that it took."""
    features = torch.tensor(each.features)
    sites = [site for site in handle.sites() if site.kind in (SiteKind.HEAD_OUT, SiteKind.MLP_ACT) and site < sae.site]
    screened = _shares(handle, sae, features, choose, settings)
    units = choose_units(handle, sites, screened, choose, settings, generator)
    upstream_sets = [one for one in (upstream(each_set, sae.site) for each_set in sets) if one.units]
    draws = {one.slug: random_sets(handle, one, settings.n_random, generator) for one in upstream_sets}
    runs: list[tuple[UnitRef, ...]] = [(unit,) for unit in units.all]
    for one in upstream_sets:
        runs += [one.units, *draws[one.slug]]
    if not runs:
        return [], 0
    values = (
        unit_means(handle, sites, choose.parts_without(settings.batch_rows))
        if settings.ablation == "mean"
        else zero_values(handle, sites)
    )
    direct = _shares(handle, sae, features, judge, settings)
    found = _ablate(handle, sae, features, judge, runs, values, settings)
    causes = judge.differences(found.plain[:, None] - found.ablated)  # [pairs, sets, features]
    tested = _tested_units(sae, each, units, runs, causes, direct, judge)
    for one in upstream_sets:
        tested += _tested_set(sae, each, one, draws[one.slug], runs, causes, direct, judge)
    return tested, found.n_passes


def _shares(
    handle: HookedModel, sae: SAEHandle, features: Tensor, texts: PairedTexts, settings: LinkSettings
) -> Shares | None:
    """Direct shares, or None where the SAE reads no sum of writes."""
    try:
        return direct_shares(handle, sae, features, texts.parts(settings.batch_rows), 2 * texts.n_pairs)
    except BadSite:
        return None


def _ablate(
    handle: HookedModel,
    sae: SAEHandle,
    features: Tensor,
    texts: PairedTexts,
    runs: Sequence[Sequence[UnitRef]],
    values: Mapping[Site, Tensor],
    settings: LinkSettings,
) -> _Ablated:
    ablator = UnitAblator(handle, sae, features, values, pack_rows=settings.pack_rows)
    n = 2 * texts.n_pairs
    plain, ablated = torch.empty(n, len(features)), torch.empty(n, len(runs), len(features))
    for part in texts.parts(settings.batch_rows):
        plain[part.rows], ablated[part.rows] = ablator.read(part, runs)
    return _Ablated(plain, ablated, ablator.n_passes)


def _tested_units(
    sae: SAEHandle,
    each: LinkConcept,
    units: TestedUnits,
    runs: Sequence[Sequence[UnitRef]],
    causes: Float[Tensor, "pairs sets features"],
    direct: Shares | None,
    judge: PairedTexts,
) -> list[Tested]:
    place = {run[0]: index for index, run in enumerate(runs[: len(units.all)])}
    found = []
    for column, feature in enumerate(each.features):
        for unit in units.tested[column]:
            controls = units.controls[unit.site]
            cause = Effect(causes[:, place[unit], column], causes[:, [place[one] for one in controls], column])
            found.append(
                Tested(
                    sae.ref.slug, feature, each.concept, _kind_of(unit), str(unit), LinkFlow.INTO_FEATURE,
                    weights=_direct(direct, judge, column, [(unit,)], [(one,) for one in controls]), cause=cause,
                )
            )  # fmt: skip
    return found


def _kind_of(unit: UnitRef) -> LinkKind:
    return LinkKind.HEAD if unit.site.kind is SiteKind.HEAD_OUT else LinkKind.NEURON


def _tested_set(
    sae: SAEHandle,
    each: LinkConcept,
    one: UnitSet,
    draws: Sequence[Sequence[UnitRef]],
    runs: Sequence[Sequence[UnitRef]],
    causes: Float[Tensor, "pairs sets features"],
    direct: Shares | None,
    judge: PairedTexts,
) -> list[Tested]:
    own = next(index for index, run in enumerate(runs) if run is one.units)
    return [
        Tested(
            sae.ref.slug, feature, each.concept, one.kind, one.slug, LinkFlow.INTO_FEATURE,
            weights=_direct(direct, judge, column, [one.units], draws),
            cause=Effect(causes[:, own, column], causes[:, own + 1 : own + 1 + len(draws), column]),
        )
        for column, feature in enumerate(each.features)
    ]  # fmt: skip


def _direct(
    direct: Shares | None,
    judge: PairedTexts,
    column: int,
    own: Sequence[Sequence[UnitRef]],
    controls: Sequence[Sequence[UnitRef]],
) -> Effect | None:
    """Direct share of a set and of its controls; None where the SAE reads no sum of writes."""
    if direct is None:
        return None

    def share(units: Sequence[UnitRef]) -> Tensor:
        columns = [direct.by_site[unit.site][:, column, unit.index] for unit in units if unit.site in direct.by_site]
        return (
            judge.differences(torch.stack(columns).double().sum(0)) if columns else torch.zeros(judge.n_pairs).double()
        )

    return Effect(share(own[0]), torch.stack([share(units) for units in controls], dim=1))
