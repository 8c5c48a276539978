"""Class means, their difference and its two robust forms, against plain computations."""

import numpy as np
import pytest
import torch

from safe_sail.directions.diff_in_means import (
    MASSIVE_RATIO,
    ClassSums,
    difference_in_means,
    massive_coordinate_ratio,
    pooled_deviation,
    projected_difference,
    standardised_difference,
    winsorised,
)
from safe_sail.directions.projection import ablate, orthonormal_basis
from safe_sail.errors import EmptyConcept


def activations(n: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, 2, 3, 16, generator=torch.Generator().manual_seed(seed)) + shift


def sums_of(x: torch.Tensor, batch: int = 7) -> ClassSums:
    sums = ClassSums.empty(*x.shape[1:])
    for part in x.split(batch):
        sums = sums.plus(part)
    return sums


def test_streamed_difference_equals_numpy_on_the_whole():
    harmful, harmless = activations(40, 1, 0.5), activations(33, 2)
    found = difference_in_means(sums_of(harmful), sums_of(harmless))
    expected = harmful.numpy().astype(np.float64).mean(0) - harmless.numpy().astype(np.float64).mean(0)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_batches_do_not_matter():
    x = activations(40, 1)
    # The same float64 sum in another order: 40 roundings of 1e-16.
    torch.testing.assert_close(sums_of(x, 1).total, sums_of(x, 40).total, atol=1e-12, rtol=0)


def test_pooled_deviation_is_that_within_the_classes():
    harmful, harmless = activations(40, 1, 5.0).double(), activations(33, 2).double()
    within = torch.cat([harmful - harmful.mean(0), harmless - harmless.mean(0)])
    expected = (within.square().sum(0) / (73 - 2)).sqrt()
    torch.testing.assert_close(pooled_deviation(sums_of(harmful), sums_of(harmless)), expected)


def test_winsorising_clips_the_largest_entries_of_each_vector():
    x = torch.tensor([[1.0, -2.0, 3.0, -100.0], [0.1, 0.2, 0.3, 0.4]])
    expected = torch.tensor([[1.0, -2.0, 3.0, -3.0], [0.1, 0.2, 0.3, 0.3]])
    torch.testing.assert_close(winsorised(x, 0.75), expected)
    assert winsorised(x, 1.0) is x


def test_a_massive_coordinate_hides_the_direction_from_raw_means_alone():
    """The class difference lies along coordinate 3; coordinate 0 is noise of size 1000."""
    noise_of = [activations(24, seed) for seed in (1, 2)]
    for x, sign in zip(noise_of, (0.5, -0.5), strict=True):
        x[..., 3] += 4 * sign
        x[..., 0] *= 1000
    raw = [sums_of(x) for x in noise_of]
    truth = torch.zeros(16, dtype=torch.float64)
    truth[3] = 1

    def cosines(direction: torch.Tensor) -> torch.Tensor:
        return (direction @ truth) / direction.norm(dim=-1)

    clipped = difference_in_means(*(sums_of(winsorised(x, 15 / 16)) for x in noise_of))
    assert cosines(difference_in_means(*raw)).max() < 0.1
    assert cosines(standardised_difference(*raw)).min() > 0.85
    assert cosines(clipped).min() > 0.7
    assert massive_coordinate_ratio(*raw).min() > MASSIVE_RATIO


def test_standardising_changes_nothing_where_all_coordinates_vary_alike():
    basis = torch.eye(4).repeat(2, 1) * torch.tensor([[1.0]] * 4 + [[-1.0]] * 4)
    harmless = basis[:, None, None, :]
    harmful = harmless + torch.tensor([1.0, 2.0, 0.0, -1.0])
    sums = sums_of(harmful), sums_of(harmless)
    torch.testing.assert_close(standardised_difference(*sums), difference_in_means(*sums))
    torch.testing.assert_close(massive_coordinate_ratio(*sums), torch.full((1, 1), 0.5, dtype=torch.float64))


def test_a_cell_that_does_not_vary_gives_zero_not_nan():
    x = torch.ones(5, 1, 1, 8)
    sums = sums_of(x), sums_of(x)
    for found in (difference_in_means(*sums), standardised_difference(*sums), massive_coordinate_ratio(*sums)):
        assert torch.equal(found, torch.zeros_like(found))


def test_a_class_without_prompts_has_no_mean():
    with pytest.raises(EmptyConcept):
        difference_in_means(sums_of(activations(3, 0)), ClassSums.empty(2, 3, 16))


def test_projected_difference_is_raw_without_the_harmless_mean():
    harmful, harmless = activations(40, 1, 0.5), activations(33, 2, 1.0)
    sums = sums_of(harmful), sums_of(harmless)
    found = projected_difference(*sums)
    mean = harmless.double().mean(0)
    torch.testing.assert_close((found * mean).sum(-1), torch.zeros(2, 3, dtype=torch.float64))
    left = difference_in_means(*sums) - found
    assert left.norm() > 0.1
    # what was taken away is parallel to the mean
    torch.testing.assert_close(left.norm(dim=-1), ((left * mean).sum(-1) / mean.norm(dim=-1)).abs())


def test_ablating_the_projected_difference_leaves_the_harmless_mean_in_place():
    harmful, harmless = activations(40, 1, 0.5), activations(33, 2, 1.0)
    sums = sums_of(harmful), sums_of(harmless)
    mean = sums[1].mean[0, 0]
    moved = {
        estimator: (ablate(mean, orthonormal_basis(difference(*sums)[0, 0][None])) - mean).norm()
        for estimator, difference in (("raw", difference_in_means), ("projected", projected_difference))
    }
    assert moved["projected"] < 1e-12 < 0.1 < moved["raw"]
