"""Names of places: parse, format, order, translate."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safe_sail.errors import BadSite
from safe_sail.sites import Site, SiteKind

layered = st.sampled_from([kind for kind in SiteKind if kind is not SiteKind.EMBED])
sites = st.one_of(st.just(Site(SiteKind.EMBED)), st.builds(Site, layered, st.integers(0, 200)))


@given(sites)
def test_a_site_survives_its_name(site: Site) -> None:
    assert Site.parse(str(site)) == site
    assert Site.from_hook_name(str(site)) == site


@given(st.lists(sites, min_size=2, max_size=8))
def test_order_is_a_total_order_by_layer_first(some: list[Site]) -> None:
    ordered = sorted(some)
    assert [-1 if site.layer is None else site.layer for site in ordered] == sorted(
        -1 if site.layer is None else site.layer for site in some
    )
    shuffled = list(some)
    random.Random(0).shuffle(shuffled)
    assert sorted(shuffled) == ordered


def test_order_inside_a_block_is_the_order_of_computation() -> None:
    names = ["resid_pre.1", "head_out.1", "attn_out.1", "resid_mid.1", "mlp_in.1", "mlp_act.1", "mlp_out.1",
             "resid_post.1", "resid_pre.2"]  # fmt: skip
    assert [str(site) for site in sorted(map(Site.parse, reversed(names)))] == names
    assert Site.parse("embed") < Site.parse("resid_pre.0")


@pytest.mark.parametrize(
    "text",
    ["", "embed.0", "resid_post", "resid_post.", "resid_post.-1", "resid_post.1.2", "resid_post.x", "Resid_post.1",
     "attn.3", "resid_post. 1", "resid_post.1\n", "resid_post.½"],
)  # fmt: skip
def test_a_text_that_is_no_site_is_refused_by_its_own_words(text: str) -> None:
    with pytest.raises(BadSite) as refusal:
        Site.parse(text)
    assert text.partition(".")[0] in str(refusal.value)


@pytest.mark.parametrize(("kind", "layer"), [(SiteKind.EMBED, 0), (SiteKind.MLP_ACT, None), (SiteKind.MLP_ACT, -1)])
def test_kind_and_layer_must_agree(kind: SiteKind, layer: int | None) -> None:
    with pytest.raises(BadSite, match="layer"):
        Site(kind, layer)


@pytest.mark.parametrize(
    ("hook", "name"),
    [
        ("blocks.12.hook_resid_post", "resid_post.12"),
        ("blocks.0.hook_resid_pre", "resid_pre.0"),
        ("blocks.3.hook_resid_mid", "resid_mid.3"),
        ("blocks.3.attn.hook_z", "head_out.3"),
        ("blocks.3.hook_attn_out", "attn_out.3"),
        ("blocks.3.hook_mlp_out", "mlp_out.3"),
        ("blocks.3.mlp.hook_post", "mlp_act.3"),
        ("blocks.3.ln2.hook_normalized", "mlp_in.3"),
        ("blocks.3.hook_out", "resid_post.3"),
        ("model.layers.17", "resid_post.17"),
        ("transformer.h.5", "resid_post.5"),
        ("gpt_neox.layers.5", "resid_post.5"),
        ("hook_embed", "embed"),
    ],
)
def test_foreign_names_become_sites(hook: str, name: str) -> None:
    assert str(Site.from_hook_name(hook)) == name


@pytest.mark.parametrize("hook", ["blocks.3.attn.hook_q", "model.layers.3.mlp", "blocks.x.hook_resid_post", "lm_head"])
def test_a_foreign_name_of_no_site_is_refused(hook: str) -> None:
    with pytest.raises(BadSite, match="not known"):
        Site.from_hook_name(hook)


@pytest.mark.parametrize("kind", list(SiteKind))
def test_hook_names_lead_back_to_their_sites(kind: SiteKind):
    site = Site(kind, None if kind is SiteKind.EMBED else 7)
    assert Site.from_hook_name(site.hook_name) == site
