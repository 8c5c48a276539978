"""An edit that changes nothing changes nothing, and an edit that changes something does, at every site."""

import pytest
import torch

from safe_sail.model.edits import identity, scale
from safe_sail.sites import SiteKind
from tests.tiny import FAMILIES, TEXTS, TinyModels


@pytest.mark.parametrize("family", FAMILIES)
def test_noop_edits_and_captures_at_every_site_leave_logits_bit_equal(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    batch = handle.batch(TEXTS)
    edits = {site: identity for site in handle.sites() if site.kind is not SiteKind.RESID_MID}
    bare = handle.logits(batch)
    found = handle.run(batch, handle.sites(), edits)
    assert found.logits is not None
    assert torch.equal(found.logits, bare)
    assert torch.equal(handle.logits(batch), bare)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_at_every_site_changes_the_logits_and_the_capture(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    batch = handle.batch(TEXTS[:1])
    bare = handle.run(batch, handle.sites())
    assert bare.logits is not None
    for site in handle.sites():
        if site.kind is SiteKind.RESID_MID:
            continue
        # one factor for all entries would be undone by a norm after it
        factor = torch.linspace(-1, 1, handle.site_shape(site)[-1])
        found = handle.run(batch, [site], {site: scale(factor)})
        assert found.logits is not None
        assert (found.logits - bare.logits).abs().max() > 1e-3, site
        assert torch.equal(found.captures[site], bare.captures[site] * factor)


@pytest.mark.parametrize("family", FAMILIES)
def test_captures_have_the_shape_their_site_promises(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    batch = handle.batch(TEXTS)
    for site, value in handle.capture(batch, handle.sites()).items():
        assert value.shape == (*batch.token_ids.shape, *handle.site_shape(site)), site
