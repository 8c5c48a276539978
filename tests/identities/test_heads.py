"""Heads are read before W_O: a head's share of the stream is `head_out[h] @ W_O[h]`, by views and by weight surgery."""

import pytest
import torch
from torch import Tensor

from safe_sail.model import weights
from safe_sail.model.edits import Edit, zero, zero_heads
from safe_sail.model.handle import HookedModel
from safe_sail.model.load import load_model
from safe_sail.model.tokens import TokenBatch
from safe_sail.sites import Site, SiteKind
from tests.tiny import FAMILIES, TEXTS, TinyModels

# float32 sums of 32 to 48 products of size one
CLOSE = {"atol": 2e-6, "rtol": 2e-6}


def module_input(handle: HookedModel, batch: TokenBatch, layer: int, path: str) -> Tensor:
    seen: list[Tensor] = []
    module = handle.blocks[layer].get_submodule(path)
    hook = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    handle.logits(batch)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_sum_over_heads_is_what_attention_writes(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    for layer in range(handle.dims.n_layers):
        at = handle.capture(handle.batch(TEXTS), [Site(SiteKind.HEAD_OUT, layer), Site(SiteKind.ATTN_OUT, layer)])
        W_O, b_O = weights.W_O(handle, layer), weights.b_O(handle, layer)
        assert W_O.shape == (handle.dims.n_heads, handle.dims.d_head, handle.dims.d_model)
        written = torch.einsum("bshd,hdm->bsm", at[Site(SiteKind.HEAD_OUT, layer)], W_O)
        written = written if b_O is None else written + b_O
        if handle.architecture.post_norm:
            written = handle.blocks[layer].get_submodule(handle.architecture.attn_out)(written)
        torch.testing.assert_close(written, at[Site(SiteKind.ATTN_OUT, layer)], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_masking_a_head_equals_deleting_its_output_columns(family: str, tiny_models: TinyModels) -> None:
    handle, surgery = tiny_models.handle(family), tiny_models.fresh(family)
    batch = handle.batch(TEXTS)
    weights.W_O(surgery, 1)[2] = 0
    masked = handle.logits(batch, {Site(SiteKind.HEAD_OUT, 1): zero_heads([2])})
    # the same products are zero in both; only the order of a float32 sum may differ
    torch.testing.assert_close(masked, surgery.logits(batch), **CLOSE)
    assert (masked - handle.logits(batch)).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_masking_heads_while_generating_equals_generating_with_surgery(family: str, tiny_models: TinyModels) -> None:
    handle, surgery = tiny_models.handle(family), tiny_models.fresh(family)
    batch = handle.batch(TEXTS)
    edits: dict[Site, Edit] = {}
    for layer in range(handle.dims.n_layers):
        weights.W_O(surgery, layer)[0] = 0
        edits[Site(SiteKind.HEAD_OUT, layer)] = zero_heads([0])
    assert torch.equal(handle.generate(batch, 5, edits), surgery.generate(batch, 5))


def test_slicing_the_attention_output_is_not_masking_a_head(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    batch = handle.batch(TEXTS)
    masked = handle.logits(batch, {Site(SiteKind.HEAD_OUT, 1): zero_heads([2])})
    d_head = handle.dims.d_model // handle.dims.n_heads

    def sliced(x: Tensor) -> Tensor:
        keep = torch.ones_like(x)
        keep[..., 2 * d_head : 3 * d_head] = 0
        return x * keep

    wrong = handle.logits(batch, {Site(SiteKind.ATTN_OUT, 1): sliced})
    effect = (masked - handle.logits(batch)).abs().max()
    assert (wrong - masked).abs().max() > 0.2 * effect


@pytest.mark.parametrize("family", FAMILIES)
def test_first_token_mixes_only_its_own_value(family: str, tiny_models: TinyModels) -> None:
    # the first token attends to itself alone, so its head output is W_V x + b_V of the head's key-value group
    handle = tiny_models.handle(family)
    batch = handle.batch(TEXTS, padding_side="right")
    x = module_input(handle, batch, 1, handle.architecture.qkv[0])[:, 0]
    views = weights.heads(handle, 1)
    value = torch.einsum("bm,kdm->bkd", x, views.W_V)
    value = value if views.b_V is None else value + views.b_V
    by_head = value.repeat_interleave(handle.dims.n_heads // handle.dims.n_kv_heads, dim=1)
    torch.testing.assert_close(handle.capture(batch, [Site(SiteKind.HEAD_OUT, 1)])[Site(SiteKind.HEAD_OUT, 1)][:, 0],
                               by_head, **CLOSE)  # fmt: skip


# families without a query-key norm, soft cap or linear bias, whose scores are plain products
PLAIN = ["llama", "mistral", "qwen2", "mixtral", "gemma", "phi3", "gpt2", "gpt_neox", "falcon", "falcon_grouped",
         "stablelm"]  # fmt: skip


@pytest.mark.parametrize("family", PLAIN)
def test_query_and_key_views_give_the_attention_pattern(family: str, tiny_models: TinyModels) -> None:
    # with every position id 0 the rotation is the identity, so scores are products of the views
    handle = load_model(
        tiny_models.folder(family), device="cpu", dtype=torch.float32, attn_implementation="eager", verify=False
    )
    ids = torch.tensor([[5, 40, 77, 120]])
    seen: list[Tensor] = []
    module = handle.blocks[0].get_submodule(handle.architecture.qkv[0])
    hook = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        pattern = handle.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=torch.zeros_like(ids),
            output_attentions=True, use_cache=False,
        ).attentions[0]  # fmt: skip
    hook.remove()
    views = weights.heads(handle, 0)
    query = torch.einsum("bsm,hdm->bhsd", seen[0], views.W_Q)
    key = torch.einsum("bsm,kdm->bksd", seen[0], views.W_K)
    if views.b_Q is not None and views.b_K is not None:
        query, key = query + views.b_Q[:, None], key + views.b_K[:, None]
    key = key.repeat_interleave(handle.dims.n_heads // handle.dims.n_kv_heads, dim=1)
    scale = handle.model.config.head_dim**-0.5 if family == "gemma" else handle.dims.d_head**-0.5
    scores = query @ key.mT * scale
    scores = scores.masked_fill(torch.ones(4, 4).triu(1).bool(), float("-inf"))
    torch.testing.assert_close(scores.softmax(dim=-1), pattern, **CLOSE)


def test_alibi_is_added_once(tiny_models: TinyModels) -> None:
    # transformers' eager path adds it twice and is refused at load; this is the path that is used
    handle = tiny_models.handle("falcon_sequential")
    batch = handle.batch(TEXTS[:1])
    x = module_input(handle, batch, 0, handle.architecture.qkv[0])
    views = weights.heads(handle, 0)
    assert views.b_Q is not None
    assert views.b_K is not None
    assert views.b_V is not None
    query = torch.einsum("bsm,hdm->bhsd", x, views.W_Q) + views.b_Q[:, None]
    key = torch.einsum("bsm,hdm->bhsd", x, views.W_K) + views.b_K[:, None]
    value = torch.einsum("bsm,hdm->bhsd", x, views.W_V) + views.b_V[:, None]
    seq = x.shape[1]
    slopes = torch.tensor([2.0 ** -(8 * (head + 1) / 4) for head in range(4)])  # Press et al. 2022, four heads
    scores = (query @ key.mT + slopes[:, None, None] * torch.arange(seq)) * handle.dims.d_head**-0.5
    scores = scores.masked_fill(torch.ones(seq, seq).triu(1).bool(), float("-inf"))
    site = Site(SiteKind.HEAD_OUT, 0)
    mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2)
    torch.testing.assert_close(mixed, handle.capture(batch, [site])[site], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_zeroed_value_matrix_silences_its_heads_alone(family: str, tiny_models: TinyModels) -> None:
    surgery = tiny_models.fresh(family)
    views = weights.heads(surgery, 1)
    views.W_V[0] = 0
    if views.b_V is not None:
        views.b_V[0] = 0
    group = surgery.dims.n_heads // surgery.dims.n_kv_heads
    site = Site(SiteKind.HEAD_OUT, 1)
    heads = surgery.capture(surgery.batch(TEXTS[:1]), [site])[site]
    assert torch.equal(heads[:, :, :group], torch.zeros_like(heads[:, :, :group]))
    assert (heads[:, :, group:].abs().amax(dim=(0, 1, 3)) > 0).all()
    all_zero = surgery.logits(surgery.batch(TEXTS[:1]), {site: zero})
    assert torch.isfinite(all_zero).all()
