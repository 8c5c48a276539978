"""Later units that read a feature, against plain loops: pass by pass, text by text, and by the modules' own weights."""

import pytest
import torch

from safe_sail.links.connect import LinkConcept, LinkTargets, link_features
from safe_sail.links.units import UnitSet
from safe_sail.model.handle import HookedModel
from safe_sail.records import FeatureLink, HeadRef, LinkFlow, LinkKind, LinkStudy, NeuronRef, UnitRef, parse_unit
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import LinkSettings
from safe_sail.sites import Site
from tests.deep import deep, texts
from tests.link_samples import random_sae
from tests.tiny import TinyModels

FEATURES = (5, 2)
SETTINGS = LinkSettings(n_heads=2, n_neurons=3, n_control_units=4, n_random=3, batch_rows=5, pack_rows=12)
SET: tuple[UnitRef, ...] = (HeadRef(1, 2), HeadRef(4, 1), HeadRef(3, 0), NeuronRef(3, 7), NeuronRef(4, 11))
CHOOSE, JUDGE = (list(zip(texts(n, seed), texts(n, seed + 1), strict=True)) for n, seed in ((5, 11), (6, 31)))


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return deep()


@pytest.fixture(scope="module")
def sae(model: HookedModel) -> SAEHandle:
    return random_sae(model, Site.parse("resid_post.2"), bias=0.5)


@pytest.fixture(scope="module")
def study(model: HookedModel, sae: SAEHandle) -> LinkStudy:
    return link_features(
        model, sae, [LinkConcept("c", FEATURES, CHOOSE, JUDGE)],
        LinkTargets((UnitSet("some", LinkKind.CIRCUIT, SET),)), SETTINGS, slug="x", as_chat=False,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip


def later(study: LinkStudy, feature: int, kind: LinkKind) -> list[FeatureLink]:
    return [
        one for one in study.links
        if (one.feature.index, one.kind, one.flow) == (feature, kind, LinkFlow.OUT_OF_FEATURE)
    ]  # fmt: skip


def peak(model: HookedModel, sae: SAEHandle, text: str, feature: int) -> int:
    x = model.capture(model.batch([text]), [sae.site])[sae.site][0]
    return int((x @ sae.encoder_row(feature))[1:].argmax()) + 1


def taken(model: HookedModel, sae: SAEHandle, text: str, feature: int, site: Site) -> torch.Tensor:
    """What one pass without the feature takes from a site at every token."""
    batch = model.batch([text])

    def without(x: torch.Tensor) -> torch.Tensor:
        return x - sae.encode(x)[..., feature, None] * sae.decoder_row(feature)

    plain, ablated = (model.capture(batch, [site], edits)[site][0] for edits in ({}, {sae.site: without}))
    return plain - ablated


def says(model: HookedModel, unit: UnitRef) -> torch.Tensor:
    """Mean difference of the unit's output at the last token, over choosing pairs."""

    def last(text: str) -> torch.Tensor:
        return model.capture(model.batch([text]), [unit.site])[unit.site][0, -1, unit.index]

    return torch.stack([last(first) - last(second) for first, second in CHOOSE]).mean(0)


def over_pairs(value) -> float:
    return sum(value(first) - value(second) for first, second in JUDGE) / len(JUDGE)


def test_neurons_change_as_in_passes_without_the_feature(study: LinkStudy, model: HookedModel, sae: SAEHandle) -> None:
    for feature in FEATURES:
        found = later(study, feature, LinkKind.NEURON)
        assert len(found) == 3
        for link in found:
            unit = parse_unit(link.target)
            assert unit.layer in (3, 4)
            expected = over_pairs(
                lambda text, unit=unit, feature=feature: float(
                    taken(model, sae, text, feature, unit.site)[peak(model, sae, text, feature), unit.index]
                )
            )
            assert link.cause is not None
            assert link.cause.value.value == pytest.approx(expected, abs=2e-5)
            assert (link.cause.value.n, link.cause.control.n) == (6, 4)


def test_heads_and_sets_change_along_what_they_say_of_the_concept(
    study: LinkStudy, model: HookedModel, sae: SAEHandle
) -> None:
    for feature in FEATURES:
        heads = [(link, (parse_unit(link.target),)) for link in later(study, feature, LinkKind.HEAD)]
        ((circuit,),) = [later(study, feature, LinkKind.CIRCUIT)]
        assert len(heads) == 2
        for link, units in [*heads, (circuit, SET[1:])]:  # the first stands before the feature
            directions = [says(model, unit) for unit in units]
            length = sum(float(one.square().sum()) for one in directions) ** 0.5
            expected = over_pairs(
                lambda text, units=units, directions=directions, feature=feature: sum(
                    float((taken(model, sae, text, feature, unit.site)[-1, unit.index] * direction).sum())
                    for unit, direction in zip(units, directions, strict=True)
                )
            )
            assert link.weights is None
            assert link.cause is not None
            assert link.cause.value.value == pytest.approx(expected / length, abs=2e-5)
        assert circuit.cause is not None
        assert circuit.cause.control.n == 3


def test_weights_of_a_neuron_are_what_its_own_matrices_lose_with_the_norm_held(
    study: LinkStudy, model: HookedModel, sae: SAEHandle
) -> None:
    sizes = []
    for link in later(study, FEATURES[0], LinkKind.NEURON):
        unit = parse_unit(link.target)
        block, stream = model.blocks[unit.layer], Site.parse(f"resid_mid.{unit.layer}")

        def lost(text: str, block: torch.nn.Module = block, stream: Site = stream, unit: UnitRef = unit) -> float:
            place = peak(model, sae, text, FEATURES[0])
            captured = model.capture(model.batch([text]), [sae.site, stream])
            x = captured[stream][0, place]
            write = sae.encode(captured[sae.site][0, place])[FEATURES[0]] * sae.decoder_row(FEATURES[0])
            norm = block.get_submodule("post_attention_layernorm")
            scale = norm.get_parameter("weight") / (x.square().mean() + norm.variance_epsilon).sqrt()
            gate, up = (
                block.get_submodule(f"mlp.{name}_proj").get_parameter("weight")[unit.index] for name in ("gate", "up")
            )
            before, after = (
                torch.nn.functional.silu(gate @ read) * (up @ read) for read in (scale * x, scale * (x - write))
            )
            return float(before - after)

        assert link.weights is not None
        assert link.weights.value.value == pytest.approx(over_pairs(lost), abs=1e-5)
        sizes.append(abs(link.weights.value.value))
    assert max(sizes) > 1e-3


def test_those_that_change_most_on_choosing_pairs_are_tested(
    study: LinkStudy, model: HookedModel, sae: SAEHandle
) -> None:
    sizes = {}
    for layer in (3, 4):
        site = Site.parse(f"mlp_act.{layer}")
        found = [
            [taken(model, sae, text, FEATURES[1], site)[peak(model, sae, text, FEATURES[1])] for text in pair]
            for pair in CHOOSE
        ]
        change = torch.stack([first - second for first, second in found]).mean(0).abs()
        sizes |= {f"L{layer}.N{index}": float(one) for index, one in enumerate(change)}
    best = sorted(sizes, key=lambda name: -sizes[name])[:3]
    assert sorted(link.target for link in later(study, FEATURES[1], LinkKind.NEURON)) == sorted(best)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "phi3", "mixtral"])
def test_a_norm_that_centres_and_a_mixture_give_no_weights(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    sae = random_sae(handle, Site.parse("resid_post.0"), bias=0.5)
    settings = LinkSettings(n_heads=1, n_neurons=1, n_control_units=2, n_random=2)
    few = [LinkConcept("c", (1,), CHOOSE[:2], JUDGE[:3])]
    study = link_features(
        handle, sae, few, LinkTargets(), settings, slug="x", as_chat=False, generator=torch.Generator().manual_seed(0)
    )  # fmt: skip
    found = later(study, 1, LinkKind.NEURON)
    if family == "mixtral":
        assert found == []
    else:
        (neuron,) = found
        assert (neuron.weights is None) == (family == "gpt2")
    assert len(later(study, 1, LinkKind.HEAD)) == 1
