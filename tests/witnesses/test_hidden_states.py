"""Captures against transformers' own `output_hidden_states`, which reads the same stream by another mechanism."""

import pytest
import torch

from safe_sail.sites import Site, SiteKind
from tests.tiny import FAMILIES, TEXTS, TinyModels


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_stream_equals_hidden_states(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    batch = handle.batch(TEXTS)
    n_layers = handle.dims.n_layers
    pre = [Site(SiteKind.RESID_PRE, layer) for layer in range(n_layers)]
    post = [Site(SiteKind.RESID_POST, layer) for layer in range(n_layers)]
    captured = handle.capture(batch, [Site(SiteKind.EMBED), *pre, *post])
    with torch.no_grad():
        states = handle.model(
            input_ids=batch.token_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
    assert torch.equal(captured[Site(SiteKind.EMBED)], states[0])
    for layer in range(n_layers):
        assert torch.equal(captured[pre[layer]], states[layer])
    for layer in range(n_layers - 1):
        assert torch.equal(captured[post[layer]], states[layer + 1])
    # transformers' last state is after the final norm, so `resid_post` of the last layer is not in its list
    final_norm = handle.model.get_submodule(handle.architecture.final_norm)
    assert torch.equal(final_norm(captured[post[-1]]), states[-1])
    assert not torch.allclose(captured[post[-1]], states[-1], atol=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_bare_model_and_last_logits_equal_their_column(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    batch = handle.batch(TEXTS, padding_side="right")
    with torch.no_grad():
        bare = handle.model(
            input_ids=batch.token_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids
        ).logits
    assert torch.equal(handle.logits(batch), bare)
    rows = torch.arange(len(batch))
    last = handle.logits(batch, positions="last")
    # one column instead of all through the head: another blocking of the same float32 sums
    torch.testing.assert_close(last[:, 0], bare[rows, batch.last_real], atol=1e-5, rtol=1e-5)
