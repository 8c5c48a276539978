"""Causal effects, intervals and tests against hand counts, scipy, and the effects that a published table implies."""

import pytest
import torch
from scipy import stats

from safe_sail.errors import BadSettings, NoEffect
from safe_sail.evaluation.bootstrap import resample_weights
from safe_sail.evaluation.llm_judge import Said
from safe_sail.neurons.contrast import common_neurons, rank_correlation
from safe_sail.neurons.effect import causal_effect, mean_score, paired_p_value
from safe_sail.neurons.scorers import REFUSAL, Scorer, label_scorer, reward_scorer, score_all

NAN = float("nan")


def weights(n: int) -> torch.Tensor:
    return resample_weights(n, 400, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("first", "second", "patched", "published"),
    # Chen et al. 2025, tables 8 and 1: Llama2 SFT on BeaverTails and HarmBench, Mistral SFT on BeaverTails
    [(-2.4, -11.8, -11.9, 1.01), (5.0, -11.0, -7.2, 0.76), (-7.6, -13.5, -12.9, 0.90)],
)
def test_the_effect_is_the_published_share_of_the_published_means(
    first: float, second: float, patched: float, published: float
) -> None:
    noise = torch.tensor([-0.5, 0.5, 0.25, -0.25], dtype=torch.float64)
    columns = [mean + noise for mean in (first, second, patched)]
    found = causal_effect(columns[0], columns[1], columns[2], weights(4))
    assert round(found.value, 2) == published
    assert (found.low, found.high) == pytest.approx((found.value, found.value))  # the same noise in all three


def test_the_interval_of_an_effect_resamples_prompts_together() -> None:
    """Half the prompts are moved whole, half not at all: a resample's effect is its share of moved prompts."""
    first, second = torch.zeros(100, dtype=torch.float64), torch.ones(100, dtype=torch.float64)
    patched = (torch.arange(100) % 2).double()
    counts = weights(100)
    found = causal_effect(first, second, patched, counts)
    shares = counts[:, patched.bool()].sum(dim=1)
    assert found.value == 0.5
    assert found.low == pytest.approx(float(shares.quantile(0.025)))
    assert found.high == pytest.approx(float(shares.quantile(0.975)))
    assert 0.38 < found.low < 0.43
    assert found.n == 100


def test_prompts_without_a_score_are_left_out_and_not_counted() -> None:
    first = torch.tensor([0.0, NAN, 0.0, 0.0], dtype=torch.float64)
    second = torch.tensor([1.0, 1.0, NAN, 1.0], dtype=torch.float64)
    patched = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    found = causal_effect(first, second, patched, weights(4))
    assert (found.value, found.n) == (0.5, 2)
    assert (mean_score(second, weights(4)).value, mean_score(second, weights(4)).n) == (1.0, 3)
    with pytest.raises(NoEffect, match="1 of 4 prompts have a score"):
        causal_effect(first, second, torch.tensor([1.0, NAN, NAN, NAN], dtype=torch.float64), weights(4))


@pytest.mark.parametrize("second", [[0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 0.0, 0.5]])
def test_models_that_score_alike_have_no_effect_to_share(second: list[float]) -> None:
    first = torch.zeros(4, dtype=torch.float64)
    with pytest.raises(NoEffect, match="too close to tell"):
        causal_effect(first, torch.tensor(second, dtype=torch.float64), first, weights(4))


def test_the_paired_test_is_scipys() -> None:
    generator = torch.Generator().manual_seed(0)
    values, others = torch.randn(2, 60, generator=generator, dtype=torch.float64)
    for shift in (0.0, 0.3, 2.0):
        expected = stats.ttest_rel(values + shift, others).pvalue
        assert paired_p_value(values + shift, others) == pytest.approx(expected, rel=1e-9)
    assert paired_p_value(values, values) == 1.0
    assert paired_p_value(torch.ones(5), torch.zeros(5)) == 0.0


def test_rank_correlation_is_scipys_with_ties_and_its_resamples_surround_it() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randint(0, 9, (300,), generator=generator).double()
    other = one + 2 * torch.randn(300, generator=generator, dtype=torch.float64)
    value, drawn = rank_correlation(one, other, 200, generator)
    assert value == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-12)
    assert drawn.min() < value < drawn.max()
    # a resample of pairs has about the correlation's own standard error
    assert float(drawn.std()) == pytest.approx((1 - value**2) / 300**0.5, rel=0.4)


def test_common_neurons_keep_the_first_order() -> None:
    one, other = torch.tensor([[1, 2], [0, 3], [1, 0]]), torch.tensor([[1, 0], [2, 2], [1, 2]])
    assert common_neurons(one, other).tolist() == [[1, 2], [1, 0]]


def test_scorers_score_by_phrases_by_a_function_and_by_labels() -> None:
    said = [Said("p", "sorry, i can not help with that."), Said("q", "first take the lid off and stir."), Said("r", "")]
    assert REFUSAL.score(said) == [1.0, 0.0, 0.0]
    reward = reward_scorer("length", lambda prompt, reply: len(prompt + reply))
    assert reward.score(said) == [float(len(one.prompt + one.reply)) for one in said]
    judged = label_scorer("judge", lambda given: ["refusal", None, "degenerate"])
    assert judged.score(said) == [1.0, None, 0.0]
    table = score_all(judged, ["p"], [["a"], ["b"], ["c"]])
    assert table[:, 0].nan_to_num(-1).tolist() == [1.0, -1.0, 0.0]
    with pytest.raises(BadSettings, match="scorer `none` gave 0 scores for 1 replies"):
        score_all(Scorer("none", lambda given: []), ["p"], [["a"]])
