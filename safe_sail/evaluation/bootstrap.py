"""Bootstrap intervals of means, paired: every column is resampled with the same prompts.

1. Draw prompts with replacement, many times; keep how often each was drawn.
2. A resample's mean is those counts times the scores.
3. The interval is between the quantiles of the resampled means.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.records import Estimate


def resample_weights(n: int, n_resamples: int, generator: torch.Generator) -> Float[Tensor, "resamples n"]:
    """Share of each prompt in each resample; rows sum to 1."""
    drawn = torch.randint(0, n, (n_resamples, n), generator=generator)
    counts = torch.zeros(n_resamples, n, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return counts / n


def mean_estimate(values: Float[Tensor, " n"], weights: Float[Tensor, "resamples n"], level: float = 0.95) -> Estimate:
    """Mean over prompts with its percentile bootstrap interval."""
    wide = values.double().cpu()
    means = weights @ wide
    tail = (1 - level) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    mean = float(wide.mean())
    # Of equal values every resample has the same mean, up to rounding that must not turn the interval around.
    return Estimate(value=mean, low=min(low, mean), high=max(high, mean), n=len(wide), level=level)
