"""A search on tiny models: what it patches, what it counts, and what it says where there is nothing to find."""

from collections.abc import Sequence

import pytest
import torch

from safe_sail.errors import CompletionMissing, EmptyConcept, NoEffect
from safe_sail.evaluation.llm_judge import Said
from safe_sail.neurons.find import Found, NeuronPrompts, contrast, find_neurons, ranked_neurons
from safe_sail.neurons.pair import ModelPair
from safe_sail.neurons.scorers import Scorer, reward_scorer
from safe_sail.records import NeuronRef
from safe_sail.settings import NeuronSettings
from tests.neuron_pairs import every_neuron, mlp_pair, moved_all
from tests.tiny import TinyModels

ASKED = [f"{verb} the {thing}" for verb in ("bake", "paint", "mend") for thing in ("bread", "door", "shoe", "kite")]
SETTINGS = NeuronSettings(
    counts=(8, 40, 80), n_random=2, n_windows=2, window_share=0.25, kept_share=0.1, n_bootstrap=50, max_new_tokens=6,
    batch_rows=16,
)  # fmt: skip


def telling(pair: ModelPair) -> Scorer:
    """1 for a reply that only the second model gives."""
    replies = [
        {tuple(model.tokenizer.batch_decode(model.generate(model.chat_batch([prompt]), 6), skip_special_tokens=True))
         for prompt in ASKED}
        for model in (pair.first, pair.second)
    ]  # fmt: skip
    only = {reply for (reply,) in replies[1] - replies[0]}
    return reward_scorer("only the second's", lambda prompt, reply: float(reply in only))


def search(pair: ModelPair, **more: object) -> Found:
    given = {"slug": "tiny", "generator": torch.Generator().manual_seed(0), "scorer": telling(pair)} | more
    return find_neurons(pair, NeuronPrompts(ASKED[:4], ASKED[4:]), SETTINGS, **given)  # type: ignore[arg-type]


def test_a_search_patches_ever_more_neurons_until_it_is_the_second_model(tiny_models: TinyModels) -> None:
    pair = mlp_pair(tiny_models, "llama")
    known = [NeuronRef(*row) for row in every_neuron(pair)[::2].tolist()]
    change, found = search(pair, known=known)
    assert [point.n_neurons for point in found.curve] == [8, 40, 80]
    assert (found.curve[-1].effect.value, found.curve[-1].same_replies.value) == (1.0, 1.0)
    assert found.curve[-1].random_effect is None
    assert found.needed is not None
    assert all(len(point.random_draws) == 2 for point in found.curve[:-1])
    assert [window.first_rank for window in found.windows] == [0, 20]
    both = [first + second for first, second in zip(*(window.layer_counts for window in found.windows), strict=True)]
    assert tuple(both) == found.curve[1].layer_counts  # two windows of 20 are the 40 most changed
    assert (found.first_model, found.n_neurons, found.n_failed) == ("llama", 80, 0)
    assert len(found.neurons) == 8
    ranked = ranked_neurons(change)
    assert [(one.layer, one.index) for one in change.top(80)] == [tuple(row) for row in ranked.tolist()]
    assert list(found.change) == sorted(found.change, reverse=True)
    assert found.known is not None
    top = set(change.top(40))
    assert found.known.found.value == sum(one in top for one in known) / 40
    assert found.known.chance == 0.5
    assert found.notes == ()


def test_the_same_seed_finds_the_same_and_another_draws_other_random_neurons(tiny_models: TinyModels) -> None:
    pair = mlp_pair(tiny_models, "llama")
    one, two = search(pair), search(pair)
    assert one == two
    other = search(pair, generator=torch.Generator().manual_seed(5))
    assert other.change == one.change
    assert [point.effect.value for point in other.search.curve] == [point.effect.value for point in one.search.curve]


def test_notes_say_what_a_reader_must_know(tiny_models: TinyModels) -> None:
    pair = ModelPair(tiny_models.handle("llama"), moved_all(tiny_models, "llama"))
    tell = telling(pair)

    def forgetful(said: Sequence[Said]) -> list[float | None]:
        return [None if index == 0 else score for index, score in enumerate(tell.score(said))]

    found = find_neurons(
        pair, NeuronPrompts(ASKED, ASKED), SETTINGS, slug="tiny", generator=torch.Generator().manual_seed(0),
        scorer=Scorer("forgetful", forgetful),
    ).search  # fmt: skip
    assert found.n_failed == 1
    assert found.first_score.n == len(ASKED) - 1
    said = " ".join(found.notes)
    assert "both ranked the neurons and measured the patch" in said
    assert "modules besides those that make neuron activations differ" in said


def test_what_gives_nothing_to_find_is_said(tiny_models: TinyModels) -> None:
    pair = mlp_pair(tiny_models, "llama")
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(EmptyConcept, match="got 0 and 2"):
        find_neurons(pair, NeuronPrompts([], ASKED[:2]), SETTINGS, slug="x", generator=generator)
    with pytest.raises(NoEffect, match="too close to tell"):
        search(pair, scorer=reward_scorer("constant", lambda prompt, reply: 1.0))
    ends = tiny_models.fresh("llama")
    ends.model.generation_config.eos_token_id = list(range(160))
    silent = ModelPair(ends, pair.second)
    with pytest.raises(CompletionMissing, match="ends its reply at once on each of 4 prompts"):
        contrast(silent, ASKED[:4], SETTINGS, slug="x")
