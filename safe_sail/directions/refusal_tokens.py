"""First tokens of replies that tell refused prompts from answered ones, learnt from the model's own distributions.

1. Mean probability of each first token after harmful prompts and after harmless prompts.
2. A token is a refusal token if it is likely after harmful prompts and clearly less likely after harmless ones.
3. They are shown with both probabilities; a caller may name others instead.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.directions.replies import parts_by_length, trimmed
from safe_sail.errors import BadSettings, RefusalTokensMissing
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch
from safe_sail.records import RefusalToken

MIN_PROBABILITY = 0.02
"""A first token seen less often than once in fifty refusals adds little to the metric and much noise to the list."""
MIN_RATIO = 2.0
"""Between harmful and harmless; "I" opens answers too, in every family of the paper."""
MAX_TOKENS = 12


@torch.no_grad()
def first_token_probabilities(
    handle: HookedModel, batch: TokenBatch, batch_rows: int
) -> Float[Tensor, "batch d_vocab"]:
    """Distribution of the first reply token of each prompt, float32 on the CPU."""
    batch = batch.left_padded()
    found = torch.empty(len(batch), handle.dims.d_vocab)
    for rows in parts_by_length(batch, batch_rows):
        logits = handle.logits(trimmed(batch, rows), positions="last", in_float32=True)[:, -1]
        found[rows] = logits.softmax(-1).cpu()
    return found


def learn_refusal_tokens(
    tokenizer: Any, harmful: Float[Tensor, "harmful d_vocab"], harmless: Float[Tensor, "harmless d_vocab"]
) -> tuple[RefusalToken, ...]:
    """Refusal tokens by descending difference of their mean probabilities (ties: the smaller id).

    Raises:
        RefusalTokensMissing: no token qualifies; the message shows the nearest.
    """
    p, q = harmful.double().mean(0), harmless.double().mean(0)
    order = torch.argsort(p - q, descending=True, stable=True).tolist()
    chosen = [token for token in order[:200] if p[token] >= MIN_PROBABILITY and p[token] >= MIN_RATIO * q[token]]
    if not chosen:
        nearest = ", ".join(
            f"{tokenizer.decode([token])!r} {float(p[token]):.3f} against {float(q[token]):.3f}" for token in order[:3]
        )
        raise RefusalTokensMissing(
            f"no first token is likely after harmful prompts (at least {MIN_PROBABILITY}) and at most half as likely "
            f"after harmless ones; nearest: {nearest}. This model does not refuse, or refuses as it answers: name the "
            f"tokens yourself."
        )
    return tuple(_row(tokenizer, token, p, q) for token in chosen[:MAX_TOKENS])


def named_refusal_tokens(
    tokenizer: Any,
    texts: Sequence[str],
    harmful: Float[Tensor, "harmful d_vocab"],
    harmless: Float[Tensor, "harmless d_vocab"],
) -> tuple[RefusalToken, ...]:
    """The tokens that these texts begin with, as the caller named them.

    Raises:
        BadSettings: a text has no token.
    """
    p, q = harmful.double().mean(0), harmless.double().mean(0)
    ids: list[int] = []
    for text in texts:
        row = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if not row:
            raise BadSettings(f"refusal tokens: {text!r} has no token; name the words that refusals begin with.")
        if row[0] not in ids:
            ids.append(row[0])
    return tuple(_row(tokenizer, token, p, q) for token in ids)


def _row(tokenizer: Any, token: int, p: Tensor, q: Tensor) -> RefusalToken:
    return RefusalToken(
        token_id=token, text=tokenizer.decode([token]), p_harmful=float(p[token]), p_harmless=float(q[token])
    )
