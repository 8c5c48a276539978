"""Circuits judged by replies to validation prompts: what a size reaches, what a member is needed for.

1. A reply is judged whole; the share that behaves as wanted with the circuit removed is what a search is after.
2. A size is judged beside random circuits of its sizes, with refusals of harmless prompts and KL on them.
3. A member's need: it stays in the model, and the replies and the objective are measured again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safe_sail.circuits.controls import random_members
from safe_sail.circuits.learn import Task, mask_loss
from safe_sail.circuits.masked import masked
from safe_sail.evaluation.bootstrap import mean_estimate, resample_weights
from safe_sail.evaluation.refusal import Label, judge_reply, wilson_rate
from safe_sail.evaluation.replies import greedy_replies, mean_over_draws, share_estimate
from safe_sail.evaluation.utility import kl_divergence, last_logits
from safe_sail.model.handle import NO_EDITS
from safe_sail.records import CircuitSize, Estimate, UnitNeed

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What the circuit is of, and how replies show that it is gone."""

    name: str
    """refusal, backdoor, ..."""
    wanted: Label
    """Label of a reply to a target prompt with the circuit removed: compliance for refusal, refusal for a backdoor."""
    judge: Callable[[str], Label] = judge_reply


class Removed(NamedTuple):
    """Replies without a circuit."""

    wanted: Estimate
    """Share of target prompts that behave as wanted."""
    harmless_refused: Estimate
    """Share of harmless prompts that are refused."""


@dataclass(frozen=True, slots=True)
class ReplyJudge:
    """Replies to validation prompts under a mask; `reply_judge` makes one."""

    task: Task
    behaviour: Behaviour
    target: Sequence[str]
    kept: Sequence[str]
    generator: torch.Generator
    plain: Float[Tensor, "kept d_vocab"]
    """Logits of the first reply token of each kept prompt, with nothing removed."""

    def labels(self, prompts: Sequence[str], members: Tensor) -> list[Label]:
        """Of the replies with these units removed."""
        task, settings = self.task, self.task.settings
        batch = task.handle.chat_batch(list(prompts), system=settings.system)
        model, edits = masked(task.handle, task.space, 1 - members, task.baseline)
        replies = greedy_replies(
            model, batch, edits, max_new_tokens=settings.max_new_tokens, batch_rows=settings.batch_rows
        )
        return [self.behaviour.judge(reply) for reply in replies]

    def wanted(self, members: Tensor, n: int | None = None) -> Estimate:
        """Share of target prompts that behave as wanted with these units removed."""
        labels = self.labels(self.target[:n], members)
        return share_estimate(wilson_rate(labels.count(self.behaviour.wanted), len(labels)))

    def removed(self, members: Tensor) -> Removed:
        """Both shares with these units removed."""
        labels = self.labels(self.kept, members)
        refused = share_estimate(wilson_rate(labels.count("refusal"), len(labels)))
        return Removed(self.wanted(members), refused)

    def size(self, members: Tensor, loss: float, judged: Removed | None = None) -> CircuitSize:
        """One point of the curve; `judged` where its replies were judged before."""
        task, settings, space = self.task, self.task.settings, self.task.space
        draws = [
            self.wanted(random_members(space, members, self.generator)).value for _ in range(min(3, settings.n_random))
        ]
        batch = task.handle.chat_batch(list(self.kept), system=settings.system)
        model, edits = masked(task.handle, space, 1 - members, task.baseline)
        edited = last_logits(model, batch, edits, settings.batch_rows)
        weights = resample_weights(len(batch), settings.n_bootstrap, self.generator)
        wanted, refused = judged or self.removed(members)
        n = {kind: int(members[space.places_of(kind)].sum()) for kind in ("heads", "neurons", "features")}
        return CircuitSize(
            n_heads=n["heads"], n_neurons=n["neurons"], n_features=n["features"], removed=wanted,
            random=mean_over_draws(draws), harmless_refused=refused,
            kl=mean_estimate(kl_divergence(self.plain, edited), weights), loss=loss,
        )  # fmt: skip


def reply_judge(
    task: Task, behaviour: Behaviour, target: Sequence[str], harmless: Sequence[str], generator: torch.Generator
) -> ReplyJudge:
    """A judge on as many prompts of each kind as the settings ask for."""
    n, settings = task.settings.n_validation, task.settings
    kept = list(harmless)[:n]
    batch = task.handle.chat_batch(kept, system=settings.system)
    plain = last_logits(task.handle, batch, NO_EDITS, settings.batch_rows)
    return ReplyJudge(task, behaviour, list(target)[:n], kept, generator, plain)


def unit_needs(members: Float[Tensor, "masks units"], judge: ReplyJudge, progress: Progress) -> tuple[UnitNeed, ...]:
    """Drop-one of each member of the first mask; none where it has more members than the settings' `max_need`."""
    task = judge.task
    places = members[0].nonzero()[:, 0].tolist()
    if len(places) > task.settings.max_need:
        return ()
    whole = mask_loss(task, members)
    needs = []
    for place in places:
        without = members.clone()
        without[0, place] = 0
        unit = task.space.unit(place)
        progress(f"without {unit}")
        needs.append(
            UnitNeed(
                unit=unit,
                removed=judge.wanted(without[0], task.settings.n_need),
                loss_increase=mask_loss(task, without) - whole,
            )
        )
    return tuple(needs)
