"""How well predictions agree with the truth over several contexts: one correlation over all of them, and its interval.

1. Each context is reduced to six sums, in float64, of its tokens (or segments).
2. Pearson's r of all contexts end to end follows from the sums' totals; of 0/1 values it is the phi coefficient.
3. Contexts are drawn again with replacement for the interval, because tokens of one context are not independent.

Where a context is one answer, yes or no, agreement is the balanced accuracy, with an interval that holds at its ends.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from safe_sail.errors import BadInput
from safe_sail.evaluation.refusal import wilson_rate
from safe_sail.records import Estimate

Sums = Float64[Tensor, "context 6"]
"""Per context: number of tokens, and sums of truth, prediction, truth squared, prediction squared, their product."""


def context_sums(truth: Sequence[Sequence[float]], predicted: Sequence[Sequence[float]]) -> Sums:
    """The six sums of each context.

    Raises:
        BadInput: there is no context, or a context's two sides differ in length.
    """
    if not truth or len(truth) != len(predicted):
        raise BadInput(f"expected contexts with as many predictions; got {len(truth)} and {len(predicted)}.")
    rows = []
    for place, (t, p) in enumerate(zip(truth, predicted, strict=True)):
        if len(t) != len(p):
            raise BadInput(f"context {place}: expected as many predictions as values; got {len(p)} for {len(t)}.")
        both = torch.tensor([t, p], dtype=torch.float64).reshape(2, len(t))
        products = (both[0] * both[0], both[1] * both[1], both[0] * both[1])
        rows.append(
            torch.stack([torch.tensor(float(len(t)), dtype=torch.float64), *both.sum(1), *(x.sum() for x in products)])
        )
    return torch.stack(rows)


def correlation(totals: Float64[Tensor, "*draws 6"]) -> Float64[Tensor, "*draws"]:
    """Pearson's r of each row of totals; NaN where truth or prediction is constant.

    Constant is a variance below 1e-12 of the mean square, which is what float64 sums leave of a true zero.
    """
    n, t, p, tt, pp, tp = totals.unbind(dim=-1)
    variance_t, variance_p = tt - t * t / n, pp - p * p / n
    constant = (variance_t <= 1e-12 * tt) | (variance_p <= 1e-12 * pp)
    r = (tp - t * p / n) / (variance_t * variance_p).where(~constant, 1.0).sqrt()
    return r.clamp(-1, 1).where(~constant, torch.nan)


def pooled_correlation(
    truth: Sequence[Sequence[float]],
    predicted: Sequence[Sequence[float]],
    *,
    generator: torch.Generator,
    n_resamples: int = 1000,
    level: float = 0.95,
) -> Estimate | None:
    """Pearson's r over all contexts end to end, interval over contexts; None where truth or prediction is constant.

    Resamples in which a side is constant are left out of the interval; n counts contexts.

    Raises:
        BadInput: there is no context, or a context's two sides differ in length.
    """
    sums = context_sums(truth, predicted)
    value = float(correlation(sums.sum(dim=0)))
    if value != value:
        return None
    n = sums.shape[0]
    drawn = torch.randint(n, (n_resamples, n), generator=generator)
    values = correlation(sums[drawn].sum(dim=1))
    values = values[~values.isnan()]
    if values.numel() == 0:
        return None
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = values.quantile(ends).tolist()
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=n, level=level)


def balanced_accuracy(truth: Sequence[bool], predicted: Sequence[bool]) -> Estimate | None:
    """Mean of the shares of right answers on either side, which of yes and no is the AUROC; None without both sides.

    The 95 % interval joins the two shares' Wilson intervals, so that 10 of 10 right answers are no proof of perfection.
    Source: Zou and Donner 2008 (MOVER), https://doi.org/10.1002/sim.3095, for half the sum of two shares.

    Raises:
        BadInput: there are not as many predictions as truths.
    """
    if len(truth) != len(predicted):
        raise BadInput(f"expected as many predictions as truths; got {len(predicted)} for {len(truth)}.")
    right = [[t == p for t, p in zip(truth, predicted, strict=True) if t is side] for side in (True, False)]
    if not all(right):
        return None
    sides = [wilson_rate(sum(answers), len(answers)) for answers in right]
    value = sum(side.share for side in sides) / 2
    below = sum((side.share - side.low) ** 2 for side in sides) ** 0.5 / 2
    above = sum((side.high - side.share) ** 2 for side in sides) ** 0.5 / 2
    return Estimate(value=value, low=max(0.0, value - below), high=min(1.0, value + above), n=len(truth))
