"""What an intervention costs: cross-entropy on texts, KL on prompts; and the refusal metric of one forward pass.

1. The refusal metric reads the distribution of the first reply token.
2. KL compares two such distributions, prompt by prompt.
3. Cross-entropy is per predicted token, kept text by text, so that intervals are over texts.

Everything is computed from logits in float64.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from safe_sail.errors import BadSettings, BadText
from safe_sail.model.edits import Edit
from safe_sail.model.handle import NO_EDITS, HookedModel
from safe_sail.model.tokens import TokenBatch, batch_of_ids, pad_id_of, parts_by_length, trimmed
from safe_sail.sites import Site


class TextLosses(NamedTuple):
    """Cross-entropy of each text; float64."""

    nats: Float[Tensor, " texts"]
    """Sum over the text's predicted tokens."""
    n_tokens: Int[Tensor, " texts"]
    """Predicted tokens of each text, at least one."""

    @property
    def mean(self) -> float:
        """Nats per predicted token over all texts."""
        return float(self.nats.sum() / self.n_tokens.sum())


class TokenRow(NamedTuple):
    """One text as ids, and from where on its tokens are predicted."""

    ids: tuple[int, ...]
    first_predicted: int
    """Column of the first token that counts, at least 1: what stands before is given."""


@torch.no_grad()
def last_logits(
    handle: HookedModel, batch: TokenBatch, edits: Mapping[Site, Edit], batch_rows: int
) -> Float[Tensor, "batch d_vocab"]:
    """Logits of the first reply token of each prompt, float32 on the CPU."""
    batch = batch.left_padded()
    found = torch.empty(len(batch), handle.dims.d_vocab)
    for rows in parts_by_length(batch, batch_rows):
        found[rows] = handle.logits(trimmed(batch, rows), edits, positions="last", in_float32=True)[:, -1].cpu()
    return found


def refusal_metric(logits: Float[Tensor, "batch d_vocab"], refusal_ids: Sequence[int]) -> Float[Tensor, " batch"]:
    """Log odds that the first reply token is one of the refusal tokens.

    Source: Arditi et al. 2024, eq. 6-9, arXiv:2406.11717. Theirs adds 1e-8 inside both logarithms and so ends at 18.4
    on either side; this one is exact.

    Raises:
        BadSettings: there is no refusal token, or all tokens are.
    """
    chosen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    chosen[list(refusal_ids)] = True
    if not bool(chosen.any()) or bool(chosen.all()):
        raise BadSettings("refusal tokens: expected some of the vocabulary, got none or all of it.")
    wide = logits.double()
    metric: Tensor = wide[:, chosen].logsumexp(-1) - wide[:, ~chosen].logsumexp(-1)
    return metric


def kl_divergence(
    plain: Float[Tensor, "batch d_vocab"], edited: Float[Tensor, "batch d_vocab"]
) -> Float[Tensor, " batch"]:
    """KL(plain || edited) of each row in nats, exact: nothing is added inside the logarithms."""
    log_p, log_q = plain.double().log_softmax(-1), edited.double().log_softmax(-1)
    # 0 * -inf: a token that both give no probability adds nothing.
    terms = torch.where(log_p == -torch.inf, torch.zeros_like(log_p), log_p.exp() * (log_p - log_q))
    return terms.sum(-1)


def token_rows(
    tokenizer: object, prompts: Sequence[str], replies: Sequence[str], *, end_id: int | None = None
) -> list[TokenRow]:
    """Rendered prompts followed by replies; only the replies' tokens are predicted."""
    assert callable(tokenizer)
    rows = []
    for prompt, reply in zip(prompts, replies, strict=True):
        given = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        said = tokenizer(reply, add_special_tokens=False, verbose=False)["input_ids"]
        rows.append(TokenRow((*given, *said, *([] if end_id is None else [end_id])), len(given)))
    return rows


def plain_rows(tokenizer: object, texts: Sequence[str]) -> list[TokenRow]:
    """Texts with the tokenizer's own special tokens; every token but the first is predicted."""
    assert callable(tokenizer)
    return [TokenRow(tuple(tokenizer(text, verbose=False)["input_ids"]), 1) for text in texts]


@torch.no_grad()
def text_losses(
    handle: HookedModel,
    rows: Sequence[TokenRow],
    edits: Mapping[Site, Edit] = NO_EDITS,
    *,
    batch_rows: int = 32,
) -> TextLosses:
    """Cross-entropy of each text under an intervention.

    Raises:
        BadText: there is no text, or a text has no predicted token.
    """
    if not rows:
        raise BadText("cross-entropy needs at least one text, got none.")
    for index, row in enumerate(rows):
        if not 1 <= row.first_predicted < len(row.ids):
            raise BadText(f"text {index}: no token to predict from column {row.first_predicted} of {len(row.ids)}.")
    nats = torch.zeros(len(rows), dtype=torch.float64)
    counts = torch.tensor([len(row.ids) - row.first_predicted for row in rows])
    order = sorted(range(len(rows)), key=lambda index: (len(rows[index].ids), index))
    for first in range(0, len(order), batch_rows):
        chosen = order[first : first + batch_rows]
        batch = batch_of_ids(
            [rows[index].ids for index in chosen],
            pad_id=pad_id_of(handle.tokenizer),
            padding_side="right",
            max_positions=handle.dims.max_positions,
        )
        logits = handle.logits(batch, edits)[:, :-1]
        targets = batch.token_ids[:, 1:].to(logits.device)
        log_p = logits.double().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
        columns = torch.arange(1, batch.token_ids.shape[1])
        starts = torch.tensor([rows[index].first_predicted for index in chosen])
        ends = torch.tensor([len(rows[index].ids) for index in chosen])
        counted = (columns >= starts[:, None]) & (columns < ends[:, None])
        nats[chosen] = -torch.where(counted.to(log_p.device), log_p, torch.zeros_like(log_p)).sum(-1).cpu()
    return TextLosses(nats, counts)
