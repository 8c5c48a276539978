"""Attention weights for the suffix study: read under eager attention, and refused where it cannot be had."""

import pytest
import torch

from safe_sail.directions.suffix import last_token_attention
from safe_sail.errors import BadInput
from tests.tiny import TEXTS, TinyModels


def test_attention_of_the_last_token_sums_to_one_and_the_implementation_is_put_back(tiny_models: TinyModels):
    handle = tiny_models.handle("llama")
    before = handle.model.config._attn_implementation
    found = last_token_attention(handle, handle.batch(TEXTS).left_padded())
    assert before != "eager"
    assert handle.model.config._attn_implementation == before
    assert found.shape[1:3] == (handle.dims.n_layers, handle.dims.n_heads)
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found.sum(-1)), atol=1e-5, rtol=0)  # float32 softmax


def test_a_model_that_cannot_be_switched_to_eager_attention_is_refused_and_left_as_it_was(tiny_models: TinyModels):
    handle = tiny_models.handle("falcon_sequential")
    before = handle.model.config._attn_implementation
    with pytest.raises(BadInput, match="FalconForCausalLM cannot be switched"):
        last_token_attention(handle, handle.batch(TEXTS).left_padded())
    assert handle.model.config._attn_implementation == before
