"""Cached greedy generation against transformers' `generate` and against passes without a cache."""

import pytest
import torch
from torch import Tensor

from safe_sail.model.edits import Edit, scale, zero_heads
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch
from safe_sail.sites import Site, SiteKind
from tests.tiny import FAMILIES, TEXTS, TinyModels

NEW = 6


def without_cache(handle: HookedModel, batch: TokenBatch, edits: dict[Site, Edit]) -> Tensor:
    ends = {handle.tokenizer.eos_token_id}
    rows = []
    for ids, mask in zip(batch.token_ids, batch.attention_mask, strict=True):
        row = ids[mask.bool()]
        new: list[int] = []
        while len(new) < NEW and not (new and new[-1] in ends):
            one = TokenBatch(row[None], torch.ones_like(row)[None], ("row",))
            new.append(int(handle.logits(one, edits)[0, -1].argmax()))
            row = torch.cat([row, torch.tensor(new[-1:])])
        rows.append(new + [handle.tokenizer.pad_token_id] * (NEW - len(new)))
    return torch.tensor(rows)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_equals_passes_without_cache(family: str, padding_side: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    batch = handle.batch(TEXTS, padding_side=padding_side)
    new = handle.generate(batch, NEW)
    assert torch.equal(new, without_cache(handle, batch, {})[:, : new.shape[1]])


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_equals_transformers(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    batch = handle.batch(TEXTS)
    theirs = handle.model.generate(
        input_ids=batch.token_ids, attention_mask=batch.attention_mask, max_new_tokens=NEW, do_sample=False
    )[:, batch.token_ids.shape[1] :]
    ours = handle.generate(batch, NEW)
    assert torch.equal(ours, theirs[:, : ours.shape[1]])


@pytest.mark.parametrize("family", FAMILIES)
def test_edited_generation_equals_edited_passes_and_differs_from_the_bare_one(
    family: str, tiny_models: TinyModels
) -> None:
    handle = tiny_models.handle(family)
    batch = handle.batch(TEXTS)
    edits: dict[Site, Edit] = {
        Site(SiteKind.HEAD_OUT, 0): zero_heads([1, 2]),
        Site(SiteKind.MLP_OUT, 1): scale(-2.0),
    }
    new = handle.generate(batch, NEW, edits)
    assert torch.equal(new, without_cache(handle, batch, edits)[:, : new.shape[1]])
    assert not torch.equal(new, handle.generate(batch, NEW)[:, : new.shape[1]])
