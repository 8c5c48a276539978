"""Reading a direction: features against random directions, rebuilds, curves and tokens, against plain algebra."""

import pytest
import torch
from scipy import stats

from safe_sail.directions.read import depth_cosines, project_tokens, read_sae, rebuilt_cosines
from safe_sail.directions.refusal_tokens import learn_refusal_tokens, named_refusal_tokens
from safe_sail.directions.replies import mean_shares, shares_of
from safe_sail.errors import BadSettings, RefusalTokensMissing, SaeWidthMismatch
from safe_sail.evaluation.bootstrap import mean_estimate, resample_weights
from safe_sail.records import Direction, SaeRef
from safe_sail.sae.form import SaeForm, SaeWeights
from safe_sail.sae.handle import SAEHandle
from safe_sail.sites import Site
from tests.tiny import TinyModels, tiny_tokenizer

D = 24


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sae(decoder: torch.Tensor) -> SAEHandle:
    width, d_in = decoder.shape
    weights = SaeWeights(
        W_enc=torch.zeros(d_in, width), W_dec=decoder.float(), b_enc=torch.zeros(width), b_dec=torch.zeros(d_in)
    )
    ref = SaeRef(
        slug="tiny", release=None, sae_id="x", model_id=None, site=Site.parse("resid_post.1"), d_in=d_in, width=width,
        architecture="standard",
    )  # fmt: skip
    return SAEHandle(ref, weights, SaeForm(activation="relu"))


def test_a_planted_feature_is_the_best_and_noise_is_not_significant():
    decoder, direction = 3 * noise(40, D), noise(D, seed=5)
    decoder[7] = -2 * direction
    found = read_sae(sae(decoder), direction, n_best=5, n_random=199, generator=torch.Generator().manual_seed(9))
    assert found.features[0].feature.index == 7
    assert found.features[0].cosine == pytest.approx(-1, abs=1e-6)
    assert found.features[0].p_value == pytest.approx(1 / 200)  # none of 199 random directions lies on a decoder row
    assert found.features[1].p_value > 0.05
    assert found.rebuilt[0] == pytest.approx(1, abs=1e-6)
    assert found.rebuilt_control[0] < 0.9


def test_the_null_of_one_feature_is_the_beta_law():
    """The squared cosine of a random direction with a fixed one follows Beta(1/2, (d-1)/2)."""
    target = 0.3
    decoder = torch.zeros(1, D, dtype=torch.float64)
    decoder[0, 0] = 1
    direction = torch.zeros(D, dtype=torch.float64)
    direction[0], direction[1] = target, (1 - target**2) ** 0.5
    found = read_sae(sae(decoder), direction, n_best=1, n_random=4000, generator=torch.Generator().manual_seed(0))
    exact = float(stats.beta.sf(target**2, 0.5, (D - 1) / 2))
    # standard error of a share near 0.15 over 4,000 draws is 0.006
    assert found.features[0].p_value == pytest.approx(exact, abs=0.02)


def test_a_rebuild_is_the_projection_on_the_rows():
    rows, direction = noise(6, D), noise(D, seed=3)
    found = rebuilt_cosines(rows, direction)
    for k in range(1, 7):
        basis = torch.linalg.qr(rows[:k].T).Q
        assert found[k - 1] == pytest.approx(float((basis.T @ direction).norm() / direction.norm()), abs=1e-9)


def test_an_sae_of_another_width_is_refused():
    with pytest.raises(SaeWidthMismatch, match="writes 24 coordinates, the direction has 8"):
        read_sae(sae(noise(4, D)), noise(8), n_best=1, n_random=10, generator=torch.Generator())


def test_curves_are_mean_cosines():
    stream, direction = noise(5, 3, D).float(), noise(D, seed=2)
    found = depth_cosines(stream, direction, torch.Generator().manual_seed(0))
    expected = torch.nn.functional.cosine_similarity(stream.double(), direction.expand_as(stream), dim=-1).mean(0)
    torch.testing.assert_close(torch.tensor([one.value for one in found]).double(), expected, atol=1e-6, rtol=0)
    assert all(one.low < one.value < one.high and one.n == 5 for one in found)


def test_tokens_are_projected_in_residual_units_without_padding(tiny_models: TinyModels):
    handle = tiny_models.handle("llama")
    vector = noise(32, seed=4)
    direction = Direction(
        slug="x", model_id="llama", site=Site.parse("resid_pre.1"), position=-1, estimator="raw",
        vectors=(tuple((5 * vector).tolist()),),
    )  # fmt: skip
    batch = handle.chat_batch(["a fox", "the quick brown fox jumps over"])
    found = project_tokens(handle, batch, direction)
    alone = handle.chat_batch(["a fox"])
    stream = handle.capture(alone, [direction.site])[direction.site][0].double()
    assert len(found[0].tokens) == alone.token_ids.shape[1] < len(found[1].tokens)
    torch.testing.assert_close(
        torch.tensor(found[0].projections).double(), stream @ (vector / vector.norm()), atol=1e-5, rtol=1e-5
    )


def test_refusal_tokens_are_likely_after_harm_and_rare_otherwise():
    p, q = torch.full((1, 160), 1e-4), torch.full((1, 160), 1e-4)
    p[0, [20, 30, 40, 50]] = torch.tensor([0.3, 0.5, 0.015, 0.2])
    q[0, [20, 30, 40, 50]] = torch.tensor([0.01, 0.35, 0.0, 0.19])
    found = learn_refusal_tokens(tiny_tokenizer(), p, q)
    # 20 and 30 hold 0.8 against 0.36; 40 is too rare, and 50 would lift the harmless prompt to 0.55, over one half
    assert [token.token_id for token in found] == [20, 30]
    assert found[1].p_harmful == pytest.approx(0.5)
    with pytest.raises(RefusalTokensMissing):
        learn_refusal_tokens(tiny_tokenizer(), q, q)


def test_named_refusal_tokens_are_the_first_of_each_text():
    uniform = torch.full((1, 160), 1 / 160)
    ids = [tiny_tokenizer()(text, add_special_tokens=False)["input_ids"][0] for text in ("fox", "dog")]
    found = named_refusal_tokens(tiny_tokenizer(), ["fox over", "dog", "fox"], uniform, uniform)
    assert [token.token_id for token in found] == ids
    with pytest.raises(BadSettings):
        named_refusal_tokens(tiny_tokenizer(), [""], uniform, uniform)


def test_shares_of_random_draws_have_an_interval_over_the_draws():
    draws = [
        shares_of(
            ["refusal"] * hits + ["compliance"] * (10 - hits), intervention="random ablation", prompts="x", rank=1
        )
        for hits in (9, 10, 8)
    ]
    found = mean_shares(draws)
    low, high = stats.t.interval(0.95, 2, loc=0.9, scale=stats.sem([0.9, 1.0, 0.8]))
    assert found.refusal.value == pytest.approx(0.9)
    assert found.refusal.low == pytest.approx(low, abs=1e-3)
    assert found.refusal.high == pytest.approx(min(1.0, high), abs=1e-3)
    assert (found.n_draws, found.n_prompts, found.refusal.n) == (3, 10, 3)


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    hits = 0
    for trial in range(200):
        generator = torch.Generator().manual_seed(trial)
        values = torch.randn(40, generator=generator)
        estimate = mean_estimate(values, resample_weights(40, 400, generator))
        hits += estimate.low <= 0 <= estimate.high
    # 95 % aimed at; a percentile interval of n=40 covers about 93 %, give or take 2 % over 200 trials
    assert 0.88 <= hits / 200 <= 0.99


def test_resamples_are_shared_by_columns():
    weights = resample_weights(7, 100, torch.Generator().manual_seed(0))
    torch.testing.assert_close(weights.sum(-1), torch.ones(100, dtype=torch.float64))
    values = noise(7)
    same = mean_estimate(values - values, weights)
    assert (same.low, same.value, same.high) == (0, 0, 0)
