"""How well every feature of an SAE separates a concept's texts from others, all features at once.

Input is one number per text and feature: the maximum activation over the text's content tokens.

1. Ranks: AUROC and the Mann-Whitney test, ties at midranks.
2. Firing: rates per class, their gap, and F1 of "the feature fires" as a detector.
3. Chance: bootstrap intervals, shuffled labels, Benjamini-Hochberg.

Sums and ranks are float64. A feature that is constant over the texts has AUROC 0.5 and p-value 1, and is counted.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from safe_sail.errors import BadInput, EmptyConcept

_FEATURES_AT_ONCE = 2048
"""Columns ranked at once: 1,000 texts of them take about 100 MB of float64 and index columns."""


# 1. ranks


class RankStatistics(NamedTuple):
    """Rank statistics of each feature."""

    auroc: Float64[Tensor, " features"]
    """Chance that a positive text's value exceeds a negative one's, ties counted half."""
    p_value: Float64[Tensor, " features"]
    """Two-sided Mann-Whitney p-value: normal approximation with tie and continuity correction."""
    is_constant: Bool[Tensor, " features"]
    """All texts have one value: nothing to rank."""


def rank_statistics(values: Float[Tensor, "texts features"], is_positive: Bool[Tensor, " texts"]) -> RankStatistics:
    """AUROC and p-value of every feature.

    Raises:
        EmptyConcept: a class has no text.
        BadInput: the shapes differ, or a value is NaN.

    Source: Mann and Whitney 1947; AUROC = U / (n_positive n_negative), Hanley and McNeil 1982.
    """
    n_positive, n_negative = _class_sizes(values, is_positive)
    parts = [
        _rank_block(block, is_positive, n_positive, n_negative)
        for block in torch.split(values, _FEATURES_AT_ONCE, dim=1)
    ]
    return RankStatistics(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _rank_block(values: Tensor, is_positive: Tensor, n_positive: int, n_negative: int) -> tuple[Tensor, Tensor, Tensor]:
    n = n_positive + n_negative
    ranks, tie_term = _midranks(values)
    u = ranks[is_positive].sum(dim=0) - n_positive * (n_positive + 1) / 2
    middle = n_positive * n_negative / 2
    variance = n_positive * n_negative / 12 * ((n + 1) - tie_term / (n * (n - 1)))
    is_constant = tie_term == n**3 - n
    z = ((u - middle).abs() - 0.5) / variance.where(~is_constant, 1.0).sqrt()
    p_value = torch.special.erfc(z / math.sqrt(2)).clamp(max=1.0)
    return u / (n_positive * n_negative), p_value.where(~is_constant, 1.0), is_constant


def _midranks(
    values: Float[Tensor, "texts features"],
) -> tuple[Float64[Tensor, "texts features"], Float64[Tensor, " features"]]:
    """Ranks from 1, ties at the mean of their places; and the sum of t^3 - t over groups of t tied texts."""
    ordered, order = values.sort(dim=0)
    n = values.shape[0]
    places = torch.arange(n, device=values.device)[:, None].expand_as(ordered)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    ends = torch.ones_like(starts)
    ends[:-1] = starts[1:]
    first = places.where(starts, 0).cummax(dim=0).values
    last = places.where(ends, n - 1).flip(0).cummin(dim=0).values.flip(0)
    ranks = torch.empty_like(ordered, dtype=torch.float64).scatter_(0, order, (first + last).double() / 2 + 1)
    group = (last - first + 1).double()
    # each of a group's t texts contributes t^2 - 1
    return ranks, (group.square() - 1).sum(dim=0)


# 2. firing


class FiringRates(NamedTuple):
    """Shares of texts on which each feature fires."""

    positive: Float64[Tensor, " features"]
    negative: Float64[Tensor, " features"]

    @property
    def gap(self) -> Float64[Tensor, " features"]:
        """positive - negative, in [-1, 1]."""
        return self.positive - self.negative


def firing_rates(
    values: Float[Tensor, "texts features"], is_positive: Bool[Tensor, " texts"], *, above: float = 0.0
) -> FiringRates:
    """Share of each class's texts whose value exceeds `above`.

    Raises:
        EmptyConcept: a class has no text.
        BadInput: the shapes differ, or a value is NaN.
    """
    _class_sizes(values, is_positive)
    fires = (values > above).double()
    return FiringRates(fires[is_positive].mean(dim=0), fires[~is_positive].mean(dim=0))


def mean_gap(
    values: Float[Tensor, "texts features"], is_positive: Bool[Tensor, " texts"]
) -> Float64[Tensor, " features"]:
    """Mean value over positive texts minus mean over negative ones, in activation units.

    Raises:
        EmptyConcept: a class has no text.
        BadInput: the shapes differ, or a value is NaN.
    """
    _class_sizes(values, is_positive)
    doubled = values.double()
    return doubled[is_positive].mean(dim=0) - doubled[~is_positive].mean(dim=0)


def f1_of_firing(
    values: Float[Tensor, "texts features"], is_positive: Bool[Tensor, " texts"], *, above: float = 0.0
) -> Float64[Tensor, " features"]:
    """F1 of "the value exceeds `above`" as a detector of positive texts; 0 for a feature without a hit.

    Raises:
        EmptyConcept: a class has no text.
        BadInput: the shapes differ, or a value is NaN.
    """
    n_positive, _ = _class_sizes(values, is_positive)
    fires = (values > above).double()
    return 2 * fires[is_positive].sum(dim=0) / (fires.sum(dim=0) + n_positive)


def best_feature(gap: Float[Tensor, " features"], auroc: Float[Tensor, " features"]) -> int:
    """Feature with the largest gap (ties: the larger AUROC, then the lower index)."""
    candidates = (gap == gap.max()).nonzero()[:, 0]
    return int(candidates[auroc[candidates].argmax()])


# 3. chance


class Interval(NamedTuple):
    """Percentile interval of each feature's statistic."""

    low: Float64[Tensor, " features"]
    high: Float64[Tensor, " features"]


def bootstrap_interval(
    statistic: Callable[[Sequence[Int[Tensor, " n"]]], Tensor],
    group_sizes: Sequence[int],
    *,
    generator: torch.Generator,
    n_resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a statistic whose rows are drawn again with replacement, within each group.

    `statistic` gets one tensor of row numbers per group (positive and negative texts; or the pairs alone) and returns
    one number per feature. Memory is n_resamples times features in float64.

    Raises:
        EmptyConcept: a group is empty.
        BadInput: the level or the number of resamples makes no interval.

    Source: Efron 1979, percentile method.
    """
    if min(group_sizes) < 1:
        raise EmptyConcept(f"a bootstrap needs rows in every group; got {list(group_sizes)}.")
    if not (0 < level < 1 and n_resamples >= 2):
        raise BadInput(f"expected a level in (0, 1) and two resamples or more; got {level} and {n_resamples}.")
    draws = torch.stack(
        [
            statistic([torch.randint(size, (size,), generator=generator) for size in group_sizes]).double()
            for _ in range(n_resamples)
        ]
    )
    tail = (1 - level) / 2
    ordered = draws.sort(dim=0).values
    return Interval(_quantile_of_sorted(ordered, tail), _quantile_of_sorted(ordered, 1 - tail))


def _quantile_of_sorted(ordered: Tensor, q: float) -> Tensor:
    place = q * (ordered.shape[0] - 1)
    below = math.floor(place)
    above = min(below + 1, ordered.shape[0] - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def shuffled_labels(is_positive: Bool[Tensor, " texts"], *, generator: torch.Generator) -> Bool[Tensor, " texts"]:
    """The same labels in random order: the class sizes stay, the meaning goes."""
    order = torch.randperm(is_positive.shape[0], generator=generator)
    return is_positive[order.to(is_positive.device)]


def benjamini_hochberg(p_values: Float[Tensor, " tests"]) -> Float64[Tensor, " tests"]:
    """q-values: the smallest false discovery rate at which each test is significant.

    Raises:
        BadInput: a p-value is outside [0, 1].

    Source: Benjamini and Hochberg 1995.
    """
    if not bool(((p_values >= 0) & (p_values <= 1)).all()):
        raise BadInput("p-values lie in [0, 1]; at least one does not.")
    n = p_values.shape[0]
    descending, order = p_values.double().sort(descending=True, stable=True)
    ranks = torch.arange(n, 0, -1, dtype=torch.float64, device=p_values.device)
    q_values = (descending * n / ranks).cummin(dim=0).values.clamp(max=1.0) if n else descending
    return torch.empty_like(q_values).scatter_(0, order, q_values)


def _class_sizes(values: Tensor, is_positive: Tensor) -> tuple[int, int]:
    if values.ndim != 2 or is_positive.dtype is not torch.bool or is_positive.shape != values.shape[:1]:
        raise BadInput(
            f"expected values [texts, features] and one bool per text; got {list(values.shape)} and "
            f"{is_positive.dtype} {list(is_positive.shape)}."
        )
    n_positive = int(is_positive.sum())
    n_negative = is_positive.shape[0] - n_positive
    if n_positive == 0 or n_negative == 0:
        raise EmptyConcept(f"both classes need texts; got {n_positive} positive and {n_negative} negative.")
    require_numbers(values)
    return n_positive, n_negative


def require_numbers(values: Tensor) -> None:
    """Refuses NaN.

    Raises:
        BadInput: a value is NaN.
    """
    if bool(values.isnan().any()):
        raise BadInput(f"{int(values.isnan().sum())} of {values.numel()} values are NaN; activations are numbers.")
