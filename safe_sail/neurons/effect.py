"""What share of the difference between two models a patch makes, and how sure that is. [pure]

1. Every reply has a score; replies to one prompt under the two models and under a patch are paired.
2. The causal effect is how far the patch moves the mean score from the first model's to the second's.
3. Its interval resamples prompts, the same for all three means.
4. Two patches are compared by a paired t-test over prompts.

Replies without a score (nan) leave their prompt out of what they are part of, and are counted by the caller.
"""

import torch
from jaxtyping import Bool, Float
from scipy import special
from torch import Tensor

from safe_sail.errors import NoEffect
from safe_sail.records import Estimate


def scored(*columns: Float[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Prompts that have a score in every column.

    Raises:
        NoEffect: fewer than two have.
    """
    have = ~torch.stack(columns).isnan().any(dim=0)
    if int(have.sum()) < 2:
        raise NoEffect(f"{int(have.sum())} of {len(have)} prompts have a score in all replies; expected at least 2.")
    return have


def mean_score(values: Float[Tensor, " n"], weights: Float[Tensor, "resamples n"], level: float = 0.95) -> Estimate:
    """Mean score over the prompts that have one; `weights` are the shares of the prompts in each resample."""
    have = scored(values)
    means = (weights[:, have] @ values[have]) / weights[:, have].sum(dim=1)
    return _estimate(float(values[have].mean()), means, int(have.sum()), level)


def causal_effect(
    first: Float[Tensor, " n"],
    second: Float[Tensor, " n"],
    patched: Float[Tensor, " n"],
    weights: Float[Tensor, "resamples n"],
    level: float = 0.95,
) -> Estimate:
    """How far the patch moves the mean score from the first model's (0) to the second's (1).

    Raises:
        NoEffect: the two models' means are equal, or so close that a resample turns their order around.
    Source: Chen et al. 2025, eq. 4, arXiv:2406.14144; the interval is ours.
    """
    have = scored(first, second, patched)
    weights = weights[:, have] / weights[:, have].sum(dim=1, keepdim=True)
    whole, moved = second[have] - first[have], patched[have] - first[have]
    wholes = weights @ whole
    if float(whole.mean()) == 0 or bool((wholes * whole.mean() <= 0).any()):
        raise NoEffect(
            f"the two models score {float(first[have].mean()):.3f} and {float(second[have].mean()):.3f} on "
            f"n={int(have.sum())} prompts, too close to tell what share of the difference a patch makes; give more "
            f"prompts, or prompts and a scorer that tell the models apart."
        )
    return _estimate(float(moved.mean() / whole.mean()), (weights @ moved) / wholes, int(have.sum()), level)


def paired_p_value(values: Float[Tensor, " n"], others: Float[Tensor, " n"]) -> float:
    """Two-sided p-value of the paired t-test over prompts; differences without spread are certain: 0, or 1 where all
    are 0.
    """
    have = scored(values, others)
    gaps = (values - others)[have]
    n, mean, spread = len(gaps), float(gaps.mean()), float(gaps.std())
    if spread == 0:
        return 0.0 if mean else 1.0
    t = mean / (spread / n**0.5)
    return float(special.betainc((n - 1) / 2, 0.5, (n - 1) / (n - 1 + t * t)))


def _estimate(value: float, resampled: Tensor, n: int, level: float) -> Estimate:
    tail = (1 - level) / 2
    kept = resampled[resampled.isfinite()]
    low, high = kept.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    # Of equal values every resample has the same mean, up to rounding that must not turn the interval around.
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=n, level=level)
