"""How contrastive pairs tell an SAE's features: distinguishing frequency, its null, and what is left of the two.

A pair is a text with a concept and the same text without it. Input is one number per text and feature: the maximum
activation over the text's content tokens.

1. d_ij = 1 where feature i fires on the positive text of pair j and not on the negative one; e_ij with roles swapped.
2. F_i is the mean of d_ij over pairs, its null the mean of e_ij; L0_t counts the features with F_i >= t.
3. I_CDF is the mean of F_i over all features. The null removed from it whole leaves less than it seems, since
   d_ij - e_ij = (fires on positive) - (fires on negative): what remains is how many more features fire on positive
   texts, and a feature of the concept is cancelled by one of whatever stands in its place.
4. So the null is removed feature by feature, on the features that other pairs chose: chance adds nothing to it,
   however wide or dense the SAE, and what stands in the concept's place does not count against it.
5. A one-sided sign test per feature, with Benjamini-Hochberg over all of them, says which are specific.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from safe_sail.errors import BadInput, EmptyConcept
from safe_sail.features.separability import benjamini_hochberg, require_numbers

THRESHOLDS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Values of t at which L0_t is reported."""
SPECIFIC_Q: Final = 0.05
SPECIFIC_GAP: Final = 0.5


class DistinguishingFrequency(NamedTuple):
    """Shares of pairs that each feature tells apart."""

    frequency: Float64[Tensor, " features"]
    """F_i: pairs on whose positive text it fires and on whose negative text it does not."""
    null: Float64[Tensor, " features"]
    """The same with the texts' roles swapped: what a feature reaches that knows nothing of the concept."""


def distinguishing_frequency(
    positive: Float[Tensor, "pairs features"], negative: Float[Tensor, "pairs features"], *, margin: float | None = None
) -> DistinguishingFrequency:
    """F_i over contrastive pairs, row j of both inputs being one pair.

    With a margin, a pair is told apart where the positive text's value exceeds the negative one's by more than it.

    Raises:
        EmptyConcept: there is no pair.
        BadInput: the two inputs differ in shape, or a value is NaN.

    Source: Safe-SAIL, section 2.2.1, arXiv 2509.18127; the swapped null is ours, without it wide SAEs win by noise.
    """
    told, swapped = told_apart(positive, negative, margin=margin)
    return DistinguishingFrequency(told.double().mean(dim=0), swapped.double().mean(dim=0))


class ToldApart(NamedTuple):
    """Which feature tells which pair apart."""

    told: Bool[Tensor, "pairs features"]
    """d_ij: on the positive text, not on the negative one."""
    swapped: Bool[Tensor, "pairs features"]
    """e_ij: on the negative text, not on the positive one."""


def told_apart(
    positive: Float[Tensor, "pairs features"], negative: Float[Tensor, "pairs features"], *, margin: float | None = None
) -> ToldApart:
    """d_ij and e_ij of every pair and feature.

    Raises:
        EmptyConcept: there is no pair.
        BadInput: the two inputs differ in shape, or a value is NaN.
    """
    if positive.ndim != 2 or positive.shape != negative.shape:
        raise BadInput(
            f"pairs need two inputs [pairs, features] of one shape; got {list(positive.shape)} and "
            f"{list(negative.shape)}."
        )
    if positive.shape[0] == 0:
        raise EmptyConcept("distinguishing frequency needs at least one pair; got none.")
    require_numbers(positive)
    require_numbers(negative)
    if margin is None:
        return ToldApart((positive > 0) & (negative <= 0), (negative > 0) & (positive <= 0))
    return ToldApart(positive - negative > margin, negative - positive > margin)


def l0_curve(frequency: Float[Tensor, " features"], thresholds: Sequence[float]) -> Int[Tensor, " thresholds"]:
    """L0_t: how many features have F_i >= t, per threshold t."""
    cuts = torch.tensor(thresholds, dtype=torch.float64, device=frequency.device)
    return (frequency.double()[:, None] >= cuts).sum(dim=0)


def i_cdf(frequency: Float[Tensor, " features"]) -> float:
    """I_CDF: mean F_i over all features, which is the area under L0_t / n_features."""
    return float(frequency.double().mean())


class PairShares(NamedTuple):
    """Per pair, shares of all features; their means over pairs are I_CDF and what is left of it."""

    told: Float64[Tensor, " pairs"]
    """Features that tell the pair apart; the mean is I_CDF."""
    swapped: Float64[Tensor, " pairs"]
    """The same with roles swapped; the mean is I_CDF's null."""
    specific: Float64[Tensor, " pairs"]
    """told - swapped, counting the chosen features only; still a share of all."""


def pair_shares(pairs: ToldApart, chosen: Bool[Tensor, " features"]) -> PairShares:
    """What each pair contributes; a bootstrap over pairs draws these numbers and nothing wider.

    `chosen` must not come from these pairs: then features that know nothing of the concept add nothing on average.

    Raises:
        BadInput: `chosen` is not one bool per feature.
    """
    told, swapped = pairs
    n_features = told.shape[1]
    if chosen.dtype is not torch.bool or chosen.shape != (n_features,):
        raise BadInput(f"expected {n_features} bools, one per feature; got {chosen.dtype} {list(chosen.shape)}.")
    left = told[:, chosen].sum(dim=1) - swapped[:, chosen].sum(dim=1)
    return PairShares(
        told.sum(dim=1).double() / n_features, swapped.sum(dim=1).double() / n_features, left.double() / n_features
    )


def sign_test(told: Int[Tensor, " features"], swapped: Int[Tensor, " features"]) -> Float64[Tensor, " features"]:
    """One-sided exact p-value of each feature: as many pairs told apart, or more, out of told + swapped by fair coin.

    A feature that tells no pair apart either way has p-value 1.

    Source: McNemar 1947, in its exact form.
    """
    n_pairs = told + swapped
    p_values = torch.ones(told.shape, dtype=torch.float64, device=told.device)
    for n in n_pairs.unique().tolist():
        here = n_pairs == n
        counts = torch.arange(n + 1, dtype=torch.float64, device=told.device)
        log_chance = math.lgamma(n + 1) - torch.lgamma(counts + 1) - torch.lgamma(n - counts + 1) - n * math.log(2)
        tail = log_chance.exp().flip(0).cumsum(0).flip(0).clamp(max=1.0)
        p_values[here] = tail[told[here]]
    return p_values


def specific_features(pairs: ToldApart) -> Bool[Tensor, " features"]:
    """Features with F_i above its null by more than SPECIFIC_GAP, and a sign test's q-value below SPECIFIC_Q."""
    told, swapped = pairs.told.sum(dim=0), pairs.swapped.sum(dim=0)
    q_values = benjamini_hochberg(sign_test(told, swapped))
    gap = (told - swapped).double() / pairs.told.shape[0]
    return (q_values < SPECIFIC_Q) & (gap > SPECIFIC_GAP)
