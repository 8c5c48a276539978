"""What a model replies under an intervention, judged over whole replies, beside what random interventions do.

1. Generate greedily in left-padded batches of similar length.
2. Label each whole reply: refusal, compliance, or degenerate.
3. Shares of one intervention have Wilson intervals over prompts; those of random interventions have Student's over the
   draws, whose mean is the control.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from safe_sail.evaluation.refusal import Label, Rate, judge_reply, wilson_rate
from safe_sail.model.edits import Edit
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch
from safe_sail.records import Estimate, ReplyShares
from safe_sail.sites import Site

LABELS: tuple[Label, ...] = ("refusal", "compliance", "degenerate")

_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145)
"""0.975 quantiles of Student's t by degrees of freedom from 1; beyond the table the last, which is too wide, serves."""


class Generation(NamedTuple):
    """How replies are generated and judged."""

    max_new_tokens: int
    batch_rows: int
    judge: Callable[[str], Label] = judge_reply


def trimmed(batch: TokenBatch, rows: Sequence[int]) -> TokenBatch:
    """These rows of a left-padded batch, without the columns that are padding in all of them."""
    chosen = list(rows)
    first = int(batch.token_ids.shape[1] - batch.lengths[chosen].max())
    return TokenBatch(
        batch.token_ids[chosen, first:],
        batch.attention_mask[chosen, first:],
        tuple(batch.source_ids[row] for row in chosen),
    )


def parts_by_length(batch: TokenBatch, batch_rows: int) -> list[list[int]]:
    """Rows in groups of similar length (ties: row order), so that little is padding."""
    order = sorted(range(len(batch)), key=lambda row: (int(batch.lengths[row]), row))
    return [order[first : first + batch_rows] for first in range(0, len(order), batch_rows)]


def generate_replies(
    handle: HookedModel, batch: TokenBatch, edits: Mapping[Site, Edit], generation: Generation
) -> list[str]:
    """Greedy reply to each prompt, without special tokens."""
    batch = batch.left_padded()
    replies = [""] * len(batch)
    for rows in parts_by_length(batch, generation.batch_rows):
        ids = handle.generate(trimmed(batch, rows), generation.max_new_tokens, edits)
        texts = handle.tokenizer.batch_decode(ids, skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            replies[row] = text
    return replies


def shares_of(labels: Sequence[Label], *, intervention: str, prompts: str, rank: int) -> ReplyShares:
    """Shares of labels with Wilson intervals."""
    rates = {label: _estimate(wilson_rate(list(labels).count(label), len(labels))) for label in LABELS}
    return ReplyShares(intervention=intervention, prompts=prompts, rank=rank, n_prompts=len(labels), n_draws=1, **rates)


def reply_shares(
    handle: HookedModel,
    batch: TokenBatch,
    edits: Mapping[Site, Edit],
    generation: Generation,
    *,
    intervention: str,
    prompts: str,
    rank: int,
) -> ReplyShares:
    """Shares of refusal, compliance and broken text under one intervention."""
    labels = [generation.judge(reply) for reply in generate_replies(handle, batch, edits, generation)]
    return shares_of(labels, intervention=intervention, prompts=prompts, rank=rank)


def mean_shares(draws: Sequence[ReplyShares]) -> ReplyShares:
    """Mean over random interventions of one kind, with Student's interval over the draws."""
    first = draws[0]
    means = {label: _over_draws([getattr(draw, label).value for draw in draws]) for label in LABELS}
    return ReplyShares(
        intervention=first.intervention,
        prompts=first.prompts,
        rank=first.rank,
        n_prompts=first.n_prompts,
        n_draws=len(draws),
        **means,
    )


def random_shares(
    handle: HookedModel,
    batch: TokenBatch,
    draw: Callable[[], Mapping[Site, Edit]],
    generation: Generation,
    *,
    n_draws: int,
    intervention: str,
    prompts: str,
    rank: int,
) -> ReplyShares:
    """Mean shares over random interventions; `draw` gives a new one at each call."""
    return mean_shares(
        [
            reply_shares(handle, batch, draw(), generation, intervention=intervention, prompts=prompts, rank=rank)
            for _ in range(n_draws)
        ]
    )


def _estimate(rate: Rate) -> Estimate:
    return Estimate(value=rate.share, low=min(rate.low, rate.share), high=max(rate.high, rate.share), n=rate.n)


def _over_draws(values: Sequence[float]) -> Estimate:
    x = torch.tensor(values, dtype=torch.float64)
    n, mean = len(values), float(x.mean())
    if n == 1:
        return Estimate(value=mean, low=0.0, high=1.0, n=1)  # one draw says nothing about the spread of draws
    half = _STUDENT[min(n - 1, len(_STUDENT)) - 1] * float(x.std()) / math.sqrt(n)
    return Estimate(value=mean, low=max(0.0, mean - half), high=min(1.0, mean + half), n=n)
