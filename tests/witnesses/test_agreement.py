"""Pooled correlation against scipy on the texts end to end, and its interval against a plain loop."""

from itertools import chain

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from safe_sail.errors import BadInput
from safe_sail.features.agreement import balanced_accuracy, pooled_correlation


def random_contexts(seed: int, n: int = 12) -> tuple[list[list[float]], list[list[float]]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 9, (n,), generator=generator).tolist()
    truth = [torch.rand(length, generator=generator).relu().tolist() for length in lengths]
    predicted = [[t + float(torch.randn((), generator=generator)) for t in row] for row in truth]
    return truth, predicted


@pytest.mark.parametrize("seed", range(4))
def test_value_equals_scipy_on_all_tokens_end_to_end(seed: int):
    truth, predicted = random_contexts(seed)
    found = pooled_correlation(truth, predicted, generator=torch.Generator().manual_seed(0))
    assert found is not None
    expected = scipy.stats.pearsonr([*chain(*truth)], [*chain(*predicted)]).statistic
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.n == len(truth)


def test_interval_equals_a_plain_loop_over_the_same_draws():
    truth, predicted = random_contexts(9)
    found = pooled_correlation(truth, predicted, generator=torch.Generator().manual_seed(3), n_resamples=300)
    draws = torch.randint(len(truth), (300, len(truth)), generator=torch.Generator().manual_seed(3)).tolist()
    values = []
    for rows in draws:
        t, p = [*chain(*(truth[r] for r in rows))], [*chain(*(predicted[r] for r in rows))]
        values.append(scipy.stats.pearsonr(t, p).statistic)
    low, high = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    assert found is not None
    assert found.low == pytest.approx(float(low), abs=1e-9)
    assert found.high == pytest.approx(float(high), abs=1e-9)


def test_a_constant_side_has_no_score():
    assert pooled_correlation([[0.1, 0.1], [0.1]], [[0.0, 1.0], [2.0]], generator=torch.Generator()) is None
    assert pooled_correlation([[0.0, 1.0], [2.0]], [[0.3, 0.3], [0.3]], generator=torch.Generator()) is None


def test_sides_of_unequal_length_are_refused():
    with pytest.raises(BadInput, match="as many predictions"):
        pooled_correlation([[1.0, 2.0]], [[1.0]], generator=torch.Generator())
    with pytest.raises(BadInput, match="expected contexts"):
        pooled_correlation([], [], generator=torch.Generator())


@pytest.mark.parametrize("seed", range(5))
def test_balanced_accuracy_of_yes_and_no_is_the_auroc(seed: int):
    rng = np.random.default_rng(seed)
    truth, predicted = (rng.random(40) < 0.4).tolist(), (rng.random(40) < 0.6).tolist()
    found = balanced_accuracy(truth, predicted)
    assert found is not None
    assert found.value == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert found.value == pytest.approx(roc_auc_score(truth, predicted))
    assert found.n == 40


@pytest.mark.parametrize(("hit", "rejection", "n"), [(0.95, 0.9, 10), (0.7, 0.5, 10), (1.0, 1.0, 5), (0.8, 0.6, 40)])
def test_the_interval_of_a_balanced_accuracy_holds_the_truth(hit: float, rejection: float, n: int):
    rng = np.random.default_rng(1)
    true = (hit + rejection) / 2
    held = 0
    for _ in range(600):
        predicted = [*(rng.random(n) < hit), *(rng.random(n) >= rejection)]
        found = balanced_accuracy([True] * n + [False] * n, [bool(one) for one in predicted])
        assert found is not None
        held += found.low <= true <= found.high
    # 600 draws leave a standard error of 0.009 around 0.95
    assert held / 600 > 0.92


def test_one_side_alone_has_no_balanced_accuracy():
    assert balanced_accuracy([True, True], [True, False]) is None
    with pytest.raises(BadInput, match="as many predictions"):
        balanced_accuracy([True], [])
