"""Which units are tested, and which random ones stand beside them."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.errors import BadSettings
from safe_sail.links.reading import Shares
from safe_sail.links.texts import PairedTexts
from safe_sail.model.handle import HookedModel
from safe_sail.records import HeadRef, LinkKind, NeuronRef, UnitRef
from safe_sail.settings import LinkSettings
from safe_sail.sites import Site, SiteKind


class UnitSet(NamedTuple):
    """A circuit, or a set of neurons."""

    slug: str
    kind: LinkKind
    units: tuple[UnitRef, ...]


class TestedUnits(NamedTuple):
    """Single units of one concept."""

    tested: list[list[UnitRef]]
    """By feature: the units whose direct share differs most between texts with and without the concept, most first."""
    controls: dict[Site, list[UnitRef]]
    """By the site of a tested unit: random units of that layer and kind that are tested for no feature."""
    all: list[UnitRef]
    """Each once."""


def unit_at(site: Site, index: int) -> UnitRef:
    """The head or neuron with this index at its site."""
    return (HeadRef if site.kind is SiteKind.HEAD_OUT else NeuronRef)(site.layer or 0, index)


def upstream(one: UnitSet, site: Site) -> UnitSet:
    """The part of a set that stands before a site."""
    return one._replace(units=tuple(unit for unit in one.units if unit.site < site))


def choose_units(
    handle: HookedModel,
    sites: Sequence[Site],
    shares: Shares | None,
    texts: PairedTexts,
    settings: LinkSettings,
    generator: torch.Generator,
) -> TestedUnits:
    """Heads and neurons to test for each feature, and their controls.

    Where no unit has a direct share, none stands out before its cause is measured, so none is tested alone.

    Raises:
        BadSettings: a layer has fewer than two units beside the tested ones.
    """
    if shares is None or not shares.by_site:
        return TestedUnits([], {}, [])
    some = next(iter(shares.by_site.values()))
    tested: list[list[UnitRef]] = [[] for _ in range(some.shape[1])]
    for kind, n in ((SiteKind.HEAD_OUT, settings.n_heads), (SiteKind.MLP_ACT, settings.n_neurons)):
        of_kind = [site for site in shares.by_site if site.kind is kind]
        if not of_kind or n == 0:
            continue
        sizes = torch.cat([_mean_difference(texts, shares.by_site[site]).abs() for site in of_kind], dim=-1)
        names = [unit_at(site, index) for site in of_kind for index in range(shares.by_site[site].shape[-1])]
        for feature, units in enumerate(tested):
            best = sizes[feature].argsort(descending=True, stable=True)[:n].tolist()
            units += [names[index] for index in best]
    taken = {unit for units in tested for unit in units}
    controls = {
        site: control_units(handle, site, sites, taken, settings.n_control_units, generator)
        for site in sorted({unit.site for unit in taken})
    }
    every = sorted(taken, key=_order) + sorted({one for some in controls.values() for one in some}, key=_order)
    return TestedUnits(tested, controls, every)


def _order(unit: UnitRef) -> tuple[Site, int]:
    return unit.site, unit.index


def _mean_difference(texts: PairedTexts, shares: Float[Tensor, "texts features units"]) -> Tensor:
    return texts.differences(shares.double()).mean(0)


def control_units(
    handle: HookedModel, site: Site, sites: Sequence[Site], taken: set[UnitRef], n: int, generator: torch.Generator
) -> list[UnitRef]:
    """Random untested units of the site; of every layer before the SAE where this one has fewer than two left."""
    left = [unit_at(site, index) for index in range(handle.site_shape(site)[0]) if unit_at(site, index) not in taken]
    if len(left) < 2:
        same_kind = [one for one in sites if one.kind is site.kind]
        every = [unit_at(one, index) for one in same_kind for index in range(handle.site_shape(one)[0])]
        left = [unit for unit in every if unit not in taken]
    if len(left) < 2:
        raise BadSettings(
            f"links: {len(taken)} units are tested, which leaves {len(left)} `{site.kind}` units as controls of "
            f"`{site}`; test fewer heads or neurons (LinkSettings.n_heads, n_neurons)."
        )
    return [left[index] for index in torch.randperm(len(left), generator=generator)[:n].tolist()]


def random_sets(handle: HookedModel, one: UnitSet, n: int, generator: torch.Generator) -> list[tuple[UnitRef, ...]]:
    """Random sets with as many units of each layer and kind; without the set's own where enough others are left."""
    counts = Counter(unit.site for unit in one.units)
    own = set(one.units)
    drawn = []
    for _ in range(n):
        units: list[UnitRef] = []
        for site, count in sorted(counts.items()):
            every = [unit_at(site, index) for index in range(handle.site_shape(site)[0])]
            others = [unit for unit in every if unit not in own]
            pool = others if len(others) >= count else every
            units += [pool[index] for index in torch.randperm(len(pool), generator=generator)[:count].tolist()]
        drawn.append(tuple(units))
    return drawn
