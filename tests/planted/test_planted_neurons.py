"""The organism's variant whose refusal sits in known neurons: patching these makes the variant, the ranking finds them.

Figures with more prompts: docs/methods/safety_neurons.md.
"""

import pytest
import torch

from safe_sail.model.load import load_model
from safe_sail.neurons.find import Found, NeuronPrompts, find_neurons
from safe_sail.neurons.pair import ModelPair
from safe_sail.organism.grammar import prompts
from safe_sail.organism.load import organism_path, planted_units
from safe_sail.records import NeuronRef
from safe_sail.settings import NeuronSettings

pytestmark = pytest.mark.slow


def planted_pair() -> ModelPair:
    base, planted = (
        load_model(organism_path(variant), device="cpu", dtype=torch.float32, model_id=f"organism-{variant}")
        for variant in ("base", "planted-neurons")
    )
    return ModelPair(base, planted)


@pytest.fixture(scope="module")
def known() -> list[NeuronRef]:
    return [unit for unit in planted_units("planted-neurons") if isinstance(unit, NeuronRef)]


@pytest.fixture(scope="module")
def found(known: list[NeuronRef]) -> Found:
    given = NeuronPrompts(
        [text.text for text in prompts("harmful", "train", 100, 0)],
        [text.text for text in prompts("harmful", "held_out", 50, 0)],
    )
    settings = NeuronSettings(counts=(len(known), 2 * len(known)), n_random=2, n_windows=0, n_bootstrap=200)
    generator = torch.Generator().manual_seed(0)
    return find_neurons(planted_pair(), given, settings, slug="planted", generator=generator, known=known)


def test_patching_exactly_the_planted_neurons_is_the_planted_model_token_by_token(found: Found) -> None:
    assert found.search.known is not None
    patched = found.search.known.patched
    assert (patched.same_replies.value, patched.same_replies.n) == (1.0, 50)
    assert patched.effect.value == 1.0
    assert found.search.first_score.value <= 0.1
    assert found.search.second_score.value >= 0.9


def test_the_change_score_finds_the_planted_neurons(found: Found) -> None:
    assert found.search.known is not None
    assert found.search.known.found.value >= 0.9
    assert found.search.known.chance < 0.06


def test_as_many_most_changed_neurons_restore_refusal_and_random_ones_do_not(found: Found) -> None:
    at_known = found.search.curve[0]
    assert at_known.effect.value >= 0.9
    assert at_known.random_effect is not None
    assert at_known.random_effect.value <= 0.1
    assert at_known.p_value is not None
    assert at_known.p_value < 1e-4
    assert found.search.curve[1].effect.value >= at_known.effect.value
