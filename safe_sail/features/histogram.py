"""Counts of positive activations in bins that no later value can move, and what they say in the end.

1. A value's fine bin is read off its bits: 16 equal bins in each octave from 2^-14 to 2^18. What lies below is in the
   first bin, what lies above in the last. Counts of two corpora add.
2. At the end, with the largest value known, the cumulative count is interpolated linearly inside the fine bins:
   linear bins for a picture, and quantiles.

No value is lost or counted twice. At each linear edge the cumulative count is off by at most the count of the fine bin
that holds the edge, and a quantile by at most a sixteenth of itself within the range. Memory: 4 KiB a feature.
"""

from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

_PER_OCTAVE_BITS: Final = 4
_LOWEST, _HIGHEST = -14, 18
_BIAS: Final = 127  # of a float32's exponent
_MANTISSA_BITS: Final = 23
N_FINE_BINS: Final = (_HIGHEST - _LOWEST) << _PER_OCTAVE_BITS


def fine_bins(values: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """The fine bin of each value; values are positive float32."""
    bits = values.view(torch.int32) >> (_MANTISSA_BITS - _PER_OCTAVE_BITS)
    return (bits - ((_BIAS + _LOWEST) << _PER_OCTAVE_BITS)).clamp_(0, N_FINE_BINS - 1).long()


def fine_edges(maximum: float) -> Float64[np.ndarray, " edges"]:
    """Edges of the fine bins when this is the largest value, ascending from 0; a bin holds its lower edge."""
    places = np.arange(N_FINE_BINS + 1)
    octave, part = places >> _PER_OCTAVE_BITS, places % (1 << _PER_OCTAVE_BITS)
    edges = np.ldexp(1 + part / (1 << _PER_OCTAVE_BITS), octave + _LOWEST)
    edges[0] = 0
    edges[-1] = np.inf
    clipped: Float64[np.ndarray, " edges"] = np.minimum(edges, maximum)
    return clipped


def linear_counts(counts: Int[Tensor, " bins"], *, maximum: float, n_bins: int) -> list[int]:
    """Counts in n equal bins from 0 to the largest value; they add up to all counts."""
    cumulative = np.concatenate([[0], np.cumsum(counts.numpy())])
    at_edges = np.interp(maximum * np.arange(n_bins + 1) / n_bins, fine_edges(maximum), cumulative)
    whole = np.rint(at_edges).astype(np.int64)
    whole[0], whole[-1] = 0, cumulative[-1]
    return [int(count) for count in np.diff(whole)]


def quantile(counts: Int[Tensor, " bins"], q: float, *, n: int, maximum: float) -> float:
    """The q-quantile of n values, those beyond the counts being zero: order statistic ceil(q n), counted from 1.

    It is placed linearly inside its fine bin, so it is off by at most a sixteenth of itself; in the first and the last
    bin, that is below 2^-13.9 and above 2^17.95, by at most the width of that bin.
    """
    # q times n is rarely the integer it stands for; a rank this close to one is that one
    rank = int(np.ceil(q * n - 1e-9 * n))
    cumulative = np.cumsum(counts.numpy())
    rank -= n - int(cumulative[-1])
    if rank <= 0:
        return 0.0
    fine = int(np.searchsorted(cumulative, rank))
    edges = fine_edges(maximum)
    inside = int(counts[fine])
    share = (rank - (int(cumulative[fine]) - inside)) / inside
    return float(edges[fine] + share * (edges[fine + 1] - edges[fine]))
