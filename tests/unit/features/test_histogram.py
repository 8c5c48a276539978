"""Fine histograms against sorting and counting everything."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_sail.features.histogram import N_FINE_BINS, fine_bins, fine_edges, linear_counts, quantile

POSITIVE = st.floats(2**-20, 2.0**20, width=32)


def counts_of(values: list[float]) -> torch.Tensor:
    return torch.bincount(fine_bins(torch.tensor(values)), minlength=N_FINE_BINS)


@settings(deadline=None, max_examples=200)
@given(st.lists(POSITIVE, min_size=1, max_size=60))
def test_every_value_lies_between_the_edges_of_its_bin(values: list[float]):
    edges = fine_edges(max(values))
    for value, place in zip(values, fine_bins(torch.tensor(values)).tolist(), strict=True):
        assert edges[place] <= value
        assert value < edges[place + 1] or value == max(values)


@settings(deadline=None, max_examples=200)
@given(st.lists(POSITIVE, min_size=1, max_size=60), st.integers(1, 30))
def test_linear_bins_lose_nothing_and_err_by_one_fine_bin(values: list[float], n_bins: int):
    maximum, counts = max(values), counts_of(values)
    found = linear_counts(counts, maximum=maximum, n_bins=n_bins)
    assert sum(found) == len(values)
    assert min(found) >= 0
    edges = fine_edges(maximum)
    for j in range(1, n_bins):
        edge = maximum * j / n_bins
        exact = sum(value < edge for value in values)
        straddling = int(counts[max(int(np.searchsorted(edges, edge, side="right")) - 1, 0)])
        assert abs(sum(found[:j]) - exact) <= straddling + 1  # one more for rounding to whole counts


@settings(deadline=None, max_examples=200)
@given(st.lists(POSITIVE, min_size=1, max_size=60), st.integers(0, 60), st.sampled_from([0.001, 0.5, 0.9, 0.999, 1.0]))
def test_quantiles_are_a_sixteenth_from_the_sorted_ones(values: list[float], n_zeros: int, q: float):
    everything = sorted([0.0] * n_zeros + values)
    exact = everything[int(np.ceil(q * len(everything) - 1e-9)) - 1]
    found = quantile(counts_of(values), q, n=len(everything), maximum=max(values))
    if 2**-14 * 17 / 16 <= exact < 2**18 * 31 / 32:
        assert found == pytest.approx(exact, rel=1 / 16)
    elif exact < 2**18 * 31 / 32:
        assert 0 <= found <= 2**-14 * 17 / 16
    else:
        assert 2**18 * 31 / 32 <= found <= max(values)


def test_counts_of_two_corpora_add():
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)).tolist()
    assert torch.equal(counts_of(values), counts_of(values[:300]) + counts_of(values[300:]))
