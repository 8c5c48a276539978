"""Replies of a model under an intervention, and the estimates that their labels give.

1. Generate greedily in left-padded batches of similar length.
2. A share of one intervention has Wilson's interval over prompts.
3. A mean over random interventions has Student's interval over the draws.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from safe_sail.evaluation.refusal import Rate
from safe_sail.model.edits import Edit
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch, parts_by_length, trimmed
from safe_sail.records import Estimate
from safe_sail.sites import Site

_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145)
"""0.975 quantiles of Student's t by degrees of freedom from 1; beyond the table the last, which is too wide, serves."""


def greedy_replies(
    handle: HookedModel, batch: TokenBatch, edits: Mapping[Site, Edit], *, max_new_tokens: int, batch_rows: int
) -> list[str]:
    """Greedy reply to each prompt, without special tokens."""
    batch = batch.left_padded()
    replies = [""] * len(batch)
    for rows in parts_by_length(batch, batch_rows):
        ids = handle.generate(trimmed(batch, rows), max_new_tokens, edits)
        texts = handle.tokenizer.batch_decode(ids, skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            replies[row] = text
    return replies


def share_estimate(rate: Rate) -> Estimate:
    """A share with its Wilson interval."""
    return Estimate(value=rate.share, low=min(rate.low, rate.share), high=max(rate.high, rate.share), n=rate.n)


def mean_over_draws(values: Sequence[float]) -> Estimate:
    """Mean share over random interventions with Student's interval over the draws, within 0 and 1."""
    x = torch.tensor(values, dtype=torch.float64)
    n, mean = len(values), float(x.mean())
    if n == 1:
        return Estimate(value=mean, low=0.0, high=1.0, n=1)  # one draw says nothing about the spread of draws
    half = _STUDENT[min(n - 1, len(_STUDENT)) - 1] * float(x.std()) / math.sqrt(n)
    return Estimate(value=mean, low=max(0.0, mean - half), high=min(1.0, mean + half), n=n)
