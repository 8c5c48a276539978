"""Reconstruction facts against a naive loop over texts and tokens, in which every formula is written out."""

import math

import pytest
import torch

from safe_sail.errors import BadText, SaeMetadataUnsupported
from safe_sail.model.edits import replace, zero
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import special_ids
from safe_sail.records import SaeRef
from safe_sail.sae.facts import measure_facts
from safe_sail.sae.form import SaeForm, SaeWeights
from safe_sail.sae.handle import SAEHandle
from safe_sail.sites import Site
from tests.tiny import TinyModels

TEXTS = ["the cat sat on the mat", "a dog", "one two three four five six seven"]
SITE = Site.parse("resid_post.0")


def random_sae(d_in: int, d_sae: int = 24, *, decoder: bool = True) -> SAEHandle:
    generator = torch.Generator().manual_seed(5)
    ref = SaeRef(
        slug="random",
        release=None,
        sae_id="x",
        model_id=None,
        site=SITE,
        d_in=d_in,
        width=d_sae,
        architecture="standard",
    )
    weights = SaeWeights(
        W_enc=torch.randn(d_in, d_sae, generator=generator),
        b_enc=-0.5 * torch.ones(d_sae),
        W_dec=torch.randn(d_sae, d_in, generator=generator) if decoder else None,
        b_dec=torch.randn(d_in, generator=generator),
    )
    return SAEHandle(ref, weights, SaeForm(activation="relu"))


@pytest.fixture(scope="module")
def model(tiny_models: TinyModels) -> HookedModel:
    return tiny_models.handle("llama")


def naive_facts(model: HookedModel, sae: SAEHandle) -> dict[str, float]:
    special = special_ids(model.tokenizer)
    values, rebuilt, losses = [], [], {"plain": [], "spliced": [], "zero": []}
    active, fired = 0, set()
    for text in TEXTS:
        batch = model.batch([text])
        ids = batch.token_ids[0].tolist()
        x = model.capture(batch, [SITE])[SITE]
        runs = {
            "plain": model.logits(batch),
            "spliced": model.logits(batch, {SITE: replace(sae.reconstruct(x))}),
            "zero": model.logits(batch, {SITE: zero}),
        }
        for position, token in enumerate(ids):
            if token in special:
                continue
            values.append(x[0, position].double())
            rebuilt.append(sae.reconstruct(x[0, position]).double())
            on = (sae.encode(x[0, position]) > 0).nonzero().flatten().tolist()
            active += len(on)
            fired |= set(on)
            if position > 0:
                for name, logits in runs.items():
                    losses[name].append(-logits[0, position - 1].log_softmax(-1)[token].item())
    mean = torch.stack(values).mean(dim=0)
    residual = sum(float((v - r).square().sum()) for v, r in zip(values, rebuilt, strict=True))
    variance = sum(float((v - mean).square().sum()) for v in values)
    plain, spliced, ablated = (sum(losses[name]) / len(losses[name]) for name in ("plain", "spliced", "zero"))
    return {
        "l0": active / len(values),
        "explained_variance": 1 - residual / variance,
        "ce_recovered": (ablated - spliced) / (ablated - plain),
        "dead_share": 1 - len(fired) / sae.d_sae,
        "n_tokens": len(values),
    }


def test_facts_equal_a_naive_loop_whatever_the_batching(model: HookedModel):
    sae = random_sae(model.dims.d_model)
    expected = naive_facts(model, sae)
    for batches in ([TEXTS], [TEXTS[:1], TEXTS[1:]]):
        (facts,) = measure_facts(model, [sae], (model.batch(texts) for texts in batches))
        for name, value in expected.items():
            # float32 forward passes of another batch shape: 1e-4 is a thousand eps of sums of hundreds of terms
            assert math.isclose(getattr(facts, name), value, rel_tol=1e-4, abs_tol=1e-6), name


def test_a_perfect_sae_recovers_everything(model: HookedModel):
    # Features are the 2 * d_model signed coordinates, so relu(x) and relu(-x) rebuild x exactly.
    d = model.dims.d_model
    eye = torch.eye(d)
    ref = SaeRef(
        slug="perfect", release=None, sae_id="x", model_id=None, site=SITE, d_in=d, width=2 * d, architecture="standard"
    )
    both = torch.cat([eye, -eye])
    weights = SaeWeights(W_enc=both.T.contiguous(), b_enc=torch.zeros(2 * d), W_dec=both, b_dec=torch.zeros(d))
    (facts,) = measure_facts(model, [SAEHandle(ref, weights, SaeForm(activation="relu"))], [model.batch(TEXTS)])
    assert facts.explained_variance == pytest.approx(1, abs=1e-6)
    assert facts.ce_recovered == pytest.approx(1, abs=1e-6)
    assert facts.l0 == pytest.approx(d)  # a coordinate is positive or negative, never both


def test_facts_refuse_what_cannot_be_measured(model: HookedModel):
    with pytest.raises(SaeMetadataUnsupported, match="no decoder"):
        measure_facts(model, [random_sae(model.dims.d_model, decoder=False)], [model.batch(TEXTS)])
    with pytest.raises(BadText, match="no content token"):
        measure_facts(model, [random_sae(model.dims.d_model)], [])
