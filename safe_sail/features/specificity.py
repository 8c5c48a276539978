"""What one SAE's features make of one concept's pairs: curves, I_CDF, its null, and what chance cannot give.

1. The choosing pairs pick the features that tell more pairs apart than they do with the texts' roles swapped.
2. The judging pairs, none of which chose, give L0_t and I_CDF of all features with their nulls, and the null removed
   from the chosen ones, with intervals over pairs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from safe_sail.features.pairs import THRESHOLDS, l0_curve, pair_shares, specific_features, told_apart
from safe_sail.features.separability import bootstrap_interval
from safe_sail.records import Estimate, SaeSpecificity


class PairValues(NamedTuple):
    """Text maxima of the pairs of one split; row j of both is one pair."""

    positive: Float[Tensor, "pairs features"]
    negative: Float[Tensor, "pairs features"]


class Specificity(NamedTuple):
    """The record, and the numbers behind its interval."""

    record: SaeSpecificity
    per_pair: Float64[Tensor, " pairs"]
    """What each judging pair adds to `record.specific`, whose value is their mean."""


def specificity(
    sae: str,
    concept: str,
    *,
    choose: PairValues,
    judge: PairValues,
    n_bootstrap: int,
    generator: torch.Generator,
) -> Specificity:
    """How much of an SAE tells a concept's pairs apart; `choose` and `judge` share no text.

    Raises:
        EmptyConcept: a split has no pair.
        BadInput: the two sides of a split differ in shape, or a value is NaN.

    Source: L0_t and I_CDF of arXiv 2509.18127, section 2.2.1. Splits, null and intervals are ours.
    """
    chosen_by = told_apart(*choose)
    pairs = told_apart(*judge)
    shares = pair_shares(pairs, chosen_by.told.sum(dim=0) > chosen_by.swapped.sum(dim=0))
    n = judge.positive.shape[0]
    columns = torch.stack(shares, dim=1)

    def means(rows: Sequence[Int[Tensor, " pairs"]]) -> Float64[Tensor, "3"]:
        return columns[rows[0]].mean(dim=0)

    bounds = bootstrap_interval(means, [n], generator=generator, n_resamples=n_bootstrap)
    i_cdf, null, specific = (
        # a percentile interval can miss its own point estimate by a hair
        Estimate(value=value, low=min(low, value), high=max(high, value), n=n)
        for value, low, high in zip(
            columns.mean(dim=0).tolist(), bounds.low.tolist(), bounds.high.tolist(), strict=True
        )
    )
    record = SaeSpecificity(
        sae=sae,
        concept=concept,
        n_features=judge.positive.shape[1],
        thresholds=THRESHOLDS,
        l0=tuple(l0_curve(pairs.told.double().mean(dim=0), THRESHOLDS).tolist()),
        l0_null=tuple(l0_curve(pairs.swapped.double().mean(dim=0), THRESHOLDS).tolist()),
        i_cdf=i_cdf,
        i_cdf_null=null,
        specific=specific,
        n_specific=int(specific_features(pairs).sum()),
    )
    return Specificity(record, shares.specific)
