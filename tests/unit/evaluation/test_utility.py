"""Cross-entropy against the Hugging Face loss, and its refusals."""

import pytest
import torch

from safe_sail.errors import BadSettings, BadText
from safe_sail.evaluation.utility import TokenRow, kl_divergence, plain_rows, refusal_metric, text_losses, token_rows
from safe_sail.model.chat import render_chat
from safe_sail.model.edits import zero
from safe_sail.sites import Site
from tests.tiny import TEXTS, TinyModels


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen2_moe"])
def test_losses_are_those_of_hugging_face_text_by_text(family: str, tiny_models: TinyModels):
    handle = tiny_models.handle(family)
    rows = plain_rows(handle.tokenizer, TEXTS)
    found = text_losses(handle, rows, batch_rows=2)
    for row, nats, n in zip(rows, found.nats, found.n_tokens, strict=True):
        ids = torch.tensor([row.ids])
        with torch.no_grad():
            loss = handle.model(input_ids=ids, labels=ids).loss
        assert int(n) == len(row.ids) - 1
        # float32 mean against a float64 sum
        assert float(nats) / int(n) == pytest.approx(float(loss), rel=1e-5)


def test_only_the_reply_counts(tiny_models: TinyModels):
    handle = tiny_models.handle("llama")
    prompt = render_chat(handle.tokenizer, ["how do I bake bread"])[0]
    (row,) = token_rows(handle.tokenizer, [prompt], ["a kind answer"])
    labels = torch.tensor([row.ids])
    labels[:, : row.first_predicted] = -100
    with torch.no_grad():
        loss = handle.model(input_ids=torch.tensor([row.ids]), labels=labels).loss
    found = text_losses(handle, [row])
    assert found.mean == pytest.approx(float(loss), rel=1e-5)
    ended = token_rows(handle.tokenizer, [prompt], ["a kind answer"], end_id=2)[0]
    assert ended.ids == (*row.ids, 2)


def test_an_edit_changes_the_loss(tiny_models: TinyModels):
    handle = tiny_models.handle("llama")
    rows = plain_rows(handle.tokenizer, TEXTS)
    plain, edited = text_losses(handle, rows), text_losses(handle, rows, {Site.parse("mlp_out.0"): zero})
    assert (plain.nats - edited.nats).abs().min() > 1e-3


def test_texts_without_a_predicted_token_are_refused(tiny_models: TinyModels):
    handle = tiny_models.handle("llama")
    for rows in ([], [TokenRow((1,), 1)], [TokenRow((1, 2), 0)]):
        with pytest.raises(BadText):
            text_losses(handle, rows)


def test_refusal_tokens_are_some_but_not_all():
    for ids in ([], [0, 1]):
        with pytest.raises(BadSettings):
            refusal_metric(torch.zeros(1, 2), ids)


def test_kl_of_a_token_that_cannot_come_is_nothing():
    plain, edited = torch.tensor([[0.0, -torch.inf]]), torch.tensor([[0.0, 0.0]])
    assert float(kl_divergence(plain, edited)) == pytest.approx(torch.log(torch.tensor(2.0)).item())
