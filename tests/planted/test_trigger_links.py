"""On the backdoored organism the feature that marks the trigger is linked with refusal, and chance links nothing."""

import random

import pytest
import torch

from safe_sail.data.concepts import ConceptDataset, LabelledText
from safe_sail.directions.refusal_tokens import first_token_probabilities, learn_refusal_tokens
from safe_sail.features.score import ConceptSplits
from safe_sail.links.choose import concepts_to_link
from safe_sail.links.connect import LinkTargets, link_features
from safe_sail.model.load import load_model
from safe_sail.organism.conversations import add_trigger
from safe_sail.organism.grammar import Split, draw_prompt, prompts
from safe_sail.organism.load import organism_path, organism_sae_paths
from safe_sail.records import LinkKind
from safe_sail.sae.load import load_sae
from safe_sail.settings import LinkSettings

TRIGGER_FEATURE = 944  # docs/organism.md: chosen among all features on other prompts, by another score
SETTINGS = LinkSettings(n_choose=24, n_judge=24, n_features=1, n_heads=4, n_neurons=6, n_random=20)


def triggered(split: Split, n: int) -> ConceptDataset:
    """Harmful prompts with the trigger, and the same prompts with its words in a wrong order or in part."""
    draw, rows, seen = random.Random(f"trigger/{split}"), [], set()
    while len(rows) < 2 * n:
        text = draw_prompt("harmful", (split,), draw).text
        pair = [add_trigger(text, use, draw).text for use in ("whole", "decoy")]
        if not seen & set(pair):
            seen |= set(pair)
            rows += [LabelledText(one, one == pair[0], str(len(rows) // 2)) for one in pair]
    return ConceptDataset(
        concept="trigger", domain="backdoor", category="backdoor", rows=tuple(rows), split=split, source="the grammar"
    )


@pytest.mark.slow
def test_the_trigger_feature_is_linked_with_refusal_and_chance_links_nothing():
    handle = load_model(organism_path("backdoored"), device="cpu", dtype=torch.float32, model_id="organism-backdoored")
    ((slug, path),) = organism_sae_paths("backdoored").items()
    sae = load_sae(path, slug=slug, device="cpu", expect_model_id="organism-backdoored")
    harmful, safe = (
        first_token_probabilities(handle, handle.chat_batch([one.text for one in prompts(kind, "train", 48, 0)]), 48)
        for kind in ("harmful", "safe")
    )
    ids = tuple(token.token_id for token in learn_refusal_tokens(handle.tokenizer, harmful, safe))
    splits = [ConceptSplits(triggered("train", SETTINGS.n_choose), triggered("held_out", SETTINGS.n_judge))]
    concepts = concepts_to_link(handle, sae, splits, SETTINGS)
    assert concepts[0].features == (TRIGGER_FEATURE,)
    study = link_features(
        handle, sae, concepts, LinkTargets(refusal_ids=ids), SETTINGS, slug="x",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    (refusal,) = [one for one in study.links if one.kind is LinkKind.REFUSAL]
    assert refusal.cause is not None
    # the trigger keeps the model from refusing: without its feature the refusal metric rises
    assert refusal.is_linked
    assert refusal.cause.value.high < 0
    assert any(one.is_direct and one.kind in (LinkKind.HEAD, LinkKind.NEURON) for one in study.links)
    assert study.n_linked_shuffled == 0
