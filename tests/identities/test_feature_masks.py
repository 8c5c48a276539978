"""Masks over SAE features: what a removed feature wrote is gone, computed one token and one feature at a time."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from safe_sail.circuits.baselines import ZERO
from safe_sail.circuits.masks import circuit_edits, circuit_space, masked_edits, unit_space
from safe_sail.circuits.reference import collect_baseline, masked_model
from safe_sail.errors import CircuitMismatch, EditRefused, SaeMetadataUnsupported
from safe_sail.model.handle import HookedModel
from safe_sail.records import Circuit, CircuitMember, FeatureId, HeadRef
from safe_sail.sae.handle import SAEHandle
from safe_sail.sites import Site
from tests.link_samples import WIDTH, random_sae
from tests.tiny import TEXTS, TinyModels

# float32 sums of some dozen products of size one
CLOSE = {"atol": 2e-5, "rtol": 2e-5}
REMOVED = (2, 4, 6)
SITE = Site.parse("resid_pre.1")


def feature_circuit(handle: HookedModel, sae: SAEHandle) -> Circuit:
    members = [HeadRef(1, 2), *(FeatureId(sae=sae.ref.slug, index=index) for index in REMOVED)]
    space = unit_space(handle, ("heads",), [sae])
    return Circuit(
        slug="features", model_id=handle.model_id, behaviour="refusal", method="planted", ablation="zero",
        members=tuple(CircuitMember(unit=unit, probability=1.0) for unit in members),
        n_heads=space.n_of("heads"), n_neurons=0, n_features=WIDTH,
    )  # fmt: skip


def by_hand(x: Tensor, sae: SAEHandle, replaced: tuple[int, ...], mean: Tensor | None) -> Tensor:
    """x [d_model] of one token without what the features write, or with their means in its place."""
    active = sae.encode(x[None])[0]
    for feature in replaced:
        put = torch.zeros(()) if mean is None else mean[feature]
        x = x + (put - active[feature]) * sae.decoder[feature]
    return x


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_a_removed_feature_takes_what_it_writes_along(kind: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    sae = random_sae(handle, SITE)
    circuit, batch = feature_circuit(handle, sae), handle.batch(TEXTS)
    space = circuit_space(handle, circuit, [sae])
    assert (space.n_of("features"), space.n_of("neurons")) == (WIDTH, 0)
    baseline = collect_baseline(handle, space, [batch], kind)  # type: ignore[arg-type]
    site = SITE
    features_alone = masked_edits(space, _without(space.n_units, space.n_of("heads")), baseline)
    plain, masked = handle.capture(batch, [site]), handle.capture(batch, [site], features_alone)
    mean = None
    if kind == "mean":
        seen = [sae.encode(handle.capture(handle.batch([text]), [site])[site][0]) for text in TEXTS]
        mean = torch.cat(seen).double().mean(0).float()
    changed = False
    for row, column in batch.is_real.nonzero().tolist():
        expected = by_hand(plain[site][row, column], sae, REMOVED, mean)
        torch.testing.assert_close(masked[site][row, column], expected, **CLOSE)
        changed = changed or bool((expected - plain[site][row, column]).abs().max() > 1e-3)
    assert changed
    both = circuit_edits(handle, circuit, "removed", baseline, [sae])
    assert set(map(str, both)) == {"head_out.1", "resid_pre.1"}


def _without(n_units: int, first: int) -> Tensor:
    keep = torch.ones(n_units)
    keep[[first + index for index in REMOVED]] = 0
    return keep


def test_the_null_mask_of_features_is_the_model_bit_for_bit_and_has_a_gradient(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    sae, batch = random_sae(handle, SITE), handle.batch(TEXTS)
    space = unit_space(handle, (), [sae])
    keep = torch.ones(space.n_units, requires_grad=True)
    with handle.editing(masked_edits(space, keep)):
        logits = handle.logits(batch)
        logits.square().mean().backward()
    assert torch.equal(logits, handle.logits(batch))
    assert masked_edits(space, torch.ones(space.n_units)) == {}
    seen = sae.encode(handle.capture(batch, [SITE])[SITE][batch.is_real])
    assert keep.grad is not None
    # a feature that is never active has nothing to take away
    assert torch.equal(keep.grad != 0, (seen > 0).any(0))


def test_what_no_feature_mask_can_say_is_refused(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    sae = random_sae(handle, SITE)
    circuit = feature_circuit(handle, sae)
    with pytest.raises(CircuitMismatch, match="give the SAEs"):
        circuit_space(handle, circuit)
    with pytest.raises(CircuitMismatch, match=rf"among {WIDTH + 1} features"):
        circuit_space(handle, replace(circuit, n_features=WIDTH + 1), [sae])
    with pytest.raises(EditRefused, match="SAE"):
        masked_model(handle, circuit, "removed", ZERO)
    elsewhere = random_sae(handle, SITE)
    transcoder = SAEHandle(elsewhere.ref, elsewhere._weights, elsewhere.form, out_site=Site.parse("mlp_out.1"))
    with pytest.raises(SaeMetadataUnsupported, match="writes elsewhere"):
        unit_space(handle, (), [transcoder])
