"""Packed ablations against the plain loop: one text, one set, one pass from the embedding to the end, no batch."""

import pytest
import torch

from safe_sail.errors import BadInput
from safe_sail.links.ablation import FeatureAblator, UnitAblator, unit_means, zero_values
from safe_sail.links.texts import paired_texts
from safe_sail.model.edits import Edit
from safe_sail.model.handle import HookedModel
from safe_sail.records import HeadRef, NeuronRef, UnitRef
from safe_sail.sites import Site, SiteKind
from tests.link_samples import noise, random_sae
from tests.tiny import FAMILIES, TEXTS, TinyModels

FEATURES = torch.tensor([4, 0, 6])
# float32 through two blocks, activations of size one
CLOSE = {"atol": 2e-5, "rtol": 2e-4}
PAIRS = [TEXTS[:2], (TEXTS[2], TEXTS[0])]


def units_of(handle: HookedModel) -> list[list[UnitRef]]:
    sets: list[list[UnitRef]] = [[HeadRef(0, 1)], [HeadRef(1, 3)], [HeadRef(0, 0), HeadRef(1, 0), HeadRef(1, 2)]]
    for layer in range(2):
        if handle.has_site(Site(SiteKind.MLP_ACT, layer)):
            sets += [[NeuronRef(layer, 3)], [HeadRef(0, 2), NeuronRef(layer, 0), NeuronRef(layer, 9)]]
    return sets


def set_to(units: list[UnitRef], site: Site, values: dict[Site, torch.Tensor]) -> Edit:
    def edit(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        for unit in units:
            if unit.site == site:
                x[:, :, unit.index] = values[site][unit.index]
        return x

    return edit


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_ablation_of_units_equals_the_plain_loop(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    sae = random_sae(handle, Site(SiteKind.RESID_POST, handle.dims.n_layers - 1))
    texts, sets = paired_texts(handle, PAIRS, concept="x", as_chat=False), units_of(handle)
    sites = sorted({unit.site for units in sets for unit in units})
    values = unit_means(handle, sites, texts.parts_without(2))
    ablator = UnitAblator(handle, sae, FEATURES, values, pack_rows=7)
    flat = [text for text, _ in PAIRS] + [text for _, text in PAIRS]
    changed = 0.0
    for part in texts.parts(3):
        read = ablator.read(part, sets)
        for place, row in enumerate(part.rows):
            batch = handle.batch([flat[row]])
            x = handle.capture(batch, [sae.site])[sae.site][0]
            peaks = (x @ torch.stack([sae.encoder_row(int(f)) for f in FEATURES], dim=1))[1:].argmax(0) + 1
            plain = sae.encode(x)[peaks, FEATURES]
            torch.testing.assert_close(read.plain[place], plain, **CLOSE)
            for index, units in enumerate(sets):
                edits = {site: set_to(units, site, values) for site in {unit.site for unit in units}}
                x = handle.capture(batch, [sae.site], edits)[sae.site][0]
                found = sae.encode(x)[peaks, FEATURES]
                torch.testing.assert_close(read.ablated[place, index], found, **CLOSE)
                changed = max(changed, float((found - plain).abs().max()))
    assert changed > 0.1


def test_passes_begin_at_the_first_layer_of_their_sets(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    sae = random_sae(handle, Site.parse("resid_post.1"))
    texts = paired_texts(handle, PAIRS, concept="x", as_chat=False)
    sets: list[list[UnitRef]] = [[HeadRef(1, head)] for head in range(4)] + [[HeadRef(0, 0), NeuronRef(1, 1)]]
    ablator = UnitAblator(
        handle, sae, FEATURES, zero_values(handle, {unit.site for units in sets for unit in units}), pack_rows=8
    )
    ran: list[int] = []
    hooks = [
        block.get_submodule("input_layernorm").register_forward_pre_hook(
            lambda module, args, layer=layer: ran.extend([layer] * args[0].shape[0])
        )
        for layer, block in enumerate(handle.blocks)
    ]
    for part in texts.parts(4):
        ablator.read(part, sets)
    for hook in hooks:
        hook.remove()
    # four texts: the plain pass and one set in layer 0; those and the four sets of layer 1 in layer 1
    assert (ran.count(0), ran.count(1)) == (8, 24)
    assert ablator.n_passes == 1 + 1 + 2


def test_means_are_over_the_tokens_that_count(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    texts = paired_texts(handle, PAIRS, concept="x", as_chat=False)
    site = Site.parse("mlp_act.1")
    found = unit_means(handle, [site], texts.parts_without(1))[site]
    tokens = [handle.capture(handle.batch([text]), [site])[site][0, 1:] for _, text in PAIRS]
    torch.testing.assert_close(found, torch.cat(tokens).mean(0), atol=1e-6, rtol=1e-5)


def test_units_at_or_after_the_site_are_refused(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    ablator = UnitAblator(handle, random_sae(handle, Site.parse("resid_pre.1")), FEATURES, {}, pack_rows=8)
    (part,) = paired_texts(handle, PAIRS, concept="x", as_chat=False).parts(4)
    with pytest.raises(BadInput, match=r"before `resid_pre.1`.*L1\.H0"):
        ablator.read(part, [[HeadRef(0, 1), HeadRef(1, 0)]])
    with pytest.raises(BadInput, match="got none"):
        ablator.read(part, [[]])
    with pytest.raises(BadInput, match=r"L0\.H4: `head_out.0` of llama has 4 units"):
        ablator.read(part, [[HeadRef(0, 4)]])


@pytest.mark.parametrize(
    ("family", "site"),
    [(family, site) for family in FAMILIES for site in ("resid_post.0", "resid_post.1")]
    + [("llama", site) for site in ("resid_pre.1", "mlp_out.0", "head_out.1", "mlp_act.1")],
)
def test_packed_ablation_of_features_equals_the_plain_loop(family: str, site: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    sae = random_sae(handle, Site.parse(site))
    texts = paired_texts(handle, PAIRS, concept="x", as_chat=False)
    owners = [0, 2, 1, 0, 2]
    decoder = torch.stack([sae.decoder_row(int(FEATURES[owner])) for owner in owners[:3]])
    vectors = torch.cat([decoder, noise(2, sae.d_out, seed=9)])
    reads = Site(SiteKind.RESID_POST, handle.dims.n_layers - 1)
    ablator = FeatureAblator(handle, sae, pack_rows=7)
    flat = [text for text, _ in PAIRS] + [text for _, text in PAIRS]
    changed = 0.0
    for part in texts.parts(3):
        read = ablator.read(part, FEATURES, vectors, owners, [reads], n_last=2)
        for place, row in enumerate(part.rows):
            batch = handle.batch([flat[row]])
            plain = handle.logits(batch)[0, -1]
            for index, owner in enumerate(owners):

                def edit(x: torch.Tensor, owner: int = owner, index: int = index) -> torch.Tensor:
                    activation = sae.encode(x)[..., int(FEATURES[owner])]
                    return x - (activation[..., None] * vectors[index]).reshape(x.shape)

                run = handle.run(batch, [reads], {sae.site: edit})
                assert run.logits is not None
                torch.testing.assert_close(read.logits[place, index], run.logits[0, -1], atol=1e-4, rtol=1e-3)
                last = run.captures[reads][0, -2:]
                torch.testing.assert_close(read.captures[reads][place, index], last, atol=1e-4, rtol=1e-3)
                changed = max(changed, float((run.logits[0, -1] - plain).abs().max()))
    assert changed > 0.02
