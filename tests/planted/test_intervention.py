"""Changing a feature whose effect is known by construction, and the change itself by algebra."""

import pytest
import torch

from safe_sail.errors import BadInput, BadSettings
from safe_sail.evaluation.utility import refusal_metric
from safe_sail.features.intervene import feature_edit, intervene
from safe_sail.model.handle import HookedModel
from safe_sail.records import InterventionScore, SaeRef
from safe_sail.sae.form import SaeForm, SaeWeights
from safe_sail.sae.handle import SAEHandle
from safe_sail.settings import InterventionSettings
from safe_sail.sites import Site
from tests.tiny import TinyModels

PLANTED, SILENT, N_FEATURES = 5, 7, 40
PROMPTS = {"harmful": ["the cat sat", "a dog and the hat", "sun"], "harmless": ["the sea", "an owl on the gate", "mat"]}
SETTINGS = InterventionSettings(n_prompts=3, n_controls=10, n_bootstrap=50, batch_size=2)


@pytest.fixture(scope="module")
def model(tiny_models: TinyModels) -> HookedModel:
    return tiny_models.handle("llama")


@pytest.fixture(scope="module")
def refusal_id(model: HookedModel) -> int:
    found: int = model.tokenizer("q", add_special_tokens=False)["input_ids"][0]
    return found


@pytest.fixture(scope="module")
def sae(model: HookedModel, refusal_id: int) -> SAEHandle:
    """At the last residual stream: one feature writes along the refusal token's unembedding, one never fires."""
    generator = torch.Generator().manual_seed(0)
    d_model = model.dims.d_model
    W_enc = torch.randn(d_model, N_FEATURES, generator=generator) / d_model**0.5
    W_dec = torch.randn(N_FEATURES, d_model, generator=generator)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    row = model.model.get_output_embeddings().weight[refusal_id].detach().float()
    W_dec[PLANTED] = row / row.norm()
    bias = torch.full((N_FEATURES,), 1.0)
    bias[SILENT] = -1e4
    site = Site.parse(f"resid_post.{model.dims.n_layers - 1}")
    ref = SaeRef(
        slug="planted", release=None, sae_id="x", model_id=None, site=site, d_in=d_model, width=N_FEATURES,
        architecture="standard",
    )  # fmt: skip
    weights = SaeWeights(W_enc=W_enc, b_enc=bias, W_dec=W_dec, b_dec=torch.zeros(d_model))
    return SAEHandle(ref, weights, SaeForm(activation="relu"))


@pytest.fixture(scope="module")
def scores(model: HookedModel, sae: SAEHandle, refusal_id: int) -> dict[tuple[int, str, str], InterventionScore]:
    found = intervene(
        model, sae, {PLANTED: 4.0, SILENT: 0.0}, PROMPTS, refusal_ids=[refusal_id], settings=SETTINGS,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    return {(one.feature.index, str(one.intervention), one.prompts): one for one in found}


def test_every_feature_intervention_and_set_has_one_score(scores: dict[tuple[int, str, str], InterventionScore]):
    sets = ("harmful", "harmless")
    expected = {(PLANTED, kind, name) for kind in ("ablate", "boost") for name in sets}
    assert set(scores) == expected | {(SILENT, "ablate", name) for name in sets}
    assert {(one.refusal_change.n, one.refusal_control.n) for one in scores.values()} == {(3, 10)}


def test_the_planted_feature_moves_refusal_more_than_any_control(scores: dict[tuple[int, str, str], InterventionScore]):
    for name in PROMPTS:
        boosted, ablated = scores[PLANTED, "boost", name], scores[PLANTED, "ablate", name]
        assert boosted.refusal_change.value > boosted.refusal_control.high > 0
        assert ablated.refusal_change.value < ablated.refusal_control.low
        assert boosted.kl.value > boosted.kl_control.value > 0
        assert (boosted.strength, ablated.strength, boosted.active_share) == (4.0, 0.0, 1.0)


def test_a_feature_that_never_fires_changes_nothing(scores: dict[tuple[int, str, str], InterventionScore]):
    for name in PROMPTS:
        silent = scores[SILENT, "ablate", name]
        assert (silent.refusal_change.value, silent.kl.value, silent.active_share) == (0.0, 0.0, 0.0)


def test_scores_equal_a_loop_over_single_prompts(
    model: HookedModel, sae: SAEHandle, refusal_id: int, scores: dict[tuple[int, str, str], InterventionScore]
):
    """One prompt at a time, and the stream rebuilt from all other features and what the SAE does not explain."""
    changes = []
    for text in PROMPTS["harmful"]:
        batch = model.chat_batch([text])
        stream = model.capture(batch, [sae.site])[sae.site]
        acts = sae.encode(stream)
        others = acts.clone()
        others[..., PLANTED] = 0
        rebuilt = sae.decode(others) + (stream - sae.decode(acts))
        rebuilt[:, 0] = stream[:, 0]
        changed = model.logits(batch, {sae.site: lambda x, new=rebuilt: new}, positions="last")[:, -1]
        plain = model.logits(batch, positions="last")[:, -1]
        changes.append(float(refusal_metric(changed, [refusal_id]) - refusal_metric(plain, [refusal_id])))
    # float32 logits of two blocks, padded beside another prompt there and alone here
    expected = sum(changes) / len(changes)
    assert scores[PLANTED, "ablate", "harmful"].refusal_change.value == pytest.approx(expected, abs=1e-4)


def test_a_boost_adds_its_length_along_the_row_and_leaves_first_token_and_padding(model: HookedModel, sae: SAEHandle):
    batch = model.chat_batch(sorted(PROMPTS["harmful"], key=len)[:2])
    plain = model.capture(batch, [sae.site])[sae.site]
    boosted = model.run(batch, [sae.site], {sae.site: feature_edit(sae, PLANTED, 3.0)}, logits="none").captures[
        sae.site
    ]
    added = boosted - plain
    touched = (batch.position_ids > 0) & batch.is_real
    assert added[touched].norm(dim=-1) == pytest.approx(torch.full((int(touched.sum()),), 3.0), abs=1e-4)
    assert float(added[~touched].abs().max()) == 0


def test_what_cannot_be_written_with_is_refused(model: HookedModel, sae: SAEHandle, refusal_id: int):
    def first(one: SAEHandle, prompts: dict[str, list[str]], settings: InterventionSettings = SETTINGS) -> object:
        generator = torch.Generator()
        return next(
            intervene(model, one, {0: 1.0}, prompts, refusal_ids=[refusal_id], settings=settings, generator=generator)
        )

    no_decoder = SAEHandle(sae.ref, SaeWeights(W_enc=torch.ones(sae.d_in, 40), b_enc=torch.zeros(40), W_dec=None,
                           b_dec=torch.zeros(sae.d_in)), SaeForm(activation="relu"))  # fmt: skip
    with pytest.raises(BadInput, match="it has no decoder"):
        first(no_decoder, {"harmful": ["a"]})
    with pytest.raises(BadSettings, match="a set has none"):
        first(sae, {"harmful": []})
    with pytest.raises(BadSettings, match="too few for 60"):
        first(sae, {"harmful": ["a"]}, InterventionSettings(n_controls=60))
