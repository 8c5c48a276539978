"""Pooled correlation against scipy on the texts end to end, and its interval against a plain loop."""

from itertools import chain

import pytest
import scipy.stats
import torch

from safe_sail.errors import BadInput
from safe_sail.features.agreement import pooled_correlation


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
