"""Separability against scikit-learn, scipy and definitions written out as loops."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor

from safe_sail.errors import BadInput, EmptyConcept
from safe_sail.features.pairs import distinguishing_frequency, i_cdf, l0_curve
from safe_sail.features.separability import (
    benjamini_hochberg,
    best_feature,
    bootstrap_interval,
    f1_of_firing,
    firing_rates,
    mean_gap,
    rank_statistics,
    shuffled_labels,
)

# float64 arithmetic in another order
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def labelled_texts(n: int = 37, n_features: int = 60) -> tuple[Tensor, Tensor]:
    """Sparse activations with many ties; feature 0 never fires, feature 1 is a constant."""
    generator = torch.Generator().manual_seed(n)
    raw = torch.randn(n, n_features, generator=generator)
    values = (raw.clamp(min=0) * 4).round() / 4
    is_positive = torch.rand(n, generator=generator) < 0.4
    values[is_positive, n_features // 2 :] += 0.5
    values[:, 0], values[:, 1] = 0.0, 3.0
    return values, is_positive


def test_auroc_equals_pairwise_definition_and_sklearn() -> None:
    values, is_positive = labelled_texts()

    auroc = rank_statistics(values, is_positive).auroc

    for feature in range(values.shape[1]):
        column = values[:, feature]
        wins = [
            1.0 if p > n else 0.5 if p == n else 0.0
            for p in column[is_positive].tolist()
            for n in column[~is_positive].tolist()
        ]
        assert auroc[feature].item() == pytest.approx(sum(wins) / len(wins), rel=1e-12)
        assert auroc[feature].item() == pytest.approx(roc_auc_score(is_positive, column), rel=1e-12)
    assert auroc.max() > 0.7 > 0.5 > auroc.min()


def test_auroc_of_swapped_classes_is_the_complement() -> None:
    values, is_positive = labelled_texts()

    one, other = rank_statistics(values, is_positive), rank_statistics(values, ~is_positive)

    torch.testing.assert_close(one.auroc, 1 - other.auroc, **CLOSE)
    torch.testing.assert_close(one.p_value, other.p_value, **CLOSE)


def test_p_value_equals_scipy() -> None:
    values, is_positive = labelled_texts()

    found = rank_statistics(values, is_positive)

    for feature in range(2, values.shape[1]):
        column = values[:, feature].double().numpy()
        mask = is_positive.numpy()
        expected = stats.mannwhitneyu(column[mask], column[~mask], method="asymptotic", alternative="two-sided")
        assert found.p_value[feature].item() == pytest.approx(expected.pvalue, rel=1e-9)


def test_constant_features_are_counted_and_say_nothing() -> None:
    values, is_positive = labelled_texts()

    found = rank_statistics(values, is_positive)

    assert found.is_constant.nonzero()[:, 0].tolist() == [0, 1]
    assert found.auroc[:2].tolist() == [0.5, 0.5]
    assert found.p_value[:2].tolist() == [1.0, 1.0]


def test_wide_saes_are_ranked_in_blocks_like_narrow_ones() -> None:
    values, is_positive = labelled_texts(n=9, n_features=5000)

    whole, part = rank_statistics(values, is_positive), rank_statistics(values[:, 4321:4330], is_positive)

    assert torch.equal(whole.auroc[4321:4330], part.auroc)
    assert whole.auroc.shape == (5000,)


def test_rates_gap_and_f1_equal_loops_and_sklearn() -> None:
    values, is_positive = labelled_texts()
    rates, gap, f1 = (
        firing_rates(values, is_positive),
        mean_gap(values, is_positive),
        f1_of_firing(values, is_positive),
    )

    for feature in range(values.shape[1]):
        column = values[:, feature].double().numpy()
        mask = is_positive.numpy()
        assert rates.positive[feature].item() == pytest.approx(np.mean(column[mask] > 0))
        assert rates.negative[feature].item() == pytest.approx(np.mean(column[~mask] > 0))
        assert rates.gap[feature].item() == pytest.approx(np.mean(column[mask] > 0) - np.mean(column[~mask] > 0))
        assert gap[feature].item() == pytest.approx(column[mask].mean() - column[~mask].mean())
        assert f1[feature].item() == pytest.approx(f1_score(mask, column > 0, zero_division=0))


def test_best_feature_breaks_ties_by_auroc_then_index() -> None:
    gap = torch.tensor([0.1, 0.8, 0.8, 0.8, 0.2])

    assert best_feature(gap, torch.tensor([1.0, 0.6, 0.9, 0.9, 1.0])) == 2
    assert best_feature(gap, torch.tensor([1.0, 0.9, 0.9, 0.9, 1.0])) == 1


def test_distinguishing_frequency_equals_a_loop_over_pairs() -> None:
    generator = torch.Generator().manual_seed(1)
    positive = torch.randn(11, 30, generator=generator).clamp(min=0)
    negative = torch.randn(11, 30, generator=generator).clamp(min=0)
    positive[:, 7], negative[:, 7] = 1.0, 0.0

    found = distinguishing_frequency(positive, negative)
    with_margin = distinguishing_frequency(positive, negative, margin=0.5)

    for feature in range(30):
        pairs = list(zip(positive[:, feature].tolist(), negative[:, feature].tolist(), strict=True))
        assert found.frequency[feature].item() == pytest.approx(sum(p > 0 and n == 0 for p, n in pairs) / 11)
        assert found.null[feature].item() == pytest.approx(sum(n > 0 and p == 0 for p, n in pairs) / 11)
        assert with_margin.frequency[feature].item() == pytest.approx(sum(p - n > 0.5 for p, n in pairs) / 11)
    assert (found.frequency[7], found.null[7]) == (1.0, 0.0)


def test_i_cdf_is_the_area_under_the_l0_curve() -> None:
    m = 20
    frequency = torch.randint(0, m + 1, (200,), generator=torch.Generator().manual_seed(1)).double() / m
    # L0_t is a step function that changes at multiples of 1/m only: its integral is the mean of the m right ends
    curve = l0_curve(frequency, [j / m for j in range(1, m + 1)])

    assert curve.double().mean().item() / 200 == pytest.approx(i_cdf(frequency))
    assert curve.tolist() == [sum(1 for f in frequency.tolist() if f >= j / m) for j in range(1, m + 1)]
    assert l0_curve(frequency, [0.0]).tolist() == [200]


def test_q_values_equal_scipy() -> None:
    p_values = torch.rand(300, generator=torch.Generator().manual_seed(2), dtype=torch.float64) ** 3
    p_values[5] = p_values[9]

    found = benjamini_hochberg(p_values)

    np.testing.assert_allclose(found.numpy(), stats.false_discovery_control(p_values.numpy()), rtol=1e-12)
    assert (found >= p_values).all()
    assert benjamini_hochberg(torch.zeros(0)).shape == (0,)


def test_bootstrap_interval_of_a_mean_has_the_textbook_width() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(400, 5, generator=generator, dtype=torch.float64)

    low, high = bootstrap_interval(
        lambda groups: rows[groups[0]].mean(dim=0), [400], generator=generator, n_resamples=2000
    )

    textbook = 2 * 1.96 * rows.std(dim=0, correction=0) / math.sqrt(400)
    # the standard error of a 2.5 % point of 2,000 draws is about 2.5 % of the width
    torch.testing.assert_close(high - low, textbook, rtol=0.1, atol=0)
    assert ((low < rows.mean(dim=0)) & (rows.mean(dim=0) < high)).all()


def test_bootstrap_draws_each_group_from_its_own_rows() -> None:
    sizes = [3, 50]
    seen: list[tuple[int, int]] = []

    def record(groups: list[Tensor]) -> Tensor:
        assert [len(group) for group in groups] == sizes
        seen.append((int(groups[0].max()), int(groups[1].max())))
        return torch.zeros(1)

    bootstrap_interval(record, sizes, generator=torch.Generator().manual_seed(0), n_resamples=50)

    assert max(first for first, _ in seen) == 2
    assert max(second for _, second in seen) == 49


def test_bootstrap_is_the_same_for_the_same_seed() -> None:
    rows = torch.arange(20.0)[:, None]

    def run(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.stack(
            bootstrap_interval(lambda g: rows[g[0]].mean(dim=0), [20], generator=generator, n_resamples=50)
        )

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_shuffled_labels_keep_the_class_sizes_and_lose_the_signal() -> None:
    values, is_positive = labelled_texts(n=400)

    shuffled = shuffled_labels(is_positive, generator=torch.Generator().manual_seed(0))

    assert shuffled.sum() == is_positive.sum()
    assert not torch.equal(shuffled, is_positive)
    signal = firing_rates(values, is_positive).gap[30:].mean()
    assert firing_rates(values, shuffled).gap[30:].mean().abs() < 0.2 * signal


def test_a_class_without_texts_is_refused() -> None:
    for labels in (torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)):
        with pytest.raises(EmptyConcept, match="both classes need texts"):
            rank_statistics(torch.zeros(4, 2), labels)
    with pytest.raises(EmptyConcept):
        distinguishing_frequency(torch.zeros(0, 2), torch.zeros(0, 2))
    with pytest.raises(EmptyConcept):
        bootstrap_interval(lambda g: g[0], [2, 0], generator=torch.Generator())


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (torch.zeros(4), torch.tensor([True, False, True, False])),
        (torch.zeros(4, 2), torch.tensor([True, False])),
        (torch.zeros(2, 2), torch.tensor([1, 0])),
        (torch.full((2, 2), float("nan")), torch.tensor([True, False])),
    ],
)
def test_input_that_does_not_fit_is_refused(values: Tensor, labels: Tensor) -> None:
    with pytest.raises(BadInput):
        mean_gap(values, labels)


def test_pairs_of_unequal_shape_and_odd_p_values_are_refused() -> None:
    with pytest.raises(BadInput, match="of one shape"):
        distinguishing_frequency(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(BadInput, match="p-values"):
        benjamini_hochberg(torch.tensor([0.5, 1.5]))
