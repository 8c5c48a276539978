"""Change scores against stacked activations, positions by hand, ranks and random sets by their definitions."""

import pytest
import torch
from torch import Tensor

from safe_sail.errors import CompletionMissing, NeuronsMissing, SequenceTooLong
from safe_sail.model.tokens import TokenBatch
from safe_sail.neurons.change import change_scores, change_sums
from safe_sail.neurons.completions import Completed, complete, completed_batches, prompts_of
from safe_sail.neurons.contrast import ChangeSums, layer_counts, neuron_mask, random_neurons, rank_neurons
from safe_sail.neurons.pair import ModelPair
from safe_sail.settings import ChangePositions
from safe_sail.sites import Site, SiteKind
from tests.neuron_pairs import WITH_NEURONS, mlp_pair, moved_all
from tests.tiny import TEXTS, TinyModels

NOT_IN_FLOAT64 = ("qwen2_moe", "qwen3_moe", "gemma2")
"""transformers' products of experts have no float64; its soft-capped attention takes float64's least number, with which
it masks, to float32, where it is minus infinity and a row of padding becomes nan."""


def stacked(pair: ModelPair, texts: list[Completed], shift: int) -> Tensor:
    """All activations of both models kept, row by row, then one mean over all positions."""
    kept: list[list[Tensor]] = [[], []]
    for one in texts:
        ids = torch.tensor([one.prompt + one.completion])
        batch = TokenBatch(ids, torch.ones_like(ids), ("row",))
        columns = slice(len(one.prompt) - shift, len(one.prompt) - shift + len(one.completion))
        for store, model in zip(kept, (pair.first, pair.second), strict=True):
            sites = [Site(SiteKind.MLP_ACT, layer) for layer in pair.layers]
            found = model.capture(batch, sites)
            store.append(torch.stack([found[site][0, columns] for site in sites]))
    first, second = (torch.cat(store, dim=1).double() for store in kept)
    return (first - second).square().mean(dim=1).sqrt()


@pytest.mark.parametrize(("positions", "shift"), [("predicting", 1), ("completion", 0)])
@pytest.mark.parametrize("family", WITH_NEURONS)
def test_streamed_scores_equal_stacked_ones(
    family: str, positions: ChangePositions, shift: int, tiny_models: TinyModels
) -> None:
    pair = mlp_pair(tiny_models, family)
    texts = complete(pair, pair.first, pair.first.batch(TEXTS), 8, batch_rows=2)
    found = change_scores(pair, texts, positions=positions, batch_rows=2)
    expected = stacked(pair, texts, shift)
    # float32 activations of padded batches against those of single rows
    torch.testing.assert_close(found[list(pair.layers)], expected, rtol=2e-5, atol=2e-6)
    without = [layer for layer in range(pair.first.dims.n_layers) if layer not in pair.layers]
    assert not found[without].any()
    assert pair.first.dims.n_layers - 1 in pair.layers or family in ("qwen2_moe", "qwen3_moe")


@pytest.mark.parametrize("family", [one for one in WITH_NEURONS if one not in NOT_IN_FLOAT64])
def test_in_float64_streamed_scores_equal_stacked_ones_far_below_a_millionth(
    family: str, tiny_models: TinyModels
) -> None:
    """So what is left in float32 is the rounding of padded batches' activations and no part of the sums."""
    pair = mlp_pair(tiny_models, family, torch.float64)
    assert pair.first.dtype == torch.float64
    texts = complete(pair, pair.first, pair.first.batch(TEXTS), 8, batch_rows=2)
    found = change_scores(pair, texts, batch_rows=2)
    # exact but for softmax and norms that some families compute in float32 whatever the dtype
    torch.testing.assert_close(found[list(pair.layers)], stacked(pair, texts, 1), rtol=1e-6, atol=0)


def test_one_pass_for_both_models_and_two_passes_give_the_same_sums(tiny_models: TinyModels) -> None:
    pair = ModelPair(tiny_models.handle("llama"), moved_all(tiny_models, "llama"))
    texts = complete(pair, pair.second, pair.first.batch(TEXTS), 8, batch_rows=8)
    one = change_sums(pair, texts, batch_rows=8)
    pair.can_double = False
    two = change_sums(pair, texts, batch_rows=8)
    assert one.n_positions == two.n_positions == sum(len(text.completion) for text in texts)
    torch.testing.assert_close(one.squares, two.squares, rtol=1e-5, atol=1e-9)


def test_scores_over_the_two_models_texts_and_the_two_conventions_differ(tiny_models: TinyModels) -> None:
    pair = mlp_pair(tiny_models, "llama")
    batch = pair.first.batch(TEXTS)
    by_first, by_second = (complete(pair, one, batch, 8, batch_rows=8) for one in (pair.first, pair.second))
    assert by_first != by_second
    scores = [change_scores(pair, texts, batch_rows=8) for texts in (by_first, by_second)]
    assert not torch.allclose(*scores, rtol=1e-2)
    other = change_scores(pair, by_first, positions="completion", batch_rows=8)
    assert not torch.allclose(scores[0], other, rtol=1e-2)


@pytest.mark.parametrize(
    ("positions", "expected"), [("predicting", [[2, 3], [1, 2, 3]]), ("completion", [[3, 4], [2, 3, 4]])]
)
def test_positions_by_hand(positions: ChangePositions, expected: list[list[int]], tiny_models: TinyModels) -> None:
    """Prompts of 3 and 2 tokens, completions of 2 and 3: the paper counts from the prompt's last token."""
    texts = [Completed((5, 6, 7), (8, 9)), Completed((5, 6), (8, 9, 10))]
    pair = mlp_pair(tiny_models, "llama")
    ((batch, counted),) = completed_batches(texts, pair, positions, batch_rows=2)
    assert batch.token_ids.tolist() == [[5, 6, 7, 8, 9], [5, 6, 8, 9, 10]]
    assert [row.nonzero()[:, 0].tolist() for row in counted] == expected


def test_completions_keep_the_generated_ids_up_to_the_end(tiny_models: TinyModels) -> None:
    pair = mlp_pair(tiny_models, "llama")
    batch = pair.first.batch(TEXTS)
    for one, prompt, ids in zip(
        complete(pair, pair.first, batch, 12, batch_rows=2),
        prompts_of(batch),
        pair.first.generate(batch, 12),
        strict=True,
    ):
        assert one.prompt == prompt
        until = ids.tolist().index(2) if 2 in ids else 12
        assert list(one.completion) == ids.tolist()[:until]


def test_ranks_go_down_with_layer_and_index_breaking_ties() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0], [9.0, 9.0, 9.0], [3.0, 3.0, 0.0]])
    assert rank_neurons(scores, [0, 2]).tolist() == [[0, 1], [2, 0], [2, 1], [0, 2], [0, 0], [2, 2]]
    assert layer_counts(rank_neurons(scores, [2, 0])[:4], 3) == (2, 0, 2)


def test_random_neurons_have_the_same_number_in_each_layer_once_each() -> None:
    like = torch.tensor([[2, 0], [0, 4], [2, 1], [2, 9]])
    generator = torch.Generator().manual_seed(0)
    draws = [random_neurons(like, 10, generator) for _ in range(200)]
    assert all(layer_counts(draw, 3) == (1, 0, 3) and len({*map(tuple, draw.tolist())}) == 4 for draw in draws)
    drawn = torch.cat(draws)
    assert set(drawn[drawn[:, 0] == 0, 1].tolist()) == set(range(10))


def test_what_cannot_be_scored_is_said(tiny_models: TinyModels) -> None:
    pair = mlp_pair(tiny_models, "llama")
    with pytest.raises(CompletionMissing, match="at least one prompt"):
        change_scores(pair, [], batch_rows=2)
    with pytest.raises(CompletionMissing, match="text 1 has no completion token"):
        change_scores(pair, [Completed((1,), (2,)), Completed((1, 2), ())], batch_rows=2)
    with pytest.raises(CompletionMissing, match="text 0 has no prompt token"):
        change_scores(pair, [Completed((), (2,))], batch_rows=2)
    with pytest.raises(SequenceTooLong, match="65 tokens"):
        change_scores(pair, [Completed((1,) * 64, (2,))], batch_rows=2)
    mixture = ModelPair(tiny_models.handle("mixtral"), moved_all(tiny_models, "mixtral"))
    with pytest.raises(NeuronsMissing, match="mixture of experts"):
        change_scores(mixture, [Completed((1,), (2,))], batch_rows=2)
    with pytest.raises(NeuronsMissing, match="no layer has neurons"):
        rank_neurons(torch.zeros(2, 3), [])
    with pytest.raises(NeuronsMissing, match=r"L2\.N0"):
        neuron_mask(torch.tensor([[2, 0]]), 2, 5)
    with pytest.raises(CompletionMissing, match="the texts hold none"):
        ChangeSums(1, 1).scores()
