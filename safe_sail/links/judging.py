"""Tests of many links into links: intervals, controls, corrected significance, and all of it with texts shuffled.

1. Each test holds its effect pair by pair, and the effects of its controls.
2. All tests of one measure are corrected together.
3. A link's cause decides whether it is linked; where a cause cannot be measured its weights do.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.features.separability import benjamini_hochberg
from safe_sail.links.statistics import OtherUnits, PairEffects, other_units, pair_effects, random_signs, shuffled
from safe_sail.records import FeatureId, FeatureLink, LinkFlow, LinkKind, LinkMeasure


class Effect(NamedTuple):
    """One measure of one link, pair by pair: the text with the concept minus the text without it."""

    differences: Float[Tensor, " pairs"]
    controls: Float[Tensor, "pairs controls"]


class Tested(NamedTuple):
    """One link before it is judged."""

    sae: str
    feature: int
    concept: str
    kind: LinkKind
    target: str
    flow: LinkFlow
    weights: Effect | None
    cause: Effect | None
    cosine: float | None = None


class _Measured(NamedTuple):
    effects: PairEffects
    controls: list[OtherUnits]
    q_values: Tensor


def judged(tested: Sequence[Tested], *, alpha: float, generator: torch.Generator) -> tuple[list[FeatureLink], int]:
    """Every test as a link, linked ones first within concept, feature and flow; and how many the same rule links when
    the texts of pairs are shuffled.
    """
    n_pairs = {len(one.differences) for test in tested for one in (test.weights, test.cause) if one is not None}
    signs = {n: random_signs(n, generator) for n in sorted(n_pairs)}
    found, by_chance = [], 0
    measures = {
        name: (_measured([_effect(test, name) for test in tested], None), _measured(
            [_effect(test, name) for test in tested], signs))
        for name in ("weights", "cause")
    }  # fmt: skip
    for place, test in enumerate(tested):
        real = {name: _measure(both, place) for name, both in measures.items()}
        fake = {name: _measure((both[1], both[1]), place) for name, both in measures.items()}
        found.append(_link(test, real["weights"], real["cause"], alpha))
        by_chance += _link(test, fake["weights"], fake["cause"], alpha).is_linked
    return sorted(found, key=_order), by_chance


def _effect(test: Tested, name: str) -> Effect | None:
    effect: Effect | None = getattr(test, name)
    return effect


def _measured(effects: Sequence[Effect | None], signs: dict[int, Tensor] | None) -> dict[int, _Measured]:
    """By place of the test: its numbers; all tests of the measure are corrected together."""
    found: dict[int, tuple[PairEffects, OtherUnits]] = {}
    for place, effect in enumerate(effects):
        if effect is None:
            continue
        both = torch.cat([effect.differences.double()[:, None], effect.controls.double()], dim=1)
        if signs is not None:
            both = shuffled(both, signs[len(both)])
        found[place] = (pair_effects(both[:, :1]), other_units(both[:, 1:].mean(0)))
    if not found:
        return {}
    q = benjamini_hochberg(torch.cat([effects.p_value for effects, _ in found.values()]))
    return {
        place: _Measured(effects, [controls], q[index : index + 1])
        for index, (place, (effects, controls)) in enumerate(found.items())
    }


def _measure(both: tuple[dict[int, _Measured], dict[int, _Measured]], place: int) -> LinkMeasure | None:
    real, fake = both
    if place not in real:
        return None
    return LinkMeasure(
        value=real[place].effects.estimate(0),
        control=real[place].controls[0].mean,
        control_high=real[place].controls[0].high,
        shuffled=float(fake[place].effects.mean[0]),
        q_value=float(real[place].q_values[0]),
    )


def _link(test: Tested, weights: LinkMeasure | None, cause: LinkMeasure | None, alpha: float) -> FeatureLink:
    by_weights = weights is not None and weights.holds(alpha)
    is_linked = by_weights if cause is None else cause.holds(alpha)
    same_sign = weights is None or cause is None or weights.value.value * cause.value.value > 0
    return FeatureLink(
        feature=FeatureId(sae=test.sae, index=test.feature),
        concept=test.concept,
        kind=test.kind,
        target=test.target,
        flow=test.flow,
        weights=weights,
        cause=cause,
        cosine=test.cosine,
        is_linked=is_linked,
        is_direct=is_linked and by_weights and same_sign,
    )


def _order(link: FeatureLink) -> tuple[str, int, str, bool, float, str, str]:
    return (link.concept, link.feature.index, link.flow, not link.is_linked, -link.strength, link.kind, link.target)
