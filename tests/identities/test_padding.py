"""A row does not see the padding beside it."""

import pytest
import torch

from safe_sail.sites import Site, SiteKind
from tests.tiny import FAMILIES, TEXTS, TinyModels


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padded_row_equals_unpadded_row(family: str, padding_side: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    batch = handle.batch(TEXTS, padding_side=padding_side)
    sites = handle.sites()
    together = handle.run(batch, sites)
    assert together.logits is not None
    for row, text in enumerate(TEXTS):
        alone = handle.run(handle.batch([text]), sites)
        assert alone.logits is not None
        real = batch.is_real[row]
        for site in sites:
            # float32 sums in another blocking, through two or three blocks
            torch.testing.assert_close(
                together.captures[site][row, real], alone.captures[site][0], atol=2e-5, rtol=2e-5
            )
        torch.testing.assert_close(together.logits[row, real], alone.logits[0], atol=2e-5, rtol=2e-5)


def test_position_ids_matter_to_learned_positions(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("gpt2")
    batch = handle.batch(TEXTS)
    ours = handle.logits(batch)
    with torch.no_grad():
        without = handle.model(input_ids=batch.token_ids, attention_mask=batch.attention_mask).logits
    row = int(batch.lengths.argmin())
    assert (ours - without)[row, -1].abs().max() > 1e-2


def test_mask_matters(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    batch = handle.batch(TEXTS)
    site = Site(SiteKind.RESID_POST, 1)
    seen = batch.__class__(batch.token_ids, torch.ones_like(batch.attention_mask), batch.source_ids)
    row = int(batch.lengths.argmin())
    changed = handle.capture(seen, [site])[site] - handle.capture(batch, [site])[site]
    assert changed[row, -1].abs().max() > 1e-2
