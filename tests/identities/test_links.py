"""Direct shares add up to what a feature reads, and are what ablation takes away where the path is linear."""

import pytest
import torch

from safe_sail.links.ablation import UnitAblator, zero_values
from safe_sail.links.reading import direct_shares, encoder_rows, input_scale, post_norm_gain, writing_sites
from safe_sail.links.texts import PairedTexts, paired_texts
from safe_sail.model import weights
from safe_sail.model.dims import block_is_sparse
from safe_sail.model.handle import HookedModel
from safe_sail.records import HeadRef, NeuronRef, UnitRef
from safe_sail.sae.form import InputNorm
from safe_sail.sae.handle import SAEHandle
from safe_sail.sites import Site, SiteKind
from tests.link_samples import WIDTH, random_sae
from tests.tiny import FAMILIES, TEXTS, TinyModels

FEATURES = torch.arange(WIDTH)
# float32 sums of some hundred products of size one
CLOSE = {"atol": 2e-5, "rtol": 2e-5}
SITES = ("resid_pre.1", "resid_mid.1", "resid_post.1", "attn_out.1", "mlp_out.1")


def texts_of(handle: HookedModel) -> PairedTexts:
    return paired_texts(handle, [TEXTS[:2], (TEXTS[2], TEXTS[0])], concept="x", as_chat=False)


def by_text(
    handle: HookedModel, sae: SAEHandle, texts: PairedTexts
) -> tuple[torch.Tensor, list[dict[Site, torch.Tensor]]]:
    """Pre-activations at each text's peak tokens and captures there, text by text, without any batch."""
    W_enc = torch.stack([sae.encoder_row(feature) for feature in range(WIDTH)], dim=1)
    peaks, seen = [], []
    for row in range(len(texts.batch)):
        real = texts.batch.is_real[row]
        text = handle.tokenizer.decode(texts.batch.token_ids[row][real][1:])
        batch = handle.batch([text])
        assert batch.token_ids[0].tolist() == texts.batch.token_ids[row][real].tolist()
        at = handle.capture(batch, [site for site in handle.sites() if site <= sae.site])
        x = at[sae.site][0]
        if sae.form.centre_input:
            x = x - x.mean(-1, keepdim=True)
        if sae.form.input_norm == "layer_norm":
            x = (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5)
        if sae.form.input_norm == "constant_norm_rescale":
            x = x * sae.d_in**0.5 / x.norm(dim=-1, keepdim=True)
        hidden = x @ W_enc
        place = hidden[1:].argmax(0) + 1  # the first token is special
        peaks.append(hidden[place, FEATURES])
        seen.append({site: value[0][place] for site, value in at.items()})
    return torch.stack(peaks), seen


def rest_of_the_stream(handle: HookedModel, sae: SAEHandle, at: dict[Site, torch.Tensor]) -> torch.Tensor:
    """What is read of the embedding, the biases and the mixtures, which are no units."""
    rows = encoder_rows(sae, range(WIDTH))
    rest = at[Site(SiteKind.EMBED)] if sae.site.kind in (SiteKind.RESID_PRE, SiteKind.RESID_MID, SiteKind.RESID_POST) \
        else torch.zeros(WIDTH, handle.dims.d_model)  # fmt: skip
    sites = writing_sites(handle, sae.site)
    for site in sites:
        layer = site.layer or 0
        is_head = site.kind is SiteKind.HEAD_OUT
        bias = weights.b_O(handle, layer) if is_head else weights.mlp(handle, layer).b_out
        if bias is not None:
            assert post_norm_gain(handle, site) is None
            rest = rest + bias
    for layer, block in enumerate(handle.blocks):
        output = Site(SiteKind.MLP_OUT, layer)
        reads = sae.site.kind is SiteKind.RESID_POST and layer <= (sae.site.layer or 0)
        reads |= sae.site.kind in (SiteKind.RESID_PRE, SiteKind.RESID_MID) and layer < (sae.site.layer or 0)
        if block_is_sparse(handle.architecture, block) and (reads or sae.site == output):
            rest = rest + at[output]
    return (rest * rows).sum(-1) * input_scale(sae, at[sae.site])


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_shares_of_all_units_add_up_to_what_the_feature_reads(family: str, site: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    if not handle.has_site(Site.parse(site)):
        assert site == "resid_mid.1"
        return
    sae, texts = random_sae(handle, Site.parse(site)), texts_of(handle)
    shares = direct_shares(handle, sae, FEATURES, texts.parts(3), 4)
    expected, seen = by_text(handle, sae, texts)
    total = torch.stack([rest_of_the_stream(handle, sae, at) for at in seen])
    for found in shares.by_site.values():
        total = total + found.sum(-1)
    torch.testing.assert_close(total, expected, **CLOSE)
    assert expected.abs().max() > 0.5


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("input_norm", ["none", "layer_norm", "constant_norm_rescale"])
def test_shares_add_up_where_the_sae_prepares_its_input(
    input_norm: InputNorm, centre: bool, tiny_models: TinyModels
) -> None:
    handle = tiny_models.handle("llama")
    sae = random_sae(handle, Site.parse("resid_post.1"), input_norm=input_norm, centre=centre)
    texts = texts_of(handle)
    shares = direct_shares(handle, sae, FEATURES, texts.parts(3), 4)
    expected, seen = by_text(handle, sae, texts)
    total = torch.stack([rest_of_the_stream(handle, sae, at) for at in seen])
    for found in shares.by_site.values():
        total = total + found.sum(-1)
    torch.testing.assert_close(total, expected, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_direct_share_is_what_ablation_takes_away_in_the_last_layer(family: str, tiny_models: TinyModels) -> None:
    # before resid_mid of a layer its heads, before resid_post its neurons, have no path but the direct one
    handle = tiny_models.handle(family)
    for name, kind in (("resid_mid.1", HeadRef), ("resid_post.1", NeuronRef), ("attn_out.1", HeadRef)):
        site = Site.parse(name)
        own = Site(SiteKind.HEAD_OUT if kind is HeadRef else SiteKind.MLP_ACT, 1)
        if not handle.has_site(site) or not handle.has_site(own) or handle.architecture.post_norm:
            continue
        sae, texts = random_sae(handle, site, bias=30.0), texts_of(handle)
        n_units = handle.site_shape(own)[0]
        sets: list[list[UnitRef]] = [[kind(1, unit)] for unit in range(n_units)]
        ablator = UnitAblator(handle, sae, FEATURES, zero_values(handle, [own]), pack_rows=24)
        shares = direct_shares(handle, sae, FEATURES, texts.parts(3), 4).by_site[own]
        for part in texts.parts(3):
            read = ablator.read(part, sets)
            taken = (read.plain[:, None] - read.ablated).transpose(1, 2)
            # activations near 30 in float32
            torch.testing.assert_close(taken, shares[part.rows], atol=5e-5, rtol=1e-4)
        assert shares.abs().max() > 1e-2


def test_a_site_that_is_no_sum_of_writes_is_refused(tiny_models: TinyModels) -> None:
    from safe_sail.errors import BadSite

    handle = tiny_models.handle("llama")
    with pytest.raises(BadSite, match=r"`mlp_in.1` is no sum"):
        writing_sites(handle, Site.parse("mlp_in.1"))
