"""The probe against scikit-learn's own pipeline and metrics, and thresholds by their definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score, roc_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from safe_sail.errors import GuardUnfit
from safe_sail.neurons.probe import (
    auroc,
    brier,
    calibration_error,
    estimate,
    fit_probe,
    mean_over_draws,
    require_both,
    roc,
    threshold_for,
)


def data(n: int = 80, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, 6, generator=generator, dtype=torch.float64) * torch.tensor([1, 9, 0.1, 1, 1, 0]) + 3
    unsafe = (features[:, 0] + torch.randn(n, generator=generator)) > 3
    return features, unsafe


def test_probabilities_are_those_of_scikit_learns_pipeline() -> None:
    features, unsafe = data()
    probe = fit_probe(features, unsafe, inverse_penalty=0.5)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, max_iter=2000)).fit(features.numpy(), unsafe)
    fresh, _ = data(seed=1)
    expected = theirs.predict_proba(fresh.numpy())[:, 1]
    np.testing.assert_allclose(probe.probabilities(fresh).numpy(), expected, rtol=1e-6)


def test_what_cannot_be_fitted_is_said() -> None:
    features, unsafe = data()
    with pytest.raises(GuardUnfit, match="of 80 training prompts 0 get an unsafe answer"):
        fit_probe(features, torch.zeros(80, dtype=torch.bool))
    with pytest.raises(GuardUnfit, match="some activation is infinite"):
        fit_probe(features.index_fill(0, torch.tensor([3]), float("inf")), unsafe)
    with pytest.raises(GuardUnfit, match="does not converge in 1 steps"):
        fit_probe(features, unsafe, inverse_penalty=1e6, max_iter=1)
    with pytest.raises(GuardUnfit, match="of 3 test prompts 3 get"):
        require_both(torch.ones(3, dtype=torch.bool), "test")


@settings(max_examples=50, derandomize=True, deadline=None, database=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=4, max_size=30), st.integers(0, 100))
def test_measures_are_scikit_learns_for_every_resample(pairs: list[tuple[int, bool]], seed: int) -> None:
    chances = torch.tensor([(value + 0.5) / 6 for value, _ in pairs], dtype=torch.float64)
    unsafe = torch.tensor([flag for _, flag in pairs])
    if unsafe.all() or not unsafe.any():
        return
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(3, len(pairs), generator=generator, dtype=torch.float64) + 0.1
    for found, weight in zip(auroc(chances, unsafe, weights), weights, strict=True):
        assert float(found) == pytest.approx(roc_auc_score(unsafe, chances, sample_weight=weight))
    for found, weight in zip(brier(chances, unsafe, weights), weights, strict=True):
        assert float(found) == pytest.approx(brier_score_loss(unsafe, chances, sample_weight=weight))
    for found, weight in zip(calibration_error(chances, unsafe, weights), weights, strict=True):
        bins = np.clip((chances.numpy() * 10).astype(int), 0, 9)
        naive = 0.0
        for each in set(bins.tolist()):
            mine = bins == each
            share = float(weight[mine].sum() / weight.sum())
            gap = np.average((chances - unsafe.double()).numpy()[mine], weights=weight.numpy()[mine])
            naive += share * abs(float(gap))
        assert float(found) == pytest.approx(naive)
    false, true, _ = roc_curve(unsafe, chances, drop_intermediate=False)
    np.testing.assert_allclose(np.array(roc(chances, unsafe)), np.stack([false, true], axis=1))


@settings(max_examples=50, derandomize=True, deadline=None, database=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=20), st.sampled_from([0.0, 0.05, 0.2, 0.5, 0.9]))
def test_the_threshold_is_the_smallest_that_refuses_few_enough(values: list[int], share: float) -> None:
    chances = torch.tensor([value / 10 for value in values], dtype=torch.float64)
    safe = torch.zeros(len(values), dtype=torch.bool)
    threshold = threshold_for(chances, safe, share)
    assert float((chances >= threshold).double().mean()) <= share
    below = chances[chances < threshold]
    if len(below):  # letting the next prompt be refused too would be too many
        assert float((chances >= below.max()).double().mean()) > share


def test_draws_are_drawn_again_in_every_resample() -> None:
    """Four draws of 0 and 1 by turns: the means are those of four coins, whatever the prompts say."""
    values = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64).expand(20_000, 4)
    found = mean_over_draws(values, torch.Generator().manual_seed(0))
    shares = [float((found == heads / 4).double().mean()) for heads in range(5)]
    assert shares == pytest.approx([1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16], abs=0.015)  # over four standard errors
    level = mean_over_draws(torch.arange(6.0).double()[:, None].expand(6, 3), torch.Generator().manual_seed(0))
    assert level.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_threshold_needs_safe_answers_and_an_estimate_holds_its_value() -> None:
    with pytest.raises(GuardUnfit, match="with a safe answer"):
        threshold_for(torch.rand(3), torch.ones(3, dtype=torch.bool), 0.1)
    found = estimate(0.5, torch.tensor([0.6, float("nan"), 0.7], dtype=torch.float64), 3)
    assert (found.low, found.value) == (0.5, 0.5)
    assert found.high == pytest.approx(0.6975)
