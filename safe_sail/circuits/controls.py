"""What a circuit is judged against: random circuits of its sizes, other seeds, planted units. Pure counting.

1. A random circuit has as many units of each kind in each layer as the circuit.
2. Overlap of two circuits is their Jaccard index; chance is that of matched random circuits.
3. Against planted units: precision and recall with Wilson intervals, beside those of random circuits.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.circuits.masks import UnitSpace
from safe_sail.evaluation.refusal import wilson_rate
from safe_sail.evaluation.replies import share_estimate
from safe_sail.records import CircuitRecovery, CircuitStability, CircuitUnit, HeadRef, NeuronRef, unit_order


def random_members(
    space: UnitSpace, members: Float[Tensor, " units"], generator: torch.Generator
) -> Float[Tensor, " units"]:
    """A random circuit with as many units in each group, a kind in a layer, as `members` has."""
    drawn = torch.zeros_like(members)
    for group in space.groups:
        n = int(members[group.places].sum())
        drawn[group.first + torch.randperm(group.n, generator=generator)[:n]] = 1
    return drawn


def jaccard(first: Collection[CircuitUnit], second: Collection[CircuitUnit]) -> float:
    """Common units over units in either; 1 for two empty circuits."""
    one, other = set(first), set(second)
    return len(one & other) / len(one | other) if one | other else 1.0


def stability_of(
    space: UnitSpace,
    seeds: Sequence[int],
    members: Sequence[Float[Tensor, " units"]],
    *,
    generator: torch.Generator,
    n_random: int,
) -> CircuitStability:
    """Overlap of the seeds' circuits, pair by pair, and the units that all found."""
    units = [units_of(space, each) for each in members]
    pairs = list(itertools.combinations(range(len(seeds)), 2))
    chance = [
        jaccard(
            units_of(space, random_members(space, members[i], generator)),
            units_of(space, random_members(space, members[j], generator)),
        )
        for i, j in pairs
        for _ in range(n_random)
    ]
    core = set(units[0]).intersection(*units[1:])
    return CircuitStability(
        seeds=tuple(seeds),
        jaccard=tuple(jaccard(units[i], units[j]) for i, j in pairs),
        chance=sum(chance) / max(1, len(chance)),
        core=tuple(sorted(core, key=unit_order)),
    )


def units_of(space: UnitSpace, members: Float[Tensor, " units"]) -> list[CircuitUnit]:
    """The units of a mask over membership."""
    return [space.unit(place) for place in members.nonzero()[:, 0].tolist()]


def recovery_of(
    space: UnitSpace, found: Collection[CircuitUnit], planted: Collection[CircuitUnit]
) -> tuple[CircuitRecovery, ...]:
    """Precision and recall of the found units, for heads, neurons and both; kinds with nothing planted are left out.

    A random circuit of the same number per layer hits a planted unit with the share of the layer that is planted; its
    precision and recall are the exact means of that.
    """
    rows = []
    for kind, types in (("heads", (HeadRef,)), ("neurons", (NeuronRef,)), ("units", (HeadRef, NeuronRef))):
        true = {unit for unit in planted if isinstance(unit, types)}
        got = {unit for unit in found if isinstance(unit, types)}
        if not true or not got:
            continue
        hits = len(true & got)
        by_group = Counter(str(unit.site) for unit in true if isinstance(unit, HeadRef | NeuronRef))
        drawn = Counter(str(unit.site) for unit in got if isinstance(unit, HeadRef | NeuronRef))
        sizes = {group.name: group.n for group in space.groups}
        expected = sum(drawn[name] * by_group[name] / sizes[name] for name in drawn)
        rows.append(
            CircuitRecovery(
                kind=kind,
                n_planted=len(true),
                n_found=len(got),
                precision=share_estimate(wilson_rate(hits, len(got))),
                recall=share_estimate(wilson_rate(hits, len(true))),
                random_precision=expected / len(got),
                random_recall=expected / len(true),
            )
        )
    return tuple(rows)
