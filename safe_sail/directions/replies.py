"""What a model replies under an intervention, judged over whole replies, beside what random interventions do.

1. Generate greedily in left-padded batches of similar length.
2. Label each whole reply: refusal, compliance, or degenerate.
3. Shares of one intervention have Wilson intervals over prompts; those of random interventions have Student's over the
   draws, whose mean is the control.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from safe_sail.evaluation.refusal import Label, judge_reply, wilson_rate
from safe_sail.evaluation.replies import greedy_replies, mean_over_draws, share_estimate
from safe_sail.model.edits import Edit
from safe_sail.model.handle import HookedModel
from safe_sail.model.tokens import TokenBatch
from safe_sail.records import ReplyShares
from safe_sail.sites import Site

LABELS: tuple[Label, ...] = ("refusal", "compliance", "degenerate")


class Generation(NamedTuple):
    """How replies are generated and judged."""

    max_new_tokens: int
    batch_rows: int
    judge: Callable[[str], Label] = judge_reply


def generate_replies(
    handle: HookedModel, batch: TokenBatch, edits: Mapping[Site, Edit], generation: Generation
) -> list[str]:
    """Greedy reply to each prompt, without special tokens."""
    return greedy_replies(
        handle, batch, edits, max_new_tokens=generation.max_new_tokens, batch_rows=generation.batch_rows
    )


def shares_of(labels: Sequence[Label], *, intervention: str, prompts: str, rank: int) -> ReplyShares:
    """Shares of labels with Wilson intervals."""
    rates = {label: share_estimate(wilson_rate(list(labels).count(label), len(labels))) for label in LABELS}
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
    means = {label: mean_over_draws([getattr(draw, label).value for draw in draws]) for label in LABELS}
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
