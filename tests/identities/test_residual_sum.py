"""The stream is a sum: what a block writes is `attn_out` and `mlp_out`, whatever its norms and order."""

import pytest
import torch

from safe_sail.errors import BadSite
from safe_sail.model.edits import add, replace
from safe_sail.sites import Site, SiteKind
from tests.tiny import FAMILIES, TEXTS, TinyModels

# float32: two additions of numbers of size one to ten, eps/2 each
CLOSE = {"atol": 4e-6, "rtol": 1e-6}


@pytest.mark.parametrize("family", FAMILIES)
def test_resid_post_is_resid_pre_plus_both_outputs(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    at = handle.capture(handle.batch(TEXTS), handle.sites())
    for layer in range(handle.dims.n_layers):
        pre, attn, mlp, post = (
            at[Site(kind, layer)]
            for kind in (SiteKind.RESID_PRE, SiteKind.ATTN_OUT, SiteKind.MLP_OUT, SiteKind.RESID_POST)
        )
        torch.testing.assert_close(pre + attn + mlp, post, **CLOSE)
        for part in (attn, mlp):  # each part is there and none stands for the other
            assert not torch.allclose(post - part, post, atol=1e-2)
        assert not torch.allclose(attn, mlp, atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_resid_mid_stands_between_attention_and_mlp_or_is_refused(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    batch = handle.batch(TEXTS)
    mid = Site(SiteKind.RESID_MID, 1)
    if handle.architecture.parallel(handle.model.config):
        with pytest.raises(BadSite, match="parallel"):
            handle.capture(batch, [mid])
        return
    at = handle.capture(batch, [mid, Site(SiteKind.MLP_OUT, 1), Site(SiteKind.RESID_POST, 1)])
    torch.testing.assert_close(at[mid] + at[Site(SiteKind.MLP_OUT, 1)], at[Site(SiteKind.RESID_POST, 1)], **CLOSE)
    vector = torch.randn(handle.dims.d_model, generator=torch.Generator().manual_seed(1))
    moved = handle.capture(batch, [mid], {Site(SiteKind.ATTN_OUT, 1): add(vector)})[mid]
    torch.testing.assert_close(moved, at[mid] + vector, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_stream_rebuilt_from_its_parts_gives_the_same_logits(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    batch = handle.batch(TEXTS)
    parts = [Site(kind, 0) for kind in (SiteKind.RESID_PRE, SiteKind.ATTN_OUT, SiteKind.MLP_OUT)]
    at = handle.capture(batch, parts)
    bare = handle.logits(batch)
    rebuilt = handle.logits(batch, {Site(SiteKind.RESID_POST, 0): replace(sum(at.values(), torch.tensor(0.0)))})
    # the rounding of the sum passes the remaining blocks
    torch.testing.assert_close(rebuilt, bare, atol=2e-5, rtol=1e-5)
    without = handle.logits(batch, {Site(SiteKind.RESID_POST, 0): replace(at[parts[0]] + at[parts[1]])})
    assert (without - bare).abs().max() > 1e-2
