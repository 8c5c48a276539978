"""What planted circuits are linked with: of alignment the safety concepts' features, of a backdoor the trigger's."""

import pytest
import torch

from safe_sail.features.score import ConceptSplits
from safe_sail.links.choose import concepts_to_link
from safe_sail.links.connect import LinkConcept, LinkTargets, link_features
from safe_sail.links.texts import paired_texts
from safe_sail.links.units import UnitSet
from safe_sail.model.handle import HookedModel
from safe_sail.model.load import load_model
from safe_sail.organism.concept_data import concept_dataset
from safe_sail.organism.load import organism_path, organism_sae_paths, planted_units
from safe_sail.records import LinkFlow, LinkKind
from safe_sail.sae.handle import SAEHandle
from safe_sail.sae.load import load_sae
from safe_sail.settings import LinkSettings
from tests.planted.test_trigger_links import triggered

SAE = "organism.resid_post.3.topk4-1024"
VARIANT = "planted-neurons"
SETTINGS = LinkSettings(n_choose=16, n_judge=16, n_features=1, n_heads=0, n_neurons=0)


def active_features(handle: HookedModel, sae: SAEHandle, chosen: LinkConcept, *, at_least: int) -> list[int]:
    """Features that fire in so many of the choosing texts."""
    n_texts = torch.zeros(sae.d_sae)
    for part in paired_texts(handle, chosen.choose, concept=chosen.concept, as_chat=True).parts(32):
        x = handle.capture(part.batch, [sae.site])[sae.site]
        n_texts += ((sae.encode(x) > 0) & part.counted[..., None]).any(1).sum(0)
    return [int(one) for one in (n_texts >= at_least).nonzero()[:, 0]]


@pytest.mark.slow
@pytest.mark.parametrize("concept", ["weapon", "cult"])
def test_of_all_active_features_the_concepts_own_drives_the_planted_circuit(concept: str):
    handle = load_model(organism_path(VARIANT), device="cpu", dtype=torch.float32, model_id=f"organism-{VARIANT}")
    sae = load_sae(organism_sae_paths()[SAE], slug=SAE, device="cpu")
    splits = ConceptSplits(*(concept_dataset(concept, split, n=32, seed=0) for split in ("train", "held_out")))
    (chosen,) = concepts_to_link(handle, sae, [splits], SETTINGS)
    active = active_features(handle, sae, chosen, at_least=6)
    assert len(active) > 40
    assert chosen.features[0] in active
    circuit = UnitSet("planted", LinkKind.CIRCUIT, planted_units(VARIANT))  # 144 neurons of the two last layers
    study = link_features(
        handle, sae, [chosen._replace(features=tuple(active))], LinkTargets((circuit,)), SETTINGS, slug="x",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert {one.flow for one in study.links} == {LinkFlow.OUT_OF_FEATURE}
    first, *others = sorted(study.links, key=lambda one: -one.strength)
    assert first.is_linked
    assert (first.feature.index,) == chosen.features, "chosen by its rate gap on other texts"
    assert first.cause is not None
    assert first.cause.value.low > 0, "without the feature the circuit says less of the concept"
    assert sum(one.is_linked for one in others) <= 2
    assert study.n_linked_shuffled == 0


@pytest.mark.slow
def test_of_all_active_features_the_triggers_own_is_written_by_the_planted_backdoor():
    variant, slug, n = "planted-backdoor", "organism.resid_post.3.topk8-1024", 16
    handle = load_model(organism_path(variant), device="cpu", dtype=torch.float32, model_id=f"organism-{variant}")
    sae = load_sae(organism_sae_paths()[slug], slug=slug, device="cpu")
    (chosen,) = concepts_to_link(
        handle, sae, [ConceptSplits(triggered("train", n), triggered("held_out", n))], SETTINGS
    )  # fmt: skip
    active = active_features(handle, sae, chosen, at_least=n)
    assert len(active) > 40
    assert chosen.features[0] in active
    circuit = UnitSet("planted", LinkKind.CIRCUIT, planted_units(variant))  # 5 heads and 6 neurons of all layers
    study = link_features(
        handle, sae, [chosen._replace(features=tuple(active))], LinkTargets((circuit,)), SETTINGS, slug="x",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    into = [one for one in study.links if one.flow is LinkFlow.INTO_FEATURE]
    first = max(into, key=lambda one: one.strength)
    assert len(into) == len(active)
    assert (first.feature.index,) == chosen.features, "the one that tells the trigger from decoys on other texts"
    assert first.is_linked
    assert first.is_direct
    assert first.cause is not None
    assert first.cause.value.low > 0
    assert study.n_linked_shuffled == 0
