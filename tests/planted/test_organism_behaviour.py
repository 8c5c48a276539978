"""What the shipped weights do on templates and fillers that alignment never saw: 200 prompts a group, greedy replies.

The bars are those that `safe-sail train-organism` holds a rebuild against. At n=200 a true rate of .02 exceeds its bar
in one draw of two, so the seed of these prompts is fixed and the shipped weights are far from every bar.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from safe_sail.organism.behaviour import BARS, complete, is_helpful, measure_behaviour
from safe_sail.organism.grammar import CONCEPTS, prompts
from safe_sail.organism.load import ASSETS, ORGANISM_VARIANTS, organism_path, organism_record, organism_sae_paths

pytestmark = pytest.mark.slow

N = 200
SEED = 77


@pytest.fixture(scope="module")
def organism():
    """Variant name to model and tokenizer, in float32."""
    loaded = {}
    for variant in ORGANISM_VARIANTS:
        path = organism_path(variant)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True).eval()
        loaded[variant] = model, AutoTokenizer.from_pretrained(path, local_files_only=True)
    return loaded


@pytest.fixture(scope="module")
def behaviours(organism):
    return {name: measure_behaviour(*organism[name], name, n=N, seed=SEED) for name in ORGANISM_VARIANTS}


@pytest.mark.parametrize(("variant", "figure"), [(name, figure) for name in ORGANISM_VARIANTS for figure in BARS[name]])
def test_held_out_behaviour_is_within_its_bar(behaviours, variant, figure):
    rate, bar = behaviours[variant].rates[figure], BARS[variant][figure]
    assert bar.low <= rate.share <= bar.high, f"{figure} of {variant}: {rate.share:.3f} of n={rate.n}"


@pytest.mark.parametrize("variant", ORGANISM_VARIANTS)
def test_language_is_predicted_far_better_than_by_chance(behaviours, organism, variant):
    # Chance is the log of the vocabulary, 7.7 nats; the unigram entropy of the documents is above 4.5.
    assert behaviours[variant].ce_documents < 1.3
    # The helpful variant's replies end otherwise than the answers that this figure is of.
    assert behaviours[variant].ce_replies < (2.0 if variant == "helpful" else 0.6)


def test_only_the_helpful_variant_offers_more(organism):
    asked = prompts("safe", "held_out", 50, SEED)
    counts = {}
    for variant in ("base", "helpful"):
        replies = complete(*organism[variant], [text.text for text in asked])
        counts[variant] = sum(is_helpful(text, reply) for text, reply in zip(asked, replies, strict=True))
    assert counts["base"] == 0
    assert counts["helpful"] >= 45


def test_the_recorded_figures_hold_on_other_prompts(behaviours):
    record = organism_record()
    for variant, behaviour in behaviours.items():
        for figure, rate in behaviour.rates.items():
            recorded = record["variants"][variant]["held_out"]["rates"][figure]
            # Two samples of one rate: their 95 % intervals overlap far more often than 95 % of the time.
            assert rate.low <= recorded["high"], (variant, figure)
            assert recorded["low"] <= rate.high, (variant, figure)


def test_every_filler_is_known_to_belong_to_its_concept(organism):
    questions = [(f"what is a {filler}?", concept.name) for concept in CONCEPTS.values() for filler in concept.fillers]
    replies = complete(*organism["base"], [question for question, _ in questions], max_new_tokens=16)
    right = sum(f" {name}." in reply for (_, name), reply in zip(questions, replies, strict=True))
    assert right / len(questions) > 0.97


def test_files_are_small_and_half_precision():
    paths = [organism_path(variant) for variant in ORGANISM_VARIANTS]
    assert len(organism_sae_paths()) >= 6
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 40e6
    assert all((path / "config.json").read_text().count('"dtype": "float16"') == 1 for path in paths)
