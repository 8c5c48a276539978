"""First tokens of replies that tell refused prompts from answered ones, learnt from the model's own distributions.

1. Mean probability of each first token after harmful prompts and after harmless prompts.
2. Tokens that are more likely after harmful prompts are added by descending difference, as long as the set tells the
   classes better apart: more harmful prompts with more than half of their probability on it, fewer harmless ones.
3. They are shown with both probabilities; a caller may name others instead.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.errors import BadSettings, RefusalTokensMissing
from safe_sail.evaluation.utility import last_logits
from safe_sail.model.handle import NO_EDITS, HookedModel
from safe_sail.model.tokens import TokenBatch
from safe_sail.records import RefusalToken

MIN_PROBABILITY = 0.02
"""A first token seen less often than once in fifty refusals adds little to the metric and much noise to the list."""
MIN_ACCURACY = 0.75
"""Mean of the two shares of prompts that the set places rightly; a model that does not refuse stays near 0.5."""
MAX_TOKENS = 12


@torch.no_grad()
def first_token_probabilities(
    handle: HookedModel, batch: TokenBatch, batch_rows: int
) -> Float[Tensor, "batch d_vocab"]:
    """Distribution of the first reply token of each prompt, float32 on the CPU."""
    return last_logits(handle, batch, NO_EDITS, batch_rows).softmax(-1)


def learn_refusal_tokens(
    tokenizer: Any, harmful: Float[Tensor, "harmful d_vocab"], harmless: Float[Tensor, "harmless d_vocab"]
) -> tuple[RefusalToken, ...]:
    """Refusal tokens by descending difference of their mean probabilities (ties: the smaller id); of sets
    that do equally well the largest, which covers most ways to refuse.

    Raises:
        RefusalTokensMissing: no set tells the classes apart; the message shows the nearest tokens.
    """
    p, q = harmful.double().mean(0), harmless.double().mean(0)
    order = torch.argsort(p - q, descending=True, stable=True).tolist()
    usable = [token for token in order[:MAX_TOKENS] if p[token] >= MIN_PROBABILITY and p[token] > q[token]]
    accuracies = [_accuracy(harmful, harmless, usable[: n + 1]) for n in range(len(usable))]
    best = max(accuracies, default=0.0)
    if best < MIN_ACCURACY:
        nearest = ", ".join(
            f"{tokenizer.decode([token])!r} {float(p[token]):.3f} against {float(q[token]):.3f}" for token in order[:3]
        )
        raise RefusalTokensMissing(
            f"no set of first tokens tells harmful prompts from harmless ones (at best {best:.2f} of them, expected "
            f"{MIN_ACCURACY}); nearest: {nearest}. This model does not refuse, or refuses as it answers: name the "
            f"tokens yourself."
        )
    n_best = max(n for n, accuracy in enumerate(accuracies, start=1) if accuracy == best)
    return tuple(_row(tokenizer, token, p, q) for token in usable[:n_best])


def _accuracy(harmful: Tensor, harmless: Tensor, tokens: Sequence[int]) -> float:
    refused, answered = (x[:, list(tokens)].double().sum(-1) > 0.5 for x in (harmful, harmless))
    return float(refused.double().mean() + 1 - answered.double().mean()) / 2


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
