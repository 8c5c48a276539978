"""What pairs tell, against loops, scipy and chance."""

import pytest
import torch
from scipy import stats
from torch import Tensor

from safe_sail.errors import BadInput
from safe_sail.features.pairs import (
    THRESHOLDS,
    distinguishing_frequency,
    i_cdf,
    l0_curve,
    pair_shares,
    sign_test,
    specific_features,
    told_apart,
)
from safe_sail.features.specificity import PairValues, specificity


def noise(seed: int, n_pairs: int = 24, n_features: int = 300, density: float = 0.4) -> PairValues:
    """Features that know nothing: both texts of a pair fire with one chance."""
    generator = torch.Generator().manual_seed(seed)
    positive, negative = ((torch.rand(n_pairs, n_features, generator=generator) < density).float() for _ in range(2))
    return PairValues(positive, negative)


def with_planted(pairs: PairValues, feature: int = 5) -> PairValues:
    positive, negative = pairs.positive.clone(), pairs.negative.clone()
    positive[:, feature], negative[:, feature] = 1.0, 0.0
    return PairValues(positive, negative)


def found_by(choose: PairValues, judge: PairValues):
    generator = torch.Generator().manual_seed(0)
    return specificity("sae", "concept", choose=choose, judge=judge, n_bootstrap=400, generator=generator)


def test_shares_and_curve_equal_loops():
    positive, negative = noise(1, n_pairs=7, n_features=9)
    chosen = torch.tensor([True, False, True] * 3)
    shares = pair_shares(told_apart(positive, negative), chosen)
    for j in range(7):
        d = [float(positive[j, i] > 0 and negative[j, i] == 0) for i in range(9)]
        e = [float(negative[j, i] > 0 and positive[j, i] == 0) for i in range(9)]
        assert shares.told[j].item() == pytest.approx(sum(d) / 9)
        assert shares.swapped[j].item() == pytest.approx(sum(e) / 9)
        left = sum(d[i] - e[i] for i in range(9) if chosen[i])
        assert shares.specific[j].item() == pytest.approx(left / 9)
    record = found_by(noise(2, 7, 9), PairValues(positive, negative)).record
    frequency = [sum(bool(positive[j, i] > 0 and negative[j, i] == 0) for j in range(7)) / 7 for i in range(9)]
    assert record.l0 == tuple(sum(f >= t for f in frequency) for t in THRESHOLDS)
    assert record.i_cdf.value == pytest.approx(sum(frequency) / 9)
    assert record.i_cdf.n == 7


def test_i_cdf_is_the_area_under_the_curve():
    frequency = distinguishing_frequency(*noise(3)).frequency
    grid = [(step + 0.5) / 24 for step in range(24)]  # F_i are multiples of 1/24: the sum over its steps is exact
    area = sum(l0_curve(frequency, grid).tolist()) / 24
    assert i_cdf(frequency) == pytest.approx(area / 300)


def test_the_null_removed_whole_is_a_count_of_active_features():
    positive, negative = with_planted(noise(4))
    both = distinguishing_frequency(positive, negative)
    active = (positive > 0).double().mean() - (negative > 0).double().mean()
    assert i_cdf(both.frequency) - i_cdf(both.null) == pytest.approx(float(active), abs=1e-12)


def test_a_feature_of_what_stands_in_the_concepts_place_does_not_cancel_the_concepts():
    def both(n_pairs: int) -> PairValues:
        positive, negative = torch.zeros(n_pairs, 10), torch.zeros(n_pairs, 10)
        positive[:, 0] = 1.0  # the concept's
        negative[:, 1] = 1.0  # the filler's
        return PairValues(positive, negative)

    record = found_by(both(16), both(20)).record
    assert record.i_cdf.value == record.i_cdf_null.value == pytest.approx(0.1)
    assert record.specific.value == pytest.approx(0.1)
    assert record.n_specific == 1


def test_sign_test_equals_scipy():
    told = torch.tensor([0, 3, 0, 5, 40, 64, 10])
    swapped = torch.tensor([0, 0, 3, 5, 20, 0, 11])
    found = sign_test(told, swapped)
    assert found[0] == 1
    for place in range(1, 7):
        d, e = int(told[place]), int(swapped[place])
        expected = stats.binomtest(d, d + e, 0.5, alternative="greater").pvalue
        assert found[place].item() == pytest.approx(expected, rel=1e-9)


def test_pairs_swapped_by_coin_have_no_specific_feature():
    for seed in range(5):
        judge = with_planted(noise(seed, density=0.1))
        assert specific_features(told_apart(*judge)).nonzero().flatten().tolist() == [5]
        coin = torch.rand(24, generator=torch.Generator().manual_seed(seed)) < 0.5
        swapped = [torch.where(coin[:, None], one, other) for one, other in (judge, judge[::-1])]
        assert not specific_features(told_apart(*swapped)).any()


def test_noise_adds_nothing_on_average_where_choosing_on_the_judging_pairs_would():
    def left(choose: PairValues, judge: PairValues) -> float:
        chosen_by = told_apart(*choose)
        better = chosen_by.told.sum(dim=0) > chosen_by.swapped.sum(dim=0)
        return pair_shares(told_apart(*judge), better).specific.mean().item()

    drawn = [noise(seed) for seed in range(400)]
    honest = torch.tensor([left(*two) for two in zip(drawn[::2], drawn[1::2], strict=True)])
    cheated = torch.tensor([left(one, one) for one in drawn])
    error = honest.std().item() / 200**0.5
    assert abs(honest.mean().item()) < 3 * error
    assert cheated.mean().item() > 20 * error


def test_intervals_hold_the_truth_as_often_as_they_say():
    # one feature of ten tells 0.6 of the pairs apart, the others none: the truth is 0.06
    held = 0
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)

        def draw(n: int, generator: torch.Generator = generator) -> Tensor:
            values = torch.zeros(n, 10)
            values[:, 3] = (torch.rand(n, generator=generator) < 0.6).float()
            return values

        found = found_by(PairValues(draw(40), torch.zeros(40, 10)), PairValues(draw(60), torch.zeros(60, 10)))
        specific = found.record.specific
        held += specific.low <= 0.06 <= specific.high
        assert found.per_pair.mean().item() == pytest.approx(specific.value)
    # 95 of 100 expected; 3 binomial standard errors below
    assert held >= 88


def test_chosen_features_must_fit():
    with pytest.raises(BadInput, match="300 bools"):
        pair_shares(told_apart(*noise(1)), torch.ones(3, dtype=torch.bool))
