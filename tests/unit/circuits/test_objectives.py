"""Rows, labels and losses of objectives against plain loops over single rows, and what bad prompts say."""

import pytest
import torch

from safe_sail.circuits.masks import masked_edits, unit_space
from safe_sail.circuits.objectives import (
    CircuitPrompts,
    ContrastPrompt,
    KeptPrompt,
    aligned_batch,
    encoded_rows,
    objective_terms,
    reply_logits,
    row_losses,
    split_losses,
    term_rows,
)
from safe_sail.errors import BadSettings, BadText
from safe_sail.model.chat import render_chat
from safe_sail.model.handle import HookedModel
from safe_sail.settings import CircuitSettings
from tests.tiny import TinyModels

PAIRS = [("the fox", "a kind dog"), ("how do I bake bread at home?", "no"), ("dog", "away it keeps anger")]
PROMPTS = CircuitPrompts(
    [ContrastPrompt(prompt, reply, "the other", f"{prompt} clean") for prompt, reply in PAIRS],
    [KeptPrompt("a fox", "jumps over"), KeptPrompt("the quick brown", "dog")],
)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_batched_losses_equal_each_row_alone_by_token(family: str, tiny_models: TinyModels) -> None:
    handle = tiny_models.handle(family)
    rows = encoded_rows(handle, PAIRS, None, None)
    aligned = aligned_batch(rows, pad_id=0)
    with torch.no_grad():
        losses = row_losses(reply_logits(handle, aligned), aligned.targets, "cross_entropy", margin=5.0)
    for row, loss in zip(rows, losses.tolist(), strict=True):
        ids = torch.tensor([[*row.prompt, *row.reply]])
        with torch.no_grad():
            log_p = handle.model(input_ids=ids).logits[0].double().log_softmax(-1)
        plain = [-float(log_p[len(row.prompt) + i - 1, token]) for i, token in enumerate(row.reply)]
        # float32 logits of size one
        assert loss == pytest.approx(sum(plain) / len(plain), abs=1e-5)


def test_labels_are_the_completions_tokens_and_one_start_token_stands_in_front(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    tokenizer = handle.tokenizer
    # the trap: this tokenizer adds `<s>` to plain text, and the template writes one already
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    rows = encoded_rows(handle, PAIRS, None, None)
    for row, (prompt, reply) in zip(rows, PAIRS, strict=True):
        assert row.prompt.count(tokenizer.bos_token_id) == 1
        assert tokenizer.decode(row.prompt) == render_chat(tokenizer, [prompt])[0]
        assert tokenizer.bos_token_id not in row.reply
        assert tokenizer.decode(row.reply[:-1]) == reply
        assert row.reply[-1] == tokenizer.eos_token_id
    aligned = aligned_batch(rows, pad_id=0)
    width = aligned.targets.shape[1]
    for index, row in enumerate(rows):
        # the column that predicts the first label holds the prompt's last token
        assert aligned.batch.token_ids[index, -width] == row.prompt[-1]
        assert aligned.targets[index, : len(row.reply)].tolist() == list(row.reply)
        assert (aligned.targets[index, len(row.reply) :] == -100).all()
    assert [len(row.reply) for row in encoded_rows(handle, PAIRS, 2, None)] == [2, 2, 2]


def test_the_hinge_is_bounded_where_the_published_term_is_not() -> None:
    targets = torch.tensor([[0, 1]])
    for far in (10.0, 1000.0):
        logits = torch.zeros(1, 2, 4)
        logits[0, 0, 3] = logits[0, 1, 3] = far
        assert float(row_losses(logits, targets, "hinge", margin=5.0)) == 0.0
        assert float(row_losses(logits, targets, "negative_cross_entropy", margin=5.0)) == pytest.approx(-far, rel=1e-3)
    near = torch.zeros(1, 2, 4)
    assert float(row_losses(near, targets, "hinge", margin=5.0)) == pytest.approx(5 - torch.log(torch.tensor(4.0)))


def test_kl_is_zero_without_a_mask_and_the_sum_over_the_vocabulary_with_one(tiny_models: TinyModels) -> None:
    handle = tiny_models.handle("llama")
    settings = CircuitSettings(objective="kl", first_tokens=None, kept_weight=0)
    (rows,) = term_rows(handle, objective_terms(settings), PROMPTS, settings)
    parts = [(rows, [0, 1, 2])]
    aligned = aligned_batch(rows.rows, pad_id=0)
    space = unit_space(handle)
    keep = torch.ones(space.n_units)
    keep[::2] = 0
    with torch.no_grad():
        assert float(split_losses(reply_logits(handle, aligned), aligned, parts, margin=1.0)[0]) < 1e-6
        with handle.editing(masked_edits(space, keep)):
            masked = reply_logits(handle, aligned)
        found = float(split_losses(masked, aligned, parts, margin=1.0)[0])
        plain = 0.0
        full = reply_logits(handle, aligned).double().softmax(-1)
        for row in range(3):
            n = len(rows.rows[row].reply)
            q = masked[row, :n].double().softmax(-1)
            plain += float((full[row, :n] * (full[row, :n] / q).log()).sum()) / n / 3
    assert found == pytest.approx(plain, rel=1e-4)
    assert found > 1e-3


def test_objectives_have_the_published_terms() -> None:
    def kinds(**more: object) -> list[tuple[str, str, str, str]]:
        terms = objective_terms(CircuitSettings(kept_weight=0, **more))  # type: ignore[arg-type]
        return [(term.group, term.reply, term.view, term.kind) for term in terms]

    wanted = ("target", "without_circuit", "removed", "cross_entropy")
    carried = ("target", "with_circuit", "alone", "cross_entropy")
    assert kinds(objective="alignment") == [wanted, carried]
    clean = ("clean", "without_circuit", "removed", "cross_entropy")
    away = ("clean", "with_circuit", "alone", "hinge")
    assert kinds(objective="backdoor") == [clean, wanted, carried, away]
    assert kinds(objective="backdoor", unbounded=True)[-1][-1] == "negative_cross_entropy"
    with pytest.raises(BadSettings, match="every weight is 0"):
        kinds(removed_weight=0)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (CircuitPrompts([ContrastPrompt("one", "", "x", "c")]), "expected two completions"),
        (CircuitPrompts([ContrastPrompt("one", "x", " ", "c")]), "expected two completions"),
        (CircuitPrompts([ContrastPrompt("one", "x", "y")]), "without its trigger"),
        (CircuitPrompts([]), "got none"),
    ],
)
def test_prompts_that_lack_something_are_refused(
    prompts: CircuitPrompts, message: str, tiny_models: TinyModels
) -> None:
    handle: HookedModel = tiny_models.handle("llama")
    settings = CircuitSettings(objective="backdoor", kept_weight=0)
    with pytest.raises(BadText, match=message):
        term_rows(handle, objective_terms(settings), prompts, settings)


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(BadSettings, match="leaves no circuit"):
        CircuitSettings(budget_heads=0, budget_neurons=0)
    with pytest.raises(BadSettings, match="gate"):
        CircuitSettings(gate="hard")
