"""A whole study against plain loops and scipy: values, intervals, controls, corrected significance, shuffled texts."""

import pytest
import torch
from scipy import stats

from safe_sail.errors import BadInput, BadSettings, EmptyConcept, SaeWidthMismatch
from safe_sail.evaluation.utility import refusal_metric
from safe_sail.links.connect import LinkConcept, LinkTargets, link_features
from safe_sail.links.statistics import other_units, pair_effects
from safe_sail.links.units import UnitSet
from safe_sail.model.edits import Edit, zero_heads, zero_neurons
from safe_sail.model.handle import HookedModel
from safe_sail.records import Direction, FeatureLink, HeadRef, LinkKind, LinkStudy, NeuronRef, UnitRef, parse_unit
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import LinkSettings
from safe_sail.sites import Site
from tests.deep import deep, texts
from tests.link_samples import noise, random_sae

FEATURES = (5, 2)
SETTINGS = LinkSettings(
    n_heads=2, n_neurons=3, n_control_units=4, n_random=3, ablation="zero", batch_rows=5, pack_rows=12
)
SET: tuple[UnitRef, ...] = (HeadRef(1, 2), HeadRef(2, 0), NeuronRef(0, 7), NeuronRef(2, 11))
REFUSAL = (9, 30, 41)
NOTHING = LinkTargets()
LAST = Site.parse("resid_pre.4")


def pairs(n: int, seed: int) -> list[tuple[str, str]]:
    return list(zip(texts(n, seed), texts(n, seed + 1), strict=True))


JUDGE = pairs(6, 31)


def direction(site: Site, position: int = -1) -> Direction:
    return Direction(
        slug=f"d.{site}", model_id="deep", site=site, position=position, estimator="raw",
        vectors=(tuple(noise(32, seed=4).double().tolist()),),
    )  # fmt: skip


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return deep()


@pytest.fixture(scope="module")
def sae(model: HookedModel) -> SAEHandle:
    return random_sae(model, Site.parse("resid_post.2"), bias=0.5)


@pytest.fixture(scope="module")
def study(model: HookedModel, sae: SAEHandle) -> LinkStudy:
    concept = LinkConcept("c", FEATURES, pairs(5, 11), JUDGE)
    directions = (direction(LAST, -2), direction(Site.parse("resid_pre.1")))
    targets = LinkTargets((UnitSet("some", LinkKind.CIRCUIT, (*SET, HeadRef(4, 1))),), directions, REFUSAL)
    return link_features(
        model, sae, [concept], targets, SETTINGS, slug="deep.links", as_chat=False,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip


def edits_of(units: tuple[UnitRef, ...]) -> dict[Site, Edit]:
    sites = {unit.site for unit in units}
    indices = {site: [unit.index for unit in units if unit.site == site] for site in sites}
    return {
        site: zero_heads(found) if str(site).startswith("head") else zero_neurons(found)
        for site, found in indices.items()
    }


def read(model: HookedModel, sae: SAEHandle, text: str, feature: int, edits: dict[Site, Edit]) -> float:
    """Activation at the plain pass's peak token, by a pass of its own."""
    batch = model.batch([text])
    plain, edited = (model.capture(batch, [sae.site], given)[sae.site][0] for given in ({}, edits))
    place = int((plain @ sae.encoder_row(feature))[1:].argmax()) + 1
    return float(sae.encode(edited)[place, feature])


def cause(model: HookedModel, sae: SAEHandle, feature: int, units: tuple[UnitRef, ...]) -> list[float]:
    edits = edits_of(units)
    taken = [
        [read(model, sae, text, feature, {}) - read(model, sae, text, feature, edits) for text in pair]
        for pair in JUDGE
    ]
    return [first - second for first, second in taken]


def link(study: LinkStudy, feature: int, kind: LinkKind, target: str | None = None) -> FeatureLink:
    return next(
        one for one in study.links
        if one.feature.index == feature and one.kind is kind and target in (None, one.target)
    )  # fmt: skip


def test_every_pair_of_feature_and_target_is_tested_once(study: LinkStudy) -> None:
    counted = [(one.feature.index, one.kind, one.target, one.flow) for one in study.links]
    assert len(set(counted)) == len(counted) == study.n_tested == 2 * (2 + 3 + 1 + 2 + 1 + 2 + 3 + 1)
    assert {one.kind for one in study.links} == set(LinkKind) - {LinkKind.NEURON_SET}
    assert study.n_linked == sum(one.is_linked for one in study.links)
    assert study.n_pairs == {"c": 6}
    assert "4 of 5 units stand before" in " ".join(study.notes)


@pytest.mark.parametrize("kind", [LinkKind.HEAD, LinkKind.NEURON, LinkKind.CIRCUIT])
def test_causes_are_those_of_the_plain_loop(
    kind: LinkKind, study: LinkStudy, model: HookedModel, sae: SAEHandle
) -> None:
    for feature in FEATURES:
        found = link(study, feature, kind)
        units = SET if kind is LinkKind.CIRCUIT else (parse_unit(found.target),)
        differences = cause(model, sae, feature, units)
        assert found.cause is not None
        tested = stats.ttest_1samp(differences, 0)
        low, high = tested.confidence_interval()
        # activations of size one in float32
        assert found.cause.value.value == pytest.approx(sum(differences) / 6, abs=2e-5)
        assert (found.cause.value.low, found.cause.value.high) == pytest.approx((low, high), abs=1e-4)
        assert found.cause.value.n == 6
        assert found.cause.control.n == (3 if kind is LinkKind.CIRCUIT else 2 if kind is LinkKind.HEAD else 4) or (
            kind is LinkKind.HEAD and 2 <= found.cause.control.n <= 4
        )


def test_weights_of_a_head_are_its_write_along_the_encoder_row(
    study: LinkStudy, model: HookedModel, sae: SAEHandle
) -> None:
    found = link(study, FEATURES[0], LinkKind.HEAD)
    head, row = parse_unit(found.target), sae.encoder_row(FEATURES[0])
    W = model.blocks[head.layer].get_submodule("self_attn.o_proj").get_parameter("weight")[:, 8 * head.index :][:, :8]

    def share(text: str) -> float:
        batch = model.batch([text])
        captured = model.capture(batch, [head.site, sae.site])
        place = int((captured[sae.site][0] @ row)[1:].argmax()) + 1
        return float(row @ (W @ captured[head.site][0, place, head.index]))

    assert found.weights is not None
    expected = sum(share(first) - share(second) for first, second in JUDGE) / 6
    assert found.weights.value.value == pytest.approx(expected, abs=1e-5)
    assert abs(expected) > 1e-3


def test_a_direction_and_refusal_change_as_when_the_feature_alone_is_taken_out(
    study: LinkStudy, model: HookedModel, sae: SAEHandle
) -> None:
    hat = noise(32, seed=4) / noise(32, seed=4).norm()
    for feature in FEATURES:

        def without(x: torch.Tensor, feature: int = feature) -> torch.Tensor:
            return x - sae.encode(x)[..., feature, None] * sae.decoder_row(feature)

        def values(text: str, edits: dict[Site, Edit]) -> tuple[float, float]:
            run = model.run(model.batch([text]), [LAST], edits)
            assert run.logits is not None
            return float(run.captures[LAST][0, -2] @ hat), float(refusal_metric(run.logits[:, -1], REFUSAL))

        changes = [
            [tuple(a - b for a, b in zip(values(text, {}), values(text, {sae.site: without}), strict=True))
             for text in pair]
            for pair in JUDGE
        ]  # fmt: skip
        for place, (kind, target) in enumerate(((LinkKind.DIRECTION, f"d.{LAST}"), (LinkKind.REFUSAL, "refusal"))):
            found = link(study, feature, kind, target)
            expected = sum(first[place] - second[place] for first, second in changes) / 6
            assert found.cause is not None
            assert found.cause.value.value == pytest.approx(expected, abs=5e-5)
        along = link(study, feature, LinkKind.DIRECTION, f"d.{LAST}")
        peaks = [[read(model, sae, text, feature, {}) for text in pair] for pair in JUDGE]
        written = float(sae.decoder_row(feature) @ hat)
        assert along.weights is not None
        assert along.weights.value.value == pytest.approx(written * sum(a - b for a, b in peaks) / 6, abs=1e-5)
        assert along.cosine == pytest.approx(written / float(sae.decoder_row(feature).norm()), abs=1e-6)


def test_a_direction_before_the_feature_has_no_cause(study: LinkStudy) -> None:
    early = link(study, FEATURES[0], LinkKind.DIRECTION, "d.resid_pre.1")
    assert early.cause is None
    assert early.weights is not None
    assert link(study, FEATURES[0], LinkKind.REFUSAL).weights is None


def test_significance_is_corrected_over_all_tests_of_a_measure(
    study: LinkStudy, model: HookedModel, sae: SAEHandle
) -> None:
    for name in ("weights", "cause"):
        measures = [getattr(one, name) for one in study.links if getattr(one, name) is not None]
        t = [m.value.value / ((m.value.high - m.value.low) / 2 / stats.t.ppf(0.975, m.value.n - 1)) for m in measures]
        p = 2 * stats.t.sf([abs(x) for x in t], 5)
        assert [m.q_value for m in measures] == pytest.approx(stats.false_discovery_control(p).tolist(), rel=1e-6)


def test_statistics_of_pairs_and_controls_are_scipys() -> None:
    x = noise(9, 4, seed=1).double()
    found, tested = pair_effects(x), stats.ttest_1samp(x.numpy(), 0)
    assert found.p_value.tolist() == pytest.approx(tested.pvalue.tolist(), rel=1e-9)
    assert (found.mean - found.half_width).tolist() == pytest.approx(tested.confidence_interval().low.tolist())
    constant = pair_effects(torch.tensor([[0.0, 2.0]] * 3))
    assert constant.p_value.tolist() == [1, 0]
    sizes = other_units(-x[:, 0])
    assert sizes.mean.value == pytest.approx(float(x[:, 0].abs().mean()))
    assert sizes.high == float(x[:, 0].abs().max())
    with pytest.raises(BadInput, match="at least 2 pairs"):
        pair_effects(x[:1])
    with pytest.raises(BadInput, match="at least 2 random units"):
        other_units(x[:1, 0])


def test_what_cannot_be_linked_is_refused(model: HookedModel, sae: SAEHandle) -> None:
    def run(concept: LinkConcept, targets: LinkTargets = NOTHING, settings: LinkSettings = SETTINGS) -> None:
        link_features(model, sae, [concept], targets, settings, slug="x", generator=torch.Generator(), as_chat=False)

    with pytest.raises(BadInput, match="1 features and 1 shared texts"):
        run(LinkConcept("c", (1,), JUDGE, [("new", JUDGE[0][0])]))
    with pytest.raises(EmptyConcept, match="at least 2 pairs"):
        run(LinkConcept("c", (1,), JUDGE, pairs(1, 99)))
    wrong = Direction(slug="w", model_id="deep", site=LAST, position=-1, estimator="raw", vectors=((1.0, 0.0),))
    concept = LinkConcept("c", (1,), pairs(3, 11), pairs(3, 51))
    with pytest.raises(SaeWidthMismatch, match="writes 32 coordinates, direction w has 2"):
        run(concept, LinkTargets(directions=(wrong,)))
    with pytest.raises(BadSettings, match="leaves 0 `head_out` units as controls"):
        run(concept, settings=LinkSettings(n_heads=12, n_neurons=1, n_control_units=2))
    with pytest.raises(BadSettings, match="mean or zero"):
        LinkSettings(ablation="resample")
