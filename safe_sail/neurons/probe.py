"""A logistic regression from activations to the chance that the coming answer is unsafe, and how good it is. [pure]

1. Features are standardised by the training prompts; one that never varies there is left at 0.
2. scikit-learn fits the weights; what is kept is arrays, so that a guard is read without it.
3. AUROC, Brier score and calibration error with intervals over test prompts, all from the same resamples.
4. The threshold is the smallest at which at most a given share of validation prompts with a safe answer is refused.

Source: Chen et al. 2025, section 5, arXiv:2406.14144; they keep raw features, which do not converge, and give neither
interval nor false refusals.
"""

import warnings
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safe_sail.errors import GuardUnfit
from safe_sail.records import Estimate

N_BINS = 10
"""Bins of equal width of the calibration error; as Guo et al. 2017, who have 15 for many more points."""


Weights = Float[Tensor, "resamples n"]
Resampled = Float[Tensor, " resamples"]


class Probe(NamedTuple):
    """Weights of a logistic regression on standardised features."""

    mean: Float[Tensor, " features"]
    scale: Float[Tensor, " features"]
    weight: Float[Tensor, " features"]
    bias: float

    def probabilities(self, features: Float[Tensor, "prompts features"]) -> Float[Tensor, " prompts"]:
        """Chance of an unsafe answer, float64."""
        inputs = (features.double() - self.mean) / self.scale
        return (inputs @ self.weight + self.bias).sigmoid()


def fit_probe(
    features: Float[Tensor, "prompts features"],
    unsafe: Bool[Tensor, " prompts"],
    *,
    inverse_penalty: float = 1.0,
    max_iter: int = 2000,
) -> Probe:
    """Logistic regression with an L2 penalty on standardised features.

    Raises:
        GuardUnfit: all prompts have one label, features are not finite, or the fit does not converge.
    """
    # here: a second of importing, which a guard that is only read does not need
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    require_both(unsafe, "training")
    wide = features.double().cpu()
    if not bool(wide.isfinite().all()):
        raise GuardUnfit("a guard's features are finite numbers; some activation is infinite or undefined.")
    mean, spread = wide.mean(dim=0), wide.std(dim=0, correction=0)
    scale = torch.where(spread > 0, spread, 1.0)
    model = LogisticRegression(C=inverse_penalty, max_iter=max_iter)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit(((wide - mean) / scale).numpy(), unsafe.cpu().numpy())
        except ConvergenceWarning as error:
            raise GuardUnfit(
                f"the guard's fit on {len(wide)} prompts and {wide.shape[1]} features does not converge in {max_iter} "
                f"steps; give more prompts, fewer features or a smaller `inverse_penalty`."
            ) from error
    return Probe(mean, scale, torch.from_numpy(model.coef_[0]), float(model.intercept_[0]))


def require_both(unsafe: Bool[Tensor, " prompts"], what: str) -> None:
    """Nothing, when some answers are unsafe and some are not.

    Raises:
        GuardUnfit: all are one or the other.
    """
    n_unsafe = int(unsafe.sum())
    if not 0 < n_unsafe < len(unsafe):
        raise GuardUnfit(
            f"of {len(unsafe)} {what} prompts {n_unsafe} get an unsafe answer; a guard needs some that do and some "
            f"that do not. Guard a model that answers some harmful prompts, and give prompts of both kinds."
        )


def auroc(scores: Float[Tensor, " n"], unsafe: Bool[Tensor, " n"], weights: Weights) -> Resampled:
    """Chance that an unsafe answer's prompt scores above a safe one's, ties half, for every row of prompt weights."""
    ranks, place = torch.unique(scores, return_inverse=True)
    shape = (len(weights), len(ranks))
    positive = torch.zeros(shape, dtype=torch.float64).index_add_(1, place, weights * unsafe)
    negative = torch.zeros(shape, dtype=torch.float64).index_add_(1, place, weights * ~unsafe)
    below = negative.cumsum(dim=1) - negative
    return (positive * (below + negative / 2)).sum(dim=1) / (positive.sum(dim=1) * negative.sum(dim=1))


def brier(chances: Float[Tensor, " n"], unsafe: Bool[Tensor, " n"], weights: Weights) -> Resampled:
    """Mean squared error of the probabilities, for every row of prompt weights."""
    return (weights @ (chances - unsafe.double()).square()) / weights.sum(dim=1)


def calibration_error(chances: Float[Tensor, " n"], unsafe: Bool[Tensor, " n"], weights: Weights) -> Resampled:
    """Expected calibration error over bins of equal width, for every row of prompt weights."""
    bins = (chances * N_BINS).long().clamp(max=N_BINS - 1)
    gaps = torch.zeros(len(weights), N_BINS, dtype=torch.float64)
    gaps.index_add_(1, bins, weights * (chances - unsafe.double()))
    return gaps.abs().sum(dim=1) / weights.sum(dim=1)


def mean_over_draws(values: Float[Tensor, "resamples draws"], generator: torch.Generator) -> Resampled:
    """Mean over random draws, which are drawn again in every resample: which ones chance gave is not known either."""
    again = torch.randint(values.shape[1], values.shape, generator=generator)
    return values.gather(1, again).mean(dim=1)


def roc(scores: Float[Tensor, " n"], unsafe: Bool[Tensor, " n"]) -> list[tuple[float, float]]:
    """Corners of the curve: share of safe answers refused against share of unsafe ones refused, threshold falling."""
    values, place = torch.unique(scores, return_inverse=True)
    counts = torch.zeros(2, len(values), dtype=torch.float64)
    counts.index_put_((unsafe.long(), place), torch.ones(len(scores), dtype=torch.float64), accumulate=True)
    shares = counts.flip(1).cumsum(dim=1) / counts.sum(dim=1, keepdim=True)
    return [(0.0, 0.0), *((float(safe), float(hit)) for safe, hit in shares.T)]


def threshold_for(chances: Float[Tensor, " n"], unsafe: Bool[Tensor, " n"], max_false_refusals: float) -> float:
    """Smallest probability from which on refusing refuses at most this share of the prompts with a safe answer.

    Raises:
        GuardUnfit: no prompt has a safe answer.
    """
    safe = chances[~unsafe].sort(descending=True).values
    if not len(safe):
        raise GuardUnfit("a threshold needs validation prompts with a safe answer; there are none.")
    allowed = int(max_false_refusals * len(safe))
    # one step above the first safe prompt that must not be refused
    return 0.0 if allowed == len(safe) else min(1.0, float(torch.nextafter(safe[allowed], safe.new_tensor(2.0))))


def estimate(value: float, resampled: Tensor, n: int, level: float = 0.95) -> Estimate:
    """A value with the interval of its resamples; a resample of one class only has no value and is left out."""
    tail = (1 - level) / 2
    kept = resampled[resampled.isfinite()]
    low, high = kept.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=n, level=level)
